"""`asympo bench pipeline`: what asynchrony is worth, from the real services with a simulated engine.

Four runs of the same binaries on this machine. Two saturate one side at a time: the generator fills a log
whose learner is paused, then the learner trains on that log after the generator has gone. Their times per
step are Tg and Tt, and (Tg + Tt) / max(Tg, Tt) is the most that overlapping the two can give. The engine's
speed is set between them so that both sides take as long. Then the same steps are run with max_staleness 0
and 1.

`generator_wait_ratio` is an estimate, 1 - Tg / seconds of a step, and no wait that was measured.

A share of the bound above 1 is no error: synchronous steps also wait for the longest response of every step
and for the reload, which the saturated times do not contain.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.bench.pipeline_run import Load, PipelineRun, pipeline_run
from asympo.common.errors import BadSetting
from asympo.testing.tiny_model import write_tiny_model

Say = Callable[[str], None]
_WARM_STEPS = 3
"""Left out of every mean: first calls are slower."""
_FIRST_SECONDS_PER_TOKEN = 0.004


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Seconds for one step's groups, each side alone."""

    generator: float
    learner: float


def measure_pipeline(arguments: argparse.Namespace, *, say: Say) -> dict[str, Any]:
    """The whole report."""
    with tempfile.TemporaryDirectory(prefix="asympo-pipeline-") as name:
        directory = Path(name)
        load = Load(
            model=write_tiny_model(
                directory / "model", hidden_size=arguments.hidden_size, num_layers=arguments.num_layers
            ),
            group_size=arguments.group_size,
            groups_per_step=arguments.groups_per_step,
            mean_tokens=arguments.mean_tokens,
            sigma=arguments.sigma,
            max_tokens=arguments.max_tokens,
            max_num_seqs=arguments.max_num_seqs,
            reload_seconds=arguments.reload_seconds,
            token_budget=4096,
        )
        return _measure(load, arguments, directory, say)


def _measure(load: Load, arguments: argparse.Namespace, directory: Path, say: Say) -> dict[str, Any]:
    seconds_per_token = arguments.seconds_per_token or _FIRST_SECONDS_PER_TOKEN
    num_steps = arguments.saturated_steps
    say("each side alone")
    alone = _saturated(load, directory / "first", seconds_per_token, num_steps)
    if arguments.seconds_per_token is None:
        seconds_per_token *= alone.learner / alone.generator
        say(f"each side alone, the engine at {1e3 * seconds_per_token:.2f} ms a token")
        alone = _saturated(load, directory / "second", seconds_per_token, num_steps)
    report: dict[str, Any] = {"generator_seconds": alone.generator, "learner_seconds": alone.learner}
    for label, max_staleness in (("sync", 0), ("async", 1)):
        say(f"{label}: {arguments.steps} steps")
        with pipeline_run(
            load,
            name=label,
            directory=directory / label,
            max_staleness=max_staleness,
            total_steps=arguments.steps,
            seconds_per_token=seconds_per_token,
        ) as run:
            run.wait(lambda run=run: len(run.rows) >= arguments.steps, what="the steps")  # type: ignore[misc]
            report[label] = describe(run.rows, run.stats().wasted_appends, alone=alone, load=load)
    bound = (alone.generator + alone.learner) / max(alone.generator, alone.learner)
    speedup = report["sync"]["step_seconds"] / report["async"]["step_seconds"]
    return {
        "speedup": speedup,
        "bound": bound,
        "share_of_bound": speedup / bound,
        "learner_wait_ratio": report["async"]["learner_wait_ratio"],
        "generator_wait_ratio": report["async"]["generator_wait_ratio"],
        "tokens_discarded": report["sync"]["tokens_discarded"] + report["async"]["tokens_discarded"],
        "seconds_per_token": seconds_per_token,
        **report,
        "load": {
            "responses_per_step": load.group_size * load.groups_per_step,
            "mean_tokens": load.mean_tokens,
            "sigma": load.sigma,
            "max_num_seqs": load.max_num_seqs,
            "reload_seconds": load.reload_seconds,
        },
    }


def _saturated(load: Load, directory: Path, seconds_per_token: float, num_steps: int) -> Saturated:
    """Fills the log of a paused learner, then lets it train without a generator."""
    size = load.groups_per_step
    with pipeline_run(
        load,
        name="saturated",
        directory=directory,
        max_staleness=num_steps + 1,
        total_steps=num_steps,
        seconds_per_token=seconds_per_token,
        is_paused=True,
    ) as run:
        # The first step's groups fill the engine; the last ones would see it run empty.
        run.wait(lambda: run.stats().appended >= size, what="the first groups")
        began, first = _now(run)
        run.wait(lambda: run.stats().appended >= num_steps * size, what="a full log")
        ended, last = _now(run)
        run.stop_generators()
        run.resume_learner()
        run.wait(lambda: len(run.rows) >= num_steps, what="the learner to train the log")
        rows = run.rows
    return Saturated(
        generator=seconds_of_groups(ended - began, last - first) * size,
        learner=_seconds_per_step(rows, skip=1),
    )


def seconds_of_groups(seconds: float, num_groups: int) -> float:
    """Of one, where so many came meanwhile; raises BadSetting when none did, as all were there by then."""
    if num_groups < 1 or seconds <= 0:
        raise BadSetting(
            f"the engine gave {num_groups} groups between two looks, too few to measure its speed: give more "
            "--saturated-steps, or a larger --seconds-per-token"
        )
    return seconds / num_groups


def _now(run: PipelineRun) -> tuple[float, int]:
    return time.monotonic(), run.stats().appended


def describe(
    rows: Sequence[dict[str, Any]], num_wasted: int, *, alone: Saturated, load: Load
) -> dict[str, Any]:
    """One run from the learner's rows; seconds are wall clock, warm-up left out."""
    steady = rows[_WARM_STEPS:]
    step_seconds = _seconds_per_step(rows, skip=_WARM_STEPS)
    waited, busy = (sum(row[name] for row in steady) for name in ("wait_seconds", "busy_seconds"))
    tokens_per_group = sum(row["tokens_trained"] for row in rows) / sum(row["groups"] for row in rows)
    return {
        "step_seconds": step_seconds,
        "learner_wait_ratio": waited / (waited + busy),
        "generator_wait_ratio": max(0.0, 1 - alone.generator / step_seconds),
        "groups_discarded": num_wasted,
        "tokens_discarded": round(num_wasted * tokens_per_group),
        "publish_seconds": _mean([row["publish_seconds"] for row in steady]),
        "queue_staleness_mean": _mean([row["queue_staleness_mean"] for row in steady]),
        "queue_staleness_max": max(row["queue_staleness_max"] for row in steady),
        "steps_by_queue_staleness_max": dict(
            sorted(Counter(str(row["queue_staleness_max"]) for row in steady).items())
        ),
        "generation_staleness_mean": _mean(
            [
                row["generation_staleness_mean"]
                for row in steady
                if row["generation_staleness_mean"] is not None
            ]
        ),
    }


def _seconds_per_step(rows: Sequence[dict[str, Any]], *, skip: int) -> float:
    """Between the ends of the first and the last step counted."""
    first, last = rows[skip - 1], rows[-1]
    return float((last["wall_seconds"] - first["wall_seconds"]) / (last["step"] - first["step"]))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
