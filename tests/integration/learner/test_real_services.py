"""A generator process with the simulated engine and a learner process on one broker, to the end of a run."""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log import Broker, RefusalReason, Refused, RunLog, RunState
from asympo.local.broker import LocalBroker
from asympo.local.process import Process
from asympo.run.audit import effective_segments

from tests.integration.learner.process import STARTED, LearnerProcess

LEAST_FILLED_BYTES = 150_000
"""What the log holds before its broker is made too small: several times what clients make memory vary by."""


class GeneratorProcess(Process):
    """`asympo generator` that ends with its run and writes down what the broker acknowledged."""

    def __init__(self, *, url: str, run: str, root: Path, flags: tuple[str, ...] = ()) -> None:
        self.journal = root / "appends.jsonl"
        command = [
            *(sys.executable, "-m", "asympo.cli", "generator", "--run", run, "--redis-url", url),
            *("--checkpoint-root", str(root), "--engine", "simulated", "--exit-when-run-ends"),
            *("--http-port", "0", "--grpc-port", "0", "--log-format", "text"),
            *("--append-journal", str(self.journal), "--simulated.seconds-per-token", "0.0002"),
            *("--simulated.length-kind", "fixed", "--simulated.length-mean-tokens", "60", *flags),
        ]
        super().__init__(command=command, log_path=root / "generator.log")
        STARTED.append(self.start())

    @property
    def appended(self) -> Counter[str]:
        return Counter(row["group_id"] for row in read_jsonl(self.journal))


def additions(path: Path, count: int) -> tuple[str, ...]:
    """Flags of a task with so many prompts, all of them for training."""
    rows = ({"prompt": f"{n} + {n + 1} = ?", "answer": str(2 * n + 1)} for n in range(10, 10 + count))
    path.write_text("\n".join(map(json.dumps, rows)))
    return (
        *("--task.name", "jsonl", "--task.path", str(path), "--task.held-out-fraction", "0"),
        *("--task.scoring", "regex", "--task.pattern", r"\d+", "--sampling.max-tokens", "96"),
    )


def trained(learner: LearnerProcess) -> Counter[str]:
    """How often each group is in the history that made the final weights; numbers without a gap."""
    segments = effective_segments(read_jsonl(learner.root / learner.run / "trained.jsonl"))
    lasts = [0, *(row["last_sequence"] for row in segments)]
    assert [row["first_sequence"] - 1 for row in segments] == lasts[:-1]
    return Counter(group_id for row in segments for group_id in row["group_ids"])


@pytest.fixture
def own_log(own_broker: LocalBroker, run_name: str) -> Iterator[RunLog]:
    broker = Broker.connect(own_broker.url)
    yield RunLog(broker, run_name)
    broker.close()


@pytest.mark.timeout(200)
def test_run_ends_with_its_epochs_and_every_prompt_of_each_is_trained_once(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    flags = (*additions(tmp_path / "rows.jsonl", 10), "--num-epochs", "2", "--share-prefixes", "never")
    learner = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=flags)
    learner.start()
    generator = GeneratorProcess(url=broker_url, run=run_name, root=tmp_path)
    assert learner.wait() == 0, learner.log
    assert generator.wait(30) == 0, generator.log
    assert "No work for now: run_ended" in generator.log
    once = Counter(f"{epoch}-{index}" for epoch in range(2) for index in range(10))
    assert trained(learner) == generator.appended == once
    stats = run_log.stats.read()
    assert (stats.state, stats.is_exhausted, stats.open, stats.leases) == (RunState.FINISHED, True, 0, 0)
    told = run_log.leases.acquire(holder="late", policy_step=0)
    assert isinstance(told, Refused)
    assert told.reason is RefusalReason.RUN_ENDED


@pytest.mark.timeout(300)
def test_full_broker_refuses_and_commits_alone_make_room_until_the_run_ends(
    own_broker: LocalBroker, run_name: str, tmp_path: Path, tiny_model: Path, own_log: RunLog
) -> None:
    # No step of this run reaches save_every: all room comes from commits that the learner makes for it.
    flags = (
        *(*additions(tmp_path / "rows.jsonl", 80), "--num-epochs", "1", "--group-size", "16"),
        *(
            "--publish-every",
            "2",
            "--save-every",
            "1000",
            "--token-budget",
            "1024",
            "--share-prefixes",
            "never",
        ),
    )
    # A server's own statistics grow by tens of kB with each command that it has not had before, or was slow.
    own_log.broker.client.config_set("latency-tracking", "no")
    own_log.broker.client.config_set("slowlog-log-slower-than", -1)
    learner = LearnerProcess(url=own_broker.url, run=run_name, root=tmp_path, model=tiny_model, flags=flags)
    learner.start()
    # Each group in flight is appended over a connection of its own, whose buffers the broker holds, too.
    few = ("--max-groups-in-flight", "3")
    generator = GeneratorProcess(url=own_broker.url, run=run_name, root=tmp_path, flags=few)
    learner.until(lambda: learner.rows and own_log.stats.read().bytes_used > LEAST_FILLED_BYTES)
    used, held = own_log.broker.info().used_memory_bytes, own_log.stats.read().bytes_used
    own_log.broker.client.config_set("maxmemory", used - held // 2)
    # Whoever is refused waits for up to half a minute before it tries again.
    assert learner.wait(240) == 0, learner.log
    assert generator.wait(30) == 0, generator.log
    assert "is out of memory and refuses to append" in generator.log
    assert learner.count("The broker is full and nothing is left to read") >= 1
    once = Counter(f"0-{index}" for index in range(80))
    assert trained(learner) == generator.appended == once
    stats = own_log.stats.read()
    assert (stats.state, stats.trained, stats.open) == (RunState.FINISHED, 80, 0)
    # Commits before their time leave the slots of what no policy shows yet.
    assert max(row["queue_staleness_max"] for row in learner.rows) <= 1


@pytest.mark.timeout(200)
def test_prompts_without_signal_get_rarer_though_the_learner_is_killed(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    # Whatever is asked, half of the prompts is answered wrongly by everybody.
    flags = (*additions(tmp_path / "rows.jsonl", 16), "--task.order", "by-success", "--num-epochs", "5")
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    never = [json.dumps(json.loads(row) | {"answer": "never"}) for row in rows[8:]]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:8] + never))
    learner = LearnerProcess(
        url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=(*flags, "--save-every", "1")
    )
    learner.start()
    generator = GeneratorProcess(url=broker_url, run=run_name, root=tmp_path)
    learner.until(lambda: learner.count("passes over") >= 1)
    learner.end(signal.SIGKILL)
    learner.start("--take-over")
    assert learner.wait() == 0, learner.log
    assert generator.wait(30) == 0, generator.log
    found = trained(learner)
    assert found == generator.appended
    assert set(found.values()) == {1}
    asked = [sum(found[f"{epoch}-{index}"] for epoch in range(5)) for index in range(16)]
    assert sum(asked[8:]) < sum(asked[:8]), asked
    assert all(found[f"0-{index}"] for index in range(16))
    assert run_log.stats.read().state is RunState.FINISHED
