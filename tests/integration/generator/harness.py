"""A learner's side of the log and the checkpoint tree, and a generator to run against it."""

import asyncio
import dataclasses
import json
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asympo.common.checkpoints import PolicyRef, Probe, ProbeSequence
from asympo.common.checkpoints.opening import open_policies
from asympo.common.clock import SystemClock
from asympo.common.codec import WireLimits, decode_group
from asympo.common.lifecycle import StopSignal
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import Broker, RunConfig, RunLog, RunState
from asympo.engines.simulated_answers import ByteTokenizer
from asympo.generator.app import GeneratorProcess
from asympo.generator.core import Generator
from asympo.generator.settings import GeneratorSettings
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.tokenizer_digest import tokenizer_digest

from tests.integration.generator.scripted_engine import ScriptedEngine

TOLERANCE = 0.05
LIMITS = WireLimits(vocab_size=None, max_response_tokens=4096)


class LearnerSide:
    """What a learner does to the log and the tree, without learning."""

    def __init__(
        self, *, url: str, run: str, root: Path, task_config: TaskConfig | None = None, **config: Any
    ) -> None:
        self.broker = Broker.connect(url)
        self.run_log = RunLog(self.broker, run)
        self.store = open_policies(root, run)
        self.root, self.run, self.url = root, run, url
        task_config = task_config or TaskConfig(name="addition")
        loaded = load_task(task_config)
        values: dict[str, Any] = {
            "group_size": 2,
            "groups_per_step": 4,
            "max_groups_per_step": 8,
            "max_staleness": 0,
            "num_prompts": len(loaded),
            "model": "no-such-model",
            "task": task_config.model_dump(mode="json"),
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "stop": []},
            "task_digest": loaded.digest,
            "tokenizer_digest": tokenizer_digest(ByteTokenizer()),
        }
        self.config = RunConfig(run=run, **(values | config))

    def create(self) -> "LearnerSide":
        self.run_log.state.create_or_join(self.config)
        self.fence = self.run_log.fence.take("learner", heartbeat_seconds=60.0)
        self.run_log.state.set(RunState.RUNNING, fence=self.fence)
        return self

    def publish(
        self, step: int, *, nll: float = 2.0, value: float | None = None, announce: bool = True
    ) -> PolicyRef:
        """A policy of one weight, its step unless told otherwise, whose probe reads `nll`."""
        sequence = ProbeSequence(token_ids=(1, 2, 3, 4), num_prompt_tokens=2, mean_nll=nll)
        ref = self.store.publish(
            step=step,
            fence=self.fence.number,
            fill=lambda path: write_weights(path, value=float(step) if value is None else value),
            probe=Probe(sequences=(sequence,), tolerance=TOLERANCE),
        )
        if announce:
            self.announce(ref)
        return ref

    def announce(self, ref: PolicyRef) -> None:
        self.run_log.policies.announce(self.fence, step=ref.step, digest=ref.digest)

    def groups(self, *, after_sequence: int = 0, max_count: int = 100) -> list[RolloutGroup]:
        entries = self.run_log.reader.read(
            after_sequence=after_sequence, max_count=max_count, block_seconds=0.0
        )
        return [decode_group(entry.payload, limits=LIMITS) for entry in entries]

    def free_all(self) -> None:
        """Every appended group gives its slot back, as after a training step."""
        self.run_log.commits.free(self.fence, [group.group_id for group in self.groups()])

    def close(self) -> None:
        self.run_log.state.delete()
        self.broker.close()


def write_weights(path: Path, *, value: float) -> None:
    """The smallest directory that passes as a policy: one tensor of one number."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (-len(header) % 8)
    (path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
    )
    (path / "config.json").write_text("{}")


def settings_for(learner: LearnerSide, **changes: Any) -> GeneratorSettings:
    values: dict[str, Any] = {
        "redis_url": learner.url,
        "run": learner.run,
        "checkpoint_root": learner.root,
        "holder": "generator-a",
        "engine": "simulated",
        "http_port": 0,
        "grpc_port": 0,
        "max_groups_in_flight": 2,
        "policy_poll_seconds": 0.3,
        "slot_wait_seconds": 0.3,
        "presence_seconds": 0.1,
        "drain_seconds": 5.0,
    }
    return GeneratorSettings(**(values | changes))


@dataclasses.dataclass(kw_only=True)
class Running:
    """A generator at work inside the test's event loop."""

    process: GeneratorProcess
    engine: ScriptedEngine
    stop: StopSignal
    task: "asyncio.Task[None]"

    @property
    def generator(self) -> Generator:
        return self.process.generator

    @property
    def status(self) -> dict[str, Any]:
        return self.generator.status()

    async def finish(self) -> None:
        """Stop in order; raises what the generator died of."""
        self.stop.set("test")
        await asyncio.wait_for(self.task, 60)


def start(settings: GeneratorSettings, engine: ScriptedEngine | None = None) -> Running:
    engine, stop = engine or ScriptedEngine(), StopSignal()
    process = GeneratorProcess(
        settings=settings, stop=stop, clock=SystemClock(), engine_factory=lambda _: engine
    )
    return Running(process=process, engine=engine, stop=stop, task=asyncio.create_task(process.run()))


@asynccontextmanager
async def running(settings: GeneratorSettings, engine: ScriptedEngine | None = None):  # type: ignore[no-untyped-def]
    """A generator that is stopped in order at the end, unless it ended before."""
    started = start(settings, engine)
    try:
        yield started
    finally:
        if not started.task.done():
            await started.finish()


async def until(condition: Callable[[], Any], *, timeout_seconds: float = 40.0) -> Any:
    """The first true value of `condition`; fails the test when none comes."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, "the condition never came true"
        await asyncio.sleep(0.02)
    return value
