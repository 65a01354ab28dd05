"""What turns entries into steps, made from settings: the same for a live run and for a replayed one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from asympo.common.context_length import context_length
from asympo.common.errors import BadSetting
from asympo.common.rollout_log import RunConfig
from asympo.learner.log.segment import GroupReader, SegmentLog, SegmentReader
from asympo.learner.log.texts import RecordTexts
from asympo.learner.model.check import check_model, check_weights
from asympo.learner.model.forward_path import ForwardPath, set_mode
from asympo.learner.model.policy import Policy, end_token_ids, load_model, vocab_size
from asympo.learner.model.weights import is_adapted
from asympo.learner.ranks import Ranks
from asympo.learner.settings import LearnerSettings
from asympo.learner.step.compute import Compute
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions
from asympo.learner.step.optimizer import learning_rate_at, make_optimizer
from asympo.learner.step.shards import Shards
from asympo.learner.step.step import RowLimits, Stepper


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Policy and optimizer, and what steps them."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    stepper: Stepper


def build_step_parts(
    settings: LearnerSettings,
    compute: Compute,
    *,
    ranks: Ranks | None = None,
    rows: RowLimits | None = None,
) -> StepParts:
    """Everything at the run's start, with `ranks` this rank's shard of it; raises BadModel, BadSetting."""
    if ranks is not None and settings.lora is not None and settings.lora.base_bits is not None:
        raise BadSetting("lora.base_bits is for a learner of one process: leave it out, ranks share the base")
    # What is sharded moves to the device layer by layer: it need not hold the whole model at any time.
    device = compute.torch_device if ranks is None else torch.device("cpu")
    policy = load_policy(settings, compute, device=device, check=check_weights)
    shards = None if ranks is None else Shards(policy=policy, ranks=ranks)
    optimizer = _optimizer(policy.model, settings)
    return StepParts(
        policy=policy,
        optimizer=optimizer,
        stepper=build_stepper(
            settings, compute, policy=policy, optimizer=optimizer, shards=shards, rows=rows
        ),
    )


def load_policy(
    settings: LearnerSettings,
    compute: Compute,
    *,
    device: torch.device,
    check: Callable[[Policy], None] = lambda policy: None,
) -> Policy:
    """The one that the run started from, with an adapter where that is trained. `check` sees it without."""
    model = load_model(settings.model, dtype=torch.float32, device=device)
    policy = policy_around(model, settings, compute)
    check(policy)
    if settings.lora is not None:
        # PEFT takes a while to import.
        from asympo.learner.model.lora import add_adapter

        add_adapter(model, settings.lora, compute_dtype=compute.torch_dtype, seed=settings.seed)
        policy.path.apply(model)
    return policy


def rebuilt(
    parts: StepParts, settings: LearnerSettings, compute: Compute, *, rows: RowLimits | None = None
) -> StepParts:
    """The same weights and momenta, stepped in another way from now on."""
    if is_adapted(parts.policy.model):
        from asympo.learner.model.lora import compute_in

        compute_in(parts.policy.model, compute.torch_dtype)
    policy = policy_around(parts.policy.model, settings, compute)
    groups = _optimizer(policy.model, settings).param_groups
    for ours, given in zip(parts.optimizer.param_groups, groups, strict=True):
        # The parameters are the same, and lists of them are what the optimizer's state goes by.
        ours.update({name: value for name, value in given.items() if name != "params"})
    stepper = build_stepper(settings, compute, policy=policy, optimizer=parts.optimizer, rows=rows)
    return StepParts(policy=policy, optimizer=parts.optimizer, stepper=stepper)


def _optimizer(model: PreTrainedModel, settings: LearnerSettings) -> torch.optim.Optimizer:
    return make_optimizer(
        model,
        learning_rate=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        name=settings.optimizer,
        muon_momentum=settings.muon_momentum,
    )


def build_reader(
    *,
    policy: Policy,
    tokenizer: Any,
    config: RunConfig,
    max_row_tokens: int | None,
    log: SegmentLog,
    is_trained: Callable[[str], bool],
    on_invalid: Callable[[str], None] = lambda reason: None,
) -> SegmentReader:
    """Reads steps from a log, live or archived."""
    return SegmentReader(
        log=log,
        group_reader=build_group_reader(
            policy=policy,
            tokenizer=tokenizer,
            config=config,
            max_row_tokens=max_row_tokens,
            is_trained=is_trained,
        ),
        groups_per_step=config.groups_per_step,
        max_groups_per_step=config.max_groups_per_step,
        on_invalid=on_invalid,
    )


def build_group_reader(
    *,
    policy: Policy,
    tokenizer: Any,
    config: RunConfig,
    max_row_tokens: int | None,
    is_trained: Callable[[str], bool],
) -> GroupReader:
    """Turns entries into groups that this policy can train."""
    return GroupReader(
        texts=RecordTexts(
            tokenizer=tokenizer,
            vocab_size=vocab_size(policy.model.config),
            end_ids=end_token_ids(policy.model),
            stop=config.sampling.get("stop", ()),
            max_tokens=context_length(policy.model.config),
        ),
        config=config,
        vocab_size=vocab_size(policy.model.config),
        max_tokens=context_length(policy.model.config),
        max_row_tokens=max_row_tokens,
        alone_above=policy.path.alone_above,
        is_trained=is_trained,
    )


def build_stepper(
    settings: LearnerSettings,
    compute: Compute,
    *,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    shards: Shards | None = None,
    rows: RowLimits | None = None,
) -> Stepper:
    """How a step is computed."""
    return Stepper(
        policy=policy,
        optimizer=optimizer,
        objective=OBJECTIVES[settings.objective],
        options=ObjectiveOptions(
            mean_nll_floor=settings.mean_nll_floor, negative_scale=settings.negative_scale
        ),
        learning_rate=lambda step: learning_rate_at(
            step,
            peak=settings.learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.total_steps,
            final_ratio=settings.final_learning_rate_ratio,
        ),
        max_grad_norm=settings.max_grad_norm,
        token_budget=settings.token_budget,
        share_prefixes=compute.share_prefixes,
        shards=shards,
        rows=rows,
    )


def right_path(config: PretrainedConfig, settings: LearnerSettings) -> ForwardPath:
    """The fastest way of computing the model that is right; a trial, which a run makes once."""
    checked = check_model(config, is_checkpointed=settings.gradient_checkpointing)
    checked.tell()
    return checked.path


def policy_around(model: PreTrainedModel, settings: LearnerSettings, compute: Compute) -> Policy:
    """A policy over weights that are loaded already, computed as the run has decided."""
    path = ForwardPath(**compute.path) if compute.path else right_path(model.config, settings)
    try:
        set_mode(model, is_checkpointed=settings.gradient_checkpointing)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise BadSetting(f"gradient_checkpointing is true, and {reason}: set it to false") from error
    return Policy(
        model=model,
        compute_dtype=compute.torch_dtype,
        chunk_rows=settings.head_rows(compute.device),
        path=path.with_attention(compute.attention),
    )
