"""Networks that are slow, deaf or cut, and replies that come twice."""

import asyncio
from typing import Any

from asympo.chaos.faults.base import (
    WINDOW_SECONDS,
    NotObserved,
    PromiseBroken,
    Stage,
    in_window_or_any_time,
    is_appended,
    release,
    window_client,
)
from asympo.chaos.proxy import Handling, Moment
from asympo.chaos.system import CLIENT_TIMEOUT_SECONDS


async def link_delay(stage: Stage) -> dict[str, Any]:
    """Every request of one process takes most of a second longer for a while."""
    client = await window_client(stage)
    link, seconds = client.link, stage.rng.uniform(0.2, 0.8)
    link.longest_delay_seconds, link.delay_seconds = 0.0, seconds
    try:
        await asyncio.sleep(3 * seconds + 0.5)
    finally:
        link.delay_seconds = 0.0
    if link.longest_delay_seconds < seconds:
        raise NotObserved(f"no request of {client.name} came while its link was slow")
    return {"process": client.name, "delayed_seconds": round(link.longest_delay_seconds, 3)}


async def link_drop(stage: Stage) -> dict[str, Any]:
    """Bytes vanish both ways while the connections look alive, until the client gives up and dials again.

    In a window the first thing to vanish is the reply of what the broker has just done.
    """
    client = await window_client(stage)
    link = client.link
    trap = await in_window_or_any_time(stage, client)
    link.num_swallowed, hung_up_before = 0, link.num_hung_up
    link.is_deaf = True
    release(trap, Handling.DISCARD)
    try:
        async with asyncio.timeout(3 * CLIENT_TIMEOUT_SECONDS + 5.0):
            while link.num_hung_up == hung_up_before:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise NotObserved(f"{client.name} did not notice that its link was dead") from None
    finally:
        link.is_deaf = False
        num_hung_up = link.num_hung_up - hung_up_before
        # What was half-open stays so in real life; here the clients are spared their next time-outs.
        link.reset()
    lost = link.num_swallowed + (trap is not None)
    if not lost:
        raise NotObserved(f"nothing of {client.name} was lost")
    return {"process": client.name, "messages_lost": lost, "hung_up": num_hung_up}


async def link_reset(stage: Stage) -> dict[str, Any]:
    """Every connection of one process is reset."""
    client = await window_client(stage)
    trap = await in_window_or_any_time(stage, client)
    num_reset, opened_before = client.link.reset(), client.link.num_opened
    release(trap, Handling.DISCARD)
    if not num_reset:
        raise NotObserved(f"{client.name} had no connection to reset")
    async with asyncio.timeout(30.0):
        while client.link.num_opened == opened_before:
            await asyncio.sleep(0.02)
    return {"process": client.name, "connections_reset": num_reset}


async def duplicate_append(stage: Stage) -> dict[str, Any]:
    """The same append reaches the broker twice: the second must find the first."""
    client = await stage.system.generator_serving(stage.rng.randrange(2))
    trap = client.link.trap(script="append", moment=Moment.AFTER, is_wanted=is_appended)
    try:
        catch = await trap.caught(WINDOW_SECONDS)
        try:
            second = await catch.connection.ask_again(catch.request)
        except OSError as error:
            raise NotObserved(f"the second append of {client.name} got no answer: {error}") from error
    finally:
        trap.release(Handling.RELAY)
    outcome = second[0] if isinstance(second, list) else second
    if outcome != b"DUPLICATE" or second[1] != catch.reply[1]:
        raise PromiseBroken(
            f"an append that reached the broker twice was answered {catch.reply!r} and then {second!r}: the "
            "second has to be a duplicate of the first"
        )
    return {"process": client.name, "sequence": second[1], "second_reply": "DUPLICATE"}
