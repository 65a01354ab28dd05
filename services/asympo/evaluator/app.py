"""Wires one evaluator and runs it: join the run, follow its policies, measure."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.waiting import wait_for_storage
from asympo.common.http_server import bind, serving
from asympo.common.jsonl import JsonlWriter
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.common.rollout_log import Broker, RunConfig, RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.broker.client import check_url
from asympo.common.rollout_log.broker.joining import join_run
from asympo.common.telemetry import MetricsEndpoint, new_registry, set_up_logging
from asympo.engines.base import Engine
from asympo.engines.choice import build_engine, fork_engine
from asympo.engines.of_run import sampling_of
from asympo.evaluator.api import build_api
from asympo.evaluator.episodes import player_of
from asympo.evaluator.loop import EvaluationLoop, EvaluatorStatus
from asympo.evaluator.metrics import EvaluatorMetrics
from asympo.evaluator.prepare import Chosen, choose
from asympo.evaluator.settings import EvaluatorSettings
from asympo.evaluator.sources import EngineSource, FleetSource, Source
from asympo.rewards.progress import RunProgress
from asympo.tasks import of_run

log = logging.getLogger(__name__)

_MAX_THREADS = 16


def main(settings: EvaluatorSettings) -> int:
    """Runs an evaluator until it is told to stop; raises AsympoError with an exit code."""
    log_watch = set_up_logging(service="evaluator", log_format=settings.log_format, level=settings.log_level)
    # Importing an engine takes many seconds.
    check_url(settings.redis_url)
    factory = partial(build_engine, fork=fork_engine(settings))
    with StopSignal() as stop:
        process = EvaluatorProcess(settings=settings, stop=stop, engine_factory=factory, log_watch=log_watch)
        asyncio.run(process.run())
    return 0


class EvaluatorProcess:
    """One evaluator from its settings to its end."""

    def __init__(
        self,
        *,
        settings: EvaluatorSettings,
        stop: StopSignal,
        engine_factory: Callable[[EvaluatorSettings], Engine] = build_engine,
        log_watch: LogWatch | None = None,
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._engine_factory = engine_factory
        self._log_watch = log_watch or LogWatch()
        self.registry = new_registry(service="evaluator", version=version("asympo"))
        self._metrics = EvaluatorMetrics(self.registry)
        self._calls = Calls(max_threads=_MAX_THREADS, on_broker_error=self._metrics.count_broker_error)
        self._progress = EvaluatorStatus()
        self.http_port = 0
        """Bound port, once the server answers."""

    async def run(self) -> None:
        """Follow the run until told to stop. What is opened last is closed first."""
        async with AsyncExitStack() as closing:
            closing.callback(self._calls.close)
            listener = bind(self._settings.http_host, self._settings.http_port)
            self.http_port = int(listener.getsockname()[1])
            api = build_api(
                self._progress,
                run=self._settings.run,
                log_watch=self._log_watch,
                metrics_endpoint=MetricsEndpoint(self.registry),
            )
            await closing.enter_async_context(serving(api, listener))
            log.info("Evaluator of run %s: http on port %d", self._settings.run, self.http_port)
            stopping = asyncio.ensure_future(self._stop.wait_async())
            working = asyncio.ensure_future(self._work(closing))
            await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            log.info("Stopping: %s", self._stop.reason or "the work has ended")
            working.cancel()
            await asyncio.wait({working})
            if not working.cancelled():
                working.result()

    async def _work(self, closing: AsyncExitStack) -> None:
        settings = self._settings
        broker = await self._calls.until_answered(Broker.connect, settings.redis_url)
        closing.callback(broker.close)
        run_log = RunLog(broker, settings.run)
        config, run_id = await join_run(run_log, self._calls, wait_seconds=settings.slot_wait_seconds)
        # What is wrong with data or reward functions is said before an engine is loaded.
        chosen = await self._choose(run_log, config, closing)
        await wait_for_storage(settings.object_store, self._calls)
        store = open_policies(
            settings.checkpoint_root,
            settings.run,
            settings.object_store,
            deltas=settings.deltas,
            cached=settings.object_store.cached_policies,
        )
        writer = JsonlWriter(settings.results) if settings.results else None
        if writer is not None:
            closing.callback(writer.close)
        source = self._open_source(run_log, store)
        closing.push_async_callback(source.close)
        loop = EvaluationLoop(
            settings=settings,
            run_log=run_log,
            run_id=run_id,
            store=store,
            source=source,
            chosen=chosen,
            progress=self._progress,
            metrics=self._metrics,
            calls=self._calls,
            writer=writer,
        )
        await loop.run()

    async def _choose(self, run_log: RunLog, config: RunConfig, closing: AsyncExitStack) -> list[Chosen]:
        settings, found = self._settings, []
        task_of_run = of_run.task_config_of(config, task_path=settings.task_path)
        if any(each.asks_the_run for each in settings.evals):
            # What is held out here must be what is held out there.
            await self._calls.run(of_run.load_same_task, config, task_of_run)
        total = await self._calls.until_answered(run_log.state.total_steps)
        progress = RunProgress(total_steps=config.planned_steps(total), num_epochs=config.num_epochs)
        for each in settings.evals:
            chosen = await self._calls.run(
                choose,
                each,
                task_of_run=task_of_run,
                sampling_of_run=sampling_of(config),
                timeout_seconds=settings.reward_timeout_seconds,
                num_workers=settings.reward_workers,
                allow_python=settings.allow_python,
                progress=progress,
            )
            closing.callback(chosen.scorer.close)
            if chosen.task.is_environment:
                player_of(settings, chosen.task)
            found.append(chosen)
        return found

    def _open_source(self, run_log: RunLog, store: PolicyStore) -> Source:
        settings = self._settings
        if settings.engine == "generators":
            return FleetSource(
                settings.generators, run_log=run_log, store=store, calls=self._calls, doors=settings.doors
            )
        return EngineSource(
            self._engine_factory(settings),
            store=store,
            calls=self._calls,
            tool_call_parser=settings.tool_call_parser,
        )
