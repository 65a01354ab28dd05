"""The steps by name and their limits; nothing here imports torch.

`python -m asympo.doctor.gpu.steps NAME DEVICE DIRECTORY` runs one and prints what it found as JSON.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from asympo.common.errors import AsympoError
from asympo.local.heap import large_imports


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one step found."""

    sentence: str
    is_ok: bool = True
    is_skipped: bool = False
    """It could not be tried on this machine; the sentence says why."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Numbers and names, as JSON has them."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to try."""

    name: str
    shows: str
    limit_seconds: float


STEPS = (
    Step(name="machine", shows="driver, compilers, sampler, memory and disk", limit_seconds=60),
    Step(
        name="attention",
        shows="FlexAttention, blocks and a dense mask agree; which is faster",
        limit_seconds=120,
    ),
    Step(name="identity", shows="the same steps give the same bits, also after a resume", limit_seconds=60),
    Step(name="engine", shows="graphs, and reloads under load that are proved", limit_seconds=180),
    Step(name="untied", shows="the same without graphs and with a head of its own", limit_seconds=120),
    Step(name="learner", shows="tokens a second, and peak memory against the estimate", limit_seconds=120),
    Step(name="ranks", shows="two ranks compute what one process computes", limit_seconds=90),
    Step(name="demo", shows="generator and learner together on this machine", limit_seconds=240),
    Step(name="sharing", shows="an engine that sleeps, and what turns cost a step", limit_seconds=240),
)
"""In order of what they cost: an early failure explains a later one."""


def run_step(name: str, *, device: str, directory: Path) -> Found:
    """One step in this process; a failure that has a sentence is one of its findings."""
    with large_imports():
        run: Callable[..., Found] = import_module(f"asympo.doctor.gpu.{name}_step").run
    try:
        return run(device=device, directory=directory)
    except AsympoError as error:
        return Found(sentence=str(error), is_ok=False)


def main(argv: list[str]) -> int:
    name, device, directory = argv
    found = run_step(name, device=device, directory=Path(directory))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
