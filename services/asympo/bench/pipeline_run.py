"""Real services on this machine for a while: broker, learner, simulated generator."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from asympo.common.errors import AsympoError, NoProgress
from asympo.common.jsonl import read_steps
from asympo.common.proxies import DIRECT_CHANNEL
from asympo.common.rollout_log import Broker, LogStats, RunLog
from asympo.run.prepare.machine import look_at_machine
from asympo.run.prepare.plan import Plan, make_plan
from asympo.run.processes.services import Services, build_services
from asympo.run.settings import take_apart
from asympo.v1 import learner_service_pb2 as messages
from asympo.v1.learner_service_pb2_grpc import LearnerServiceStub

_POLL_SECONDS = 0.02
_START_SECONDS = 180.0
_PHASE_SECONDS = 400.0
_STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the two sides have to do."""

    model: Path
    """Checkpoint that is trained."""
    group_size: int
    groups_per_step: int
    mean_tokens: float
    """Of a response, if nothing cut it off."""
    sigma: float
    """Spread of the logarithm of response lengths."""
    max_tokens: int
    max_num_seqs: int
    """Responses that the simulated engine decodes together."""
    reload_seconds: float
    token_budget: int


class PipelineRun:
    """One run; what is measured comes from its broker and from the learner's own rows."""

    def __init__(self, *, plan: Plan, services: Services) -> None:
        self._plan, self._services = plan, services
        self._broker: Broker | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The learner's rows so far."""
        return list(read_steps(self._plan.directory / "metrics.jsonl"))

    def stats(self) -> LogStats:
        """What the broker counts."""
        assert self._broker is not None
        return RunLog(self._broker, self._plan.file.run.name).stats.read()

    def start(self, *, is_paused: bool) -> None:
        """Starts all services; a paused learner publishes its first policy and trains nothing."""
        self._services.start_broker()
        self._broker = Broker.connect(self._plan.broker_url)
        self._services.start()
        if is_paused:
            self._call_learner("Pause", messages.LearnerServicePauseRequest())

    def resume_learner(self) -> None:
        self._call_learner("Resume", messages.LearnerServiceResumeRequest())

    def stop_generators(self) -> None:
        """In order: leases are handed back, appended groups stay."""
        for generator in self._services.generators:
            generator.stop(deadline_seconds=_STOP_SECONDS)

    def wait(self, until: Callable[[], bool], *, what: str, seconds: float = _PHASE_SECONDS) -> None:
        """Looks every few milliseconds; raises NoProgress, or AsympoError when a service gave up."""
        deadline = time.monotonic() + seconds
        while not until():
            for service in self._services:
                service.check()
                if service.has_ended and service.exit_code:
                    raise AsympoError(f"{service.name} ended: {service.last_words()}")
            if time.monotonic() > deadline:
                raise NoProgress(f"waited {seconds:g} s for {what}: see {self._plan.directory / 'logs'}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Everything, whatever state it is in."""
        if self._broker is not None:
            self._broker.close()
        self._services.stop(
            note=lambda text: None, learner_seconds=_STOP_SECONDS, generator_seconds=_STOP_SECONDS
        )

    def _call_learner(self, method: str, request: Any) -> None:
        with grpc.insecure_channel(
            self._plan.learner.settings.grpc_address, options=DIRECT_CHANNEL
        ) as channel:
            # The learner opens its doors before it loads anything.
            getattr(LearnerServiceStub(channel), method)(request, wait_for_ready=True, timeout=_START_SECONDS)


@contextmanager
def pipeline_run(
    load: Load,
    *,
    name: str,
    directory: Path,
    max_staleness: int,
    total_steps: int,
    seconds_per_token: float,
    is_paused: bool = False,
) -> Iterator[PipelineRun]:
    """A started run; it is stopped on the way out."""
    values = {
        "run": {
            "name": name,
            "directory": str(directory),
            "evaluate": False,
            "use_gpus": False,
            "model": str(load.model),
            "task": {"name": "addition"},
            "sampling": {"max_tokens": load.max_tokens},
        },
        "view": {"kind": "none"},
        "learner": {
            "group_size": load.group_size,
            "groups_per_step": load.groups_per_step,
            "total_steps": total_steps,
            "max_staleness": max_staleness,
            "compute_dtype": "float32",
            "token_budget": load.token_budget,
            # Weights need not move: what is measured is time.
            "learning_rate": 1e-6,
        },
        "generator": {
            "engine": "simulated",
            "max_groups_in_flight": 2 * load.groups_per_step,
            "simulated": {
                "max_num_seqs": load.max_num_seqs,
                "seconds_per_token": seconds_per_token,
                "length_mean_tokens": load.mean_tokens,
                "length_sigma": load.sigma,
                "reload_seconds": load.reload_seconds,
                # Next to no group without signal, so that every step takes the same number of groups.
                "first_accuracy": 0.5,
                "accuracy_per_step": 0.0,
            },
        },
    }
    with started_run(values, source="asympo bench pipeline", is_paused=is_paused) as run:
        yield run


@contextmanager
def started_run(values: dict[str, Any], *, source: str, is_paused: bool = False) -> Iterator[PipelineRun]:
    """A started run of a settings file's values; it is stopped on the way out."""
    plan = make_plan(take_apart(values, source=source), look_at_machine())
    run = PipelineRun(plan=plan, services=build_services(plan))
    try:
        run.start(is_paused=is_paused)
        yield run
    finally:
        run.stop()
