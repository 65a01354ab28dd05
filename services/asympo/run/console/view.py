"""What a person sees while a run goes on: a live panel on a terminal, one line for each step elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from asympo.run.processes.status import number

_MAX_NOTES = 6
_MAX_WARNINGS = 4
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The run at one moment."""

    run: str
    phase: str
    """What happens now, for a person."""
    elapsed_seconds: float
    page_url: str
    status: Mapping[str, Any] = field(default_factory=dict)
    """The learner's `/v1/status`; empty while it does not answer."""
    rows: Sequence[Mapping[str, Any]] = ()
    """All metric rows in order."""
    processes: Sequence[tuple[str, str]] = ()
    """Name and state of each process."""
    memory_bytes: int = 0
    warnings: Sequence[str] = ()
    """What the services warn about, one line each with its count."""


class View(Protocol):
    """Shows a run."""

    def note(self, text: str) -> None:
        """Something happened."""

    def update(self, snapshot: Snapshot, new_rows: Sequence[Mapping[str, Any]]) -> None:
        """The state now, and the steps since the last call."""

    def close(self) -> None:
        """Gives the terminal back."""


class PlainView:
    """Lines on standard output: notes, and one for each step."""

    def __init__(self) -> None:
        self._phase = ""
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        self._write(text)

    def update(self, snapshot: Snapshot, new_rows: Sequence[Mapping[str, Any]]) -> None:
        if snapshot.phase != self._phase:
            self._phase = snapshot.phase
            self._write(snapshot.phase)
        for row in new_rows:
            self._write(step_line(row, snapshot.status))

    def close(self) -> None:
        """Nothing to give back: lines stay."""

    def _write(self, text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self._started:6.1f} s] {text}\n")
        sys.stdout.flush()


class SilentView:
    """Only what went wrong, on standard error."""

    def note(self, text: str) -> None:
        sys.stderr.write(text + "\n")

    def update(self, snapshot: Snapshot, new_rows: Sequence[Mapping[str, Any]]) -> None:
        """Progress is not shown."""

    def close(self) -> None:
        """Nothing to give back."""


class LiveView:
    """A panel that stays in place, by rich; notes scroll by inside it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._notes: deque[str] = deque(maxlen=_MAX_NOTES)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        self._notes.append(f"{time.strftime('%H:%M:%S')} {text}")

    def update(self, snapshot: Snapshot, new_rows: Sequence[Mapping[str, Any]]) -> None:
        self._live.update(panel(snapshot, list(self._notes)))

    def close(self) -> None:
        self._live.stop()


def make_view(kind: str) -> View:
    """`auto` is live on a terminal and plain elsewhere."""
    if kind == "none":
        return SilentView()
    if kind == "live" or (kind == "auto" and sys.stdout.isatty()):
        return LiveView()
    return PlainView()


def step_line(row: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """One step on one line."""
    total = status.get("total_steps")
    parts = [
        f"step {row.get('step')}{f'/{total}' if total else ''}",
        f"reward {shown(row.get('reward_mean'), '.3f')}",
        f"nll + {shown(row.get('nll_positive'), '.3f')} - {shown(row.get('nll_negative'), '.3f')}",
        f"grad {shown(row.get('grad_norm'), '.2f')}",
        f"train {shown(row.get('tokens_per_second'), '.0f')} tok/s",
        f"sample {shown(generator_speed(status), '.0f')} tok/s",
        f"backlog {shown(row.get('backlog'), '.0f')}",
        f"staleness {shown(row.get('queue_staleness_mean'), '.1f')}",
    ]
    if number(status.get("eta_seconds")) is not None:
        parts.append(f"left {duration(status.get('eta_seconds'))}")
    reload_ = last_reload(status)
    if reload_:
        parts.append(f"reload {reload_}")
    return "  ".join(parts)


def shown(value: Any, form: str) -> str:
    known = number(value)
    return "-" if known is None else format(known, form)


def duration(seconds: Any) -> str:
    """Minutes and seconds."""
    known = number(seconds)
    if known is None:
        return "-"
    minutes, rest = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def generator_speed(status: Mapping[str, Any]) -> float | None:
    """Tokens per second of all generators together."""
    speeds = [number(each.get("tokens_per_second")) for each in status.get("generators") or []]
    known = [speed for speed in speeds if speed is not None]
    return sum(known) if known else None


def last_reload(status: Mapping[str, Any]) -> str:
    """The newest reload and its verdict, such as "12 proved 0.3 s"."""
    reloads = [each["last_reload"] for each in status.get("generators") or [] if each.get("last_reload")]
    if not reloads:
        return ""
    newest = max(reloads, key=lambda each: number(each.get("at_seconds")) or 0.0)
    return f"{newest.get('step')} {newest.get('verdict')} {shown(newest.get('seconds'), '.2f')} s"


def sparkline(values: Sequence[float], *, width: int = 48) -> str:
    """The course of a number in one line of text."""
    if not values:
        return ""
    if len(values) > width:
        values = [values[i * len(values) // width] for i in range(width - 1)] + [values[-1]]
    low, high = min(values), max(values)
    if high == low:
        return _BARS[3] * len(values)
    return "".join(_BARS[int((value - low) / (high - low) * (len(_BARS) - 1) + 0.5)] for value in values)


def panel(snapshot: Snapshot, notes: Sequence[str]) -> Any:
    """The live view at one moment, as something rich can draw."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    row: Mapping[str, Any] = snapshot.rows[-1] if snapshot.rows else {}
    status = snapshot.status
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column(no_wrap=True)

    def course(key: str) -> str:
        return sparkline(
            [v for v in (number(each.get(key)) for each in snapshot.rows) if v is not None], width=24
        )

    total = status.get("total_steps")
    step = f"{row.get('step', status.get('step', 0))}{f' of {total}' if total else ''}"
    grid.add_row("step", f"[bold]{step}[/]", "time left", duration(status.get("eta_seconds")))
    grid.add_row("mean reward", f"[bold]{shown(row.get('reward_mean'), '.3f')}[/]", course("reward_mean"), "")
    grid.add_row("nll, positive", shown(row.get("nll_positive"), ".3f"), course("nll_positive"), "")
    grid.add_row("nll, negative", shown(row.get("nll_negative"), ".3f"), course("nll_negative"), "")
    grid.add_row("gradient norm", shown(row.get("grad_norm"), ".2f"), course("grad_norm"), "")
    grid.add_row(
        "learner", f"{shown(row.get('tokens_per_second'), '.0f')} tokens/s",
        "generators", f"{shown(generator_speed(status), '.0f')} tokens/s",
    )  # fmt: skip
    grid.add_row(
        "backlog", f"{status.get('backlog', '-')} of {status.get('capacity', '-')}",
        "staleness", shown(status.get("queue_staleness_mean"), ".1f"),
    )  # fmt: skip
    grid.add_row(
        "last reload", last_reload(status) or "-", "memory", f"{snapshot.memory_bytes / 2**30:.2f} GiB"
    )
    processes = "   ".join(f"{name}: {state}" for name, state in snapshot.processes)
    body = Group(
        grid,
        Text(),
        Text(processes, style="dim"),
        *(Text(f"warned: {line}", style="red") for line in snapshot.warnings[:_MAX_WARNINGS]),
        *(Text(note, style="yellow") for note in notes),
    )
    title = f"{snapshot.run} · {snapshot.phase} · {duration(snapshot.elapsed_seconds)}"
    return Panel(body, title=title, subtitle=f"{snapshot.page_url} · Ctrl-C stops in order", expand=False)
