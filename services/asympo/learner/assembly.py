"""Puts model, optimizer and loop together; everything that needs torch and is made once."""

import logging
from typing import Any

import torch

from asympo.common.checkpoints import PolicyStore
from asympo.common.clock import Clock
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import RunConfig
from asympo.learner.compute import Compute, choose_compute, set_up_torch
from asympo.learner.core import Learner
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.objectives import OBJECTIVES, ObjectiveOptions
from asympo.learner.optimizer import learning_rate_at, make_optimizer
from asympo.learner.policy import Policy, load_model, vocab_size
from asympo.learner.publisher import Publisher
from asympo.learner.publishing import Publishing
from asympo.learner.saver import Saver
from asympo.learner.segment import GroupReader, SegmentReader
from asympo.learner.session import LogSession
from asympo.learner.settings import LearnerSettings
from asympo.learner.state import StateStore, TrainingState
from asympo.learner.step import Stepper
from asympo.learner.trackers import Trackers
from asympo.learner.trained_log import TrainedLog
from asympo.learner.trainer import Trainer, TrainerParts

log = logging.getLogger(__name__)


def assemble(
    *,
    settings: LearnerSettings,
    config: RunConfig,
    tokenizer: Any,
    learner: Learner,
    session: LogSession,
    states: StateStore,
    policies: PolicyStore,
    found: tuple[str, TrainingState] | None,
    metrics: LearnerMetrics,
    trackers: Trackers,
    trained_log: TrainedLog,
    stop: StopSignal,
    clock: Clock,
) -> Trainer:
    """A trainer that stands where the training state ``found`` stood, or at the beginning."""
    set_up_torch(seed=settings.seed, num_threads=settings.num_threads)
    state = found[1] if found else None
    compute = choose_compute(
        device=settings.device,
        compute_dtype=settings.compute_dtype,
        decided=state.decisions if state else {},
    )
    log.info("Training on %s in %s with %d threads", *compute.to_decisions().values())
    policy = _make_policy(settings, compute)
    policy.self_check()
    optimizer = make_optimizer(
        policy.model,
        learning_rate=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    if found is not None:
        state = states.load(found[0], model=policy.model, optimizer=optimizer)
    parts = TrainerParts(
        settings=settings,
        learner=learner,
        session=session,
        reader=_make_reader(policy, tokenizer, config, session, metrics),
        stepper=_make_stepper(settings, policy, optimizer),
        publishing=Publishing(
            publisher=_make_publisher(settings, compute, policies, tokenizer),
            model=policy.model,
            session=session,
            learner=learner,
            metrics=metrics,
            clock=clock,
            retry_seconds=settings.publish_retry_seconds,
        ),
        saver=Saver(
            store=states,
            session=session,
            model=policy.model,
            optimizer=optimizer,
            decisions=compute.to_decisions(),
            keep=settings.keep_states,
        ),
        metrics=metrics,
        trackers=trackers,
        trained_log=trained_log,
        decode=lambda token_ids: str(tokenizer.decode(list(token_ids))),
        stop=stop,
        clock=clock,
    )
    counters = state.counters if state else {}
    return Trainer(
        parts, step=state.step if state else 0, wall_seconds=float(counters.get("wall_seconds", 0.0))
    )


def _make_policy(settings: LearnerSettings, compute: Compute) -> Policy:
    model = load_model(settings.model, dtype=torch.float32, device=compute.torch_device)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Dropout is 0 in the models of this kind, and must be: a response's mean NLL is the policy's own.
    model.train(settings.gradient_checkpointing)
    return Policy(model=model, compute_dtype=compute.torch_dtype, chunk_rows=settings.head_chunk_rows)


def _make_reader(
    policy: Policy, tokenizer: Any, config: RunConfig, session: LogSession, metrics: LearnerMetrics
) -> SegmentReader:
    text_config = policy.model.config.get_text_config()
    return SegmentReader(
        log=session,
        group_reader=GroupReader(
            tokenizer=tokenizer,
            vocab_size=vocab_size(policy.model.config),
            max_positions=getattr(text_config, "max_position_embeddings", None),
            is_trained=lambda group_id: group_id in session.trained,
        ),
        groups_per_step=config.groups_per_step,
        max_groups_per_step=config.max_groups_per_step,
        on_invalid=metrics.group_invalid,
    )


def _make_stepper(settings: LearnerSettings, policy: Policy, optimizer: torch.optim.Optimizer) -> Stepper:
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
        share_prefixes=settings.share_prefixes,
    )


def _make_publisher(
    settings: LearnerSettings, compute: Compute, policies: PolicyStore, tokenizer: Any
) -> Publisher:
    shadow_model = load_model(settings.model, dtype=torch.bfloat16, device=compute.torch_device)
    shadow = Policy(
        model=shadow_model.eval(), compute_dtype=compute.torch_dtype, chunk_rows=settings.head_chunk_rows
    )
    return Publisher(
        store=policies,
        shadow=shadow,
        tokenizer=tokenizer,
        tolerance=settings.probe_tolerance,
        keep=settings.keep_policies,
    )
