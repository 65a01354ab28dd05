"""Sends the cases through all doors at once, watches the run go on, and counts what came of them."""

import asyncio
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asympo.chaos.auditor import NOT_TRAINED
from asympo.chaos.broker import RefusedCommand
from asympo.chaos.evidence import AuditImpossible, read_archive, read_journal
from asympo.chaos.hostile.doors import Door, Misbehaved, in_short
from asympo.chaos.hostile.garbage import Garbage
from asympo.chaos.hostile.memory import Growth
from asympo.chaos.hostile.system import HostileSystem
from asympo.chaos.processes import ProcessEnded
from asympo.chaos.system import STEP
from asympo.common.errors import AsympoError, BrokerRefused, BrokerUnavailable

MAX_GROWTH_BYTES = 200 * 2**20
_STALL_SECONDS = 30.0
"""Without a step, on a machine that others use as well."""
_CASE_SECONDS = 60.0
_END_SECONDS = 60.0
_WARM_STEPS, _LAST_STEPS = 10, 3
_MEASURE_SECONDS = 0.5
_SET_ASIDE = re.compile(r"Entry \d+ from .*? is set aside: (.*)")
_EXPELLED = re.compile(r"(\d+) entries are taken out of the log")


@dataclass(kw_only=True)
class HostileReport:
    """What was counted."""

    seed: int
    doors: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Cases by door and by what became of them there."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Entries by the learner's reason."""
    steps: int = 0
    steps_stopped: int = 0
    """Times that no step came for too long."""
    records_trained_that_should_not: int = 0
    growth_bytes: dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def peak_growth_bytes(self) -> int:
        """Of the service that grew most."""
        return max(self.growth_bytes.values(), default=0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": "hostile",
            "seed": self.seed,
            "cases": sum(sum(counts.values()) for counts in self.doors.values()),
            "steps": self.steps,
            "steps_stopped": self.steps_stopped,
            "records_trained_that_should_not": self.records_trained_that_should_not,
            "peak_growth_bytes": self.peak_growth_bytes,
            "growth_bytes": self.growth_bytes,
            "doors": {name: dict(counts.most_common()) for name, counts in self.doors.items()},
            "set_aside": dict(self.set_aside.most_common()),
            "wall_seconds": round(self.wall_seconds, 1),
            "problems": self.problems,
        }


class HostileRun:
    """One seeded attack, from the first process to the verdict."""

    def __init__(
        self, *, system: HostileSystem, seed: int, num_cases: int, say: Callable[[str], None]
    ) -> None:
        self.system, self._seed, self._num_cases, self._say = system, seed, num_cases, say
        self.report = HostileReport(seed=seed)
        self._growths: dict[str, Growth] = {}

    async def run(
        self, doors: Callable[[HostileSystem], Sequence[Door]] = HostileSystem.doors
    ) -> HostileReport:
        """Never raises for what the system does wrong: that is the outcome."""
        system, begun = self.system, time.monotonic()
        try:
            await system.start()
            await self._steps(_WARM_STEPS)
            self._say(f"started in {time.monotonic() - begun:.0f} s; {self._num_cases} cases follow")
            await self._attack(doors(system))
            await self._restart()
        except (TimeoutError, ProcessEnded, AsympoError, RefusedCommand) as error:
            self._problem(f"the run came to a stand ({error or 'no progress'})")
        finally:
            self._look_back()
            system.end()
            await system.closed()
        self.report.wall_seconds = time.monotonic() - begun
        return self.report

    async def _attack(self, doors: Sequence[Door]) -> None:
        processes = {**self.system.services, "broker": self.system.broker.process}
        self._growths = {name: Growth(process.life.process.pid) for name, process in processes.items()}
        watching = [asyncio.ensure_future(self._measure()), asyncio.ensure_future(self._watch_steps())]
        try:
            shares = [
                self._num_cases // len(doors) + (n < self._num_cases % len(doors)) for n in range(len(doors))
            ]
            await asyncio.gather(*(self._send(door, n) for door, n in zip(doors, shares, strict=True)))
            await self._steps(_LAST_STEPS)
        finally:
            for task in watching:
                task.cancel()
        self.report.growth_bytes = {name: growth.measure() for name, growth in self._growths.items()}

    async def _send(self, door: Door, num_cases: int) -> None:
        garbage = Garbage(f"{self._seed}/{door.name}")
        for number in range(num_cases):
            try:
                async with asyncio.timeout(_CASE_SECONDS):
                    outcome = await door.put(garbage)
            except Misbehaved as error:
                outcome = "misbehaved"
                self._problem(f"{door.name}, case {number}: {error}")
            except BrokerRefused as error:
                outcome = f"refused by the broker: {in_short(error.args[0].rpartition('(')[2])}"
            except BrokerUnavailable:
                # As when an entry by hand is in the way of an append, until the learner has taken it out.
                outcome = "not now"
            except TimeoutError:
                outcome = "no end"
                self._problem(f"{door.name}, case {number}: nothing came of it in {_CASE_SECONDS:g} s")
            self.report.doors[door.name][outcome] += 1

    async def _restart(self) -> None:
        """What was left lying stops no learner that starts, and every service ends when told to."""
        system, learner = self.system, self.system.learner
        await self._end("learner")
        await learner.start()
        await self._steps(_LAST_STEPS)
        for name in system.services:
            await self._end(name)
        await self._audit()

    async def _end(self, name: str) -> None:
        process = self.system.services[name]
        process.life.is_wanted_dead = True
        process.send(signal.SIGTERM)
        await process.until(lambda: not process.is_alive, timeout_seconds=_END_SECONDS)
        if process.life.exit_code != 0:
            self._problem(f"{name} ended with {process.life.exit_code}: {process.last_words()[:300]}")

    async def _audit(self) -> None:
        """Whatever the final weights were made of, the honest generator's journal has to have it."""
        system = self.system
        honest = {(line.group_id, line.sequence, line.digest) for line in read_journal(system.journal)}
        state = await system.broker.committed_state()
        try:
            rows = read_archive(system.run_directory, state_name=state)
        except (AuditImpossible, OSError) as error:
            self._problem(f"the archive cannot be read: {error}")
            return
        wrong = [
            row
            for row in rows
            if row.outcome != NOT_TRAINED and (row.group_id, row.sequence, row.digest) not in honest
        ]
        if not honest or len(rows) <= len(wrong):
            self._problem("nothing honest was trained")
        self.report.records_trained_that_should_not = len(wrong)
        for row in wrong[:5]:
            self._problem(
                f"entry {row.sequence} of {row.producer!r}, group {row.group_id}, was {row.outcome}"
            )

    # --- watching --------------------------------------------------------------------------------------

    async def _steps(self, number: int) -> None:
        """Waits for so many from now on. Raises TimeoutError."""
        learner = self.system.learner
        before = self._count_steps()
        await learner.until(
            lambda: self._count_steps() >= before + number or not learner.is_alive,
            timeout_seconds=_STALL_SECONDS * number,
        )
        if not learner.is_alive:
            raise TimeoutError(f"the learner has ended: {learner.last_words()[:300]}")

    def _count_steps(self) -> int:
        return sum(text.startswith(STEP) for life in self.system.learner.lives for _, text in life.lines)

    async def _watch_steps(self) -> None:
        steps, since = self._count_steps(), time.monotonic()
        while True:
            await asyncio.sleep(_MEASURE_SECONDS)
            if self._count_steps() > steps:
                steps, since = self._count_steps(), time.monotonic()
            elif time.monotonic() - since > _STALL_SECONDS:
                self.report.steps_stopped += 1
                self._problem(f"no step in {_STALL_SECONDS:g} s: {self.system.learner.last_words()[:300]}")
                since = time.monotonic()

    async def _measure(self) -> None:
        while True:
            for growth in self._growths.values():
                growth.measure()
            await asyncio.sleep(_MEASURE_SECONDS)

    def _look_back(self) -> None:
        """What the services said meanwhile."""
        report = self.report
        report.steps = self._count_steps()
        for life in self.system.learner.lives:
            for _, text in life.lines:
                if found := _SET_ASIDE.match(text):
                    report.set_aside[in_short(found[1])] += 1
                elif found := _EXPELLED.match(text):
                    report.set_aside["added by hand"] += int(found[1])
        for name, process in self.system.services.items():
            for life in process.lives:
                if life.exit_code is not None and not life.is_wanted_dead:
                    self._problem(f"{name} ended with {life.exit_code}: {process.last_words()[:300]}")
            said = b"".join(path.read_bytes() for path in self.system.logs.glob(f"{name}-*.log"))
            if number := said.count(b"Traceback (most recent call last)"):
                self._problem(f"{name} wrote {number} tracebacks")
        if report.peak_growth_bytes > MAX_GROWTH_BYTES:
            self._problem(f"memory grew by {report.peak_growth_bytes >> 20} MiB: {_mib(report.growth_bytes)}")

    def _problem(self, sentence: str) -> None:
        self.report.problems.append(sentence)
        self._say(sentence)


def _mib(growths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {grown >> 20}" for name, grown in growths.items())
