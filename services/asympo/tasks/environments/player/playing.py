"""Two ways to play: through the gateway's sessions until the run ends, or given rows at a door."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from .stage import EpisodeFailed, Played, Seat, StagedPlay

log = logging.getLogger("asympo.player")

WAIT_SECONDS = 1.0
"""Between two tries while the gateway is away."""
MAX_ASKING = 32
"""How many wait for a prompt at the same time: other connections are for rewards."""
PLAYED_SHARE = 0.95
"""Of a session's time; in the rest the gateway is told of an episode that has not ended."""
EPISODE_SECONDS = 600.0
"""Of an evaluation, and where a gateway does not say how long its sessions last."""
MAX_OVERDUE = 16
"""Episodes that outlast their time: each may have left a thread that hangs, and a new process has none."""


class Player:
    """Asks the gateway for prompts, and plays an episode in each of their sessions."""

    def __init__(self, stage: StagedPlay, *, trained: Sequence[int], sampling: Mapping[str, Any]) -> None:
        self._stage = stage
        self._trained = trained
        self._sampling = sampling
        self._num_overdue = 0
        self._asking = asyncio.Semaphore(MAX_ASKING)

    async def play(self, gateway: Any) -> None:
        """One prompt after the other, until the run has ended."""
        while True:
            async with self._asking:
                answer = await _post(gateway, "/rl/start_session", {"wait_seconds": 30})
            status = 503 if answer is None else answer.status_code
            if status == 410:
                return
            if status in (429, 503):
                said = answer.json() if status == 429 else {}
                await asyncio.sleep(float(said.get("retry_after_seconds") or WAIT_SECONDS))
                continue
            if status != 200:
                raise SystemExit(f"the gateway opens no sessions: {answer.text}")
            started = answer.json()
            row = self._trained[started["index"]]
            seconds = float(started.get("session_seconds") or EPISODE_SECONDS)
            await asyncio.gather(
                *(self._episode(gateway, row, each, seconds=seconds) for each in started["sessions"])
            )
            if self._num_overdue >= MAX_OVERDUE:
                log.error("The environment hangs: %d episodes did not end in time", self._num_overdue)
                raise SystemExit(1)

    async def _episode(self, gateway: Any, row: int, session: Mapping[str, str], *, seconds: float) -> None:
        """One episode, and its reward with the rubric's parts. One that failed has none: it is left out."""
        session_id = session["session_id"]
        shared_url = f"{str(gateway.base_url).rstrip('/')}/v1"
        seat = Seat(base_url=session["base_url"], shared_url=shared_url, session_id=session_id)
        until = time.monotonic() + seconds
        limit = asyncio.timeout(PLAYED_SHARE * seconds)
        try:
            async with limit:
                played = await _play_alone(self._stage, row, seat, self._sampling)
        except Exception as error:  # noqa: BLE001  somebody else's code: it ends one session only
            self._num_overdue += limit.expired()
            log.warning("Row %s failed: %s", row, _reason(error))
        else:
            body = {"reward": played.reward, "functions": dict(played.functions)}
            if await _tell(gateway, f"/sessions/{session_id}/complete", body, until=until):
                return
            log.warning("The reward of row %s is lost", row)
        await _tell(gateway, "/rl/end_session", {"session_id": session_id}, until=until)


class DoorPlayer:
    """Plays given rows and says what each episode earned, a JSON object a line, in no certain order."""

    def __init__(self, stage: StagedPlay, *, door: str, sampling: Mapping[str, Any], answers: TextIO) -> None:
        self._stage = stage
        self._seat = Seat(base_url=door, shared_url=door)
        self._sampling = sampling
        self._answers = answers

    async def run(self, rows: Sequence[int], num_at_once: int) -> None:
        slots = asyncio.Semaphore(num_at_once)
        async with self._stage.serving():
            await asyncio.gather(*(self._episode(number, row, slots) for number, row in enumerate(rows)))

    async def _episode(self, number: int, row: int, slots: asyncio.Semaphore) -> None:
        try:
            async with slots, asyncio.timeout(EPISODE_SECONDS):
                told = _told(await _play_alone(self._stage, row, self._seat, self._sampling))
        except Exception as error:  # noqa: BLE001  somebody else's code: it ends one episode only
            told = {"failure": _reason(error)}
        self._answers.write(f"{json.dumps({'episode': number, **told})}\n")
        self._answers.flush()


async def _play_alone(stage: StagedPlay, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
    """One episode, in a task of its own: whatever its code cancels or ends, it is that task alone."""

    async def play() -> Played:
        try:
            return await stage.play(row, seat, sampling)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            # An exit would end the event loop as well.
            raise EpisodeFailed(repr(error)) from error

    here = asyncio.current_task()
    assert here is not None
    try:
        return await asyncio.create_task(play())
    except asyncio.CancelledError:
        if here.cancelling():
            raise
        raise EpisodeFailed("the environment cancelled the episode") from None


def _told(played: Played) -> dict[str, Any]:
    return {"reward": played.reward, "functions": dict(played.functions), "text": played.text}


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, EpisodeFailed) else repr(error)


async def _tell(gateway: Any, path: str, body: dict[str, Any], *, until: float) -> bool:
    """Says what may be said again until somebody answers, or the session is over; whether it was taken."""
    while True:
        answer = await _post(gateway, path, body)
        if answer is not None and answer.status_code < 500:
            if answer.status_code != 200:
                log.warning("The gateway refuses the end of a session: %s", answer.text[:500])
            return bool(answer.status_code == 200)
        if time.monotonic() + WAIT_SECONDS > until:
            return False
        await asyncio.sleep(WAIT_SECONDS)


async def _post(gateway: Any, path: str, body: dict[str, Any]) -> Any:
    """The answer; None while nobody answers."""
    import httpx

    try:
        return await gateway.post(path, json=body)
    except httpx.TransportError as error:
        log.warning("The gateway does not answer: %r", error)
        return None
