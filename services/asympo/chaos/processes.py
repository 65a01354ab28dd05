"""One process under test: its lives, what it says, and an orchestrator that starts it again."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asympo.common.errors import Fenced
from asympo.local.process import kill_group, launched

RESTART_SECONDS = 0.1
_MAX_LINE_BYTES = 1 << 20


@dataclass(eq=False, kw_only=True)
class Life:
    """From one start to one end."""

    number: int
    """From 1."""
    process: asyncio.subprocess.Process
    started_at: float
    """Monotonic, as are all times here."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """When each log line came, and its message."""
    exit_code: int | None = None
    """Negative for a signal."""
    ended_at: float | None = None
    is_wanted_dead: bool = False
    """A fault ended it, or is about to."""

    def when(self, start: str, *, after: float = 0.0) -> float | None:
        """When the first line that begins with `start` came, after a time; None when none has."""
        return next((at for at, text in self.lines if at > after and text.startswith(start)), None)


class ProcessEnded(Exception):
    """What was waited for cannot come: the process ended first."""


class Supervised:
    """A program that is started again whenever it ends, unless its exit code says that this is senseless."""

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        log_directory: Path,
        environment: Mapping[str, str],
        final_codes: frozenset[int] = frozenset({0, Fenced.exit_code}),
    ) -> None:
        self.name = name
        self._command = command
        self._log_directory = log_directory
        self._environment = environment
        self._final_codes = final_codes
        self.lives: list[Life] = []
        self.is_restarted = True
        """False keeps it dead after its end."""
        self._changed = asyncio.Condition()
        self._watch: asyncio.Task[None] | None = None

    @property
    def life(self) -> Life:
        """The newest one."""
        return self.lives[-1]

    @property
    def is_alive(self) -> bool:
        return bool(self.lives) and self.life.exit_code is None

    @property
    def is_over(self) -> bool:
        """It ended by itself, with a code after which nobody starts it again."""
        return self.life.exit_code in self._final_codes and not self.life.is_wanted_dead

    async def start(self) -> Life:
        """One more life."""
        number = len(self.lives) + 1
        process = await asyncio.create_subprocess_exec(
            *launched(self._command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(self._environment),
            # Ctrl-C in the terminal is for us alone, and a kill has to reach what the process started.
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
        life = Life(number=number, process=process, started_at=time.monotonic())
        self.lives.append(life)
        self._watch = asyncio.ensure_future(self._follow(life))
        return life

    async def kill(self, *, is_restarted: bool = True) -> Life:
        """SIGKILL to it and all it started; returns its ended life once the system says that it is gone."""
        life = self.life
        life.is_wanted_dead = True
        self.is_restarted = is_restarted
        kill_group(life.process.pid)
        await self.until(lambda: life.exit_code is not None, timeout_seconds=30.0)
        return life

    def send(self, number: signal.Signals) -> None:
        """A signal to the process itself."""
        with contextlib.suppress(ProcessLookupError):
            self.life.process.send_signal(number)

    def kill_now(self) -> None:
        """Without waiting, for the end of everything."""
        self.is_restarted = False
        for life in self.lives:
            if life.exit_code is None:
                kill_group(life.process.pid)

    async def closed(self) -> None:
        """Waits until the last life is over and its output was read."""
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def said(
        self, start: str, *, timeout_seconds: float, life: Life | None = None, after: float = 0.0
    ) -> float:
        """When a line that begins with `start` came, in this life or a later one.

        Raises TimeoutError; ProcessEnded when `life` ended without it, or the process did and is not started
        again.
        """

        def found() -> float | None:
            lives = [life] if life is not None else self.lives
            times = (each.when(start, after=after) for each in lives)
            first = next((at for at in times if at is not None), None)
            has_ended = self.is_over if life is None else life.exit_code is not None
            if first is None and has_ended:
                raise ProcessEnded(f"{self.name} ended with {lives[-1].exit_code} before it said {start!r}")
            return first

        await self.until(lambda: found() is not None, timeout_seconds=timeout_seconds)
        at = found()
        assert at is not None
        return at

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Waits for something that its lines, its starts or its end decide. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(condition)

    def last_words(self) -> str:
        """The newest line of any life."""
        return next((text for life in reversed(self.lives) for _, text in reversed(life.lines)), "nothing")

    async def _follow(self, life: Life) -> None:
        path = self._log_directory / f"{self.name}-{life.number:03d}.log"
        assert life.process.stdout is not None
        with path.open("wb") as copy:
            while line := await _next_line(life.process.stdout):
                copy.write(line)
                copy.flush()
                await self._note(life, time.monotonic(), line)
        code = await life.process.wait()
        # What it started (scorers) must not outlive it: a real orchestrator removes the whole container.
        kill_group(life.process.pid)
        async with self._changed:
            life.exit_code, life.ended_at = code, time.monotonic()
            self._changed.notify_all()
        if self.is_restarted and code not in self._final_codes:
            await asyncio.sleep(RESTART_SECONDS)
            if self.is_restarted and self.life is life:
                await self.start()
                async with self._changed:
                    self._changed.notify_all()

    async def _note(self, life: Life, at: float, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if text.startswith("{"):
            with contextlib.suppress(ValueError):
                row = json.loads(text)
                text = str(row.get("message", text))
        async with self._changed:
            life.lines.append((at, text))
            self._changed.notify_all()


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:
        # Longer than any line we look for: its pieces are logged as they come.
        return await stream.read(_MAX_LINE_BYTES)
