"""summary.json, curves.png and what is printed at the end."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from asympo.common.errors import AsympoError
from asympo.common.jsonl import read_steps
from asympo.local.process import run_helper
from asympo.local.whole_file import write_whole
from asympo.run.audit import count_trained_twice
from asympo.run.console.view import duration
from asympo.run.held_out.evaluation import Accuracy
from asympo.run.report.outcome import RunOutcome
from asympo.run.report.promises import broken_promises, remarks
from asympo.run.settings import TargetsSection

_DRAW_SECONDS = 180.0


def write_summary(outcome: RunOutcome, directory: Path, targets: TargetsSection | None) -> dict[str, Any]:
    """The summary as it was written to `summary.json`."""
    twice, num_groups = count_trained_twice(directory / "trained.jsonl")
    before = outcome.held_out.before if outcome.held_out else None
    after = outcome.held_out.after if outcome.held_out else None
    totals, last = outcome.totals, outcome.last_policy
    summary: dict[str, Any] = {
        "run": directory.name,
        "is_finished": outcome.is_finished,
        "failure": str(outcome.failure) if outcome.failure else None,
        "warnings": list(outcome.warnings),
        "held_out_accuracy_before": before.value if before else None,
        "held_out_accuracy_before_interval": _interval(before),
        "held_out_accuracy_after": after.value if after else None,
        "held_out_accuracy_after_interval": _interval(after),
        "held_out_prompts": after.num_prompts if after else before.num_prompts if before else 0,
        "held_out_policy_step_after": after.policy_step if after else None,
        "steps": outcome.step,
        "wall_seconds": round(totals.wall_seconds, 1),
        "reloads": totals.reloads,
        "stall_seconds_per_reload": (
            round(totals.reload_pause_seconds / totals.reloads, 4) if totals.reloads else None
        ),
        **_published(directory / "metrics.jsonl"),
        "probe_failures": totals.probe_failures,
        "requests_lost": totals.requests_lost,
        "groups_trained": num_groups,
        "groups_trained_twice": twice,
        "restarts": totals.restarts,
        "starts": totals.starts,
        "peak_rss_bytes_total": totals.peak_memory_bytes,
        "peak_rss_kind": totals.memory_kind,
        "last_policy_step": last.step if last else None,
        "last_policy_served": last.is_served if last else None,
        "last_policy_wait_seconds": round(last.wait_seconds, 1) if last else None,
        "held_out_problem": last.problem if last and not after else None,
    }
    summary["broken_promises"] = broken_promises(summary, targets) if outcome.is_finished else []
    summary["remarks"] = remarks(summary, targets) if outcome.is_finished else []
    write_whole(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def draw(directory: Path, *, title: str) -> str | None:
    """Writes curves.png in a process of its own; a sentence when that failed."""
    metrics, out = directory / "metrics.jsonl", directory / "curves.png"
    if not metrics.exists():
        return "no curves: no step was done"
    command = [sys.executable, "-m", "asympo.run.report.curves", str(metrics), str(out), title]
    try:
        run_helper(command, seconds=_DRAW_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no curves: drawing took more than {_DRAW_SECONDS:g} s"
    except AsympoError as error:
        return f"no curves: {error}"
    return None


def print_summary(summary: dict[str, Any], directory: Path) -> None:
    """A table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{summary['run']}: "
        + ("failed" if summary["failure"] else "finished" if summary["is_finished"] else "stopped")
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for name in ("before", "after"):
        value, interval = (summary[f"held_out_accuracy_{name}{end}"] for end in ("", "_interval"))
        shown = (
            "not measured"
            if value is None
            else f"{value:.3f}  (95 %: {interval[0]:.3f} to {interval[1]:.3f})"
        )
        table.add_row(f"held-out accuracy {name}", shown)
    table.add_row("steps", str(summary["steps"]))
    table.add_row("wall time", duration(summary["wall_seconds"]))
    table.add_row("reloads / failed probes", f"{summary['reloads']} / {summary['probe_failures']}")
    if summary["publish_bytes_median"] is not None:
        shared, whole = (summary[f"publish_bytes_{end}"] / 1e6 for end in ("median", "max"))
        table.add_row("shared per policy, median / largest", f"{shared:.1f} / {whole:.1f} MB")
    if summary["stall_seconds_per_reload"] is not None:
        table.add_row("stall per swap", f"{summary['stall_seconds_per_reload']:.2f} s")
    table.add_row("requests lost", str(summary["requests_lost"]))
    table.add_row(
        "groups trained / twice", f"{summary['groups_trained']} / {summary['groups_trained_twice']}"
    )
    if summary["last_policy_wait_seconds"] is not None:
        table.add_row("wait for the last policy", duration(summary["last_policy_wait_seconds"]))
    table.add_row("restarts of processes", str(summary["restarts"]))
    gib = summary["peak_rss_bytes_total"] / 2**30
    table.add_row(f"peak memory of all ({summary['peak_rss_kind']})", f"{gib:.2f} GiB")
    console = Console()
    console.print(table)
    for line in summary["warnings"]:
        console.print(f"warned: {line}", soft_wrap=True, markup=False, highlight=False)
    names = ("summary.json", "curves.png", "report.html")
    console.print(f"written: {', '.join(str(directory / name) for name in names)}", soft_wrap=True)


def print_promises(summary: dict[str, Any]) -> None:
    """The last lines of a finished run: what went wrong, or that nothing did."""
    if not summary["is_finished"]:
        return
    write, broken = sys.stdout.write, summary["broken_promises"]
    for text in summary["remarks"]:
        write(f"slow or large: {text}\n")
    for text in broken:
        write(f"went wrong: {text}\n")
    if not broken:
        write("nothing was lost, failed or trained twice\n")
    sys.stdout.flush()


def _published(metrics: Path) -> dict[str, float | None]:
    """What the policies of the run took where they are shared."""
    sizes = [row["publish_bytes"] for row in read_steps(metrics) if row.get("publish_bytes")]
    return {
        "publish_bytes_median": statistics.median(sizes) if sizes else None,
        "publish_bytes_mean": round(statistics.fmean(sizes)) if sizes else None,
        "publish_bytes_max": max(sizes, default=None),
    }


def _interval(accuracy: Accuracy | None) -> list[float] | None:
    return [round(bound, 4) for bound in accuracy.interval] if accuracy else None
