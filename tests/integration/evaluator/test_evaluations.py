"""Evaluations beside a real run: learner, broker and processes are real, the engine is simulated."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from asympo.cli import main
from asympo.common.checkpoints.directory import step_names
from asympo.common.errors import RunConfigMismatch
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.broker.joining import join_run
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.evaluator.loop import EvaluationLoop, EvaluatorStatus
from asympo.local.broker import broker_url as url_of_broker
from asympo.local.ports import free_port
from asympo.testing.run_process import RunProcess

from tests.integration.rollout_log.conftest import config_of

ROWS = '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+3=", "answer": "5"}\n'
SETTINGS = """
[run]
name = "tiny"
directory = "{root}/runs"
model = "{model}"
evaluate = false
keep_best = "more"
[run.sampling]
max_tokens = 6
[[run.evals]]
max_prompts = 6
[[run.evals]]
name = "more"
data = "rows.jsonl"
samples = 4
every = 2
[[run.evals.rewards]]
function = "own.py:is_a_digit"
[[run.evals.rewards]]
function = "length"
options = {{ free = 2, limit = 40, unit = "characters" }}
weight = 0.0
[learner]
http_port = {port}
group_size = 4
groups_per_step = 2
total_steps = 12
keep_policies = 2
compute_dtype = "float32"
share_prefixes = "always"
[generator]
engine = "simulated"
[evaluator]
{evaluator}
"""


def result(name: str, *, step: int, mean: float) -> EvalResult:
    estimate = Estimate(value=mean, low=mean, high=mean)
    return EvalResult(
        eval=name,
        policy_step=step,
        policy_fence=None,
        last_policy_step=step,
        prompts=1,
        samples=1,
        mean=estimate,
        pass_at={1: estimate},
    )


def shown(port: int) -> list[dict[str, Any]]:
    """Results on the learner's page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/evals", timeout=5) as reply:
        found: list[dict[str, Any]] = json.load(reply)["evals"]
    return found


def answers(port: int, query: str) -> list[dict[str, Any]]:
    """What was answered in an evaluation, on the learner's page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/samples?eval={query}", timeout=5) as reply:
        found: list[dict[str, Any]] = json.load(reply)["groups"]
    return found


def check_answers(port: int, log: RunLog) -> None:
    """The page shows what every policy answered to the same prompt."""
    group = answers(port, "more")[0]
    assert len(group["responses"]) == 4
    assert group["responses"][0]["functions"].keys() == {"is_a_digit", "length"}
    assert group["prompt"] in ("1+1=", "2+3=")
    same = answers(port, f"more&asks={group['asks']}&limit=64")
    assert {each["prompt"] for each in same} == {group["prompt"]}
    assert [each["step"] for each in same] == sorted({each["step"] for each in same}, reverse=True)
    assert {each.eval for each in log.evaluations.samples_after()[0]} == {"held-out", "more"}


@pytest.fixture(params=["", 'engine = "simulated"'], ids=["generators", "own-engine"])
def finished(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Path:
    """A run that has ended, and its evaluations with it."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "own.py").write_text(
        "def is_a_digit(response_text, **columns):\n    return float(response_text.strip().isdigit())\n"
    )
    config = tmp_path / "run.toml"
    config.write_text(
        SETTINGS.format(root=tmp_path, model=tiny_model, port=free_port(), evaluator=request.param)
    )
    run = RunProcess(config, log_path=tmp_path / "run.log").start()
    try:
        assert run.wait(170) == 0, (tmp_path / "run.log").read_text()
    finally:
        run.kill()
    return tmp_path / "runs" / "tiny"


def test_run_is_measured_to_its_last_policy_and_its_best_policy_is_kept(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (finished / "evals.jsonl").read_text().splitlines()]
    by_name = {name: [row for row in rows if row["eval"] == name] for name in ("held-out", "more")}
    for found in by_name.values():
        steps = [row["policy_step"] for row in found]
        assert steps == sorted(set(steps))
        assert found[-1]["last_policy_step"] == 12
        assert all(row["mean"][1] <= row["mean"][0] <= row["mean"][2] for row in found)
    assert {row["prompts"] for row in by_name["held-out"]} == {6}
    more = by_name["more"][-1]
    assert (more["prompts"], more["samples"], sorted(more["pass_at"])) == (2, 4, ["1", "2", "4"])
    assert sorted(more["functions"]) == ["is_a_digit", "length"]
    assert more["unscored"] == 0
    assert "Evaluations" in (finished / "report.html").read_text()
    assert (
        main(
            [
                "checkpoint",
                "best",
                "--run",
                "tiny",
                "--checkpoint-root",
                str(finished.parent),
                "--eval",
                "more",
                "--json",
            ]
        )
        == 0
    )
    best = json.loads(capsys.readouterr().out)
    own = [row for row in by_name["more"] if row["policy_step"] == row["last_policy_step"]]
    assert best["mean"] == max(row["mean"][0] for row in own)
    if "simulated" in (finished / "config" / "evaluator.toml").read_text():
        # Generators may have swapped, and theirs be deleted, before its result is known.
        assert Path(best["path"]).is_dir()


@pytest.mark.timeout(400)
def test_results_reach_page_and_trackers_and_what_is_none_is_set_aside(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Foreign values in the stream stop neither learner nor page."""
    port = free_port()
    config = tmp_path / "run.toml"
    text = SETTINGS.format(root=tmp_path, model=tiny_model, port=port, evaluator='engine = "simulated"')
    # So many policies that the learner hears of the best before it would delete it.
    text = text.replace("total_steps = 12", "total_steps = 5000").replace(
        "keep_policies = 2", "keep_policies = 30"
    )
    config.write_text(text.replace("[learner]", "[learner]\nshow_samples = true"))
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "own.py").write_text("def is_a_digit(response_text, **columns):\n    return 1.0\n")
    run = RunProcess(config, log_path=tmp_path / "run.log").start()
    try:
        directory = tmp_path / "runs" / "tiny"
        run.until(lambda: (directory / "metrics.jsonl").exists(), seconds=150, what="a step")

        # What a learner finds when it comes has been in the trackers before.
        run.until(lambda: shown(port), seconds=150, what="the first result")
        log = RunLog(Broker.connect(url_of_broker(directory / "broker", port=None)), "tiny")
        key = log.access.key("evaluations")
        for junk in (b"\xff", b"[]", b'{"eval": 1}', b"{" * 9000):
            log.broker.client.xadd(key, {"result": junk})
        log.broker.client.xadd(key, {"other": b"x"})
        log.evaluations.add(result("foreign", step=1, mean=0.5))
        best = max(step_names(directory / "policy"), key=lambda each: each.step).step
        log.evaluations.add(result("more", step=best, mean=9.0))

        run.until(lambda: "foreign" in {each["eval"] for each in shown(port)}, seconds=100, what="the result")
        run.until(
            lambda: "eval/foreign/mean@1" in (directory / "metrics.jsonl").read_text(),
            seconds=100,
            what="its row",
        )
        assert log.access.unreadable["evaluations"] == 0
        assert "foreign" in {each.eval for each in log.evaluations.after()[0]}
        assert log.access.unreadable["evaluations"] == 5

        check_answers(port, log)

        def kept() -> set[int]:
            return {each.step for each in step_names(directory / "policy")}

        run.until(lambda: max(kept()) > best + 1 and best + 1 not in kept(), seconds=100, what="pruning")
        assert best in kept(), "the best of learner.keep_best"
        [evaluator] = run.services("evaluator")
        evaluator.kill()
        num_lines = (directory / "metrics.jsonl").read_text().count("\n")
        run.until(
            lambda: (directory / "metrics.jsonl").read_text().count("\n") > num_lines + 5,
            seconds=100,
            what="steps without an evaluator",
        )
    finally:
        run.kill()


def test_a_model_is_measured_by_hand(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nmodel = "{tiny_model}"\n[run.sampling]\nmax_tokens = 6\n[generator]\nengine = "simulated"\n'
        '[[run.evals]]\nmax_prompts = 5\n[[run.evals]]\nname = "often"\nsamples = 2\nmax_prompts = 3\n'
    )
    assert main(["eval", str(tiny_model), str(config), "--json"]) == 0
    evals = json.loads(capsys.readouterr().out)["evals"]
    assert [(each["eval"], each["prompts"], each["samples"]) for each in evals] == [
        ("held-out", 5, 1),
        ("often", 3, 2),
    ]
    assert main(["eval", str(tiny_model), str(config), "--eval", "nope"]) == 2
    assert "it has held-out, often" in capsys.readouterr().err
    assert main(["eval", str(tiny_model), str(config), "--eval", "often", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "pass@2" in shown
    assert shown.count("answer: ") == 3


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.asyncio
async def test_evaluator_ends_when_its_run_was_created_anew(
    broker_url: str, run_name: str, is_named: bool
) -> None:
    log = RunLog(Broker.connect(broker_url), run_name)
    log.state.create_or_join(config_of(run_name))
    calls = Calls(max_threads=1, on_broker_error=lambda: None)
    try:
        _, joined = await join_run(log, calls, wait_seconds=1.0)
        nobody: Any = None
        loop = EvaluationLoop(
            settings=nobody, run_log=log, run_id=joined if is_named else "", store=nobody, source=nobody,
            chosen=(), progress=EvaluatorStatus(), metrics=nobody, calls=calls, writer=None,
        )  # fmt: skip
        await loop._refuse_another_run()
        log.state.delete()
        log.state.create_or_join(config_of(run_name))
        with pytest.raises(RunConfigMismatch, match="created anew since this evaluator joined it"):
            await loop.run()
    finally:
        calls.close()
        log.state.delete()
