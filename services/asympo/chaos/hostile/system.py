"""The run under attack: a real broker, an honest generator, a learner, a gateway, and every door to them."""

import asyncio
import sys
from pathlib import Path

from asympo.chaos.broker import ChaosBroker
from asympo.chaos.hostile.broker_doors import BrokerDoors
from asympo.chaos.hostile.doors import Door
from asympo.chaos.hostile.file_doors import FileDoors
from asympo.chaos.hostile.network_doors import GrpcDoor, HttpDoor
from asympo.chaos.processes import Supervised
from asympo.chaos.system import STEP, client_environment, flags_of, write_prompts
from asympo.common.rollout_log import Broker, RunLog
from asympo.local.ports import free_port
from asympo.testing.tiny_model import write_tiny_model

RUN = "hostile"
NUM_PROMPTS = 64
_START_SECONDS = 300.0
_EPOCHS = 1_000_000
SERVICES = ("learner", "generator", "gateway")
_SERVING = {"generator": "Starting the simulated engine", "gateway": "Joined run"}
"""What each says once it is at work."""


class HostileSystem:
    """Starts everything, knows where everything is, ends everything."""

    def __init__(self, *, directory: Path, seed: int, broker_binary: str) -> None:
        self.directory, self._seed = directory, seed
        self.logs, self.checkpoints = directory / "logs", directory / "checkpoints"
        self.journal = directory / "journal.jsonl"
        self.logs.mkdir(parents=True)
        self.broker = ChaosBroker(
            binary=broker_binary,
            directory=directory / "broker",
            port=free_port(),
            run=RUN,
            log_directory=self.logs,
            environment=client_environment(),
        )
        self.ports = {(name, kind): free_port() for name in SERVICES for kind in ("http", "grpc")}
        self.services = {name: self._service(name) for name in SERVICES}
        self._connection: Broker | None = None

    @property
    def learner(self) -> Supervised:
        return self.services["learner"]

    @property
    def run_directory(self) -> Path:
        return self.checkpoints / RUN

    async def start(self) -> None:
        """Everything, until the learner trains and every service can be asked.

        Raises TimeoutError, ProcessEnded.
        """
        write_tiny_model(self.directory / "model", seed=self._seed)
        write_prompts(self.directory / "prompts.jsonl", num_prompts=NUM_PROMPTS, seed=self._seed)
        await self.broker.start()
        for service in self.services.values():
            await service.start()
        for name, words in _SERVING.items():
            await self.services[name].said(words, timeout_seconds=_START_SECONDS)
        await self.learner.said(STEP, timeout_seconds=_START_SECONDS)
        self._connection = await asyncio.to_thread(Broker.connect, f"redis://127.0.0.1:{self.broker.port}/0")

    def doors(self) -> list[Door]:
        """All there are."""
        assert self._connection is not None
        files = FileDoors(run_directory=self.run_directory, scratch=self.directory)
        network = [
            HttpDoor(service=name, port=port).door
            if kind == "http"
            else GrpcDoor(service=name, port=port).door
            for (name, kind), port in self.ports.items()
        ]
        return [*BrokerDoors(RunLog(self._connection, RUN)).all, *files.all, *network]

    def end(self) -> None:
        """Kills what is left; never raises."""
        if self._connection is not None:
            self._connection.close()
        for process in (*self.services.values(), self.broker.process):
            process.kill_now()

    async def closed(self) -> None:
        """After `end`: waits until all is gone."""
        for process in (*self.services.values(), self.broker.process):
            await process.closed()

    def _service(self, name: str) -> Supervised:
        command = [sys.executable, "-m", "asympo.cli", name, "--run", RUN, "--log-format", "json"]
        command += ["--redis-url", f"redis://127.0.0.1:{self.broker.port}/0"]
        command += [
            part for kind in ("http", "grpc") for part in (f"--{kind}-port", str(self.ports[name, kind]))
        ]
        command += ["--checkpoint-root", str(self.checkpoints), *flags_of(self._values(name))]
        if name == "learner":
            command += ["--retain", "--take-over", "--show-samples"]
        return Supervised(
            name=name,
            command=command,
            log_directory=self.logs,
            environment=client_environment(),
            # A service that ends stays dead: that is what is looked for.
            final_codes=frozenset(range(-64, 256)),
        )

    def _values(self, name: str) -> dict[str, object]:
        if name == "gateway":
            return {}
        if name == "generator":
            return {
                "append-journal": self.journal,
                "engine": "simulated",
                "simulated.first-accuracy": 0.5,
                "simulated.accuracy-per-step": 0,
                "simulated.seconds-per-token": 0.005,
                "max-groups-in-flight": 4,
                "slot-wait-seconds": 1,
                "presence-seconds": 2,
            }
        return {
            "model": self.directory / "model",
            "task.name": "jsonl",
            "task.path": self.directory / "prompts.jsonl",
            "task.prompt-as": "text",
            "task.scoring": "regex",
            "task.pattern": r"(\d+)\D*$",
            "task.held-out-fraction": 0,
            "sampling.max-tokens": 24,
            "num-epochs": _EPOCHS,
            "group-size": 4,
            "groups-per-step": 4,
            "publish-every": 2,
            "save-every": 8,
            "max-staleness": 3,
            "lease-seconds": 2,
            "max-lease-seconds": 20,
            "heartbeat-seconds": 2,
            "learning-rate": 1e-4,
            "compute-dtype": "float32",
            "num-threads": 1,
            "seed": self._seed,
        }
