"""What a run has decided about its arithmetic: an append-only list, durable before the step that uses it.

Whoever trains the run's log (the learner after a restart, a replay, a second learner) takes the choices from
here and measures nothing. A later entry holds from its step on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from asympo.common.checkpoints.manifest import decode_sealed, sealed_json
from asympo.common.versions import Format

_FORMAT = Format(name="schema_version", newest=1, oldest=1)
_CHECKED = ConfigDict(extra="ignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One entry."""

    __pydantic_config__ = _CHECKED
    from_step: int
    """First optimizer step that it holds for."""
    decided: Mapping[str, Any]
    """As `Compute.to_decisions` has it, and `row_limits`: those asked for and those used. JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """All entries; where two are for a step, the later one in the list holds."""

    __pydantic_config__ = _CHECKED
    schema_version: int = _FORMAT.newest
    """Layout of the file."""
    fence: int = 0
    """Of the learner that sealed it."""
    entries: tuple[Decision, ...] = ()
    """In the order in which they were made."""

    @property
    def rank(self) -> tuple[int, int]:
        """Of two lists of a run the one with the higher rank holds."""
        return self.fence, len(self.entries)

    def at(self, step: int) -> dict[str, Any]:
        """What holds for a step; empty where nothing was decided yet."""
        held = [entry for entry in self.entries if entry.from_step <= step] or self.entries[:1]
        return dict(held[-1].decided) if held else {}

    def after(self, step: int) -> list[dict[str, Any]]:
        """What is to hold from steps on that come after this one."""
        return [dict(entry.decided) for entry in self.entries if entry.from_step > step]

    def appended(self, *, from_step: int, decided: Mapping[str, Any]) -> "Decisions":
        """The list with one more entry."""
        return replace(self, entries=(*self.entries, Decision(from_step=from_step, decided=decided)))


_ADAPTER: TypeAdapter[Decisions] = TypeAdapter(Decisions)


def encode_decisions(decisions: Decisions) -> bytes:
    """As file content, sealed with its digest."""
    return sealed_json(asdict(decisions))


def decode_decisions(content: bytes, *, what: str) -> Decisions:
    """The list inside file content; CorruptCheckpoint naming `what`, UnknownVersion of another release."""
    return decode_sealed(content, _ADAPTER, layout=_FORMAT, what=what)
