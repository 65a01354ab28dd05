"""Puts model, optimizer and loop together; everything that needs torch and is made once."""

import logging
from typing import Any

from asympo.common.archive import ArchiveStore
from asympo.common.checkpoints import PolicyStore
from asympo.common.clock import Clock
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import RunConfig
from asympo.learner.apparatus import build_apparatus, build_reader
from asympo.learner.archive import Archive
from asympo.learner.compute import Compute, choose_compute, set_up_torch
from asympo.learner.core import Learner
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.policy import Policy, load_model
from asympo.learner.publisher import PUBLISHED_DTYPE, Publisher
from asympo.learner.publishing import Publishing
from asympo.learner.ranks import Ranks
from asympo.learner.recipe import recipe_of
from asympo.learner.saver import Saver
from asympo.learner.session import LogSession
from asympo.learner.settings import LearnerSettings
from asympo.learner.state import StateStore, TrainingState
from asympo.learner.traces import GroupTraces
from asympo.learner.trackers import Trackers
from asympo.learner.trained_log import TrainedLog
from asympo.learner.trainer import Trainer, TrainerParts
from asympo.learner.weights import Weights

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
    built = build_apparatus(settings, compute, ranks)
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
        publishing=Publishing(
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
) -> Publisher:
    shadow_model = load_model(settings.model, dtype=PUBLISHED_DTYPE, device=compute.torch_device)
    shadow = Policy(
        model=shadow_model.eval(),
        compute_dtype=compute.torch_dtype,
        chunk_rows=settings.head_chunk_rows,
        attention=compute.attention,
    )
    return Publisher(
        store=policies,
        shadow=shadow,
        tokenizer=tokenizer,
        tolerance=settings.probe_tolerance,
        keep=settings.keep_policies,
    )
