"""The system under test: a real broker, two generators, a learner, each behind a door of its own."""

import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asympo.chaos.broker import ChaosBroker
from asympo.chaos.evidence import Rollback
from asympo.chaos.pace import Pace, num_prompts_for
from asympo.chaos.processes import Supervised
from asympo.chaos.proxy import ClientLink
from asympo.chaos.shim import Control
from asympo.local.ports import free_port
from asympo.local.process import import_path
from asympo.testing.tiny_model import write_tiny_model

RUN = "chaos"
LEASE_SECONDS = 1.0
CLIENT_TIMEOUT_SECONDS = 3.0
"""After this long a client takes an answer for lost."""
NUM_GENERATORS, NUM_EPOCHS = 2, 2
START_SECONDS = 120.0
TRAINING, STEP = "Training run", "Step "
"""Beginnings of the learner's lines: it is about to read; it has consumed a step."""
_CADENCES = ((2, 4), (1, 2), (2, 2))
"""publish_every and save_every, by seed."""


@dataclass(eq=False, kw_only=True)
class ProxiedProcess:
    """One process with its door and, where there is a compiler, the library loaded into it."""

    process: Supervised
    link: ClientLink
    control: Control | None

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def is_serving(self) -> bool:
        """A generator that was given a lease in this life."""
        return self.process.is_alive and self.link.granted_at > self.process.life.started_at


class System:
    """Starts everything, knows where everything is, ends everything."""

    def __init__(
        self,
        *,
        directory: Path,
        seed: int,
        num_faults: int,
        broker_binary: str,
        shim: Path | None,
        compute_dtype: str,
    ) -> None:
        self.directory, self.seed, self._compute_dtype = directory, seed, compute_dtype
        self.checkpoints = directory / "checkpoints"
        self.logs = directory / "logs"
        self._shim = shim
        self.pace = Pace(num_faults=num_faults)
        self.num_prompts = num_prompts_for(num_faults) // NUM_EPOCHS
        for path in (self.logs, directory / "control", directory / "journals"):
            path.mkdir(parents=True)
        self.broker_control = self._control("broker")
        self.broker = ChaosBroker(
            binary=broker_binary,
            directory=directory / "broker",
            port=free_port(),
            run=RUN,
            log_directory=self.logs,
            environment={**client_environment(), **_preload(self.broker_control)},
        )
        self.rollbacks: list[Rollback] = []
        """What the broker took back, for the auditor."""
        self.generators: list[ProxiedProcess] = []
        self.learner: ProxiedProcess
        """The one that owns the run, or should."""
        self.spare: ProxiedProcess
        """Takes over when the learner is stopped; then they change places."""

    @property
    def clients(self) -> list[ProxiedProcess]:
        return [*self.generators, self.learner, self.spare]

    @property
    def run_directory(self) -> Path:
        return self.checkpoints / RUN

    def journal(self, generator: str) -> Path:
        """A generator's own list of acknowledged appends."""
        return self.directory / "journals" / f"{generator}.jsonl"

    async def start(self) -> None:
        """Everything, until groups are trained on. Raises TimeoutError, AsympoError."""
        write_tiny_model(self.directory / "model", seed=self.seed)
        write_prompts(self.directory / "prompts.jsonl", num_prompts=self.num_prompts, seed=self.seed)
        await self.broker.start()
        for number in range(NUM_GENERATORS):
            self.generators.append(await self._client(f"generator-{number}"))
        self.learner, self.spare = await self._client("learner-a"), await self._client("learner-b")
        for client in (*self.generators, self.learner):
            await client.process.start()
        await self.learner.process.said(STEP, timeout_seconds=START_SECONDS)

    async def generator_serving(self, preferred: int) -> ProxiedProcess:
        """The preferred generator when it serves, else one that does. Raises TimeoutError."""
        order = [self.generators[(preferred + turn) % NUM_GENERATORS] for turn in range(NUM_GENERATORS)]
        async with asyncio.timeout(START_SECONDS):
            while True:
                for client in order:
                    if client.is_serving:
                        return client
                await asyncio.sleep(0.05)

    async def learner_training(self) -> ProxiedProcess:
        """The learner, once it reads the log. Raises TimeoutError."""
        process = self.learner.process
        await process.until(
            lambda: process.is_alive and process.life.when(TRAINING) is not None,
            timeout_seconds=START_SECONDS,
        )
        return self.learner

    def unasked_exits(self) -> dict[str, list[int]]:
        """Exit codes by process of ends that no fault was meant to bring; a finished run's 0 aside."""
        found = {
            process.name: [
                life.exit_code for life in process.lives if life.exit_code and not life.is_wanted_dead
            ]
            for process in (*(client.process for client in self._all()), self.broker.process)
        }
        return {name: codes for name, codes in found.items() if codes}

    def end(self) -> None:
        """Kills everything that is left, stopped processes included; never raises."""
        for process in (*(client.process for client in self._all()), self.broker.process):
            process.kill_now()

    async def closed(self) -> None:
        """After `end`: waits until all is gone."""
        for client in self._all():
            await client.process.closed()
            await client.link.close()
        await self.broker.process.closed()

    def _all(self) -> list[ProxiedProcess]:
        return [
            *self.generators,
            *(getattr(self, name) for name in ("learner", "spare") if hasattr(self, name)),
        ]

    async def _client(self, name: str) -> ProxiedProcess:
        is_generator = name.startswith("generator")
        link = ClientLink(name=name, broker_port=self.broker.port, pace=self.pace if is_generator else None)
        await link.open()
        control = self._control(name)
        flags = self._generator_flags(name) if is_generator else self._learner_flags(name)
        command = [sys.executable, "-m", "asympo.cli", name.partition("-")[0], "--run", RUN]
        command += ["--redis-url", f"{link.url}?socket_timeout={CLIENT_TIMEOUT_SECONDS:g}"]
        command += ["--checkpoint-root", str(self.checkpoints), "--log-format", "json", "--holder", name]
        # Each as on a machine of its own: generators undo differences themselves.
        command += ["--deltas.cache", str(self.directory / "copies" / name)]
        command += ["--http-port", "0", "--grpc-port", "0", *flags]
        process = Supervised(
            name=name,
            command=command,
            log_directory=self.logs,
            environment={**client_environment(), **_preload(control)},
        )
        return ProxiedProcess(process=process, link=link, control=control)

    def _control(self, name: str) -> Control | None:
        if self._shim is None:
            return None
        return Control(library=self._shim, path=self.directory / "control" / name)

    def _learner_flags(self, name: str) -> list[str]:
        publish_every, save_every = _CADENCES[self.seed % len(_CADENCES)]
        values = {
            "model": self.directory / "model",
            "task.name": "jsonl",
            "task.path": self.directory / "prompts.jsonl",
            "task.prompt-as": "text",
            "task.scoring": "regex",
            "task.pattern": r"(\d+)\D*$",
            "task.held-out-fraction": 0,
            "sampling.max-tokens": 24,
            "num-epochs": NUM_EPOCHS,
            "group-size": 4,
            "groups-per-step": 2,
            "publish-every": publish_every,
            "save-every": save_every,
            "max-staleness": 1,
            "lease-seconds": LEASE_SECONDS,
            "max-lease-seconds": 20,
            "heartbeat-seconds": 2,
            "learning-rate": 1e-3,
            "compute-dtype": self._compute_dtype,
            "num-threads": 1,
            "publish-retry-seconds": 0.5,
            "keep-states": 3,
            "seed": self.seed,
        }
        # What it consumed is kept for the auditor and the replay.
        # An orchestrator that starts it again knows that the one before is dead.
        return [*flags_of(values), "--retain", "--take-over"]

    def _generator_flags(self, name: str) -> list[str]:
        values = {
            "append-journal": self.journal(name),
            "engine": "simulated",
            "simulated.first-accuracy": 0.5,
            "simulated.accuracy-per-step": 0,
            "simulated.seconds-per-token": 0.01,
            "max-groups-in-flight": 4,
            "slot-wait-seconds": 1,
            "policy-poll-seconds": 2,
            "presence-seconds": 2,
        }
        return [*flags_of(values), "--exit-when-run-ends"]


def flags_of(values: Mapping[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _preload(control: Control | None) -> dict[str, str]:
    return {} if control is None else control.environment


def client_environment() -> dict[str, str]:
    """What every client gets: the code that this very process runs, one thread, no network."""
    return {
        **os.environ,
        "PYTHONPATH": import_path(),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def write_prompts(path: Path, *, num_prompts: int, seed: int) -> None:
    rng = random.Random(f"prompts/{seed}")
    with path.open("w") as file:
        for number in range(num_prompts):
            first, second = rng.randint(1, 20), rng.randint(1, 20)
            row = {"prompt": f"{number}: what is {first} + {second}?", "answer": str(first + second)}
            file.write(json.dumps(row) + "\n")
