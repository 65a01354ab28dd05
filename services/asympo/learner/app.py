"""Wires one learner and runs it: start, train, drain, stop."""

import logging
import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from asympo import __version__
from asympo.common.archive import open_archive
from asympo.common.checkpoints.opening import open_policies
from asympo.common.clock import Clock, SystemClock
from asympo.common.control.certificate_ends import certificate_ends
from asympo.common.errors import (
    AsympoError,
    BadSetting,
    BrokerUnavailable,
    Fenced,
    NoProgress,
    RunEnded,
    RunHasLearner,
)
from asympo.common.jsonl import read_steps
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.common.rollout_log import Broker, CommitRecord, Fence, KnownRun, RunConfig, RunLog, RunState
from asympo.common.telemetry import MetricsEndpoint, add_certificate_ends, new_registry, set_up_logging
from asympo.common.tracing import open_tracing
from asympo.learner.context import LearnerContext
from asympo.learner.control import BrokerView, LearnerControl, LearnerState
from asympo.learner.deadline import DrainDeadline
from asympo.learner.gpu_turn import GpuTurn
from asympo.learner.log.create_run import create_run
from asympo.learner.log.heartbeat import Heartbeat
from asympo.learner.log.host import HostWatch
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.record.trained_log import recorded_fence
from asympo.learner.servers.grpc import RpcServer
from asympo.learner.servers.http import HttpServer, build_api
from asympo.learner.settings import LearnerSettings
from asympo.learner.torchrun import Launch
from asympo.local.heap import large_imports
from asympo.tasks.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from asympo.learner.build import OwnedRun
    from asympo.learner.ranks import Ranks
    from asympo.learner.trainer import Trainer

log = logging.getLogger(__name__)

_BROKER_RETRY_SECONDS = 2.0
_LATE_RESULTS_SECONDS = 2.0
"""How often a learner that stays up looks whether evaluations have found something."""


def main(settings: LearnerSettings) -> int:
    """Runs a learner until its run is finished or it is told to stop; raises AsympoError otherwise."""
    log_watch = set_up_logging(service="learner", log_format=settings.log_format, level=settings.log_level)
    launch = Launch.from_environment(os.environ)
    launch.check_storage(settings.object_store)
    if settings.gpu_lock is not None and not launch.is_alone:
        raise BadSetting("gpu_lock is for a learner of one process: leave it out under torchrun")
    with StopSignal() as stop, ExitStack() as closing:
        ranks = None if launch.is_alone else _meet(settings, launch, closing)
        if ranks is not None and not ranks.is_first:
            from asympo.learner.rank_worker import RankWorker

            # The first rank hears the signals for all.
            RankWorker(settings=settings, ranks=ranks).run()
            return 0
        LearnerProcess(
            settings=settings,
            stop=stop,
            clock=SystemClock(),
            launch=launch,
            ranks=ranks,
            log_watch=log_watch,
        ).run(closing)
    return 0


def _meet(settings: LearnerSettings, launch: Launch, closing: ExitStack) -> "Ranks":
    """All ranks of this learner; the first one sends the others home when it leaves in good order."""
    from asympo.learner.device import choose_device
    from asympo.learner.ranks import Ranks

    ranks = Ranks.join(launch, device_type=choose_device(settings.device))

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        is_ours = kind is None or issubclass(kind, AsympoError)
        if ranks.is_first and ranks.are_listening and is_ours:
            # Those that have ended already cannot be told.
            with suppress(RuntimeError):
                ranks.tell({"do": "stop"})
        elif kind is not None:
            # In the middle of something: the others fail as soon as this process is gone.
            return
        ranks.close()

    closing.push(leave)
    return ranks


class LearnerProcess:
    """One learner from its settings to its end."""

    def __init__(
        self,
        *,
        settings: LearnerSettings,
        stop: StopSignal,
        clock: Clock,
        launch: Launch,
        ranks: "Ranks | None",
        log_watch: LogWatch,
    ) -> None:
        self._settings = settings
        self._launch = launch
        self._stop = stop
        self._clock = clock
        self._registry = new_registry(service="learner", version=__version__)
        self._holder = settings.holder or f"{socket.gethostname()}-{os.getpid()}"
        add_certificate_ends(
            self._registry,
            service="learner",
            ends=certificate_ends(
                redis_url=settings.redis_url,
                grpc_tls=settings.grpc_tls,
                object_store=settings.object_store,
            ),
        )
        metrics = LearnerMetrics(self._registry)
        metrics.ends_after(settings.total_steps)
        self._context = LearnerContext(
            settings=settings,
            control=LearnerControl(settings=settings, stop=stop, clock=clock, warnings=log_watch.warnings),
            metrics=metrics,
            tracing=open_tracing(
                settings.tracing,
                run=settings.run,
                service="learner",
                instance=self._holder,
                on_lost=metrics.spans_lost,
            ),
            stop=stop,
            clock=clock,
            ranks=ranks,
            gpu=GpuTurn(settings.gpu_lock, clock=clock),
        )
        self._control = self._context.control
        self._progress = self._context.progress
        self._failure: Exception | None = None
        self._heartbeat: Heartbeat | None = None

    def run(self, closing: ExitStack) -> None:
        """Start, train, drain. What is opened last is closed first."""
        self._limit_drain(closing)
        closing.callback(self._context.tracing.close)
        # Before anything that may wait: who asks how the start is going gets an answer.
        rpc = self._start_servers(closing)
        broker = self._connect()
        if broker is None:
            return
        closing.callback(broker.close)
        run_log = RunLog(broker, self._settings.run)
        heartbeat = self._heartbeat = Heartbeat(
            run_log=run_log,
            learner=self._control,
            metrics=self._context.metrics,
            clock=self._clock,
            on_lost=self._on_lost,
        )
        host = HostWatch(broker=broker, storage=self._settings.run_directory, metrics=self._context.metrics)
        closing.callback(host.stop)
        host.start()
        # Early, because the generators wait for the run. Loading it imports torch as well.
        with large_imports():
            tokenizer = load_tokenizer(self._settings.model)
        config = create_run(self._settings, run_log, tokenizer, known=self._known_run)
        is_over = self._is_over(run_log)
        closing.callback(heartbeat.release)
        heartbeat.start()
        closing.callback(self._control.enter, LearnerState.STOPPED)
        trainer = None if is_over else self._train(run_log, config, tokenizer, rpc, closing)
        self._stay_when_finished(trainer)

    def _limit_drain(self, closing: ExitStack) -> None:
        """First of all, so that its limit covers the closing of everything else."""
        deadline = DrainDeadline(
            stop=self._stop,
            seconds=self._settings.drain_seconds,
            exit_code=lambda: getattr(self._failure or NoProgress, "exit_code", 1),
            standing=lambda: (
                f"{self._control.state} at step {self._progress.step}, committed up to entry "
                f"{self._progress.committed_sequence}"
            ),
        )
        closing.callback(deadline.close)
        deadline.start()

    def _connect(self) -> Broker | None:
        """The broker, however long it takes to come up; None when told to stop before."""
        while not self._stop.is_set:
            try:
                broker = Broker.connect(self._settings.redis_url)
                # Its heartbeat loads them again after a restart of the broker.
                broker.load_scripts()
                info = broker.info()
            except BrokerUnavailable as error:
                log.warning("Waiting for the broker: %s", error)
                self._context.metrics.broker_lost()
                self._stop.wait(_BROKER_RETRY_SECONDS)
                continue
            for warning in info.warnings:
                log.warning("Broker: %s", warning)
            self._control.broker = BrokerView(
                server=info.server, version=info.version, warnings=tuple(info.warnings)
            )
            return broker
        return None

    def _start_servers(self, closing: ExitStack) -> RpcServer:
        settings = self._settings
        api = build_api(
            learner=self._control,
            why_not_alive=lambda: self._heartbeat.not_alive_reason if self._heartbeat else "",
            metrics_endpoint=MetricsEndpoint(self._registry),
            allowed_hosts=settings.allowed_hosts,
        )
        http = HttpServer(api=api, host=settings.http_host, port=settings.http_port)
        closing.callback(http.stop)
        http.start()
        rpc = RpcServer(learner=self._control, settings=settings)
        rpc.start()
        closing.callback(rpc.stop)
        log.info(
            "Learner %s of run %s: http on %s:%d, grpc on %s",
            *(self._holder, settings.run, settings.http_host, http.port, rpc.port or settings.grpc_address),
            extra={"http_port": http.port, "grpc_port": rpc.port},
        )
        return rpc

    def _is_over(self, run_log: RunLog) -> bool:
        """Whether there is nothing left to train. Raises RunEnded unless the learner is to stay."""
        state, commit = run_log.state.get(), run_log.commits.last()
        step, total = commit.step if commit else 0, self._settings.total_steps
        if state is not RunState.FINISHED or (total is not None and commit is not None and step < total):
            return False
        if self._settings.exit_when_run_ends:
            raise RunEnded(
                f"run {run_log.run!r} finished at step {step}: give more total_steps, or another run name"
            )
        self._show_history(step)
        return True

    def _show_history(self, step: int) -> None:
        self._progress.step = step
        rows = read_steps(self._settings.run_directory / "metrics.jsonl")
        rows = [row for row in rows if row["step"] <= step]
        for row in rows:
            self._control.add_row(row)
        self._context.metrics.resumed(step=step, row=rows[-1] if rows else None)

    def _stay_when_finished(self, trainer: "Trainer | None") -> None:
        """Stays up when told to, so that nobody needs to restart it; raises what ended the heartbeat."""
        if self._settings.exit_when_run_ends or self._stop.is_set:
            return
        self._control.enter(LearnerState.FINISHED)
        log.info("Staying up until told to stop; to continue the run, start it with more total_steps")
        is_over = False
        while not is_over:
            is_over = self._stop.wait(_LATE_RESULTS_SECONDS)
            if trainer is not None:
                trainer.look_after_the_end()
        if self._failure is not None:
            raise self._failure

    def _train(
        self, run_log: RunLog, config: RunConfig, tokenizer: Any, rpc: RpcServer, closing: ExitStack
    ) -> "Trainer":
        with large_imports():
            from asympo.learner.build import build_trainer

        log.info("Libraries are loaded")
        run = self._take_run(run_log, config, tokenizer)
        gpu = self._context.gpu
        while not gpu.take(within_seconds=_BROKER_RETRY_SECONDS):
            if self._stop.is_set:
                raise self._failure or NoProgress("told to stop before generators on its GPU were asleep")
        try:
            trainer = build_trainer(context=self._context, run=run, closing=closing)
        finally:
            gpu.give_back(is_measured=False)  # engines may start only now
        log.info("Model and training state are loaded")
        trainer.start()
        rpc.set_serving(True)
        log.info(
            "Training run %s from step %d, fence %d",
            *(self._settings.run, self._progress.step, self._progress.fence),
        )
        trainer.run(
            lost=lambda: self._failure,
            on_failure=lambda error: self._fail(error, f"training ended: {error!r}"),
        )
        return trainer

    def _take_run(self, run_log: RunLog, config: RunConfig, tokenizer: Any) -> "OwnedRun":
        """Takes the fence, finds the state to go on from, and makes the broker agree with it."""
        from asympo.learner.build import OwnedRun
        from asympo.learner.log.session import LogSession
        from asympo.learner.state.open import open_states, wait_for_storage
        from asympo.learner.state.saver import find_state, order_of, trained_ids_of

        settings, ranks = self._settings, self._context.ranks
        wait_for_storage(settings.object_store, stop=self._stop)
        states = open_states(
            settings.checkpoint_root,
            settings.run,
            settings.object_store,
            process_group=None if ranks is None else ranks.group,
        )
        policies = open_policies(
            settings.checkpoint_root,
            settings.run,
            settings.object_store,
            deltas=settings.deltas,
            cached=settings.keep_policies,
        )
        stores = (states, policies, open_archive(settings.run_directory, settings.object_store))
        fences = [recorded_fence(settings.run_directory), *(store.highest_fence() or 0 for store in stores)]
        fence = self._take_fence(run_log, at_least=max(fences))
        # Proving the newest state reads all of it, which may take longer than a heartbeat.
        assert self._heartbeat is not None
        self._heartbeat.beat_for(lambda: fence)
        # Before looking for a state: from here on none of an older fence appears any more.
        states.take_over(fence.number)
        policies.take_over(fence.number)
        found = find_state(states, commit=run_log.commits.last())
        state = found[1] if found else None
        session = LogSession(
            run_log=run_log,
            fence=fence,
            stop=self._stop,
            clock=self._clock,
            trained=trained_ids_of(state, num_prompts=config.num_prompts),
            progress=self._progress,
            order=order_of(state, config),
        )
        self._heartbeat.beat_for(lambda: session.fence, heard=session.heard)
        if found is not None:
            session.resume_from(
                CommitRecord(
                    sequence=found[1].sequence, state_name=found[0], step=found[1].step, fence=found[1].fence
                )
            )
        session.reconcile()
        self._show_history(self._progress.step)
        return OwnedRun(
            config=config,
            tokenizer=tokenizer,
            session=session,
            states=states,
            policies=policies,
            found=found,
        )

    def _known_run(self) -> KnownRun:
        from asympo.learner.state.open import known_run

        settings = self._settings
        return known_run(settings.checkpoint_root, settings.run, settings.object_store, stop=self._stop)

    def _take_fence(self, run_log: RunLog, *, at_least: int) -> Fence:
        """Ownership; restarted ranks wait for the heartbeat of their predecessors to expire."""
        settings = self._settings
        patience = settings.heartbeat_seconds + _BROKER_RETRY_SECONDS if self._launch.num_restarts else 0.0
        deadline = self._clock.monotonic_seconds() + patience
        while True:
            try:
                return run_log.fence.take(
                    self._holder,
                    take_over=settings.take_over,
                    heartbeat_seconds=settings.heartbeat_seconds,
                    at_least=at_least,
                    total_steps=settings.total_steps,
                )
            except RunHasLearner as error:
                if self._stop.is_set or self._clock.monotonic_seconds() >= deadline:
                    raise
                log.info("Waiting: %s", error)
                self._stop.wait(_BROKER_RETRY_SECONDS / 4)

    def _on_lost(self, error: Exception) -> None:
        is_fenced = isinstance(error, Fenced)
        self._fail(error, "another learner owns the run" if is_fenced else f"the heartbeat ended: {error!r}")

    def _fail(self, error: Exception, reason: str) -> None:
        self._failure = error
        self._stop.set(reason)
