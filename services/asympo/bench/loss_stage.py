"""The loss stage alone: hidden states to gradients, chunked against whole logits.

Chunked is what the learner does: rows of its default length, each forward and backward before the next.

`python -m asympo.bench.loss_stage` measures one way in a process of its own, so that the memory is that
way's; `measure` runs both in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NUM_TOKENS, VOCAB_SIZE, HIDDEN_SIZE = 4096, 49152, 576
_TIMEOUT_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class LossStage:
    """One way in one process."""

    seconds: float
    """Median of forward and backward."""
    memory_bytes: int
    """Peak over what was there before: logits, probabilities, gradients of hidden states and head."""


def measure(
    *, device: str, dtype: str, rounds: int = 3, num_tokens: int = NUM_TOKENS, vocab_size: int = VOCAB_SIZE
) -> dict[str, Any]:
    """Both ways, in turn; ratios chunked over whole."""
    taken: dict[str, list[LossStage]] = {"chunked": [], "whole": []}
    for _ in range(rounds):
        for way, results in taken.items():
            results.append(_in_process(way, device, dtype, num_tokens, vocab_size))
    seconds = {way: statistics.median(r.seconds for r in results) for way, results in taken.items()}
    memory = {way: statistics.median(r.memory_bytes for r in results) for way, results in taken.items()}
    return {
        "num_tokens": num_tokens,
        "row_tokens": _row_tokens(),
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "seconds": seconds,
        "memory_bytes": memory,
        "loss_time_ratio": seconds["chunked"] / seconds["whole"],
        "loss_memory_ratio": memory["chunked"] / memory["whole"],
    }


def _row_tokens() -> int:
    """Tokens of a row, as the learner has them by default."""
    from asympo.learner.settings import LearnerSettings

    return int(LearnerSettings.model_fields["token_budget"].default)


def _in_process(way: str, device: str, dtype: str, num_tokens: int, vocab_size: int) -> LossStage:
    command = [sys.executable, "-m", "asympo.bench.loss_stage", way, device, dtype]
    command += [str(num_tokens), str(vocab_size)]
    # Without settings that keep memory: what is freed must not count as held.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, timeout=_TIMEOUT_SECONDS, check=True, text=True
    )
    return LossStage(**json.loads(done.stdout))


def _run(way: str, device_name: str, dtype_name: str, num_tokens: int, vocab_size: int) -> LossStage:
    import torch

    from asympo.bench.cell import whole_logits_nll
    from asympo.bench.memory import PeakMemory
    from asympo.learner.model.nll import HeadOptions, chunk_bounds, token_nll

    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, device=device, requires_grad=True)
    weight = (0.05 * torch.randn(vocab_size, HIDDEN_SIZE, device=device)).requires_grad_()
    target = torch.randint(vocab_size, (num_tokens,), device=device)
    options = HeadOptions(compute_dtype=dtype)
    row_tokens = _row_tokens()

    def chunked(tokens: slice) -> "Tensor":
        num_rows = len(target[tokens])
        return token_nll(
            hidden[tokens],
            weight,
            None,
            row_N=torch.arange(num_rows, device=device),
            target_N=target[tokens],
            token_bounds=chunk_bounds(range(num_rows), num_rows=num_rows, chunk_rows=options.chunk_rows),
            options=options,
        )[0]

    def once() -> None:
        if way == "chunked":
            for start in range(0, num_tokens, row_tokens):
                (chunked(slice(start, start + row_tokens)).sum() / num_tokens).backward()
        else:
            whole_logits_nll(hidden.to(dtype) @ weight.to(dtype).T, target).mean().backward()
        hidden.grad = weight.grad = None

    memory = PeakMemory(device)
    # Buffers that the libraries keep for ever are theirs, not the loss's.
    torch.mm(hidden.detach()[:256], weight.detach()[:1024].T)
    before = memory.mark()
    once()
    used = memory.peak() - before
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return LossStage(seconds=statistics.median(seconds), memory_bytes=used)


def main() -> int:
    """The child's side."""
    way, device, dtype, num_tokens, vocab_size = sys.argv[1:]
    result = _run(way, device, dtype, int(num_tokens), int(vocab_size))
    sys.stdout.write(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
