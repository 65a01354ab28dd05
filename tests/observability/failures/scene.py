"""A small run of real processes, in which something is made to fail."""

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

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
Fault = Literal["drifts", "fails", "hangs"]
"""Computes something else with the right weights; raises for every third prompt; gives no more answers."""
QUICK = {"seconds_per_token": 0.0002, "first_accuracy": 0.5, "accuracy_per_step": 0.0}
"""Of a simulated engine that is never the bottleneck; most groups have signal, so steps take their time."""


SceneT = TypeVar("SceneT")


@dataclass(frozen=True, kw_only=True)
class Failure(Generic[SceneT]):
    """One way in which a run fails, or does not."""

    make: Callable[[SceneT], None]
    """What happens, from the first sample to the last."""
    alerts: Set[str] = frozenset()
    """Exactly those that have fired by the end."""
    pace: int = 60


class Scene:
    """Broker, learner and generators of one run, one by one, with the targets that Prometheus scrapes."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self.use_model()
        binary, log_path = find_broker_binary().path, directory / "broker.log"
        self.broker = LocalBroker(binary=binary, directory=directory / "broker", log_path=log_path).start()
        self.storage = directory / "checkpoints"
        self.targets: list[str] = []
        self.labels = {"run": RUN}
        self.healthy_seconds = 0.0
        self.begun = time.time()
        """When the recording begins."""
        self._processes: list[Process] = []
        self._ends: list[Callable[[], None]] = []
        self._names = itertools.count()

    def use_model(self, **sizes: int) -> None:
        """The smallest there is, unless sizes are given."""
        # Here: who only asks for the names of failures needs no torch.
        from asympo.testing.tiny_model import write_tiny_model

        self.model = write_tiny_model(self.root / "model", **sizes)

    def _service(
        self,
        service: str,
        settings: Settings,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (),
        is_scraped: bool = True,
    ) -> Process:
        name = f"{service}-{next(self._names)}"
        port = free_port()
        path = self.root / f"{name}.toml"
        common = {"run": RUN, "redis_url": self.broker.url, "checkpoint_root": str(self.storage)}
        path.write_text(tomli_w.dumps(common | {"http_port": port, "log_format": "text"} | settings))
        command = [sys.executable, "-m", *(program or ("asympo.cli", service)), "--config", str(path), *flags]
        process = Process(
            command=command,
            log_path=self.root / f"{name}.log",
            environment={"OMP_NUM_THREADS": "1", "REDIS_URL": "", **(environment or {})},
        ).start()
        self._processes.append(process)
        if is_scraped:
            self.targets.append(f"127.0.0.1:{port}")
        return process

    def learner(
        self,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        is_scraped: bool = True,
        **settings: Any,
    ) -> Process:
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
        return self._service(
            "learner", own | settings, *flags, environment=environment, is_scraped=is_scraped
        )

    def generator(self, *, environment: Mapping[str, str] | None = None, **settings: Any) -> Process:
        """One with the simulated engine, quick enough for any learner."""
        return self._service("generator", self._of_generator(settings), environment=environment)

    def faulty_generator(self, fault: Fault, **settings: Any) -> Process:
        """The same; its engine has this fault from `Scene.break_engines` on."""
        return self._service(
            "generator",
            self._of_generator(settings),
            environment={"FAULT": fault, "FAULT_BEGINS": str(self.root / "broken")},
            program=("tests.observability.failures.faulty_generator",),
        )

    def break_engines(self) -> None:
        (self.root / "broken").touch()

    def _of_generator(self, settings: Settings) -> Settings:
        simulated = {"seconds_per_token": 0.001, "length_mean_tokens": 20.0} | settings.pop("simulated", {})
        own = {
            "engine": "simulated",
            "grpc_port": 0,
            # Policies this close to each other cannot be told apart, and that is an alert.
            "max_consistent_reloads": 1000000,
            "simulated": simulated,
        }
        return own | settings

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

    def ask_broker(self, *words: str) -> Any:
        with redis.Redis.from_url(self.broker.url) as client:
            return client.execute_command(*words)

    def train(self, learner: Process) -> None:
        """The recording begins with a run that trains: its start took longer than an alert waits."""
        learner.until(self.has_stepped, seconds=200, what="a first step")
        self.begun = time.time()

    @property
    def checkpoints(self) -> Path:
        """Policies and states of the run."""
        return self.storage / RUN

    def has_stepped(self) -> bool:
        path = self.checkpoints / "metrics.jsonl"
        return path.exists() and path.stat().st_size > 0

    def goes_on(self, seconds: float) -> None:
        """So much of the recording passes."""
        time.sleep(seconds)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        self.broker.kill()
        for end in self._ends:
            end()

    def ends_with(self, end: Callable[[], None]) -> None:
        """What has to happen when all processes have ended."""
        self._ends.append(end)

    def run(
        self,
        simulated: Settings | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> tuple[Process, list[Process]]:
        """A run that has trained for twenty seconds; of its learner the settings and the environment.

        Nobody waits for anybody, unless the settings say otherwise.
        """
        learner = self.learner(environment=environment, **{"publish_every": 4} | settings)
        generators = [self.generator(simulated=QUICK if simulated is None else simulated) for _ in range(2)]
        self.train(learner)
        self.goes_on(20)
        return learner, generators

    def shim(self, name: str) -> Control:
        """For the environment of a process whose disk is to fill up or to hang."""
        library = build_shim(self.root)
        assert library is not None, "needs a C compiler"
        return Control(library=library, path=self.root / name)
