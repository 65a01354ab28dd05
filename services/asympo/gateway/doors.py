"""The generators' doors: which one a session asks, and the next one when it does not answer."""

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from asympo.common.errors import AsympoError
from asympo.gateway.door_connections import AnswerTooSlow, DoorAnswer, DoorConnections

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 10.0
"""How long the addresses behind a name are taken to be right."""
RETRY_SECONDS = 1.0
"""Between two tries while no door is open."""
_RETRIED_STATUSES = frozenset({502, 503, 504})


class NoDoor(AsympoError):
    """No generator answers; ask again later."""


class SlowDoor(AsympoError):
    """A generator did not answer in time, as another one would not."""


class Doors:
    """OpenAI-compatible addresses, asked in an order that each session keeps: there its prompt is cached.

    A name with several addresses, such as a headless Service, stands for a door at each of them.
    """

    def __init__(self, addresses: Sequence[str], *, token: str, timeout_seconds: float) -> None:
        self._addresses = tuple(address.rstrip("/") for address in addresses)
        self._connections = DoorConnections(token=token)
        self._timeout_seconds = timeout_seconds
        self._found = self._addresses
        self._look_up_at = 0.0

    async def ask(
        self, session_id: str, path: str, payload: bytes, *, is_streamed: bool, max_seconds: float
    ) -> DoorAnswer:
        """The first answer that is not of a generator that is gone; NoDoor when all are, or SlowDoor.

        One that is not streamed is read to its end: a generator that dies in the middle is gone as well.
        A streamed one belongs to the caller, who reads or closes it.
        """
        await self._look_up()
        limit_seconds = min(self._timeout_seconds, max_seconds)
        deadline = time.monotonic() + limit_seconds
        for address in self._order(session_id):
            try:
                left = max(0.0, deadline - time.monotonic())
                answer = await self._connections.post(address, path, payload, seconds=left)
                if answer.status in _RETRIED_STATUSES:
                    log.warning("%s turns a session away: %d", address, answer.status)
                    answer.close()
                    continue
                if not is_streamed:
                    await answer.whole()
            except AnswerTooSlow:
                log.warning("%s gives a session no answer within %.3g s", address, limit_seconds)
                raise SlowDoor(
                    f"no answer within {limit_seconds:.3g} s: ask for fewer tokens, or raise the gateway's "
                    "request_seconds or session_seconds"
                ) from None
            except OSError as error:
                log.warning("%s does not answer a session: %r", address, error)
                continue
            return answer
        raise self._none()

    async def wait_for_one(self, seconds: float) -> None:
        """Until a door is open: an engine that loads has none yet. Raises NoDoor after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            await self._look_up()
            for address in self._found:
                if await self._connections.reaches(address):
                    return
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._none()
            await asyncio.sleep(min(left, RETRY_SECONDS))

    def close(self) -> None:
        """Ends the connections."""
        self._connections.close()

    async def _look_up(self) -> None:
        if time.monotonic() < self._look_up_at:
            return
        self._look_up_at = time.monotonic() + LOOK_UP_SECONDS
        found = await asyncio.gather(*map(_addresses_behind, self._addresses))
        self._found = tuple(dict.fromkeys(each for several in found for each in several))

    def _none(self) -> NoDoor:
        return NoDoor(f"none of {len(self._found)} generators answers: ask again")

    def _order(self, session_id: str) -> Sequence[str]:
        if len(self._found) == 1:
            return self._found

        def weight(address: str) -> bytes:
            return hashlib.sha256(f"{session_id} {address}".encode()).digest()

        return sorted(self._found, key=weight)


async def _addresses_behind(address: str) -> list[str]:
    """The same door at each address of its name; as it is if that is one, unknown, or certified by name."""
    parts = urlsplit(address)
    if parts.scheme != "http" or parts.hostname is None:
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_STREAM
        )
    except OSError as error:
        log.warning("%s has no address: %s", parts.hostname, error)
        return [address]
    # Of one family: a machine may have an address of each.
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found if entry[0] == found[0][0]))
    if len(hosts) < 2:
        return [address]
    named = [f"[{host}]" if ":" in host else host for host in hosts]
    return [parts._replace(netloc=f"{host}:{parts.port or 80}").geturl() for host in named]
