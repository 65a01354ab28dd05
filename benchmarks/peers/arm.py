"""What the arms share: arguments, padded tensors, timing, and the one line of JSON each of them prints.

Every arm runs `python arm_NAME.py --model PATH --rollouts FILE --steps N` in a process of its own: one step
to warm up, then N timed ones. A step is everything from token ids to updated weights.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0
LORA_RANK = 16
LORA_ALPHA = 32
"""Beside all linears, in arms that train an adapter."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with its responses, as `run.py` wrote them."""

    prompt_ids: list[int]
    responses: list[list[int]]
    advantages: list[float]


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Of one step."""

    seconds: float
    """All of it."""
    optimizer_seconds: float
    """Clipping and update alone."""
    mean_nll: float | None
    """Mean over responses of the mean NLL before the update: the same for every arm, or the arms differ.
    None where the arm does not compute it."""


def parse_arguments(*, extra: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The flags of every arm, and those of one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rollouts", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of products; weights are float32"
    )
    if extra is not None:
        extra(parser)
    return parser.parse_args()


def read_groups(path: Path) -> list[Group]:
    """Rollouts of one step."""
    return [Group(**group) for group in json.loads(path.read_text())]


def run_arm(step: Callable[[], StepTimes], *, steps: int, say: Callable[[str], None]) -> None:
    """Times the steps and prints the result."""
    taken, cpu_seconds = [], []
    for _ in range(steps + 1):
        before = time.process_time()
        taken.append(step())
        cpu_seconds.append(time.process_time() - before)
    result: dict[str, Any] = {
        "cpu_seconds": cpu_seconds[1:],
        "seconds": [times.seconds for times in taken[1:]],
        "optimizer_seconds": [times.optimizer_seconds for times in taken[1:]],
        "mean_nll": taken[0].mean_nll,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "load_average": os.getloadavg()[0],
    }
    say(json.dumps(result))


@contextlib.contextmanager
def quiet_output() -> Any:
    """Libraries' words go to standard error; what is yielded prints the result."""
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda line: os.write(real, (line + "\n").encode())
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def clock() -> float:
    """Seconds."""
    return time.perf_counter()
