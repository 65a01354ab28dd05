"""Policies on disk for engine tests, and what transformers says about them."""

from pathlib import Path

from asympo.common.checkpoints import Manifest, Probe, ProbeSequence
from asympo.common.checkpoints.digests import tensor_entries

PROBES = (tuple(range(3, 40)), tuple(7 * position % 250 + 3 for position in range(24)))
NUM_PROMPT_TOKENS = 4


def manifest_of(directory: Path, *, step: int = 1, mean_nll: float = 0.0) -> Manifest:
    sequence = ProbeSequence(token_ids=PROBES[0], num_prompt_tokens=NUM_PROMPT_TOKENS, mean_nll=mean_nll)
    return Manifest(
        step=step,
        fence=1,
        files=(),
        tensors=tensor_entries(sorted(directory.glob("*.safetensors"))),
        probe=Probe(sequences=(sequence,), tolerance=0.05),
        digest=f"{step:064d}",
    )


def reference_mean_nll(directory: Path) -> list[float]:
    """Mean NLL of the scored tokens of each probe, by a forward pass of transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    means = []
    for token_ids in PROBES:
        with torch.no_grad():
            log_probs = model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)
        nll = -log_probs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
        means.append(float(nll[NUM_PROMPT_TOKENS - 1 :].mean()))
    return means
