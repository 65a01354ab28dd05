"""What a run promises and what of it was not kept, told from its summary."""

from collections.abc import Iterator, Mapping
from typing import Any

from asympo.run.console.view import duration
from asympo.run.settings import TargetsSection

_LONG_WAIT_SECONDS = 30.0


def broken_promises(summary: Mapping[str, Any], targets: TargetsSection | None) -> list[str]:
    """A sentence for each promise that a finished run did not keep."""
    return [*_losses(summary), *_last_policy(summary), *_missed(summary, targets or TargetsSection())]


def remarks(summary: Mapping[str, Any], targets: TargetsSection | None) -> list[str]:
    """Sentences about what was slower or larger than it should be: a machine's doing as much as ours."""
    found = []
    wait = summary["last_policy_wait_seconds"]
    if wait is not None and wait >= _LONG_WAIT_SECONDS:
        found.append(f"{duration(wait)} were spent waiting for the last policy to be served")
    if targets is not None and targets.max_wall_seconds is not None:
        seconds = summary["wall_seconds"]
        if seconds > targets.max_wall_seconds:
            found.append(f"it took {duration(seconds)}, and should take {duration(targets.max_wall_seconds)}")
    if targets is not None and targets.max_memory_gb is not None:
        size = summary["peak_rss_bytes_total"] / 1e9
        if size > targets.max_memory_gb:
            found.append(
                f"its processes took {size:.1f} GB of memory, and should take {targets.max_memory_gb:g} GB"
            )
    return found


def _losses(summary: Mapping[str, Any]) -> Iterator[str]:
    failed, lost, twice = (
        summary[name] for name in ("probe_failures", "requests_lost", "groups_trained_twice")
    )
    if failed:
        yield f"{failed} of {summary['reloads']} swaps failed their proof: those policies were not served"
    if lost:
        yield f"{lost} responses were lost while policies were swapped"
    if twice:
        yield f"{twice} of {summary['groups_trained']} groups were trained twice"


def _last_policy(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["last_policy_served"] is None:
        return
    if not summary["last_policy_served"]:
        measured = summary["held_out_policy_step_after"]
        instead = "" if measured is None else f", step {measured} was measured instead"
        yield (
            f"the last policy (step {summary['last_policy_step']}) was not served after "
            f"{duration(summary['last_policy_wait_seconds'])} of waiting{instead}"
        )
    if summary["held_out_accuracy_after"] is None:
        yield summary["held_out_problem"] or "held-out accuracy after training was not measured"


def _missed(summary: Mapping[str, Any], targets: TargetsSection) -> Iterator[str]:
    before, after = summary["held_out_accuracy_before"], summary["held_out_accuracy_after"]
    has_aim = targets.min_accuracy is not None or targets.min_gain is not None
    if has_aim and after is None and summary["last_policy_served"] is None:
        yield "held-out accuracy has a target and was not measured: set run.evaluate"
    if targets.min_accuracy is not None and after is not None and after < targets.min_accuracy:
        yield f"held-out accuracy is {after:.3f}, and should be {targets.min_accuracy:g} or more"
    if targets.min_gain is None or after is None:
        return
    if before is None:
        yield "held-out accuracy before training was not measured, so what was gained is not known"
    elif after - before < targets.min_gain:
        yield f"held-out accuracy rose by {after - before:.3f}, and should by {targets.min_gain:g} or more"
