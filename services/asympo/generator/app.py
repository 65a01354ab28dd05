"""Wires one generator and runs it: start, serve, drain, stop."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.waiting import wait_for_storage
from asympo.common.clock import Clock, SystemClock
from asympo.common.control.certificate_ends import certificate_ends
from asympo.common.errors import BadSetting
from asympo.common.http_server import bind, serving
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.common.rollout_log import Broker, RunConfig, RunLog
from asympo.common.rollout_log.broker.calls import Calls, race
from asympo.common.rollout_log.broker.client import check_url
from asympo.common.rollout_log.broker.joining import join_run
from asympo.common.telemetry import MetricsEndpoint, add_certificate_ends, new_registry, set_up_logging
from asympo.common.tracing import open_tracing
from asympo.engines.base import Engine
from asympo.engines.choice import build_engine, fork_engine, import_engine
from asympo.engines.of_run import sampling_of
from asympo.generator.api import build_api
from asympo.generator.context import GeneratorContext
from asympo.generator.core import Generator, ServingParts
from asympo.generator.door import open_door
from asympo.generator.engine_life import FirstPolicy, close_engine, require_fresh_enough, watch_engine
from asympo.generator.gpu_share import GpuShare
from asympo.generator.metrics import GeneratorMetrics
from asympo.generator.presence_reporter import PresenceReporter
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.reload.reloader import Reloader
from asympo.generator.reload.turn import SwapTurns
from asympo.generator.reload.watcher import PolicyWatcher
from asympo.generator.rpc import control_server
from asympo.generator.settings import GeneratorSettings
from asympo.generator.work.group import GroupMaker, warn_of_cut_responses
from asympo.generator.work.inflight import GroupsInFlight
from asympo.generator.work.journal import AppendJournal
from asympo.generator.work.worker import Worker
from asympo.rewards.scorer import Scorer
from asympo.tasks import of_run
from asympo.tasks.base import Task, columns_of
from asympo.tasks.config import ENVIRONMENTS

log = logging.getLogger(__name__)


def main(settings: GeneratorSettings) -> int:
    """Runs a generator until it is told to stop; raises AsympoError with the exit code of what went wrong."""
    log_watch = set_up_logging(service="generator", log_format=settings.log_format, level=settings.log_level)
    # Importing an engine takes many seconds.
    check_url(settings.redis_url)
    factory = partial(build_engine, fork=fork_engine(settings))
    with StopSignal() as stop:
        process = GeneratorProcess(
            settings=settings,
            stop=stop,
            clock=SystemClock(),
            engine_factory=factory,
            log_watch=log_watch,
        )
        asyncio.run(process.run())
    return 0


class GeneratorProcess:
    """One generator from its settings to its end."""

    def __init__(
        self,
        *,
        settings: GeneratorSettings,
        stop: StopSignal,
        clock: Clock,
        engine_factory: Callable[[GeneratorSettings], Engine] = build_engine,
        log_watch: LogWatch | None = None,
    ) -> None:
        self._settings = settings
        self._engine_factory = engine_factory
        self._stop = stop
        self._clock = clock
        self.registry = new_registry(service="generator", version=version("asympo"))
        add_certificate_ends(
            self.registry,
            service="generator",
            ends=certificate_ends(
                redis_url=settings.redis_url,
                grpc_tls=settings.grpc_tls,
                object_store=settings.object_store,
            ),
        )
        self._metrics = GeneratorMetrics(self.registry)
        self._holder = settings.holder or f"{socket.gethostname()}-{os.getpid()}"
        self._tracing = open_tracing(
            settings.tracing,
            run=settings.run,
            service="generator",
            instance=self._holder,
            on_lost=self._metrics.count_spans_lost,
        )
        self.generator = Generator(
            run=settings.run,
            holder=self._holder,
            metrics=self._metrics,
            stop=stop,
            drain_seconds=settings.drain_seconds,
            warnings=(log_watch or LogWatch()).warnings,
        )
        # Every group may wait in a thread twice (scoring, append) beside the few standing waits.
        self._calls = Calls(
            max_threads=2 * settings.max_groups_in_flight + 8,
            on_broker_error=self._metrics.count_broker_error,
        )

        self.rpc = control_server(self.generator, settings=settings)
        self.http_port = 0
        """Bound port, once both servers answer."""

    async def run(self) -> None:
        """Start, serve until told to stop, drain, stop. What is opened last is closed first."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(asyncio.to_thread, self._tracing.close)
            closing.callback(self._calls.close)
            await self._start_servers(closing)
            stopping = asyncio.ensure_future(self._stop.wait_async())
            working = asyncio.ensure_future(self._work(closing))
            await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            log.info("Stopping: %s", self._stop.reason or "the work has ended")
            await self._drain(working)
            self.generator.end()
            if not working.cancelled():
                working.result()

    async def _drain(self, working: "asyncio.Task[None]") -> None:
        """Stop leasing, finish or hand back, and only then cut the reloader and the reports."""
        deadline_seconds = 0.0 if working.done() else None
        draining = asyncio.ensure_future(self.generator.drain(deadline_seconds=deadline_seconds))
        await asyncio.wait({draining, working}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            # The work ended first: the engine broke, and there are only leases to give back.
            await self.generator.drain(deadline_seconds=0.0)
        num_appended, num_handed_back = await draining
        log.info("Drained: %d groups appended, %d handed back", num_appended, num_handed_back)
        working.cancel()
        await asyncio.wait({working})

    # --- start -----------------------------------------------------------------------------------------

    async def _start_servers(self, closing: AsyncExitStack) -> None:
        """HTTP and gRPC, before anything slow: a probe must be able to ask how the start is going."""
        listener = bind(self._settings.http_host, self._settings.http_port)
        api = build_api(generator=self.generator, metrics_endpoint=MetricsEndpoint(self.registry))
        address = listener.getsockname()
        await closing.enter_async_context(serving(api, listener))
        await self.rpc.start()
        closing.push_async_callback(self.rpc.stop)
        log.info(
            "Generator %s of run %s: http on %s:%d, grpc on %s",
            *(self._holder, self._settings.run, address[0], address[1]),
            self.rpc.port or self._settings.grpc_address,
            extra={"http_port": address[1], "grpc_port": self.rpc.port},
        )
        self.http_port = int(address[1])

    async def _work(self, closing: AsyncExitStack) -> None:
        """Join, load, then lease until drained. Raises what makes going on senseless."""
        broker = await self._calls.until_answered(Broker.connect, self._settings.redis_url)
        closing.callback(broker.close)
        run_log = RunLog(broker, self._settings.run)
        presence = PresenceReporter(
            generator=self.generator,
            run_log=run_log,
            calls=self._calls,
            metrics=self._metrics,
            interval_seconds=self._settings.presence_seconds,
        )
        closing.push_async_callback(presence.say_goodbye)
        await race(presence.run(), self._join_and_serve(run_log, presence, closing))

    async def _join_and_serve(
        self, run_log: RunLog, presence: PresenceReporter, closing: AsyncExitStack
    ) -> None:
        settings = self._settings
        journal = self._open_journal(closing)
        # While the learner makes the run.
        importing = asyncio.ensure_future(self._calls.run(import_engine, settings))
        config, run_id = await join_run(run_log, self._calls, wait_seconds=settings.slot_wait_seconds)
        task_config = of_run.task_config_of(config, task_path=settings.task_path)
        task = await self._calls.run(of_run.load_same_task, config, task_config)
        scorer = await self._calls.run(
            Scorer,
            task=task_config,
            timeout_seconds=settings.reward_timeout_seconds,
            num_workers=settings.reward_workers,
            allow_python=settings.allow_python,
            columns=columns_of(task),
        )
        closing.callback(scorer.close)
        await wait_for_storage(settings.object_store, self._calls)
        store = open_policies(
            settings.checkpoint_root,
            settings.run,
            settings.object_store,
            deltas=settings.deltas,
            cached=settings.object_store.cached_policies,
        )
        watcher = self._watcher(run_log, store)
        engine, gpu = self._open_engine(config, closing)
        await importing
        first = FirstPolicy(settings, store=store, watcher=watcher, calls=self._calls, claim=presence.claim)
        policy = await first.start(engine, model=settings.model or config.model, gpu=gpu)
        of_run.check_tokenizer(config, engine.tokenizer, task)
        warn_of_cut_responses(engine, task, sampling_of(config))
        context = GeneratorContext(
            settings=settings,
            config=config,
            run_id=run_id,
            run_log=run_log,
            engine=engine,
            gpu=gpu,
            calls=self._calls,
            metrics=self._metrics,
            tracing=self._tracing,
            clock=self._clock,
            holder=self._holder,
        )
        parts = self._build_parts(
            context,
            task=task,
            scorer=scorer,
            store=store,
            watcher=watcher,
            claim=presence.claim,
            journal=journal,
        )
        self.generator.attach(parts)
        await open_door(settings.door, parts, outside=self.generator.outside, closing=closing)
        await self._serve(parts, policy, gpu)

    def _open_engine(self, config: RunConfig, closing: AsyncExitStack) -> tuple[Engine, GpuShare]:
        engine = self._engine_factory(self._settings)
        require_fresh_enough(engine, config)
        closing.push_async_callback(close_engine, engine)
        return engine, GpuShare(self._settings.gpu_lock, engine=engine)

    def _open_journal(self, closing: AsyncExitStack) -> AppendJournal | None:
        if self._settings.append_journal is None:
            return None
        journal = AppendJournal(self._settings.append_journal)
        closing.callback(journal.close)
        return journal

    # --- serve -----------------------------------------------------------------------------------------

    async def _serve(self, parts: ServingParts, policy: PolicyRef | None, gpu: GpuShare) -> None:
        """Follow policies and lease, until drained or broken."""
        await self.rpc.set_serving(True)
        if policy is not None:
            await parts.reloader.adopt(policy)
        try:
            await race(parts.reloader.run(), gpu.run(), watch_engine(parts.engine), self._lease(parts.worker))
        finally:
            await self.rpc.set_serving(False)

    async def _lease(self, worker: Worker) -> None:
        """Lease until the run ends. A drain goes on beside the reloader: held groups wait for its verdict."""
        await worker.run()
        if worker.is_draining:
            await asyncio.Event().wait()
        limit_seconds = self._settings.drain_seconds
        await asyncio.gather(
            worker.drain(deadline_seconds=limit_seconds),
            self.generator.outside.drain(deadline_seconds=limit_seconds),
        )

    def _watcher(self, run_log: RunLog, store: PolicyStore) -> PolicyWatcher:
        return PolicyWatcher(
            run_log=run_log,
            store=store,
            calls=self._calls,
            metrics=self._metrics,
            clock=self._clock,
            poll_seconds=self._settings.policy_poll_seconds,
            wait_seconds=self._settings.slot_wait_seconds,
        )

    def _build_parts(
        self,
        context: GeneratorContext,
        *,
        task: Task,
        scorer: Scorer,
        store: PolicyStore,
        watcher: PolicyWatcher,
        claim: Callable[[PolicyRef | None], Awaitable[None]],
        journal: AppendJournal | None,
    ) -> ServingParts:
        sampling = sampling_of(context.config)
        gate, groups = VerdictGate(), GroupsInFlight(metrics=context.metrics)
        reloader = Reloader(
            context=context,
            store=store,
            watcher=watcher,
            gate=gate,
            groups=groups,
            turns=SwapTurns(context),
            claim=claim,
        )
        maker = GroupMaker(
            context=context,
            sampling=sampling,
            task=task,
            scorer=scorer,
            gate=gate,
            cache_salt=lambda: reloader.cache_salt,
            journal=journal,
        )
        is_played = context.config.task.get("name") in ENVIRONMENTS
        if is_played and context.settings.door.port is None:
            raise BadSetting("the run's environment asks the policy through doors: give door.port")
        worker = Worker(
            context=context, maker=maker, reloader=reloader, gate=gate, groups=groups, leases=not is_played
        )
        return ServingParts(
            engine=context.engine,
            reloader=reloader,
            worker=worker,
            groups=groups,
            gate=gate,
            sampling=sampling,
        )
