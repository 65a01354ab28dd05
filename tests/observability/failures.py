"""Failures made on purpose in a small run, for the recordings that the alerts are tested on.

A recording has one sample a second. It is played back at `Failure.pace` seconds a sample, so that a minute
becomes an hour: how series begin, end, start over and relate to each other is real.
"""

import itertools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import redis
import tomli_w
from asympo.chaos.shim import Control, build_shim
from asympo.local.broker import LocalBroker, find_broker_binary
from asympo.local.ports import free_port
from asympo.local.process import Process
from asympo.v1.learner_service_pb2 import LearnerServicePauseRequest, LearnerServiceResumeRequest
from asympo.v1.learner_service_pb2_grpc import LearnerServiceStub

RUN = "r"
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One way in which a run fails, or does not."""

    make: Callable[["Scene"], None]
    """What happens, from the first sample to the last."""
    alerts: Set[str] = frozenset()
    """Exactly those that have fired by the end."""
    pace: int = 60


class Scene:
    """Broker, learner and generators of one run, one by one, with the targets that Prometheus scrapes."""

    def __init__(self, directory: Path) -> None:
        # Here: who only asks for the names of failures needs no torch.
        from asympo.testing.tiny_model import write_tiny_model

        self.root = directory
        self.model = write_tiny_model(directory / "model")
        binary, log_path = find_broker_binary().path, directory / "broker.log"
        self.broker = LocalBroker(binary=binary, directory=directory / "broker", log_path=log_path).start()
        self.targets: list[str] = []
        self.begun = time.time()
        """When the recording begins."""
        self._processes: list[Process] = []
        self._names = itertools.count()

    def _service(
        self, service: str, settings: Settings, *flags: str, environment: Mapping[str, str] | None = None
    ) -> Process:
        name = f"{service}-{next(self._names)}"
        port = free_port()
        path = self.root / f"{name}.toml"
        common = {"run": RUN, "redis_url": self.broker.url, "checkpoint_root": str(self.root / "checkpoints")}
        path.write_text(tomli_w.dumps(common | {"http_port": port, "log_format": "text"} | settings))
        command = [sys.executable, "-m", "asympo.cli", service, "--config", str(path), *flags]
        process = Process(
            command=command,
            log_path=self.root / f"{name}.log",
            environment={"OMP_NUM_THREADS": "1", "REDIS_URL": "", **(environment or {})},
        ).start()
        self._processes.append(process)
        self.targets.append(f"127.0.0.1:{port}")
        return process

    def learner(self, *flags: str, environment: Mapping[str, str] | None = None, **settings: Any) -> Process:
        """A learner whose steps take a good part of a second."""
        self.control = f"127.0.0.1:{free_port()}"
        own = {
            "model": str(self.model),
            "grpc_port": int(self.control.rpartition(":")[2]),
            "group_size": 4,
            "groups_per_step": 8,
            "save_every": 4,
            # As on a cluster, where it would be started again for ever.
            "exit_when_run_ends": False,
            "compute_dtype": "float32",
            "learning_rate": 1e-3,
            "num_threads": 1,
            "heartbeat_seconds": 1.0,
            "sampling": {"max_tokens": 64},
        }
        return self._service("learner", own | settings, *flags, environment=environment)

    def generator(self, **settings: Any) -> Process:
        """One with the simulated engine, quick enough for any learner."""
        simulated = {"seconds_per_token": 0.001, "length_mean_tokens": 20.0} | settings.pop("simulated", {})
        own = {
            "engine": "simulated",
            "grpc_port": 0,
            # Policies this close to each other cannot be told apart, and that is an alert.
            "max_consistent_reloads": 1000000,
            "simulated": simulated,
        }
        return self._service("generator", own | settings)

    def reward(self, body: str) -> Settings:
        """A task that scores by this function of the user's."""
        path = self.root / "reward.py"
        path.write_text(f"def score(response_text, **columns):\n    {body}\n")
        return {"name": "addition", "rewards": [{"function": f"{path}:score"}]}

    def pause(self, is_paused: bool) -> None:
        with grpc.insecure_channel(self.control) as channel:
            stub = LearnerServiceStub(channel)
            if is_paused:
                stub.Pause(LearnerServicePauseRequest(reason="for the recording"), timeout=30)
            else:
                stub.Resume(LearnerServiceResumeRequest(), timeout=30)

    def ask_broker(self, *words: str) -> None:
        with redis.Redis.from_url(self.broker.url) as client:
            client.execute_command(*words)

    def train(self, learner: Process) -> None:
        """The recording begins with a run that trains: its start took longer than an alert waits."""
        learner.until(self.has_stepped, seconds=200, what="a first step")
        self.begun = time.time()

    def has_stepped(self) -> bool:
        path = self.root / "checkpoints" / RUN / "metrics.jsonl"
        return path.exists() and path.stat().st_size > 0

    def goes_on(self, seconds: float) -> None:
        """So much of the recording passes."""
        time.sleep(seconds)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        self.broker.kill()


_QUICK = {"seconds_per_token": 0.0002}


def _run(scene: Scene, simulated: Settings | None = None, **settings: Any) -> tuple[Process, list[Process]]:
    """A run that has trained for twenty seconds."""
    learner = scene.learner(**settings)
    generators = [scene.generator(simulated=simulated or {}) for _ in range(2)]
    scene.train(learner)
    scene.goes_on(20)
    return learner, generators


def healthy(scene: Scene) -> None:
    """From the start of the learner; generators come up late, the run is paused and goes on."""
    learner = scene.learner(publish_every=4)
    scene.goes_on(10)
    for _ in range(2):
        scene.generator(simulated=_QUICK)
    learner.until(scene.has_stepped, seconds=200)
    scene.goes_on(20)
    scene.pause(True)
    scene.goes_on(60)
    scene.pause(False)
    scene.goes_on(80)


def run_ends(scene: Scene) -> None:
    """Its learner stays and answers."""
    learner, _ = _run(scene, simulated=_QUICK, publish_every=4, total_steps=12)
    learner.until(lambda: "The run is finished" in learner.log, seconds=200)
    scene.goes_on(60)


def broker_stops(scene: Scene) -> None:
    _run(scene)
    scene.broker.kill()
    scene.goes_on(25)
    scene.broker.start()
    scene.goes_on(10)


def broker_is_changed(scene: Scene) -> None:
    """By somebody who did not know what it is for."""
    _run(scene)
    scene.ask_broker("CONFIG", "SET", "appendfsync", "everysec")
    scene.goes_on(30)


def generators_end(scene: Scene) -> None:
    _, generators = _run(scene, simulated=_QUICK, publish_every=4)
    for generator in generators:
        generator.kill()
    scene.goes_on(65)


def generators_die(scene: Scene) -> None:
    """Again and again, with the groups they hold."""
    learner = scene.learner(lease_seconds=2.0)
    slow = {"seconds_per_token": 0.05}
    generators = [scene.generator(simulated=slow), scene.generator(simulated=slow)]
    scene.train(learner)
    for _ in range(8):
        generators[0].kill()
        generators[0].start()
        scene.goes_on(7)


def learner_ends(scene: Scene) -> None:
    learner, _ = _run(scene)
    learner.kill()
    scene.goes_on(35)


def two_learners(scene: Scene) -> None:
    """Two release each with a learner that takes the run over, started again by their orchestrators."""
    learners = [scene.learner("--take-over"), scene.learner("--take-over")]
    learners[0].until((scene.root / "checkpoints" / RUN / "metrics.jsonl").parent.exists, seconds=200)
    scene.begun = time.time()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for learner in learners:
            if not learner.is_running:
                learner.start()
        scene.goes_on(0.2)


def too_few_generators(scene: Scene) -> None:
    learner = scene.learner(max_staleness=3)
    scene.generator(max_groups_in_flight=1, simulated={"seconds_per_token": 0.02})
    scene.train(learner)
    scene.goes_on(60)


def scoring_fails(scene: Scene) -> None:
    learner = scene.learner(task=scene.reward("return 1 / (len(response_text) % 5)"))
    for _ in range(2):
        scene.generator(allow_python=True)
    scene.train(learner)
    scene.goes_on(50)


def all_earn_the_same(scene: Scene) -> None:
    scene.learner(task=scene.reward("return 1.0"))
    generator = scene.generator(allow_python=True)
    generator.until(lambda: "No work for now: no_capacity" in generator.log, seconds=200)
    scene.begun = time.time()
    scene.goes_on(30)


def responses_are_cut(scene: Scene) -> None:
    _run(scene, sampling={"max_tokens": 8})
    scene.goes_on(60)


def reloads_change_nothing(scene: Scene) -> None:
    learner = scene.learner()
    for _ in range(2):
        scene.generator(simulated={"faults": {"stale_steps": [4, 5, 6]}})
    scene.train(learner)
    scene.goes_on(45)


def disk_is_full(scene: Scene) -> None:
    library = build_shim(scene.root)
    assert library is not None, "needs a C compiler"
    control = Control(library=library, path=scene.root / "control")
    learner = scene.learner(environment=control.environment, publish_retry_seconds=0.5)
    for _ in range(2):
        scene.generator()
    scene.train(learner)
    scene.goes_on(15)
    control.fill_disk(scene.root / "checkpoints" / RUN)
    scene.goes_on(65)


def frozen_learner(scene: Scene) -> None:
    """Stopped by a debugger, or by a node that hangs: it answers nobody."""
    learner, _ = _run(scene)
    learner.send(signal.SIGSTOP)
    scene.goes_on(40)
    learner.send(signal.SIGCONT)


FAILURES = {
    "healthy": Failure(make=healthy, pace=20),
    "run ends": Failure(make=run_ends),
    "broker stops": Failure(make=broker_stops, alerts={"AsympoBrokerDown", "AsympoBrokerErrors"}),
    "broker is changed": Failure(make=broker_is_changed, alerts={"AsympoBrokerNotDurable"}),
    "generators end": Failure(make=generators_end, alerts={"AsympoNoGenerators"}),
    "generators die": Failure(make=generators_die, alerts={"AsympoLearnerStarved", "AsympoLeaseExpiries"}),
    "learner ends": Failure(make=learner_ends, alerts={"AsympoLearnerGone"}),
    "two learners": Failure(make=two_learners, alerts={"AsympoFenceFlaps"}, pace=10),
    "too few generators": Failure(make=too_few_generators, alerts={"AsympoLearnerStarved"}),
    "scoring fails": Failure(
        make=scoring_fails, alerts={"AsympoLearnerStarved", "AsympoPromptFailures", "AsympoRewardsFailing"}
    ),
    "all earn the same": Failure(make=all_earn_the_same, alerts={"AsympoLearnerStarved", "AsympoNoSignal"}),
    "responses are cut": Failure(make=responses_are_cut, alerts={"AsympoLearnerStarved", "AsympoTruncated"}),
    "reloads change nothing": Failure(
        make=reloads_change_nothing, alerts={"AsympoLearnerStarved", "AsympoProbeFailed"}
    ),
    "disk is full": Failure(
        make=disk_is_full, alerts={"AsympoLearnerStarved", "AsympoPublishFailing", "AsympoSlotsExhausted"}
    ),
    "frozen learner": Failure(make=frozen_learner, alerts={"AsympoLearnerGone"}),
}
