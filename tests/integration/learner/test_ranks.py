"""Several ranks compute what one computes."""

import subprocess
import sys
from pathlib import Path


def torchrun(*arguments: str, num_ranks: int = 2) -> list[str]:
    """The command that starts so many ranks on this machine."""
    flags = ("--standalone", "--nproc-per-node", str(num_ranks))
    return [sys.executable, "-m", "torch.distributed.run", *flags, *arguments]


def test_two_ranks_have_the_loss_gradient_and_metrics_of_one(tiny_model: Path) -> None:
    command = torchrun("-m", "tests.integration.learner.sharded_steps", str(tiny_model))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
