"""The real broker of a chaos run: started, killed, taken back in time, asked directly."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hiredis

from asympo.chaos.processes import Life, Supervised
from asympo.chaos.resp import FrameReader, encode_command, parse_reply
from asympo.common.errors import BrokerUnavailable
from asympo.common.rollout_log.keys import key
from asympo.local.broker import broker_command

_START_SECONDS = 20.0
PROBE_KEY = "asympo-chaos:probe"


class ChaosBroker:
    """Every write synced before it is acknowledged; data in a directory of its own."""

    def __init__(
        self,
        *,
        binary: str,
        directory: Path,
        port: int,
        run: str,
        log_directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        directory.mkdir(parents=True)
        self.port, self._run, self.directory = port, run, directory
        self.process = Supervised(
            name="broker",
            command=broker_command(binary, directory, port=port),
            log_directory=log_directory,
            environment=environment,
            final_codes=frozenset(),
        )

    async def start(self) -> None:
        """Returns once it answers."""
        await self.process.start()
        await self.answering()

    async def answering(self) -> None:
        """Waits until it serves commands. Raises BrokerUnavailable."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if await self.ask("PING") == b"PONG":
                    return
            except (BrokerUnavailable, RefusedCommand) as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"the run's broker does not start: {error}") from error
            await asyncio.sleep(0.02)

    async def ask(self, *parts: bytes | str | int, timeout_seconds: float = 10.0) -> Any:
        """One command on a connection of its own. Raises BrokerUnavailable, RefusedCommand."""
        try:
            async with asyncio.timeout(timeout_seconds):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(encode_command(*parts))
                    frame = await FrameReader(reader).next()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"the broker does not answer {parts[0]!r}: {error!r}") from error
        if frame is None:
            raise BrokerUnavailable(f"the broker ended without an answer to {parts[0]!r}")
        reply = parse_reply(frame)
        if isinstance(reply, hiredis.ReplyError):
            raise RefusedCommand(str(reply))
        return reply

    async def run_number(self, field: str) -> int:
        """A number of the run's hash; 0 when absent."""
        return int(await self.ask("HGET", key(self._run, "run"), field) or 0)

    async def state(self) -> str:
        """Of the run; empty when there is none."""
        return (await self.ask("HGET", key(self._run, "learner"), "state") or b"").decode()

    async def committed_state(self) -> str:
        """Name of the training state that was committed last."""
        return (await self.ask("HGET", key(self._run, "commit"), "state_name") or b"").decode()

    async def has_lease(self, token: bytes) -> bool:
        return bool(await self.ask("HEXISTS", key(self._run, "leases"), token))

    async def now_seconds(self) -> float:
        """Its own clock."""
        seconds, micros = await self.ask("TIME")
        return int(seconds) + int(micros) / 1e6

    async def write_seconds(self) -> float:
        """How long one durable write takes now."""
        begun = time.monotonic()
        await self.ask("SET", PROBE_KEY, "x")
        return time.monotonic() - begun

    async def kill(self, *, is_restarted: bool = True) -> Life:
        """SIGKILL; started again unless told otherwise."""
        return await self.process.kill(is_restarted=is_restarted)

    async def copy_data(self, target: Path) -> int:
        """A copy of what is on its disk now; returns the newest sequence number that is surely in it.

        The log only grows, so a copy made while it is written is an older log with a torn end at worst, which
        the server cuts off when it starts.
        """
        sequence = await self.run_number("last_sequence")
        await asyncio.to_thread(_copy_tree, self.directory, target)
        return sequence

    async def start_from(self, copy: Path) -> None:
        """After a kill without restart: the old data takes the place of the new, and the server starts."""
        await asyncio.to_thread(shutil.rmtree, self.directory)
        await asyncio.to_thread(shutil.copytree, copy, self.directory)
        self.process.is_restarted = True
        await self.start()


class RefusedCommand(Exception):
    """The broker answered with an error."""


def _copy_tree(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for _ in range(20):
        # A rewrite of the log may take files away while they are copied.
        with contextlib.suppress(shutil.Error, FileNotFoundError):
            shutil.copytree(source, target, dirs_exist_ok=False)
            return
        shutil.rmtree(target, ignore_errors=True)
    raise BrokerUnavailable(f"the data of the broker in {source} could not be copied")
