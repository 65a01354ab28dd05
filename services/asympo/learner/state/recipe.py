"""What a run was trained with, besides its groups: kept in every part of its archive, for a replay."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from asympo import __version__
from asympo.common.archive import PartInfo
from asympo.common.errors import BadSetting, CorruptArchive
from asympo.common.redaction import redacted
from asympo.common.rollout_log import RunConfig
from asympo.common.settings import validate
from asympo.learner.settings import LearnerSettings
from asympo.learner.step.compute import Compute, processor_class, set_up_torch
from asympo.tasks.tokenizer_digest import tokenizer_digest


def recipe_of(settings: LearnerSettings, config: RunConfig, compute: Compute) -> dict[str, Any]:
    """All that decides the arithmetic besides the entries; JSON values."""
    return {
        "settings": redacted(settings.model_dump(mode="json")),
        "config": config.to_json(),
        "decisions": compute.to_decisions(),
        "build": build_of(compute.device),
    }


def build_of(device: str) -> dict[str, str]:
    """What must be the same for the same bits."""
    is_cuda = device == "cuda" and torch.cuda.is_available()
    return {
        "asympo": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "processor": torch.cuda.get_device_name() if is_cuda else torch.backends.cpu.get_cpu_capability(),
    }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that was read back, fit for this machine."""

    settings: LearnerSettings
    config: RunConfig
    compute: Compute

    @classmethod
    def of(cls, info: PartInfo, *, any_build: bool) -> "Recipe":
        """The recipe of a part; BadSetting names what differs here and breaks the promise of equal bits."""
        try:
            stored = info.recipe
            compute = Compute.of(stored["decisions"])
            config = RunConfig.from_json(stored["config"])
            settings = validate(LearnerSettings, stored["settings"])
            build = stored["build"]
        except (KeyError, TypeError) as error:
            raise CorruptArchive(f"the archive does not say how its groups were trained: {error}") from error
        if compute.num_ranks > 1 and not any_build:
            raise BadSetting(
                f"the run was trained by {compute.num_ranks} ranks, which add up in a different order "
                "than one does: "
                "give --any-build to train the same groups in the same order anyway"
            )
        check_device(compute, any_build=any_build)
        if not any_build:
            _check_build(build, build_of(compute.device))
        return cls(settings=settings, config=config, compute=compute)

    def set_up(self) -> None:
        """Seeds, deterministic algorithms and the recorded number of threads."""
        set_up_torch(seed=self.settings.seed, num_threads=self.compute.num_threads)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises BadSetting when the tokenizer is not that of the run."""
        if self.config.tokenizer_digest and tokenizer_digest(tokenizer) != self.config.tokenizer_digest:
            raise BadSetting(
                f"the tokenizer of {self.settings.model} is not the one that run {self.config.run} was "
                "trained with"
            )


def check_device(compute: Compute, *, any_build: bool) -> None:
    """Raises BadSetting where this machine lacks the device, or its processor gives other bits."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise BadSetting("the run was trained on cuda, and this machine has no usable GPU")
    here = processor_class(compute.device)
    if not any_build and compute.processor not in ("", here):
        raise BadSetting(
            f"the run was trained on {compute.device} ({compute.processor}) and this is {here}, which gives "
            "other bits: use the same, or give --any-build to train the same groups in the same order anyway"
        )


def _check_build(recorded: Mapping[str, str], here: Mapping[str, str]) -> None:
    differences = [
        f"{name} was {recorded.get(name)} and is {value} here"
        for name, value in here.items()
        if recorded.get(name) != value
    ]
    if differences:
        raise BadSetting(
            f"this build cannot reproduce the bits of the run: {'; '.join(differences)}. Use the same "
            "one, or give --any-build to train the same groups in the same order anyway"
        )
