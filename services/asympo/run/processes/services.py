"""The processes of one run: built from the plan, started and stopped in order."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asympo.common.errors import AsympoError
from asympo.common.lifecycle import SUPERVISED
from asympo.local.broker import LocalBroker, find_broker_binary
from asympo.local.log_file import keep_small
from asympo.local.service import RestartPolicy, Service
from asympo.run.prepare.plan import Plan, ServicePlan
from asympo.run.processes.guard import Guard

_BROKER_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05
_ANEW_SECONDS = 30.0
"""From one start to the next of a service that took its run for ended."""


@dataclass(kw_only=True)
class Services:
    """Broker (None when it is someone else's), learner, generators, and what some runs have beside them."""

    broker: LocalBroker | None
    learner: Service
    generators: list[Service]
    evaluator: Service | None
    """None without evaluations."""
    gateway: Service | None
    """None when the run has none."""
    environment: Service | None
    """Plays the environment of a task that is one; None for other tasks."""
    broker_url: str
    description: tuple[str, ...]
    """What each process got, for the log."""
    guard: Guard | None = None
    """Looks after them when their supervisor is killed."""

    def __iter__(self) -> Iterator[Service]:
        if self.broker is not None:
            yield self.broker
        yield self.learner
        yield from self.generators
        yield from self._others

    @property
    def _others(self) -> tuple[Service, ...]:
        """Those that a run may do without."""
        return tuple(service for service in (self.gateway, self.evaluator, self.environment) if service)

    def be_guarded(self, guard: Guard, *, drain_seconds: Callable[[Service], float]) -> None:
        """From now on; called before anything is started.

        Whatever happens to supervisor and guard, the directory stays held until the last service has ended,
        and then the broker ends too.
        """
        for service in self:
            if guard.lock is not None and service is not self.broker:
                service.inherits = (guard.lock,)
            seconds = drain_seconds(service)
            service.on_started = lambda process, name=service.name, seconds=seconds: guard.watch(
                name, process, drain_seconds=seconds
            )
        if self.broker is not None and guard.lock is not None:
            self.broker.while_held = guard.lock_path
        self.guard = guard
        guard.start()

    def start_broker(self) -> None:
        if self.broker is not None:
            self.broker.start()

    def start(self) -> None:
        # The engine takes longest to load: it goes first.
        for service in (*self.generators, self.learner, *self._others):
            service.start()

    def check(self) -> list[str]:
        """Looks after all; sentences about what happened."""
        guarded = self.guard.check() if self.guard is not None else None
        notes = (guarded, *(service.check() for service in self), *self._start_anew())
        return [note for note in notes if note]

    def _start_anew(self) -> Iterator[str]:
        """Those that end with a run: one that goes on looks ended until its learner has loaded."""
        for service in filter(None, (self.evaluator, self.environment)):
            is_early = service.has_ended and service.exit_code == 0 and not self.learner.has_ended
            if is_early and service.seconds_since_start > _ANEW_SECONDS:
                service.start_anew()
                yield f"{service.name} ended before the run; started again"

    def keep_logs_small(self, *, max_bytes: int) -> None:
        for service in self:
            keep_small(service.log_path, max_bytes=max_bytes)

    def stop(
        self, *, note: Callable[[str], None], learner_seconds: float, generator_seconds: float
    ) -> list[str]:
        """Learner, then generators, then broker, each with its time; names of those that had to be killed."""
        killed = []
        for service in self._others:
            service.ask_to_stop()
        if self.learner.is_running:
            note("stopping the learner: it finishes its step, publishes, saves and commits")
        self.learner.ask_to_stop()
        if not self._stop(self.learner, learner_seconds, note):
            killed.append(self.learner.name)
        for service in self._others:
            if not service.stop(deadline_seconds=generator_seconds):
                killed.append(service.name)
        if any(service.is_running for service in self.generators):
            note("stopping the generators")
        for service in self.generators:
            service.ask_to_stop()
        for service in self.generators:
            if not self._stop(service, generator_seconds, note):
                killed.append(service.name)
        if self.broker is not None and not self.broker.stop(deadline_seconds=_BROKER_STOP_SECONDS):
            killed.append(self.broker.name)
        if self.guard is not None:
            self.guard.end()
        return killed

    def _stop(self, service: Service, seconds: float, note: Callable[[str], None]) -> bool:
        """Waits for one that was asked to. Meanwhile the broker, which may have been asked too, is kept."""
        deadline = time.monotonic() + seconds
        broker = self.broker
        while service.is_running and (left := deadline - time.monotonic()) > 0:
            try:
                text = broker.check() if broker is not None else None
            except (OSError, AsympoError) as error:
                text, broker = f"the broker cannot be started again: {error}", None
            if text:
                note(text)
            time.sleep(min(left, _POLL_SECONDS))
        return service.stop(deadline_seconds=max(0.0, deadline - time.monotonic()))

    def refuse_dead_ends(self) -> None:
        """Raises AsympoError where one has ended without whom the run cannot go on."""
        for service in self:
            if service is not self.evaluator and service.has_ended and service.exit_code != 0:
                raise _ended(service)
        if all(service.has_ended for service in self.generators):
            raise AsympoError("no generator is left, so nothing is sampled: start the run again")

    def note_progress(self, service: Service) -> None:
        """It achieved something, and so did those without whom it could not."""
        for each in filter(None, (service, self.broker)):
            each.note_progress()
        if service is self.learner:
            self.note_groups()

    def note_groups(self) -> None:
        """Groups reached the log. Of an environment's the generators append none themselves."""
        needed = (self.gateway, self.environment, *(self.generators if self.environment else ()))
        for each in filter(None, needed):
            each.note_progress()

    def kill_at_once(self) -> None:
        for service in self:
            service.kill_at_once()


def build_services(plan: Plan) -> Services:
    """The services of the plan, none of them started."""
    logs = plan.directory / "logs"
    policy = RestartPolicy(max_restarts=plan.file.run.max_restarts)
    broker, description = None, []
    if plan.is_broker_embedded:
        binary = find_broker_binary(plan.broker_directory)
        description.append(f"broker: {binary.version} ({binary.path}), every write synced to disk")
        broker = LocalBroker(
            binary=binary.path,
            directory=plan.broker_directory,
            port=plan.file.broker.port,
            extra=("--auto-aof-rewrite-min-size", str(int(plan.file.broker.rewrite_mb * 2**20))),
            log_path=logs / "broker.log",
        )
    learner = _service("learner", "learner", plan.learner, logs, policy, plan)
    # What is restarted here is known to be dead: no need to wait until its heartbeat expires.
    learner.restart_arguments = ("--take-over",)
    if plan.is_broker_embedded:
        learner.command = [*learner.command, "--take-over"]
        learner.restart_arguments = ()
    generators = [
        _service(f"generator-{number}", "generator", each, logs, policy, plan)
        for number, each in enumerate(plan.generators)
    ]
    evaluator, gateway = (
        None if planned is None else _service(name, name, planned, logs, policy, plan)
        for name, planned in (("evaluator", plan.evaluator), ("gateway", plan.gateway))
    )
    environment = Service(
        name="environment", command=list(plan.player), log_path=logs / "environment.log", policy=policy
    )
    for service, planned in zip((learner, *generators), (plan.learner, *plan.generators), strict=True):
        description.append(f"{service.name}: {planned.share}")
    return Services(
        broker=broker,
        learner=learner,
        generators=generators,
        evaluator=evaluator,
        gateway=gateway,
        environment=environment if plan.player else None,
        broker_url=plan.broker_url,
        description=tuple(description),
    )


def _ended(service: Service) -> AsympoError:
    words = service.last_words()
    error = AsympoError(f"the {service.name} cannot go on (exit code {service.exit_code}){words}")
    if service.exit_code is not None and service.exit_code > 0:
        error.exit_code = service.exit_code
    return error


def _service(
    name: str, command: str, planned: ServicePlan, logs: Path, policy: RestartPolicy, plan: Plan
) -> Service:
    return Service(
        name=name,
        command=[sys.executable, "-m", "asympo.cli", command, "--config", str(planned.settings_path)],
        log_path=logs / f"{name}.log",
        # An engine binds the threads that compute; the rest, such as reading a policy, takes what is idle.
        cores=planned.share.cores if command == "learner" else (),
        environment={**planned.share.environment, "REDIS_URL": plan.broker_url, SUPERVISED: "1"},
        policy=policy,
    )
