"""Processes that die, or freeze for too long."""

import asyncio
import signal
import time
from typing import Any

from asympo.chaos.faults.base import (
    WINDOW_SECONDS,
    NotObserved,
    Stage,
    in_window_or_any_time,
    release,
    window_client,
)
from asympo.chaos.processes import Life
from asympo.chaos.proxy import Handling, Moment
from asympo.chaos.schedule import Window
from asympo.chaos.system import LEASE_SECONDS

_MAX_STOP_SECONDS = 20.0


async def kill_generator(stage: Stage) -> dict[str, Any]:
    """SIGKILL; in the window the broker has the group and the generator never hears."""
    client = await stage.system.generator_serving(stage.rng.randrange(2))
    trap = await in_window_or_any_time(stage, client)
    life = await client.process.kill()
    release(trap, Handling.DISCARD)
    return {"process": client.name, **_death(life)}


async def kill_learner(stage: Stage) -> dict[str, Any]:
    """SIGKILL; `recovery` waits for what comes after."""
    client = await stage.system.learner_training()
    trap = await in_window_or_any_time(stage, client)
    killed_at = time.monotonic()
    life = await client.process.kill()
    release(trap, Handling.DISCARD)
    return {"process": client.name, "killed_at": killed_at, **_death(life)}


async def kill_broker(stage: Stage) -> dict[str, Any]:
    """SIGKILL; in a window the reply is lost with it."""
    broker = stage.system.broker
    client = await window_client(stage)
    trap = await in_window_or_any_time(stage, client)
    life = await broker.kill()
    release(trap, Handling.DISCARD if stage.fault.window is Window.APPEND_REPLY else Handling.RELAY)
    await broker.process.until(lambda: broker.process.life is not life, timeout_seconds=10.0)
    await broker.answering()
    return {"process": "broker", "in_window_of": client.name, **_death(life)}


async def stop_past_lease(stage: Stage) -> dict[str, Any]:
    """SIGSTOP right after a lease was granted, until somebody else has its prompt; then SIGCONT."""
    system = stage.system
    client = await system.generator_serving(stage.rng.randrange(2))
    trap = client.link.trap(
        script="acquire",
        moment=Moment.AFTER,
        is_wanted=lambda request, reply: isinstance(reply, list) and reply[0] == b"GRANTED",
    )
    catch = await trap.caught(WINDOW_SECONDS)
    token = catch.request.arguments[0]
    stopped_at = time.monotonic()
    client.process.send(signal.SIGSTOP)
    trap.release(Handling.RELAY)
    try:
        await asyncio.sleep(LEASE_SECONDS)
        # Leases expire when somebody asks for work; the other generator may have none to ask for.
        while await system.broker.has_lease(token):
            if time.monotonic() - stopped_at > _MAX_STOP_SECONDS:
                raise NotObserved(f"the lease of {client.name} had not expired after {_MAX_STOP_SECONDS} s")
            await asyncio.sleep(0.1)
    finally:
        client.process.send(signal.SIGCONT)
    seconds = time.monotonic() - stopped_at
    return {"process": client.name, "stopped_seconds": round(seconds, 3), "lease_expired": True}


def _death(life: Life) -> dict[str, Any]:
    if life.exit_code != -signal.SIGKILL:
        raise NotObserved(f"the process had ended by itself with {life.exit_code}")
    return {"exit_code": life.exit_code}
