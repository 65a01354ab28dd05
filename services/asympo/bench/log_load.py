"""Simulated generators: many connections turned by one event loop, so that the client costs little.

Each holds one group in work and asks for its next prompt while the last group is being appended, so that both
arms take one round trip a group. Once an append has said that no slot was free, it waits for the answer of
the next one before it asks, as the real generator does.
"""

import heapq
import os
import random
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any, ClassVar

from asympo.bench.log_wire import Wire, acquire_command, append_command, pack, wait_command
from asympo.common.rollout_log.keys import key

_MAX_SAMPLES = 20_000
_TICK_SECONDS = 0.05
_NO_ROOM_SECONDS = 0.0005


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the processes of a round have in common."""

    stop: Event
    """Set when the round is over."""
    sent: Any
    """multiprocessing.Value: groups sent by the bare arm."""
    consumed: Any
    """multiprocessing.Value: groups that the learner read; written by it alone."""
    reader_calls: Any
    """multiprocessing.Value: script calls of the learner; written by it alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLoad:
    """What one process of generators does."""

    url: str
    run: str
    is_bare: bool
    """XADD alone instead of the product's protocol."""
    num_generators: int
    """Connections of this process."""
    payload_bytes: int
    """Size of a group."""
    work_seconds: float = 0.0
    """Time that a generator spends on a group."""
    capacity: int = 0
    """Groups of all processes that may be out: what leases keep in the product, for the bare arm."""
    seed: int = 0
    """Of tokens and of the moment at which each generator starts."""


@dataclass(kw_only=True, slots=True)
class LoadResult:
    """What one process of generators saw."""

    num_groups: int = 0
    """Appended and acknowledged."""
    num_refusals: int = 0
    """Leases refused."""
    cpu_seconds: float = 0.0
    """Of this process."""
    wall_seconds: float = 0.0
    """From its first command to its last."""
    lease_seconds: list[float] = field(default_factory=list)
    """From the request to the reply that grants it; a sample."""
    append_seconds: list[float] = field(default_factory=list)
    """From the request to the acknowledgement; a sample."""


class _Generator:
    """One connection. `expected` holds what its outstanding commands are, oldest first."""

    def __init__(self, wire: Wire, name: str, rng: random.Random) -> None:
        self.wire, self.name, self._rng = wire, name, rng
        self.expected: deque[tuple[str, float]] = deque()
        self.token = ""
        self.next_token = ""
        self.is_full = False
        """Whether its last append said that no slot was free."""

    def new_token(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"

    def send(self, commands: bytes, *kinds: str) -> None:
        now = time.perf_counter()
        self.expected.extend((kind, now) for kind in kinds)
        self.wire.send(commands)


class LoadProcess:
    """All generators of one process."""

    def __init__(self, load: LogLoad, shared: Shared) -> None:
        self._load, self._shared = load, shared
        self._rng = random.Random(f"{load.seed}-{load.run}")
        self._payload = self._rng.randbytes(load.payload_bytes)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, _Generator]] = []
        self._num_timers = 0
        self.result = LoadResult()

    def run(self) -> LoadResult:
        """Until told to stop."""
        load = self._load
        start_wall, start_cpu = time.perf_counter(), time.process_time()
        generators = [
            _Generator(Wire(load.url), f"bench-{os.getpid()}-{number}", self._rng)
            for number in range(load.num_generators)
        ]
        for generator in generators:
            self._selector.register(generator.wire.socket, selectors.EVENT_READ, generator)
            # Not all at the same moment: generators do not march in step.
            self._later(generator, self._rng.random() * load.work_seconds)
        while not self._shared.stop.is_set():
            self._turn()
        self.result.wall_seconds = time.perf_counter() - start_wall
        self.result.cpu_seconds = time.process_time() - start_cpu
        for generator in generators:
            generator.wire.close()
        return self.result

    def _turn(self) -> None:
        now = time.perf_counter()
        while self._timers and self._timers[0][0] <= now:
            self._work_done(heapq.heappop(self._timers)[2])
        wait = min(_TICK_SECONDS, max(0.0, self._timers[0][0] - now)) if self._timers else _TICK_SECONDS
        for ready, _mask in self._selector.select(wait):
            generator: _Generator = ready.data
            for reply in generator.wire.receive():
                kind, sent = generator.expected.popleft()
                self._handlers[kind](self, generator, reply, time.perf_counter() - sent)

    def _later(self, generator: _Generator, seconds: float) -> None:
        self._num_timers += 1
        heapq.heappush(self._timers, (time.perf_counter() + seconds, self._num_timers, generator))

    def _work_done(self, generator: _Generator) -> None:
        load = self._load
        if load.is_bare:
            if not self._has_room():
                self._later(generator, _NO_ROOM_SECONDS)
                return
            fields = ("group_id", "0-12345", "producer", generator.name, "at_ms", "1700000000000")
            command = pack("XADD", key(load.run, "log"), "*", *fields, "payload", self._payload)
            generator.send(command, "xadd")
            return
        if not generator.token:
            generator.send(self._acquire(generator), "acquire")
            return
        command = append_command(
            load.run, token=generator.token, payload=self._payload, producer=generator.name
        )
        if generator.is_full:
            generator.send(command, "payload", "append_alone")
        else:
            generator.send(command + self._acquire(generator), "payload", "append", "acquire")

    def _has_room(self) -> bool:
        """Flow control of the bare arm. It costs the broker nothing, which is the best case for that arm."""
        shared = self._shared
        with shared.sent.get_lock():
            if shared.sent.value - shared.consumed.value >= self._load.capacity:
                return False
            shared.sent.value += 1
            return True

    def _acquire(self, generator: _Generator) -> bytes:
        generator.next_token = generator.new_token()
        # Above every policy that the run announces, so that none is refused as stale.
        return acquire_command(
            self._load.run, token=generator.next_token, policy_step=1_000_000_000, holder=generator.name
        )

    def _on_payload(self, generator: _Generator, reply: Any, seconds: float) -> None:
        if reply != 1:
            raise RuntimeError("a payload was not taken: the measurement is void")

    def _on_append(self, generator: _Generator, reply: Any, seconds: float) -> None:
        if reply[0] != b"APPENDED":
            raise RuntimeError(f"a group was not appended but {reply[0].decode()}: the measurement is void")
        self.result.num_groups += 1
        _keep(self.result.append_seconds, seconds)
        generator.is_full = len(reply) > 4

    def _on_append_alone(self, generator: _Generator, reply: Any, seconds: float) -> None:
        self._on_append(generator, reply, seconds)
        generator.token = ""
        if generator.is_full:
            self._wait(generator, retry_ms=reply[4], wake_id=reply[5])
        else:
            self._work_done(generator)

    def _on_acquire(self, generator: _Generator, reply: Any, seconds: float) -> None:
        if reply[0] == b"GRANTED":
            generator.token = generator.next_token
            _keep(self.result.lease_seconds, seconds)
            self._start_work(generator)
            return
        generator.token = ""
        self.result.num_refusals += 1
        self._wait(generator, retry_ms=reply[2], wake_id=reply[3])

    def _wait(self, generator: _Generator, *, retry_ms: int, wake_id: bytes) -> None:
        command = wait_command(self._load.run, after_id=wake_id.decode(), block_ms=min(1000, retry_ms))
        generator.send(command, "wait")

    def _on_wait(self, generator: _Generator, reply: Any, seconds: float) -> None:
        generator.send(self._acquire(generator), "acquire")

    def _on_xadd(self, generator: _Generator, reply: Any, seconds: float) -> None:
        self.result.num_groups += 1
        _keep(self.result.append_seconds, seconds)
        self._start_work(generator)

    def _start_work(self, generator: _Generator) -> None:
        if self._load.work_seconds:
            self._later(generator, self._load.work_seconds)
        else:
            self._work_done(generator)

    _handlers: ClassVar[dict[str, Callable[..., None]]] = {
        "payload": _on_payload,
        "append": _on_append,
        "append_alone": _on_append_alone,
        "acquire": _on_acquire,
        "wait": _on_wait,
        "xadd": _on_xadd,
    }


def _keep(samples: list[float], value: float) -> None:
    if len(samples) < _MAX_SAMPLES:
        samples.append(value)
