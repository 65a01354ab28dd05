"""Injects the faults one after another, observes what each did, lets the run finish, and has it audited."""

import asyncio
import json
import logging
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asympo.chaos.auditor import Audit, audit
from asympo.chaos.broker import RefusedCommand
from asympo.chaos.evidence import AuditImpossible, read_archive, read_journal, read_trained
from asympo.chaos.faults.base import NotObserved, PromiseBroken, Stage
from asympo.chaos.faults.registry import INJECTIONS
from asympo.chaos.processes import ProcessEnded
from asympo.chaos.recovery import recovery_seconds
from asympo.chaos.schedule import Fault, FaultKind, Minimum, Window, minimum_for, reachable_windows
from asympo.chaos.system import NUM_EPOCHS, System
from asympo.chaos.undisturbed import weights_problem
from asympo.common.errors import AsympoError, BrokerUnavailable

log = logging.getLogger(__name__)

_MAX_TRIES = 3
_FAULT_SECONDS = 180.0
_FINISH_SECONDS = 600.0
Say = Callable[[str], None]


@dataclass(kw_only=True)
class ChaosOutcome:
    """Everything a run of faults found."""

    seed: int
    kills: int = 0
    faults: Counter[FaultKind] = field(default_factory=Counter)
    windows: Counter[Window] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    audit: Audit | None = None
    weights_identical: bool = False
    unasked_exits: dict[str, list[int]] = field(default_factory=dict)
    """Exit codes by process of ends that no fault was meant to bring, those in good order aside."""
    wall_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report; figures of the audit are null when it did not come to one."""
        counts = self.audit
        return {
            "seed": self.seed,
            "kills": self.kills,
            "faults": {kind.value: self.faults[kind] for kind in FaultKind},
            "windows": {window.value: self.windows[window] for window in Window},
            "prompts_answered": counts.prompts_answered if counts else None,
            "groups_appended": counts.groups_appended if counts else None,
            "groups_trained": counts.groups_trained if counts else None,
            "groups_trained_twice": len(counts.trained_twice) if counts else None,
            "groups_lost": len(counts.lost) if counts else None,
            "appends_taken_back": counts.taken_back if counts else None,
            "recovery_seconds_median": _rounded(statistics.median(self.recoveries))
            if self.recoveries
            else None,
            "recovery_seconds_max": _rounded(max(self.recoveries)) if self.recoveries else None,
            "weights_identical": self.weights_identical,
            "unasked_exits": self.unasked_exits,
            "wall_seconds": _rounded(self.wall_seconds),
            "problems": self.problems,
        }


class ChaosRun:
    """One seeded run, from the first process to the verdict."""

    def __init__(
        self, *, system: System, kinds: Sequence[FaultKind], schedule: Sequence[Fault], seed: int, say: Say
    ) -> None:
        self._system = system
        self._kinds = kinds
        self._schedule = schedule
        self._minimum = minimum_for(len(schedule), kinds)
        self._say = say
        self._evidence = system.directory / "faults.jsonl"
        self._final_state = ""
        self.outcome = ChaosOutcome(seed=seed)

    async def run(self) -> ChaosOutcome:
        """Never raises for what the system does wrong: that is the outcome."""
        begun = time.monotonic()
        try:
            await self._system.start()
            self._say(f"started in {time.monotonic() - begun:.0f} s; {len(self._schedule)} faults follow")
            for fault in self._schedule:
                await self._put(fault)
            await self._finish()
        except PromiseBroken as error:
            self.outcome.problems.append(f"a promise was broken: {error}")
        except (TimeoutError, ProcessEnded, AsympoError) as error:
            words = "; ".join(
                f"{client.name}: {client.process.last_words()[:200]}" for client in self._system.clients
            )
            self.outcome.problems.append(f"the system came to a stand ({error or 'no progress'}): {words}")
        finally:
            self.outcome.unasked_exits = self._system.unasked_exits()
            self._system.end()
            await self._system.closed()
        if not self.outcome.problems:
            await self._judge()
        self.outcome.wall_seconds = time.monotonic() - begun
        return self.outcome

    # --- one fault -------------------------------------------------------------------------------------

    async def _put(self, fault: Fault) -> None:
        """Until its effect is seen, or three tries were in vain."""
        for attempt in range(1, _MAX_TRIES + 1):
            begun = time.monotonic()
            stage = Stage(system=self._system, fault=fault, rng=random.Random(f"{fault.seed}/{attempt}"))
            try:
                async with asyncio.timeout(_FAULT_SECONDS):
                    seen = await self._inject(stage)
            except (NotObserved, BrokerUnavailable, RefusedCommand, OSError) as error:
                is_late = isinstance(error, TimeoutError)
                why = "its moment did not come" if is_late else str(error)
                self._record(fault, begun, {"not_observed": why})
                self._say(f"{fault.number:4d} {_name(fault)}: not seen ({why})")
                if is_late and attempt == _MAX_TRIES:
                    raise TimeoutError(f"no moment for fault {fault.number}, {_name(fault)}") from None
                continue
            self.outcome.kills += 1
            self.outcome.faults[fault.kind] += 1
            if fault.window is not None:
                self.outcome.windows[fault.window] += 1
            self._record(fault, begun, seen)
            self._say(f"{fault.number:4d} {_name(fault)}: {_short(seen)} ({time.monotonic() - begun:.1f} s)")
            break
        self._system.pace.fault_done()

    async def _inject(self, stage: Stage) -> dict[str, Any]:
        seen = await INJECTIONS[stage.fault.kind](stage)
        if "killed_at" in seen:
            process = self._system.learner.process
            seconds = await recovery_seconds(process, killed_at=seen.pop("killed_at"))
            self.outcome.recoveries.append(seconds)
            seen["recovery_seconds"] = round(seconds, 3)
        return seen

    def _record(self, fault: Fault, begun: float, seen: dict[str, Any]) -> None:
        row = {
            "number": fault.number,
            "kind": fault.kind.value,
            "window": fault.window.value if fault.window else None,
            "at_seconds": round(time.time(), 3),
            "took_seconds": round(time.monotonic() - begun, 3),
            **seen,
        }
        with self._evidence.open("a") as file:
            file.write(json.dumps(row) + "\n")

    # --- the end ---------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Every prompt of every epoch answered, every process ended on its own."""
        system = self._system
        self._say("all faults are behind; the run is let finish")
        process = system.learner.process
        await process.until(lambda: process.life.exit_code == 0, timeout_seconds=_FINISH_SECONDS)
        for client in system.generators:
            await client.process.until(
                lambda client=client: client.process.life.exit_code == 0,  # type: ignore[misc]
                timeout_seconds=60.0,
            )
        state = await system.broker.state()
        self._final_state = await system.broker.committed_state()
        if state != "finished":
            self.outcome.problems.append(f"the learner ended and the run is {state or 'gone'}, not finished")

    async def _judge(self) -> None:
        try:
            self._audit()
        except AuditImpossible as error:
            self.outcome.problems.append(str(error))
        self.outcome.problems += _shortfalls(self.outcome, self._minimum, self._kinds)
        self._say("replaying the archive without faults")
        problem = await weights_problem(self._system, final_state=self._final_state)
        self.outcome.weights_identical = problem is None
        if problem is not None:
            self.outcome.problems.append(problem)

    def _audit(self) -> None:
        system, outcome = self._system, self.outcome
        found = audit(
            acknowledged={
                client.name: read_journal(system.journal(client.name)) for client in system.generators
            },
            trained=read_trained(system.run_directory / "trained.jsonl"),
            archived=read_archive(system.run_directory, state_name=self._final_state),
            rollbacks=system.rollbacks,
            num_prompts=system.num_prompts,
            num_epochs=NUM_EPOCHS,
        )
        outcome.audit = found
        for name in ("lost", "trained_twice", "unanswered", "contradictions"):
            outcome.problems += _few(getattr(found, name))


def _shortfalls(outcome: ChaosOutcome, minimum: Minimum, kinds: Sequence[FaultKind]) -> list[str]:
    found = [
        f"only {outcome.faults[kind]} of {minimum.of_each} {kind.value} had an effect that was seen"
        for kind in kinds
        if outcome.faults[kind] < minimum.of_each
    ]
    return found + [
        f"only {outcome.windows[window]} of {minimum.in_window} faults hit the window {window.value}"
        for window in reachable_windows(kinds)
        if outcome.windows[window] < minimum.in_window
    ]


def _few(sentences: Sequence[str], *, most: int = 10) -> list[str]:
    more = len(sentences) - most
    return [*sentences[:most], *([f"and {more} more of the kind"] if more > 0 else [])]


def _name(fault: Fault) -> str:
    return f"{fault.kind.value}{f' in {fault.window.value}' if fault.window else ''}"


def _short(seen: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in seen.items())


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
