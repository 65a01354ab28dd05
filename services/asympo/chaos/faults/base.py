"""What all faults share: where they are injected, and what counts as observed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from asympo.chaos.proxy import Catch, ClientLink, Handling, Moment, Trap
from asympo.chaos.resp import Request
from asympo.chaos.schedule import Fault, Window
from asympo.chaos.system import ProxiedProcess, System

WINDOW_SECONDS = 60.0
"""How long a window may take to come: a learner may have to start first."""


class NotObserved(Exception):
    """The fault had no effect that could be seen; it does not count and is tried again."""


class PromiseBroken(Exception):
    """The system did what it promised never to do. Ends the run."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a fault works with."""

    system: System
    fault: Fault
    rng: random.Random


Inject = Callable[[Stage], Awaitable[dict[str, Any]]]
"""Puts one fault and returns what was seen of it. Raises NotObserved, PromiseBroken, TimeoutError."""


def is_appended(request: Request, reply: Any) -> bool:
    """The broker has taken a group."""
    return isinstance(reply, list) and reply[0] == b"APPENDED"


def is_turn(request: Request, reply: Any) -> bool:
    """A generator may load a policy now."""
    return isinstance(reply, list) and reply[0] in (b"FIRST", b"OK")


async def window_client(stage: Stage) -> ProxiedProcess:
    """The process in whose life the window lies; without a window any one, by the fault's own choice."""
    system, window = stage.system, stage.fault.window
    if window is None:
        pick = stage.rng.randrange(3)
        return await system.learner_training() if pick == 2 else await system.generator_serving(pick)
    if window in (Window.APPEND_REPLY, Window.TURN_PROOF):
        return await system.generator_serving(stage.rng.randrange(2))
    return await system.learner_training()


async def caught_in_window(stage: Stage, client: ProxiedProcess) -> tuple[Trap, Catch]:
    """Waits until the client stands in the fault's window, and holds it there."""
    window, link = stage.fault.window, client.link
    if window is Window.APPEND_REPLY:
        trap = link.trap(script="append", moment=Moment.AFTER, is_wanted=is_appended)
    elif window is Window.TURN_PROOF:
        # Before the new weights, or after them and before anybody hears of it.
        moment = stage.rng.choice([Moment.BEFORE, Moment.AFTER])
        if moment is Moment.AFTER:
            trap = link.trap(script="claim_swap", moment=moment, is_wanted=is_turn)
        else:
            trap = link.trap(script="end_swap", moment=moment)
    elif window is Window.PUBLISH_FREE:
        await _announced(link)
        trap = link.trap(script="free", moment=Moment.BEFORE)
    else:
        # On the near side of the commit nobody knows of the state; on the far side only the broker does.
        moment = stage.rng.choice([Moment.BEFORE, Moment.AFTER])
        trap = link.trap(script="commit", moment=moment)
    return trap, await trap.caught(WINDOW_SECONDS)


async def _announced(link: ClientLink) -> None:
    trap = link.trap(script="announce_policy", moment=Moment.AFTER)
    await trap.caught(WINDOW_SECONDS)
    trap.release(Handling.RELAY)


async def in_window_or_any_time(stage: Stage, client: ProxiedProcess) -> Trap | None:
    """Comes back in the window, holding the client's message, or after a random while without one."""
    if stage.fault.window is None:
        await asyncio.sleep(stage.rng.uniform(0.0, 0.5))
        return None
    trap, _ = await caught_in_window(stage, client)
    return trap


def release(trap: Trap | None, handling: Handling) -> None:
    """Lets go of what a window held, if there was one."""
    if trap is not None:
        trap.release(handling)
