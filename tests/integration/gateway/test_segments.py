"""From an agent that summarises its history to a step: one response, one reward, one mean NLL."""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from asympo.cli import main
from asympo.common.rollout_log import RunLog
from asympo.learner.model.policy import load_model

from tests.integration.gateway.conftest import RunningGateway
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_sessions import ask, complete, outcome, say, start
from tests.integration.learner.process import LearnerProcess

PLAIN = ((b"user:a;assistant:", b"1;"),)
SUMMARISED = (
    (b"user:a;assistant:", b"2;", b"user:b;assistant:", b"3;"),
    (b"user:sum;assistant:", b"4;"),
    (b"user:a;assistant:2;user:c;assistant:", b"5;"),
)
"""Each what was shown and what the policy said, in turn."""


@pytest.fixture
def learner(broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path) -> Iterator[LearnerProcess]:
    flags = ("--groups-per-step", "1", "--save-every", "1", "--retain")
    learner = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=flags)
    yield learner.start()
    learner.stop(deadline_seconds=40)


def mean_nll(model: torch.nn.Module, sequences: tuple[tuple[bytes, ...], ...]) -> float:
    """Of all that was said, each sequence in a forward pass of its own."""
    found = []
    for parts in sequences:
        ids = torch.tensor([list(b"".join(parts))])
        with torch.no_grad():
            log_shares = model(input_ids=ids).logits[0].log_softmax(-1)
        is_said = [bool(number % 2) for number, part in enumerate(parts) for _ in part]
        found += [-float(log_shares[i - 1, ids[0, i]]) for i, said in enumerate(is_said) if said]
    return statistics.fmean(found)


@pytest.mark.timeout(200)
def test_agent_that_rewrites_its_history_is_trained_as_one_response(
    learner: LearnerProcess,
    log: RunLog,
    start_gateway: Callable[..., RunningGateway],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.state.wait_for_config(90)
    door = FakeDoor()
    gateway = start_gateway(doors=(door.address,))
    plain, summarising = start(gateway)
    say(plain, "a")
    say(summarising, "a", "b")
    say(summarising, "sum")
    ask(summarising, ("user", "a"), ("assistant", "2"), ("user", "c"))
    complete(gateway, plain, 0.0)
    complete(gateway, summarising, 1.0)
    assert outcome(gateway, plain) == {"outcome": "appended", "failures": []}
    door.stop()

    learner.until(lambda: learner.reached(1) and learner.get("/v1/samples")["groups"])
    (row,) = learner.rows
    model = load_model(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    assert row["nll_positive"] == pytest.approx(mean_nll(model, SUMMARISED), rel=1e-5)
    assert row["nll_negative"] == pytest.approx(mean_nll(model, PLAIN), rel=1e-5)
    assert row["tokens_trained"] == sum(len(said) for parts in (*PLAIN, *SUMMARISED) for said in parts[1::2])
    assert abs(row["loss"]) < 1e-6

    _, shown = learner.get("/v1/samples")["groups"][0]["responses"]
    assert (shown["num_segments"], shown["text"].count("[history rewritten]")) == (3, 2)
    learner.stop(deadline_seconds=40)
    flags = ["--run", log.run, "--checkpoint-root", str(tmp_path), "--redis-url", log.broker.url]
    assert main(["log", "show", *flags, "--step", "1", "--json"]) == 0
    responses = json.loads(capsys.readouterr().out)["responses"]
    assert [each["num_segments"] for each in responses] == [0, 3]
    assert main(["log", "show", *flags, "--step", "1"]) == 0
    assert capsys.readouterr().out.count("[history rewritten]") == 2
    out = tmp_path / "groups.parquet"
    assert main(["log", "export", *flags, "--out", str(out)]) == 0
    (exported,) = pq.read_table(out).to_pylist()
    assert [len(each["token_ids"]) for each in exported["responses"]] == [2, 0]
    none, segments = json.loads(exported["segments"])
    assert none == []
    assert [bytes(each["context_ids"]) for each in segments] == [b"", SUMMARISED[1][0], SUMMARISED[2][0]]
