"""Wires one gateway and runs it: start, serve, stop."""

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib.metadata import version

import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from asympo.common.codec import WireLimits
from asympo.common.control.tokens import read_token
from asympo.common.errors import BrokerRefused, RunConfigMismatch
from asympo.common.http_server import HostCheck, bind, serving
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.broker.joining import join_run
from asympo.common.telemetry import MetricsEndpoint, new_registry, set_up_logging
from asympo.gateway.api import GatewayApi, build_api
from asympo.gateway.connections import GatewayConnection
from asympo.gateway.core import Gateway, JoinedParts
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.policy_text import PolicyText
from asympo.gateway.producers import Producers
from asympo.gateway.rpc import IngestRpc, control_server
from asympo.gateway.sessions import Sessions
from asympo.gateway.settings import GatewaySettings
from asympo.gateway.work import Work

log = logging.getLogger(__name__)

MAX_THREADS = 64
"""Calls of the broker at the same time, and as many that wait for a slot or a policy."""
CONFIG_WAIT_SECONDS = 2.0
RUN_CHECK_SECONDS = 5.0
"""Between two looks whether the run is still the one that was joined."""


def main(settings: GatewaySettings) -> int:
    """Runs a gateway until it is told to stop; raises AsympoError with the exit code of what went wrong."""
    set_up_logging(service="gateway", log_format=settings.log_format, level=settings.log_level)
    with StopSignal() as stop, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GatewayProcess(settings=settings, stop=stop).run())
    return 0


class GatewayProcess:
    """One gateway from its settings to its end."""

    def __init__(self, *, settings: GatewaySettings, stop: StopSignal) -> None:
        self._settings = settings
        self._stop = stop
        self._producers = Producers.read(settings.producers)
        self.registry = new_registry(service="gateway", version=version("asympo"))
        self._metrics = GatewayMetrics(self.registry, producers=self._producers.names)
        self._calls = Calls(max_threads=MAX_THREADS, on_broker_error=self._metrics.count_broker_error)
        self.gateway = Gateway(
            run=settings.run,
            metrics=self._metrics,
            calls=self._calls,
            limits=WireLimits(),
            max_queued_groups=settings.max_queued_groups,
        )
        service = IngestRpc(
            gateway=self.gateway,
            producers=self._producers,
            metrics=self._metrics,
            slot_wait_seconds=settings.slot_wait_seconds,
        )
        self._sessions = Sessions(
            gateway=self.gateway, metrics=self._metrics, session_seconds=settings.session_seconds
        )
        self.rpc = control_server(service, settings=settings, max_message_bytes=settings.max_body_bytes)
        self.http_port = 0
        """Bound port, once both servers answer."""

    async def run(self) -> None:
        """Start, serve until told to stop, stop. What is opened last is closed first."""
        async with AsyncExitStack() as closing:
            closing.callback(self._calls.close)
            joined = await closing.enter_async_context(AsyncExitStack())
            closing.push_async_callback(self.gateway.close)
            servers = await closing.enter_async_context(AsyncExitStack())
            await self._start_servers(servers)
            stopping = asyncio.ensure_future(self._stop.wait_async())
            working = asyncio.ensure_future(self._work(joined))
            await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
            try:
                if working.done():
                    working.result()
                working.cancel()
                log.info("Stopping: %s", self._stop.reason)
            finally:
                self.gateway.stop_granting()
                # One beside the other: each may take that long.
                await asyncio.gather(
                    servers.aclose(), self.rpc.stop(grace_seconds=self._settings.drain_seconds)
                )

    async def _start_servers(self, closing: AsyncExitStack) -> None:
        settings = self._settings
        listener = bind(settings.http_host, settings.http_port)
        api = GatewayApi(
            gateway=self.gateway,
            producers=self._producers,
            calls=self._calls,
            metrics=self._metrics,
            max_body_bytes=settings.max_body_bytes,
            slot_wait_seconds=settings.slot_wait_seconds,
        )
        app = build_api(api, gateway=self.gateway, metrics_endpoint=MetricsEndpoint(self.registry))
        served = self._with_sessions(app, api, closing)
        if settings.producers is None:
            # Nobody shows a token here, and a page that the browser on this machine opens has none.
            served = HostCheck(served, allowed_hosts=frozenset())
        self.http_port = int(listener.getsockname()[1])
        drain_seconds = settings.drain_seconds
        closing.push_async_callback(self.rpc.stop, grace_seconds=drain_seconds)
        await closing.enter_async_context(
            serving(served, listener, connection=GatewayConnection, drain_seconds=drain_seconds)
        )
        await self.rpc.start()
        log.info(
            "Gateway of run %s: http on %s:%d, grpc on %s, producers %s",
            *(settings.run, settings.http_host, self.http_port, self.rpc.port or settings.grpc_address),
            ", ".join(self._producers.names),
            extra={"http_port": self.http_port, "grpc_port": self.rpc.port},
        )

    def _with_sessions(self, app: FastAPI, api: GatewayApi, closing: AsyncExitStack) -> ASGIApp:
        settings = self._settings
        if not settings.doors:
            return app
        from asympo.gateway.agent_requests import AgentRequests
        from asympo.gateway.doors import Doors
        from asympo.gateway.session_api import SessionApi, add_sessions

        doors = Doors(
            settings.doors, token=read_token(settings.doors_token), timeout_seconds=settings.request_seconds
        )
        closing.callback(doors.close)
        closing.push_async_callback(self._sessions.close)
        add_sessions(app, SessionApi(api=api, sessions=self._sessions, doors=doors))
        return AgentRequests(
            app,
            sessions=self._sessions,
            doors=doors,
            model_name=settings.model_name,
            max_body_bytes=settings.max_body_bytes,
        )

    async def _work(self, closing: AsyncExitStack) -> None:
        """For ever; raises RunConfigMismatch once there is another run of that name."""
        run_id = await self._join(closing)
        await self.rpc.set_serving(True)
        run_log, joined = self.gateway.parts.run_log, self.gateway.parts.config
        while True:
            await asyncio.sleep(RUN_CHECK_SECONDS)
            try:
                # In this order: one that is lost in between is not taken for one that was created anew.
                found = await self._calls.until_answered(run_log.state.run_id)
                config = await self._calls.until_answered(run_log.state.config)
            except BrokerRefused as error:
                # Its users may be put right while we run.
                log.warning("Nobody knows whether run %s is still there: %s", joined.run, error)
                continue
            if config is not None and (config != joined or (found and run_id and found != run_id)):
                raise RunConfigMismatch(
                    f"run {joined.run!r} was deleted and created anew since this gateway joined it: "
                    "start it again"
                )
            run_id = run_id or found

    async def _join(self, closing: AsyncExitStack) -> str:
        """Wait for broker and run, however long they take; the run's id."""
        settings = self._settings
        broker = await self._calls.until_answered(Broker.connect, settings.redis_url)
        closing.callback(broker.close)
        run_log = RunLog(broker, settings.run)
        config, run_id = await join_run(run_log, self._calls, wait_seconds=CONFIG_WAIT_SECONDS)
        text = PolicyText(config=config, model=settings.model, task_path=settings.task_path)
        work = Work(
            run_log=run_log,
            run_id=run_id,
            config=config,
            calls=self._calls,
            metrics=self._metrics,
            text=text,
        )
        self.gateway.attach(JoinedParts(run_log=run_log, run_id=run_id, config=config, work=work))
        log.info("Joined run %s: %d slots", settings.run, config.capacity)
        return run_id
