"""Puts model, optimizer and loop together; everything that needs torch and is made once."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from asympo.common.archive import open_archive
from asympo.common.checkpoints import PolicyStore
from asympo.common.jsonl import JsonlWriter
from asympo.common.redaction import redacted
from asympo.common.rollout_log import RunConfig
from asympo.learner.context import LearnerContext
from asympo.learner.ledger import Ledger
from asympo.learner.log.create_run import read_config
from asympo.learner.log.session import LogSession
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import PUBLISHED_DTYPE, Weights
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.publish.policy_writer import PolicyWriter
from asympo.learner.record.recorder import StepRecorder
from asympo.learner.record.traces import GroupTraces
from asympo.learner.record.trackers import Trackers
from asympo.learner.record.trained_log import TrainedLog
from asympo.learner.state.archive import Archive
from asympo.learner.state.decide import DecisionLog, find_decisions
from asympo.learner.state.recipe import recipe_of
from asympo.learner.state.saver import Saver
from asympo.learner.state.step_settings import step_settings, warn_of_changes
from asympo.learner.state.store import StateStore, TrainingState
from asympo.learner.step.compute import Compute, set_up_torch
from asympo.learner.step.stepper import (
    StepParts,
    build_reader,
    build_step_parts,
    load_policy,
    right_path,
)
from asympo.learner.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OwnedRun:
    """A run whose fence this learner holds, and where it stands."""

    config: RunConfig
    """As every service reads it."""
    tokenizer: Any
    """Of the policy."""
    session: LogSession
    """Its log."""
    states: StateStore
    """Its training states."""
    policies: PolicyStore
    """Its published policies."""
    found: tuple[str, TrainingState] | None
    """Name and description of the state to go on from; None at the beginning."""


def build_trainer(*, context: LearnerContext, run: OwnedRun, closing: ExitStack) -> Trainer:
    """A trainer that stands where the training state found stood, or at the beginning.

    `closing` ends the files and trackers that it writes to.
    """
    trackers, trained_log = _trackers(context, closing), _trained_log(context, closing)
    settings, session, tokenizer = context.settings, run.session, run.tokenizer
    decisions, compute = _decide_compute(context, run)
    built = build_step_parts(settings, compute, ranks=context.ranks, rows=decisions)
    state = _loaded(context, run, built)
    archive = Archive(
        store=open_archive(settings.run_directory, settings.object_store),
        is_on=settings.retain,
        run=settings.run,
        recipe=recipe_of(settings, run.config, compute),
        tip=state.archive if state else None,
        sequence=context.progress.sequence,
        step=context.progress.step,
    )
    traces = GroupTraces(tracing=context.tracing, clock=context.clock)
    publishing = BackgroundPublisher(
        publisher=_make_publisher(context, run, compute, built.policy),
        weights=Weights(model=built.policy.model, ranks=context.ranks),
        session=session,
        learner=context.control,
        metrics=context.metrics,
        traces=traces,
        clock=context.clock,
        retry_seconds=settings.publish_retry_seconds,
    )
    return Trainer(
        context=context,
        session=session,
        reader=build_reader(
            policy=built.policy,
            tokenizer=tokenizer,
            config=run.config,
            max_row_tokens=settings.max_row_tokens,
            log=session,
            is_trained=lambda group_id: group_id in session.trained,
            on_invalid=context.metrics.group_invalid,
        ),
        stepper=built.stepper,
        publishing=publishing,
        saver=_make_saver(context, run, decisions, built, archive),
        ledger=Ledger(
            context=context,
            session=session,
            archive=archive,
            trained_log=trained_log,
            traces=traces,
            publishing=publishing,
        ),
        recorder=StepRecorder(
            context=context,
            trackers=trackers,
            decode=lambda token_ids: str(tokenizer.decode(list(token_ids))),
            wall_seconds=float(state.counters.get("wall_seconds", 0.0)) if state else 0.0,
        ),
    )


def _trackers(context: LearnerContext, closing: ExitStack) -> Trackers:
    settings = context.settings
    trackers = Trackers(
        settings.trackers,
        directory=settings.run_directory,
        run=settings.run,
        run_settings=redacted(settings.model_dump(mode="json")),
        on_failure=context.metrics.tracker_failed,
    )
    closing.callback(trackers.close)
    return trackers


def _trained_log(context: LearnerContext, closing: ExitStack) -> TrainedLog:
    writer = JsonlWriter(context.settings.run_directory / "trained.jsonl")
    closing.callback(writer.close)
    return TrainedLog(writer, on_failure=lambda: context.metrics.tracker_failed("jsonl"))


def _decide_compute(context: LearnerContext, run: OwnedRun) -> tuple[DecisionLog, Compute]:
    """What the run has decided, or decides now; durable, and told to every rank."""
    settings, ranks, session = context.settings, context.ranks, run.session
    set_up_torch(seed=settings.seed)
    name, state = run.found or (None, None)
    decisions = DecisionLog(
        find_decisions(run.states.decisions, mirrored=session.mirrored_decisions(), state=state),
        files=run.states.decisions,
        fence=lambda: session.fence.number,
        mirror=session.mirror_decisions,
        stop=context.stop,
        retry_seconds=settings.publish_retry_seconds,
    )
    step = context.progress.step
    compute = decisions.begin(
        settings,
        step=step,
        num_ranks=1 if ranks is None else ranks.num_ranks,
        find_path=lambda: right_path(read_config(settings.model), settings),
    )
    log.info(
        "Training on %s in %s with %d threads on %d ranks",
        *(compute.device, compute.compute_dtype, compute.num_threads, compute.num_ranks),
    )
    if ranks is not None:
        ranks.tell({"do": "start", "decisions": decisions.at(step + 1), "state": name})
    return decisions, compute


def _loaded(context: LearnerContext, run: OwnedRun, built: StepParts) -> TrainingState | None:
    """The state to go on from, put back on every rank; None at the beginning."""
    state = None
    if run.found is not None:
        state = run.states.load(run.found[0], model=built.policy.model, optimizer=built.optimizer)
        warn_of_changes(state.settings, context.settings, step=state.step)
    if context.ranks is not None:
        context.ranks.all_done()
    return state


def _make_saver(
    context: LearnerContext, run: OwnedRun, decisions: DecisionLog, built: StepParts, archive: Archive
) -> Saver:
    return Saver(
        store=run.states,
        session=run.session,
        model=built.policy.model,
        optimizer=built.optimizer,
        archive=archive,
        decisions=decisions,
        settings=step_settings(context.settings),
        keep=context.settings.keep_states,
        ranks=context.ranks,
    )


def _make_publisher(context: LearnerContext, run: OwnedRun, compute: Compute, policy: Policy) -> PolicyWriter:
    settings = context.settings
    if settings.lora is not None:
        from asympo.learner.model.lora import merge_anew
        from asympo.learner.publish.adapter_writer import AdapterWriter

        is_sharded = context.ranks is not None
        if is_sharded:
            # To score the probes with; those of what is sharded would take all ranks.
            policy = load_policy(settings, compute, device=torch.device("cpu"))
            merge_anew(policy.model)
            torch.nn.Module.to(policy.model, compute.torch_device)
        return AdapterWriter(
            store=run.policies,
            policy=policy,
            is_copy=is_sharded,
            model=settings.model,
            tokenizer=run.tokenizer,
            tolerance=settings.probe_tolerance,
            keep=settings.keep_policies,
        )
    shadow_model = load_model(settings.model, dtype=PUBLISHED_DTYPE, device=compute.torch_device)
    shadow = Policy(
        model=shadow_model.eval(),
        compute_dtype=compute.torch_dtype,
        chunk_rows=settings.head_rows(compute.device),
        path=policy.path,
    )
    return PolicyWriter(
        store=run.policies,
        shadow=shadow,
        tokenizer=run.tokenizer,
        tolerance=settings.probe_tolerance,
        keep=settings.keep_policies,
    )
