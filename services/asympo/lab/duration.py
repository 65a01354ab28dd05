"""What a study will take, from arithmetic; and the full-size study, which needs GPUs.

No torch here: the estimate is printed before anything heavy is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.settings import dump_toml, merge, read_toml
from asympo.lab.presets.plan import Grid, Preset

_GIB = 2**30
_STATE_BYTES = 18
"""A parameter of the learner: float32 weight, gradient, two moments, and the bfloat16 copy it publishes."""
_LANGUAGE_PARAMETERS = 134_515_008
_LANGUAGE_TOKENS = (40, 8)
"""Prompt and response of the demo's task, in tokens."""


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    """A full-size model and the settings file it is run with."""

    name: str
    settings_file: str
    """In examples/."""
    num_parameters: float


PAPER_MODELS = (
    PaperModel(name="Qwen3-1.7B-Base", settings_file="qwen3-1.7b-base.toml", num_parameters=1.72e9),
    PaperModel(name="Qwen3-4B-Base", settings_file="qwen3-4b-base.toml", num_parameters=4.02e9),
    PaperModel(
        name="LLaMA-3.2-3B-Instruct", settings_file="llama-3.2-3b-instruct.toml", num_parameters=3.21e9
    ),
)
PAPER_ARMS = ("asympo", "spo", "naive", "gpg")
PAPER_STALENESS = (0, 1, 8, 32)
"""Queue staleness: the product bounds it, where the laboratory fixes it."""
_MEAN_SHARE = 0.4
"""Of the longest response allowed: the mean that the estimate takes."""
_PROMPT_TOKENS = 150


def describe_study(preset: Preset, grids: Sequence[Grid], *, num_cells: int) -> list[str]:
    """Lines about memory and operations."""
    if preset.tasks:
        return [f"{preset.name}: {num_cells} cells of {grids[0].steps} steps, well below a GiB a worker"]
    prompt, response = _LANGUAGE_TOKENS
    responses = preset.groups_per_step * preset.group_size
    tokens = preset.groups_per_step * prompt + responses * response
    flops = (6 + 2) * _LANGUAGE_PARAMETERS * tokens
    snapshots = max(age for grid in grids for age in grid.staleness) + 1
    memory = _LANGUAGE_PARAMETERS * (16 + 4 + 4 + 4)
    disk = _LANGUAGE_PARAMETERS * 4 * snapshots
    return [
        f"{preset.name}: {num_cells} cells of {grids[0].steps} steps, {tokens} tokens and "
        f"{flops / 1e12:.2f} TFLOP a step, {num_cells * grids[0].steps * flops / 1e15:.2f} PFLOP in all",
        f"a worker: {memory / _GIB:.1f} GiB of memory, and {disk / _GIB:.1f} GiB in the temporary directory "
        f"for {snapshots} policies to be drawn from",
    ]


def describe_paper(examples: Path) -> list[str]:
    """A line for each model: memory of learner and generator, operations of a step and of all runs."""
    lines = []
    for model in PAPER_MODELS:
        settings = read_toml(examples / model.settings_file)
        learner, sampling = settings["learner"], settings["run"]["sampling"]
        responses = learner["groups_per_step"] * learner["group_size"]
        tokens = responses * (_PROMPT_TOKENS + _MEAN_SHARE * sampling["max_tokens"])
        flops = 8 * model.num_parameters * tokens
        runs = len(PAPER_ARMS) * len(PAPER_STALENESS)
        lines.append(
            f"{model.name}: learner {model.num_parameters * _STATE_BYTES / _GIB:.0f} GiB of state, generator "
            f"{model.num_parameters * 2 / _GIB:.0f} GiB of weights; {flops / 1e15:.1f} PFLOP a step "
            f"({tokens / 1e6:.2f} million tokens), {runs} runs of {learner['total_steps']} steps: "
            f"{runs * learner['total_steps'] * flops / 1e18:.0f} EFLOP"
        )
    return lines


def write_paper_runs(examples: Path, directory: Path) -> list[Path]:
    """A settings file of `asympo run` for every model, arm and staleness."""
    paths = []
    for model in PAPER_MODELS:
        settings = read_toml(examples / model.settings_file)
        for arm in PAPER_ARMS:
            for staleness in PAPER_STALENESS:
                name = f"{model.settings_file.removesuffix('.toml').replace('.', '-')}-{arm}-k{staleness}"
                changes: dict[str, Any] = {
                    "run": {"name": name},
                    "learner": {"objective": arm, "max_staleness": staleness, "seed": 0},
                }
                path = directory / f"{name}.toml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(dump_toml(merge(settings, changes)))
                paths.append(path)
    return paths


def require_gpus(num_gpus: int) -> None:
    """Raises BadSetting on a machine without GPUs."""
    if not num_gpus:
        raise BadSetting(
            "the preset paper trains models of up to 4 billion parameters and this machine has no GPU: "
            "copy the settings files to one that has, or choose --preset laptop or smollm"
        )
