"""Who may open how many sessions of a gateway."""

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.gateway import sessions
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import Producer
from asympo.gateway.sessions import SessionGroup, SessionRefused, Sessions
from asympo.gateway.work import NoWork, nobody_leaves
from prometheus_client import CollectorRegistry


class Door:
    """What sessions need of a gateway: prompts that come when they come."""

    def __init__(self) -> None:
        times = {"max_lease_seconds": 600.0, "lease_seconds": 600.0}
        config = SimpleNamespace(group_size=2, max_staleness=1, has_segments=True, **times)
        self.parts = SimpleNamespace(config=config)
        self.prompts: list[asyncio.Future[Any]] = []

    async def get_work(self, producer: Producer, **_: Any) -> Any:
        self.prompts.append(asyncio.get_running_loop().create_future())
        return await self.prompts[-1]


class Room:
    """Sessions of a gateway with room for a few."""

    def __init__(self) -> None:
        gateway: Any = Door()
        self.prompts = gateway.prompts
        metrics = GatewayMetrics(CollectorRegistry())
        self.sessions = Sessions(gateway=gateway, metrics=metrics, session_seconds=600.0)

    async def start(self, name: str = "one", *, is_own_prompt: bool = True) -> SessionGroup | NoWork:
        return await self.sessions.start(
            Producer(name=name, token=f"{name}-0123456789abcdef"),
            is_own_prompt=is_own_prompt, num_sessions=2, wait_seconds=60.0, has_left=nobody_leaves,
        )  # fmt: skip


def test_sessions_that_wait_for_a_prompt_have_their_room_until_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 6)

    async def wait_at_once() -> None:
        room = Room()
        starts = [asyncio.ensure_future(room.start(is_own_prompt=False)) for _ in range(20)]
        await asyncio.sleep(0)
        refused, waiting = ([each for each in starts if each.done() is is_done] for is_done in (True, False))
        assert (len(refused), len(waiting)) == (18, 2)
        assert all(isinstance(each.exception(), SessionRefused) for each in refused)
        none, broken = room.prompts
        none.set_result(NoWork(reason="no_capacity", retry_after_seconds=0.0))
        broken.set_exception(RuntimeError("no broker"))
        await asyncio.wait(waiting)
        assert [isinstance(await room.start(), SessionGroup) for _ in range(2)] == [True, True]
        await room.sessions.close()

    asyncio.run(wait_at_once())


def test_no_producer_takes_the_room_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 12)

    async def take(room: Room, name: str) -> int:
        found = await asyncio.gather(*(room.start(name) for _ in range(7)), return_exceptions=True)
        refused = [error for error in found if isinstance(error, SessionRefused)]
        assert {(error.status, f"of {name}" in str(error)) for error in refused} == {(429, True)}
        return len(found) - len(refused)

    async def take_all() -> list[int]:
        room = Room()
        taken = [await take(room, name) for name in ("one", "two", "three")]
        await room.sessions.close()
        return taken

    assert asyncio.run(take_all()) == [3, 2, 1]


def test_group_that_has_made_room_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 4)

    class Work:
        lease = SimpleNamespace(token="lease-1")

    async def make_room() -> None:
        room, work = Room(), Work()
        kept = weakref.ref(work)
        for _ in range(3):
            group = await room.start()
            assert isinstance(group, SessionGroup)
            for session in group.sessions:
                room.sessions.end(session.session_id)
            while group.outcome == "open":
                await asyncio.sleep(0)
            group.work, work = work, None  # type: ignore[assignment]
        del group, session
        gc.collect()
        assert kept() is None
        await room.sessions.close()

    asyncio.run(make_room())
