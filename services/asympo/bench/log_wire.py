"""The protocol's commands as bytes, for load generators that must cost next to nothing themselves.

Services use `RunLog`. This sends the same scripts with the same keys, without a client library's work
between the socket and the reply, so that what a benchmark measures is the broker.
"""

import socket
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.keys import key
from asympo.common.rollout_log.lua import load_script

_RECEIVE_BYTES = 1 << 18


class Wire:
    """One connection to one server; replies are taken out in the order of the commands."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_seconds)
            self.socket.connect(unquote(parts.path))
        else:
            address = (parts.hostname or "127.0.0.1", parts.port or 6379)
            self.socket = socket.create_connection(address, timeout=timeout_seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, commands: bytes) -> None:
        """Writes packed commands."""
        self.socket.sendall(commands)

    def receive(self) -> list[Any]:
        """What has arrived, at least one byte; complete replies only. Raises ConnectionError at its end."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the broker closed the connection")
        self._reader.feed(data)
        replies = []
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.HiredisError):
                raise reply
            replies.append(reply)
        return replies

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


def pack(*parts: Any) -> bytes:
    """One command."""
    return bytes(hiredis.pack_command(parts))


def acquire_command(run: str, *, token: str, policy_step: int, holder: str) -> bytes:
    """Asks for a lease; the reply is that of `acquire.lua`."""
    return _script_command("acquire", run, token, policy_step, holder)


def append_command(run: str, *, token: str, payload: bytes, producer: str) -> bytes:
    """Appends a group; the replies are those of HSETNX, for a payload beside the log, and of `append.lua`."""
    apart = pack("HSETNX", key(run, "payloads"), token, payload)
    return apart + _script_command("append", run, token, b"", producer)


def wait_command(run: str, *, after_id: str, block_ms: int) -> bytes:
    """Blocks until something happened that may let a refused asker succeed."""
    return pack("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", key(run, "wake"), after_id)


def load_scripts(broker: Broker) -> None:
    """Makes the scripts of this module known to the server, which runs them by digest."""
    for name in ("acquire", "append"):
        broker.command("SCRIPT LOAD", load_script(name).source)


def _script_command(name: str, run: str, *arguments: Any) -> bytes:
    script = load_script(name)
    keys = [key(run, noun) for noun in script.nouns]
    return pack("EVALSHA", script.sha1, len(keys), *keys, *arguments)
