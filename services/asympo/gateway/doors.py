"""The generators' doors: which one a session asks, and the next one when it does not answer."""

import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from asympo.common.errors import AsympoError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
LOOK_UP_SECONDS = 10.0
"""How long the addresses behind a name are taken to be right."""
_RETRIED_STATUSES = frozenset({502, 503, 504})


class NoDoor(AsympoError):
    """No generator answers; ask again later."""


class Doors:
    """OpenAI-compatible addresses, asked in an order that each session keeps: there its prompt is cached.

    A name with several addresses, such as a headless Service, stands for a door at each of them.
    """

    def __init__(self, addresses: Sequence[str], *, token: str, timeout_seconds: float) -> None:
        self._addresses = tuple(address.rstrip("/") for address in addresses)
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=CONNECT_SECONDS)
        self._http: aiohttp.ClientSession | None = None
        self._found = self._addresses
        self._look_up_at = 0.0

    @asynccontextmanager
    async def ask(
        self, session_id: str, path: str, body: Any, *, is_streamed: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The first answer that is not of a generator that is gone; raises NoDoor when all are.

        One that is not streamed is read to its end: a generator that dies in the middle is gone as well.
        """
        payload = json.dumps(body, separators=(",", ":")).encode()
        if time.monotonic() >= self._look_up_at:
            self._look_up_at = time.monotonic() + LOOK_UP_SECONDS
            found = await asyncio.gather(*map(_addresses_behind, self._addresses))
            self._found = tuple(dict.fromkeys(each for several in found for each in several))
        async with AsyncExitStack() as open_answers:
            for address in self._order(session_id):
                try:
                    answer = await open_answers.enter_async_context(
                        self._client().post(f"{address}/{path}", data=payload, headers=self._headers)
                    )
                    if not is_streamed:
                        await answer.read()
                except (aiohttp.ClientError, TimeoutError) as error:
                    log.warning("%s does not answer a session: %r", address, error)
                    continue
                if answer.status not in _RETRIED_STATUSES:
                    yield answer
                    return
                log.warning("%s turns a session away: %d", address, answer.status)
            raise NoDoor(f"none of {len(self._found)} generators answers: ask again")

    async def close(self) -> None:
        """Ends the connections."""
        if self._http is not None:
            await self._http.close()

    def _order(self, session_id: str) -> list[str]:
        def weight(address: str) -> bytes:
            return hashlib.sha256(f"{session_id} {address}".encode()).digest()

        return sorted(self._found, key=weight)

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            # On the loop that uses it, and without a limit: slots are the engine's affair.
            connector = aiohttp.TCPConnector(limit=0)
            self._http = aiohttp.ClientSession(timeout=self._timeout, connector=connector)
        return self._http


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
