"""Puts model, optimizer and loop together; everything that needs torch and is made once."""

import logging
from typing import Any

from asympo.common.archive import ArchiveStore
from asympo.common.checkpoints import PolicyStore
from asympo.common.clock import Clock
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import RunConfig
from asympo.learner.control import LearnerControl
from asympo.learner.log.session import LogSession
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import Weights
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.publish.policy_writer import PUBLISHED_DTYPE, PolicyWriter
from asympo.learner.ranks import Ranks
from asympo.learner.record.traces import GroupTraces
from asympo.learner.record.trackers import Trackers
from asympo.learner.record.trained_log import TrainedLog
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.archive import Archive
from asympo.learner.state.recipe import recipe_of
from asympo.learner.state.saver import Saver
from asympo.learner.state.store import StateStore, TrainingState
from asympo.learner.step.compute import Compute, choose_compute, set_up_torch
from asympo.learner.step.stepper import build_reader, build_step_parts
from asympo.learner.trainer import Trainer, TrainerParts

log = logging.getLogger(__name__)


def assemble(
    *,
    settings: LearnerSettings,
    config: RunConfig,
    tokenizer: Any,
    learner: LearnerControl,
    session: LogSession,
    states: StateStore,
    policies: PolicyStore,
    found: tuple[str, TrainingState] | None,
    metrics: LearnerMetrics,
    trackers: Trackers,
    trained_log: TrainedLog,
    traces: GroupTraces,
    stop: StopSignal,
    clock: Clock,
    ranks: Ranks | None,
) -> Trainer:
    """A trainer that stands where the training state ``found`` stood, or at the beginning."""
    set_up_torch(seed=settings.seed, num_threads=settings.num_threads)
    state = found[1] if found else None
    compute = choose_compute(
        device=settings.device,
        compute_dtype=settings.compute_dtype,
        share_prefixes=settings.share_prefixes,
        attention=settings.attention,
        decided=state.decisions if state else {},
        num_ranks=1 if ranks is None else ranks.num_ranks,
    )
    log.info(
        "Training on %s in %s with %d threads on %d ranks",
        *(compute.device, compute.compute_dtype, compute.num_threads, compute.num_ranks),
    )
    if ranks is not None:
        decisions = compute.to_decisions()
        ranks.tell({"do": "start", "decisions": decisions, "state": found[0] if found else None})
    built = build_step_parts(settings, compute, ranks)
    built.stepper.recall(state.decisions if state else {})
    if found is not None:
        state = states.load(found[0], model=built.policy.model, optimizer=built.optimizer)
    archive = Archive(
        store=ArchiveStore(settings.run_directory),
        is_on=settings.retain,
        run=settings.run,
        recipe=recipe_of(settings, config, compute),
        tip=state.archive if state else None,
        sequence=session.consumed_sequence,
        step=state.step if state else 0,
    )
    parts = TrainerParts(
        settings=settings,
        learner=learner,
        session=session,
        reader=build_reader(
            policy=built.policy,
            tokenizer=tokenizer,
            config=config,
            log=session,
            is_trained=lambda group_id: group_id in session.trained,
            on_invalid=metrics.group_invalid,
        ),
        stepper=built.stepper,
        publishing=BackgroundPublisher(
            publisher=_make_publisher(settings, compute, policies, tokenizer),
            weights=Weights(model=built.policy.model, ranks=ranks),
            session=session,
            learner=learner,
            metrics=metrics,
            traces=traces,
            clock=clock,
            retry_seconds=settings.publish_retry_seconds,
        ),
        saver=Saver(
            store=states,
            session=session,
            model=built.policy.model,
            optimizer=built.optimizer,
            archive=archive,
            decisions=lambda: {**compute.to_decisions(), **built.stepper.decisions()},
            keep=settings.keep_states,
            ranks=ranks,
        ),
        archive=archive,
        metrics=metrics,
        trackers=trackers,
        trained_log=trained_log,
        traces=traces,
        decode=lambda token_ids: str(tokenizer.decode(list(token_ids))),
        stop=stop,
        clock=clock,
    )
    counters = state.counters if state else {}
    return Trainer(
        parts, step=state.step if state else 0, wall_seconds=float(counters.get("wall_seconds", 0.0))
    )


def _make_publisher(
    settings: LearnerSettings, compute: Compute, policies: PolicyStore, tokenizer: Any
) -> PolicyWriter:
    shadow_model = load_model(settings.model, dtype=PUBLISHED_DTYPE, device=compute.torch_device)
    shadow = Policy(
        model=shadow_model.eval(),
        compute_dtype=compute.torch_dtype,
        chunk_rows=settings.head_chunk_rows,
        attention=compute.attention,
    )
    return PolicyWriter(
        store=policies,
        shadow=shadow,
        tokenizer=tokenizer,
        tolerance=settings.probe_tolerance,
        keep=settings.keep_policies,
    )
