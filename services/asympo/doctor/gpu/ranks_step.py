"""Two ranks under torchrun against one process: the same losses and weights.

As a program it is one of the ranks: `torchrun -m asympo.doctor.gpu.ranks_step DEVICE`.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from asympo.doctor.gpu.small_learner import SmallLearner, rollouts_of
from asympo.doctor.gpu.steps import Found
from asympo.learner.ranks import Ranks
from asympo.learner.torchrun import Launch

_NUM_STEPS = 3
_SHAPE = "32/96/5"
_TOLERANCE = 1e-4
"""Of weights after steps of 1e-3 in float32: sums are in another order."""


def run(*, device: str, directory: Path) -> Found:
    """Skipped on one GPU: NCCL gives each rank one of its own."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        return Found(sentence="one GPU: NCCL wants one for each rank", is_skipped=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "asympo.doctor.gpu.ranks_step", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not answers:
        return Found(sentence=f"torchrun ended with exit code {done.returncode}", is_ok=False)
    figures = json.loads(answers[-1])
    error, backend = figures["worst_difference"], figures["backend"]
    if not error <= _TOLERANCE:
        sentence = f"over {backend}, weights of two ranks and of one process differ by {error:.1e}"
        return Found(sentence=sentence, is_ok=False, figures=figures)
    return Found(sentence=f"two ranks over {backend} train what one process trains", figures=figures)


def main(device: str) -> None:
    """One rank; the first says how far it is from a process alone."""
    # What was imported is never garbage; a process looks through all of it once more as it ends.
    gc.freeze()
    torch.set_num_threads(1)
    launch = Launch.from_environment(os.environ)
    ranks = Ranks.join(launch, device_type=device)
    place = torch.device(device, launch.local_rank) if device == "cuda" else torch.device(device)
    alone = SmallLearner(place, dtype=torch.float32, attention="blocks")
    together = SmallLearner(place, dtype=torch.float32, attention="blocks", ranks=ranks)
    before, rollouts = alone.weights(), rollouts_of(_SHAPE)
    losses = [
        [learner.step(rollouts, step=step).nll_positive for learner in (alone, together)]
        for step in range(1, _NUM_STEPS + 1)
    ]
    expected, found = alone.weights(), together.weights()
    if ranks.is_first:
        names = zip(expected.items(), found.values(), strict=True)
        report = {
            "worst_difference": max(float((one - other).abs().max()) for (_, one), other in names),
            "moved_by": max(float((expected[name] - before[name]).abs().max()) for name in before),
            "nll_positive": losses,
            "backend": {"cuda": "nccl", "cpu": "gloo"}[device],
        }
        sys.stdout.write(json.dumps(report) + "\n")
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1])
