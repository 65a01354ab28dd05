"""How the policy's forward pass is computed: in packed rows with our parts, or by the model as it is."""

from dataclasses import dataclass, replace
from typing import Self

from transformers import PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadModel
from asympo.learner.model.attention import PACKED_ATTENTION
from asympo.learner.model.fused import fuse, unfuse


@dataclass(frozen=True, kw_only=True)
class ForwardPath:
    """One way; the default is the fastest."""

    attention: str = "blocks"
    """`blocks` or `flex` of packed rows; `sdpa` or `eager` is the model's own whole forward."""
    alone_above: int | None = None
    """Sequences of more tokens have a row of their own: 0 is all of them, None is no limit."""

    @property
    def is_own(self) -> bool:
        """Whether the model is left as it is."""
        return self.attention in ("sdpa", "eager")

    @property
    def is_slow(self) -> bool:
        """Whether it is not one of the fastest."""
        return self.is_own or self.alone_above is not None

    def with_attention(self, name: str) -> Self:
        """The same with another attention of packed rows, if this one has packed rows."""
        return self if self.is_own else replace(self, attention=name)

    def __str__(self) -> str:
        if self.is_own:
            return f"as the model is, one response at a time ({self.attention} attention)"
        if self.alone_above is None:
            return "in packed rows with shared prefixes"
        if not self.alone_above:
            return "in rows of one response"
        return f"in packed rows with shared prefixes, those of more than {self.alone_above} tokens one by one"

    def apply(self, model: PreTrainedModel) -> None:
        """Makes the model compute this way; raises BadModel if it cannot."""
        name = self.attention if self.is_own else PACKED_ATTENTION
        try:
            model.set_attn_implementation(name)
        except ValueError as error:
            raise BadModel(
                f"{type(model).__name__} has no attention implementation {name}: {error}"
            ) from error
        if self.is_own:
            unfuse(model)
        else:
            fuse(model)


FAST = ForwardPath()


def trained_range(config: PretrainedConfig) -> int | None:
    """Length beyond which a whole row's length may scale the positions; None: it does not."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for each in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
        if each.get("rope_type", "default") != "default":
            found = each.get("original_max_position_embeddings") or text.max_position_embeddings
            return int(found)
    return None


def set_mode(model: PreTrainedModel, *, is_checkpointed: bool) -> None:
    """Ready to be trained with nothing random in it: a response's mean NLL is the policy's own.

    Layers recompute only in training mode; so they alone are in it, what they hold is not, and their own
    dropout is none.
    """
    model.eval()
    if model.is_gradient_checkpointing and not is_checkpointed:
        model.gradient_checkpointing_disable()
    if not is_checkpointed:
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for holder in filter(None, (module, getattr(module, "config", None))):
                for name, value in vars(holder).items():
                    if "drop" in name and isinstance(value, float):
                        setattr(holder, name, 0.0)
