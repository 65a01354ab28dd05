"""Policies one small optimizer step apart, as a run publishes them."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from asympo.common.checkpoints import Manifest, Probe
from asympo.common.checkpoints.digests import tensor_entries


def write_next_policy(source: Path, target: Path, *, learning_rate: float, seed: int) -> int:
    """Copy a checkpoint as it is after one step that moves every weight by the learning rate.

    The float32 weights that bfloat16 rounds away are drawn; returns the number of values that then differ,
    which at 1e-6 is a fraction of a percent, and none in norms near 1.
    """
    shutil.copytree(source, target)
    (target / "manifest.json").unlink(missing_ok=True)
    random = torch.Generator().manual_seed(seed)
    num_changed = 0
    for path in sorted(target.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.dtype is not torch.bfloat16:
                continue
            # Within half a unit in the last place: what was rounded away by publishing.
            rounding = (torch.rand(tensor.shape, generator=random) - 0.5) * 2.0**-8 * tensor.float().abs()
            direction = torch.randint(2, tensor.shape, generator=random) * 2.0 - 1.0
            master = tensor.float() + rounding
            moved = (master + learning_rate * direction).to(torch.bfloat16)
            tensors[name] = torch.where(moved != master.to(torch.bfloat16), moved, tensor)
            num_changed += int((tensors[name] != tensor).sum())
        save_file(tensors, path, metadata={"format": "pt"})
    return num_changed


def manifest_for(directory: Path, *, step: int) -> Manifest:
    """What an engine asks of a manifest: the tensors by name, shape and digest."""
    return Manifest(
        step=step,
        fence=1,
        files=(),
        tensors=tensor_entries(sorted(directory.glob("*.safetensors"))),
        probe=Probe(sequences=(), tolerance=0.0),
        digest=f"{step:064d}",
    )
