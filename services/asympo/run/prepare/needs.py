"""`--dry-run`: what a run will take, from arithmetic and one short measurement, and one scored prompt."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.settings import dump_toml, validate
from asympo.local.process import launched, run_helper
from asympo.run.prepare.environment import with_environment
from asympo.run.prepare.machine import CoreShare, Machine, split_machine
from asympo.run.prepare.plan import odd_sampling
from asympo.run.settings import RunFile

_GIB = 2**30
_PROCESS_BYTES = int(0.45 * _GIB)
"""A Python process with torch and transformers imported."""
_ENGINE_BYTES = int(1.0 * _GIB)
"""What vLLM's two processes take besides weights and KV cache."""
_MEASURE_SECONDS = 120.0

_MATMUL = """
import time, numpy
n = 1024
a = numpy.random.rand(n, n).astype(numpy.float32)
a @ a
best = min((lambda t: (a @ a, time.perf_counter() - t)[1])(time.perf_counter()) for _ in range(8))
print(2 * n**3 / best)
"""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes and seconds; times are None where nothing could be measured."""

    learner_bytes: int
    generator_bytes: int
    tokens_per_step: int
    """What the learner computes, prompts of a group once if they are shared."""
    train_seconds: float | None
    sample_seconds: float | None

    @property
    def step_seconds(self) -> float | None:
        """Both sides work at the same time: the slower one decides."""
        if self.train_seconds is None or self.sample_seconds is None:
            return None
        return max(self.train_seconds, self.sample_seconds)


def needs_of(
    shape: dict[str, Any],
    settings: Any,
    *,
    device: str,
    kv_cache_gib: float,
    flops_learner: float | None,
    flops_generators: float | None,
) -> Needs:
    """`shape` is what dry_run prints; rates are float32 operations a second.

    Training costs 6 operations per parameter and token, sampling 2. Responses are taken to be half as long as
    allowed, or as long as the answer where that is shorter.
    """
    size, prompt = shape["num_parameters"], shape["num_prompt_tokens"]
    response = min(shape["num_answer_tokens"] + 2, max(1, settings.sampling.max_tokens // 2))
    num_responses = settings.groups_per_step * settings.group_size
    prompts = settings.groups_per_step if settings.share_prefixes != "never" else num_responses
    tokens = prompts * prompt + num_responses * response
    row_tokens = min(settings.token_budget, tokens)
    learner = _PROCESS_BYTES + learner_bytes(shape, settings, device=device, row_tokens=row_tokens)
    if settings.lora is not None:
        # It is loaded in float32 and then rounded.
        learner = max(learner, _PROCESS_BYTES + (4 + 2) * size)
    generator = _PROCESS_BYTES + _ENGINE_BYTES + 2 * size + int(kv_cache_gib * _GIB)
    sampled = settings.groups_per_step * prompt + num_responses * response
    return Needs(
        learner_bytes=learner,
        generator_bytes=generator,
        tokens_per_step=tokens,
        train_seconds=6 * size * tokens / flops_learner if flops_learner else None,
        sample_seconds=2 * size * sampled / flops_generators if flops_generators else None,
    )


def learner_bytes(shape: dict[str, Any], settings: Any, *, device: str, row_tokens: int) -> int:
    """Tensors of the learner at the peak of a step that has rows of so many tokens.

    A test holds it against a run of the learner's own steps on tensors without data. On a GPU: products in
    bfloat16, FlexAttention, norms in float32. On a CPU: float32, with norms and MLPs that keep less.
    """
    from asympo.learner.settings import HEAD_KEPT_BYTES

    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_layers"]
    state = _state_bytes(shape, settings, device=device)
    head_weights = shape["vocab_size"] * hidden
    rows = min(settings.head_rows(device), row_tokens) * shape["vocab_size"]
    probabilities = min(HEAD_KEPT_BYTES // (4 * rows) * 4 * rows, 4 * row_tokens * shape["vocab_size"])
    if device == "cpu":
        kept = layers * 4 * (12 * hidden + 4 * inner)
        kept = kept // 4 if settings.gradient_checkpointing else kept
        return state + row_tokens * kept + 12 * rows + probabilities
    widths = shape["attention_width"]
    # The head: weights and their product in bfloat16, logits twice and their cast.
    head = 4 * head_weights + 10 * rows + row_tokens * 20 * hidden
    narrowed = 2 * (shape["num_parameters"] - head_weights)
    spared = 0
    if settings.lora is not None:
        head, narrowed = head - 4 * head_weights, 0
        spared = 4 * inner if shape["is_gated_silu"] else 0
    if not settings.gradient_checkpointing:
        kept = layers * (26 * hidden + 8 * inner - spared + 10 * widths)
        return state + narrowed + row_tokens * kept + head
    # Inputs of all layers, and either the head or one layer computed again.
    layer = row_tokens * (28 * hidden + 12 * inner - spared + 10 * widths)
    return state + row_tokens * 4 * hidden * layers + max(head + probabilities, layer)


def _state_bytes(shape: dict[str, Any], settings: Any, *, device: str) -> int:
    """float32 weights, gradients and two moments of what is trained, and the bfloat16 copy that is published.

    With an adapter also the base in bfloat16, as it is and merged, or in fewer bits, and one layer of it
    merged. At most: as if it were beside every matrix.
    """
    from asympo.learner.settings import QUANTISED_BLOCK

    if settings.lora is None:
        return (16 + 2) * int(shape["num_parameters"])
    adapter = settings.lora.rank * shape["matrix_sides"]
    alone = shape["vocab_size"] * shape["hidden_size"] * (1 if shape["is_tied"] else 2)
    computed = 4 if device == "cpu" else 2
    linears = shape["num_parameters"] - alone
    base = (2 + 2) * linears
    # Stacks of experts are kept for the backward as they are computed with, where they are not merged so.
    kept = shape["stacked"] if computed > 2 or settings.lora.base_bits else 0
    kept = kept // shape["num_layers"] if settings.gradient_checkpointing else kept
    if bits := settings.lora.base_bits:
        largest = shape["largest_matrix"]
        base = linears * bits // 8 + 4 * linears // QUANTISED_BLOCK[bits] + (2 + 4 + computed) * largest
    return int((16 + 2) * adapter + base + computed * (alone + kept))


def measure_flops(share: CoreShare) -> float | None:
    """float32 operations a second of a matrix product on the cores of a share."""
    command = launched([sys.executable, "-c", _MATMUL], cores=share.cores, outlives_parent=True)
    environment = {**os.environ, **share.environment}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_MEASURE_SECONDS, check=True,
        )  # fmt: skip
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def print_needs(file: RunFile, machine: Machine) -> int:
    """Everything on standard output; raises AsympoError when model or task cannot be used."""
    from asympo.generator.settings import GeneratorSettings
    from asympo.learner.settings import LearnerSettings

    settings = validate(LearnerSettings, file.learner_values)
    generator = validate(GeneratorSettings, file.generator_values)
    shape = look_at_model(file)
    learner_share, shares = split_machine(
        machine,
        num_generators=file.generators.count,
        learner_cores=file.run.learner_cores,
        generator_cores=file.generators.cores,
        use_gpus=file.run.use_gpus,
    )
    on_cpu = not (machine.gpus and file.run.use_gpus)
    flops = [measure_flops(share) for share in shares] if on_cpu else []
    guess = needs_of(
        shape,
        settings,
        device="cpu" if on_cpu else "cuda",
        kv_cache_gib=getattr(generator.vllm, "kv_cache_gib", None) or 1,
        flops_learner=measure_flops(learner_share) if on_cpu else None,
        flops_generators=sum(each or 0.0 for each in flops) or None,
    )
    write = sys.stdout.write
    write(f"model: {settings.model}, {shape['num_parameters'] / 1e6:.0f} million parameters\n")
    write(f"task: {settings.task.name}, {shape['num_prompts']} prompts, {shape['num_held_out']} held out\n")
    write(f"learner: {learner_share}\n")
    for share in shares:
        write(f"generator: {share}\n")
    total = guess.learner_bytes + len(shares) * guess.generator_bytes
    there = machine.memory_bytes if on_cpu else machine.gpus[0].memory_bytes
    write(
        f"memory: learner {_gib(guess.learner_bytes)}, each generator {_gib(guess.generator_bytes)}, "
        f"{_gib(total)} together; {'this machine' if on_cpu else 'the first GPU'} has {_gib(there)}\n"
    )
    if guess.step_seconds is None:
        write("time: not estimated on GPUs; measure a short run: --learner.total-steps 5\n")
    else:
        write(
            f"time: about {guess.step_seconds:.0f} s a step for {guess.tokens_per_step} tokens (learner "
            f"{guess.train_seconds:.0f} s, generators {guess.sample_seconds:.0f} s, at the same time)\n"
            "      a matrix product was measured, the rest is arithmetic: expect half to twice as much\n"
        )
    for text in odd_sampling(settings):
        write(f"note: {text}\n")
    problems = [*filter(None, (shape["does_not_fit"],)), *_print_scored_prompt(shape, settings, generator)]
    if problems:
        raise BadSetting("; ".join(problems))
    return 0


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _print_scored_prompt(shape: dict[str, Any], settings: Any, generator: Any) -> list[str]:
    """Sentences about what cannot be scored."""
    from asympo.rewards.scorer import Scored, Scorer
    from asympo.tasks.base import TaskPrompt

    with Scorer(
        task=settings.task,
        timeout_seconds=generator.reward_timeout_seconds,
        allow_python=getattr(generator, "allow_python", False),
    ) as scorer:
        progress = settings.progress(num_prompts=shape["num_prompts"])
        responses = [shape["answer"], ""]
        right, wrong = scorer.score(TaskPrompt(**shape["prompt"]), responses, progress=progress)
    sys.stdout.write(f"prompt 0 ({shape['num_prompt_tokens']} tokens):\n{shape['prompt_text']}\n")
    for response, reward in ((shape["answer"], right), ("", wrong)):
        shown = reward.reward if isinstance(reward, Scored) else reward.reason
        sys.stdout.write(f"response {response!r}: reward {shown}\n")
    if isinstance(right, Scored) or right.kind == "does_not_apply":
        return []
    return [f"the answer of the task's first prompt cannot be scored: {right.reason}"]


def look_at_model(file: RunFile) -> dict[str, Any]:
    """Sizes of model and prompt, found in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "learner.toml"
        # Nothing of the run is written: rows of an environment are made and forgotten.
        path.write_text(dump_toml(with_environment(file, directory=Path(directory)).learner_values))
        command = [sys.executable, "-m", "asympo.run.prepare.dry_run", str(path)]
        printed = run_helper(command, seconds=900)
    shape: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return shape
