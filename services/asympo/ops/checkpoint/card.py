"""The model card of an exported policy: README.md, as the Hugging Face hub shows it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asympo import __version__
from asympo.common.checkpoints import Manifest
from asympo.common.foreign.text import printable
from asympo.common.rollout_log.evals.result import EvalResult

if TYPE_CHECKING:
    from asympo.learner.publish.proof import Proof

CARD_NAME = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What whoever finds the weights should know of them. Paths of this machine stay out."""

    run: str
    manifest: Manifest
    base: str
    """Directory or id on the hub."""
    is_adapter: bool = False
    """Whether the files are to be added to the base."""
    proof: "Proof"
    evals: Sequence[EvalResult]
    """Of the whole run, oldest first."""

    def to_markdown(self) -> str:
        """The file's text."""
        return "\n".join([*self._front_matter(), "", *self._text(), "", *self._results(), ""])

    def _front_matter(self) -> Iterator[str]:
        yield "---"
        yield "library_name: transformers"
        yield "pipeline_tag: text-generation"
        yield "tags: [reinforcement-learning, asympo]"
        if self._is_on_hub:
            yield f"base_model: {json.dumps(self.base)}"
        yield "---"

    @property
    def _is_on_hub(self) -> bool:
        return _HUB_ID.fullmatch(self.base) is not None and not Path(self.base).is_dir()

    def _text(self) -> Iterator[str]:
        manifest, proof = self.manifest, self.proof
        base = self.base if self._is_on_hub else Path(self.base).name
        yield f"# {self.run}, step {manifest.step}"
        yield ""
        yield f"The policy of run `{self.run}` after {manifest.step} optimizer steps from `{base}`,"
        yield f"by reinforcement learning with ASymPO {__version__}."
        yield ""
        yield "| | |"
        yield "|---|---|"
        yield f"| policy | `{manifest.name}`, manifest `{manifest.digest}` |"
        yield f"| tensors | {proof.tensors}, of which {proof.differ_from_base} differ from `{base}` |"
        yield f"| largest difference of a logit to `{base}` | {proof.logits_from_base:.3g} |"
        yield ""
        yield "These files were loaded again when they were written: they answer as the policy does, bit for"
        yield f"bit, on {proof.prompts} texts. Their licence follows from that of `{base}`."
        yield ""
        if self.is_adapter:
            yield f"An adapter: load `{base}`, then `PeftModel.from_pretrained(MODEL, DIRECTORY)`."
        else:
            yield "Load it with `AutoModelForCausalLM.from_pretrained(DIRECTORY)`, or `vllm serve DIRECTORY`."

    def _results(self) -> Iterator[str]:
        # The last word on each: a policy may have been measured again.
        rows = {(each.eval, each.policy_step): each for each in self.evals if self._is_shown(each)}
        if not rows:
            yield "No evaluation of this policy was recorded."
            return
        yield "| evaluation | policy | prompts | mean reward |"
        yield "|---|---|---|---|"
        for (name, step), each in sorted(rows.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
            cell = printable(name).replace("|", "\\|")
            yield f"| {cell} | step {step} | {each.prompts} | mean@{each.samples} {each.mean} |"

    def _is_shown(self, result: EvalResult) -> bool:
        """Results of this policy, not of another one of its step, and of the start to compare with."""
        is_own = result.policy_step == self.manifest.step
        return result.policy_step == 0 or (is_own and result.policy_fence in (None, self.manifest.fence))
