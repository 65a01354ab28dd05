"""Which way of computing a model is right: tried on a miniature of it before anything is trained.

A row of a dozen responses, some within and some beyond the windows and the range of positions, is computed each
way, in the mode that training uses, and compared with the model's own forward of one sequence at a time:
the mean NLL of every response and the gradient of every parameter.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadModel
from asympo.learner.model.batching import TrainedGroup, TrainedResponse
from asympo.learner.model.miniature import FIRST_PLAIN_ID, TRAINED_RANGE, VOCABULARY, make_miniature
from asympo.learner.model.forward_path import ForwardPath, set_mode, trained_range
from asympo.learner.model.policy import Policy, vocab_size

log = logging.getLogger(__name__)

MAX_NLL_ERROR, MAX_GRADIENT_ERROR = 1e-4, 1e-3
"""Nats, and the share of a parameter's gradient. Norms and routers round to float32 whatever the weights are."""

MAX_NLL_ERROR_FP32, MAX_GRADIENT_ERROR_FP32 = 1e-3, 5e-2
"""The same for real weights, which are in float32."""
_EAGER = ForwardPath(attention="eager", alone_above=0)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between two ways of computing the same sequences."""

    nll: float
    """Largest of the mean NLLs, in nats."""
    gradient: float
    """Largest of the parameters, as a share of its gradient."""

    @property
    def is_small(self) -> bool:
        return self.nll <= MAX_NLL_ERROR and self.gradient <= MAX_GRADIENT_ERROR

    def __str__(self) -> str:
        return f"mean NLL differs by {self.nll:.2g}, gradient by {self.gradient:.2g}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The first way that is right."""

    path: ForwardPath
    difference: Difference | None
    """None: no miniature could be made, so nothing is known."""
    refused: tuple[str, ...]
    """Why not the ways before it."""

    def tell(self) -> None:
        """A line for the log where it is not the fastest way."""
        if self.path != ForwardPath():
            log.warning("This model is computed %s, which is slower: %s", self.path, "; ".join(self.refused))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Mean NLLs of all responses and gradients of all parameters."""

    nll_R: Tensor
    gradients: list[Tensor]

    def minus(self, other: "Measured") -> Difference:
        """Relative to ``other``."""
        norms = [each.norm() for each in other.gradients]
        whole = torch.stack(norms).norm()
        shares = [
            float((mine - theirs).norm() / torch.maximum(norm, 1e-3 * whole))
            for mine, theirs, norm in zip(self.gradients, other.gradients, norms, strict=True)
        ]
        nll = (self.nll_R - other.nll_R).abs().max()
        return Difference(nll=float(nll), gradient=max(shares))


def check_model(config: PretrainedConfig, *, is_checkpointed: bool) -> Checked:
    """The fastest way that is right for models of this config; raises BadModel with the reason for none."""
    try:
        model = make_miniature(config, dtype=torch.float64)
    except BadModel as error:
        return Checked(path=_EAGER, difference=None, refused=(str(error),))
    theirs = own_forward(model, config.model_type)
    refused: list[str] = []
    for path in _ways(model.config):
        try:
            set_mode(model, is_checkpointed=is_checkpointed)
            difference = _measured(model, path).minus(theirs)
        except Exception as error:  # any code of any family runs here
            refused.append(f"{path}: {_sentence(error)}")
            continue
        if difference.is_small:
            if path.alone_above:
                path = replace(path, alone_above=trained_range(config))
            return Checked(path=path, difference=difference, refused=tuple(refused))
        refused.append(f"{path}: {difference}")
    raise BadModel(f"a model of the kind {config.model_type} cannot be trained: {refused[-1]}")


def _ways(config: PretrainedConfig) -> list[ForwardPath]:
    """From fast to slow."""
    ways = [ForwardPath(), ForwardPath(alone_above=0), *(ForwardPath(attention=a, alone_above=0) for a in ("sdpa", "eager"))]
    if trained_range(config) is not None:
        ways.insert(1, ForwardPath(alone_above=trained_range(config)))
    return ways


def own_forward(model: PreTrainedModel, kind: str) -> Measured:
    """The model's own forward, a sequence at a time; raises BadModel where that is no causal language model's."""
    try:
        measured = _measured(model.eval(), _EAGER)
        first, changed = (_logits(model, ids) for ids in ((20,) * 12, (20,) * 8 + (30,) * 4))
    except Exception as error:  # any code of any family runs here
        raise BadModel(
            f"a model of the kind {kind} cannot be trained on text: {_sentence(error)}"
        ) from error
    if not torch.isfinite(measured.nll_R).all():
        raise BadModel(f"a model of the kind {kind} gives NLLs that are not finite")
    if not torch.allclose(first[:8], changed[:8], rtol=1e-4, atol=1e-4):
        raise BadModel(f"a model of the kind {kind} is not causal: what it says of a token depends on later ones")
    return measured


def _measured(model: PreTrainedModel, path: ForwardPath) -> Measured:
    policy = Policy(model=model, compute_dtype=next(model.parameters()).dtype, path=path)
    return measure(policy, _groups(), list(model.parameters()))


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits


def measure(policy: Policy, groups: Sequence[TrainedGroup], parameters: Sequence[Tensor]) -> Measured:
    """What the policy says as it is."""
    policy.model.zero_grad(set_to_none=True)
    nlls: dict[tuple[int, ...], Tensor] = {}
    for batch in policy.pack(groups, token_budget=4096, share_prefixes=True):
        nll_R = policy.compute_nll(batch).mean_nll_R
        nlls |= {ids: nll for (_, ids), nll in zip(batch.sequences_R, nll_R.detach(), strict=True)}
        (nll_R * nll_R.new_tensor(batch.advantage_R)).sum().backward(inputs=list(parameters))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    policy.model.zero_grad(set_to_none=True)
    return Measured(nll_R=torch.stack([nlls[key] for key in sorted(nlls)]), gradients=gradients)


def check_weights(policy: Policy) -> None:
    """The same with the weights that are to be trained, on a few tokens; raises BadModel where it differs."""
    model = policy.model
    size = min(vocab_size(model.config), 997)
    ids = tuple((7 * index + 11) % size for index in range(24))
    answers = (ids[8:14], ids[14:17], ids[17:24])
    group = TrainedGroup(
        prompt_ids=ids[:8],
        responses=tuple(TrainedResponse(token_ids=answer, advantage=1.0) for answer in answers),
    )
    # Whatever is wrong behind a norm is wrong in its gradient, and theirs take no memory.
    parameters = [p for p in model.parameters() if p.dim() < 2] or [min(model.parameters(), key=Tensor.numel)]
    with policy.exact():
        ours = measure(policy, [group], parameters)
        if not torch.isfinite(ours.nll_R).all():
            raise BadModel(f"{type(model).__name__}: the mean NLL of a few tokens is not finite: {ours.nll_R.tolist()}")
        if policy.path.is_own:
            return
        own = Policy(model=model, compute_dtype=policy.compute_dtype, path=_EAGER)
        try:
            difference = ours.minus(measure(own, [group], parameters))
        finally:
            policy.path.apply(model)
    if difference.nll > MAX_NLL_ERROR_FP32 or difference.gradient > MAX_GRADIENT_ERROR_FP32:
        raise BadModel(
            f"{type(model).__name__}: computed {policy.path} its {difference} from its own forward: "
            "with attention = flex try blocks; else this model is not supported"
        )


def _groups() -> list[TrainedGroup]:
    """Two prompts; lengths on both sides of windows, range and blocks."""
    lengths = (3, 20, TRAINED_RANGE, 60)
    made = []
    for group, prompt in enumerate((11, 24)):
        responses = [
            TrainedResponse(token_ids=_ids(length, seed=10 * group + n), advantage=(-1) ** n * (n + 1.0))
            for n, length in enumerate(lengths)
        ]
        made.append(TrainedGroup(prompt_ids=_ids(prompt, seed=100 + group), responses=tuple(responses)))
    return made


def _ids(length: int, *, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(FIRST_PLAIN_ID, VOCABULARY, (length,), generator=generator).tolist())


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
