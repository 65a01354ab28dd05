"""Which way of computing a model is right: tried on a miniature of it before anything is trained.

A row of responses, some within and some beyond the windows and the range of positions, is computed each way,
in the mode that training uses, and compared with the model's own forward of one sequence at a time: the mean
NLL of every response and the gradient of every parameter.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadModel
from asympo.learner.model.batching import TrainedGroup, TrainedResponse
from asympo.learner.model.forward_path import FAST, ForwardPath, set_mode, trained_range
from asympo.learner.model.miniature import (
    FAMILY_ERRORS,
    FIRST_PLAIN_ID,
    TRAINED_RANGE,
    VOCABULARY,
    CannotTry,
    make_miniature,
)
from asympo.learner.model.policy import Policy, vocab_size

log = logging.getLogger(__name__)

Ids = tuple[int, ...]

_EAGER = ForwardPath(attention="eager", alone_above=0)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between two ways of computing the same sequences."""

    nll: float
    """Largest of the mean NLLs, in nats."""
    gradient: float
    """Largest of the parameters, as a share of its gradient."""

    def is_within(self, bound: "Difference") -> bool:
        """Also false where anything is not a number."""
        return self.nll <= bound.nll and self.gradient <= bound.gradient

    def __str__(self) -> str:
        return f"mean NLL differs by {self.nll:.2g}, gradient by {self.gradient:.2g}"


EXACT = Difference(nll=1e-4, gradient=2e-3)
"""In float64, where norms and routers still round to float32; what is wrong differs by 0.01 and more."""
ROUNDED = Difference(nll=1e-3, gradient=5e-2)
"""In float32."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The first way that is right."""

    path: ForwardPath
    difference: Difference | None
    """None: no miniature could be made, so nothing is known."""
    refused: tuple[str, ...]
    """Why not the ways before it."""

    def tell(self) -> None:
        """A line for the log if this is not the fastest way."""
        if self.path != FAST:
            log.warning("This model is computed %s, which is slower: %s", self.path, "; ".join(self.refused))


@dataclass(frozen=True, kw_only=True)
class NllsAndGradients:
    """Mean NLLs of all responses and gradients of all parameters."""

    nll_R: Tensor
    gradients: list[Tensor]

    def minus(self, other: "NllsAndGradients") -> Difference:
        """Relative to `other`."""
        norms = [each.norm() for each in other.gradients]
        whole = torch.stack(norms).norm()
        shares = [
            (mine - theirs).norm() / torch.maximum(norm, 1e-3 * whole)
            for mine, theirs, norm in zip(self.gradients, other.gradients, norms, strict=True)
        ]
        nll = (self.nll_R - other.nll_R).abs().max()
        return Difference(nll=float(nll), gradient=float(torch.stack(shares).max()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from more, and the answer must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def check_model(config: PretrainedConfig, *, is_checkpointed: bool) -> Checked:
    """The fastest way that is right for models of this config; raises BadModel with the reason for none."""
    reasons = []
    # Some families compute in float32 whatever they are told.
    for (dtype, bound), is_narrow in product(
        ((torch.float64, EXACT), (torch.float32, ROUNDED)), (True, False)
    ):
        try:
            model = make_miniature(config, dtype=dtype, is_narrow=is_narrow)
            theirs = own_forward(model)
        except CannotTry as error:
            reasons.append(str(error))
            continue
        return _first_right(model, config, theirs, bound=bound, is_checkpointed=is_checkpointed)
    return Checked(path=_EAGER, difference=None, refused=(reasons[0],))


def _first_right(
    model: PreTrainedModel,
    config: PretrainedConfig,
    theirs: NllsAndGradients,
    *,
    bound: Difference,
    is_checkpointed: bool,
) -> Checked:
    refused: list[str] = []
    for path in _ways(model.config):
        try:
            set_mode(model, is_checkpointed=is_checkpointed)
            difference = _measured(model, path).minus(theirs)
        except (BadModel, *FAMILY_ERRORS) as error:
            refused.append(f"{path}: {_sentence(error)}")
            continue
        if difference.is_within(bound):
            if path.alone_above:
                path = replace(path, alone_above=trained_range(config))
            return Checked(path=path, difference=difference, refused=tuple(refused))
        refused.append(f"{path}: {difference}")
    raise BadModel(f"a model of the kind {config.model_type} cannot be trained: {refused[-1]}")


def _ways(config: PretrainedConfig) -> list[ForwardPath]:
    """From fast to slow."""
    longest = trained_range(config)
    limits = [None, 0] if longest is None else [None, longest, 0]
    own = [ForwardPath(attention=name, alone_above=0) for name in ("sdpa", "eager")]
    return [*(ForwardPath(alone_above=limit) for limit in limits), *own]


def own_forward(model: PreTrainedModel) -> NllsAndGradients:
    """The miniature's own, a sequence at a time; raises CannotTry, and BadModel where it is not causal."""
    kind = f"a model of the kind {model.config.model_type}"
    versions = [parameter._version for parameter in model.parameters()]
    try:
        measured = _measured(model.eval(), _EAGER)
        backwards = _measured(model, _EAGER, is_backwards=True)
        is_causal = _is_causal(model, _ids(40, seed=0), _ids(24, seed=1), _ids(24, seed=2))
    except (BadModel, *FAMILY_ERRORS) as error:
        raise CannotTry(f"a small one does not run ({_sentence(error)})") from error
    if not torch.isfinite(measured.nll_R).all():
        raise CannotTry("a small one gives NLLs that are not finite")
    if versions != [parameter._version for parameter in model.parameters()]:
        raise BadModel(f"{kind} changes its weights while it computes")
    if not is_causal:
        raise BadModel(f"{kind} is not causal: its logits depend on later tokens")
    if not torch.allclose(backwards.nll_R, measured.nll_R, rtol=1e-4, atol=1e-4):
        raise BadModel(f"{kind} gives results that depend on the sequences it computed before")
    return measured


@torch.no_grad()
def _is_causal(model: PreTrainedModel, ids: Ids, ending: Ids, other: Ids) -> bool:
    """Whether the logits of `ids` are the same before both endings."""
    first, second = (
        model(input_ids=torch.tensor([ids + each], device=model.device), use_cache=False).logits[
            0, : len(ids)
        ]
        for each in (ending, other)
    )
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def _measured(model: PreTrainedModel, path: ForwardPath, *, is_backwards: bool = False) -> NllsAndGradients:
    policy = Policy(model=model, compute_dtype=next(model.parameters()).dtype, path=path)
    groups = groups_for_check()
    if is_backwards:
        groups = [replace(group, responses=group.responses[::-1]) for group in groups[::-1]]
    return measure(policy, groups, [p for p in model.parameters() if p.requires_grad])


def measure(policy: Policy, groups: Sequence[TrainedGroup], parameters: Sequence[Tensor]) -> NllsAndGradients:
    """What the policy says as it is."""
    policy.model.zero_grad(set_to_none=True)
    nlls: dict[Ids, Tensor] = {}
    for batch in policy.pack(groups, token_budget=4096, share_prefixes=True):
        nll_R = policy.compute_nll(batch).mean_nll_R
        nlls |= {ids: nll for (_, ids), nll in zip(batch.sequences_R, nll_R.detach(), strict=True)}
        (nll_R * nll_R.new_tensor(batch.advantage_R)).sum().backward(inputs=list(parameters))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    policy.model.zero_grad(set_to_none=True)
    return NllsAndGradients(nll_R=torch.stack([nlls[key] for key in sorted(nlls)]), gradients=gradients)


def check_weights(policy: Policy) -> None:
    """The same with the weights that are to be trained, on a few tokens; raises BadModel where it differs.

    Then once in the precision of training, where some families' own code stumbles over its types.
    """
    name, precision = type(policy.model).__name__, "float32"
    if policy.path.attention == "flex" and policy.device.type == "cpu":
        # Where ranks will share it. FlexAttention has no gradients there, and attends as blocks do.
        path = policy.path.with_attention("blocks")
        policy = Policy(model=policy.model, compute_dtype=policy.compute_dtype, path=path)
    try:
        with policy.exact():
            reason = _objection(policy)
        if reason is None and policy.compute_dtype != policy.parameter_dtype:
            precision = str(policy.compute_dtype).removeprefix("torch.")
            measure(policy, [_few_tokens(policy)], _small_parameters(policy))
    except FAMILY_ERRORS as error:
        hint = "" if precision == "float32" else ": set compute_dtype to float32"
        raise BadModel(f"{name} cannot be trained in {precision} ({_sentence(error)}){hint}") from error
    if reason:
        raise BadModel(f"{name}: {reason}")


def _objection(policy: Policy) -> str | None:
    group, parameters = _few_tokens(policy), _small_parameters(policy)
    ours = measure(policy, [group], parameters)
    if not torch.isfinite(ours.nll_R).all():
        return f"mean NLLs of a few tokens are {ours.nll_R.tolist()}"
    if policy.path.is_own:
        first, _, last = (response.token_ids for response in group.responses)
        is_causal = _is_causal(policy.model, group.prompt_ids, first, last)
        return None if is_causal else "its logits depend on later tokens"
    own = Policy(model=policy.model, compute_dtype=policy.compute_dtype, path=_EAGER)
    try:
        difference = ours.minus(measure(own, [group], parameters))
    finally:
        policy.path.apply(policy.model)
    if difference.is_within(ROUNDED):
        return None
    return f"{policy.path} its {difference} from its own forward: it is not supported with this attention"


def _few_tokens(policy: Policy) -> TrainedGroup:
    size = min(vocab_size(policy.model.config), 997)
    ids = tuple((7 * index + 11) % size for index in range(24))
    answers = (ids[8:14], ids[14:17], ids[17:24])
    return TrainedGroup(
        prompt_ids=ids[:8],
        responses=tuple(TrainedResponse(token_ids=answer, advantage=1.0) for answer in answers),
    )


def _small_parameters(policy: Policy) -> list[Tensor]:
    """Whatever is wrong behind a norm is wrong in its gradient, and theirs take no memory."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    return [p for p in trained if p.dim() < 2] or [min(trained, key=Tensor.numel)]


def groups_for_check() -> list[TrainedGroup]:
    """Two prompts; lengths on both sides of windows, range and blocks."""
    made = []
    for group, (prompt, lengths) in enumerate(((11, (3, 20, 60)), (24, (TRAINED_RANGE,)))):
        responses = [
            TrainedResponse(token_ids=_ids(length, seed=10 * group + n), advantage=(-1) ** n * (n + 1.0))
            for n, length in enumerate(lengths)
        ]
        made.append(TrainedGroup(prompt_ids=_ids(prompt, seed=100 + group), responses=tuple(responses)))
    return made


def _ids(length: int, *, seed: int) -> Ids:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(FIRST_PLAIN_ID, VOCABULARY, (length,), generator=generator).tolist())


def _sentence(error: Exception) -> str:
    name = "" if isinstance(error, BadModel) else f"{type(error).__name__}: "
    return f"{name}{error}".strip().partition("\n")[0]
