"""Durable training state: finding the one to resume from, saving, pruning."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from asympo.common.errors import CorruptCheckpoint, PublishFailed
from asympo.common.rollout_log import CommitRecord, RunConfig
from asympo.common.trained_ids import TrainedIds
from asympo.learner.log.order import SuccessOrder
from asympo.learner.log.session import LogSession
from asympo.learner.ranks import Ranks
from asympo.learner.state.archive import Archive
from asympo.learner.state.decide import DecisionLog
from asympo.learner.state.store import StateStore, TrainingState

log = logging.getLogger(__name__)


def find_state(store: StateStore, *, commit: CommitRecord | None) -> tuple[str, TrainingState] | None:
    """The training state to resume from, or None: the one committed last, or one that covers more.

    A state that was saved and whose commit did not get through covers more than the commit record; so does
    any state after the broker lost its memory. Raises CorruptCheckpoint when the committed one is needed and
    damaged.
    """
    names = store.names()
    for name in reversed(names):
        try:
            state = store.read(name)
        except CorruptCheckpoint as error:
            if commit is not None and name == commit.state_name:
                break
            log.warning("The newest training state is passed over: %s", error)
            continue
        if commit is not None and (name == commit.state_name or state.sequence < commit.sequence):
            break
        if commit is not None and commit.state_name in names and state.fence < commit.fence:
            # Of a learner that had lost the run before: good only for want of what was committed.
            break
        try:
            store.verify(name)
        except CorruptCheckpoint as error:
            # Nobody was told of it, so what was committed before still holds.
            log.warning("The newest training state is passed over: %s", error)
            continue
        return name, state
    if commit is None:
        return None
    try:
        return commit.state_name, store.read(commit.state_name)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(
            f"{error}; the run was committed with it at step {commit.step} and no other state covers that: "
            "restore it, or start a new run"
        ) from error


class Saver:
    """Saves the state of one run under the current fence."""

    def __init__(
        self,
        *,
        store: StateStore,
        session: LogSession,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        archive: Archive,
        decisions: DecisionLog,
        settings: Mapping[str, Any],
        keep: int,
        ranks: Ranks | None,
    ) -> None:
        """`settings`: those that its steps are made with, for whoever goes on from here."""
        self._store = store
        self._session = session
        self._model = model
        self._optimizer = optimizer
        self._archive = archive
        self._decisions = decisions
        self._settings = dict(settings)
        self._keep = keep
        self._ranks = ranks

    def save(self, *, step: int, wall_seconds: float) -> str:
        """Makes everything consumed so far durable; returns the name. Raises PublishFailed, Fenced."""
        fence, sequence = self._session.fence.number, self._session.progress.sequence
        part = self._archive.write(fence=fence, sequence=sequence, step=step)
        state = TrainingState(
            step=step,
            fence=fence,
            sequence=sequence,
            trained_ids=self._session.trained.to_bytes(),
            streaks=b"" if self._session.order is None else self._session.order.to_bytes(),
            decisions=self._decisions.at(step),
            settings=self._settings,
            counters={"wall_seconds": wall_seconds},
            run=self._session.run,
            archive=part.tip,
        )
        if self._ranks is not None:
            # The first rank alone writes what is not a tensor.
            where = {"step": state.step, "fence": state.fence, "sequence": state.sequence}
            self._ranks.tell({"do": "save", **where})
        try:
            name = self._store.save(state, model=self._model, optimizer=self._optimizer)
        except PublishFailed:
            # Every rank has noticed, and waits for what comes next.
            self._all_done()
            raise
        self._all_done()
        self._archive.made_durable(part, fence=fence)
        self._decisions.mirror()
        return name

    def _all_done(self) -> None:
        if self._ranks is not None:
            self._ranks.all_done()

    def retain(self, name: str) -> None:
        """Keeps a state for good; raises PublishFailed."""
        self._store.retain(name)

    def prune(self, *, committed: str) -> None:
        """Deletes old states; what cannot be deleted is tried again next time."""
        self._store.prune(keep=self._keep, needed={committed})


def trained_ids_of(state: TrainingState | None, *, num_prompts: int) -> TrainedIds:
    """Ids consumed up to a state; none at the beginning. Raises CorruptCheckpoint."""
    if state is None:
        return TrainedIds(num_prompts=num_prompts)
    try:
        return TrainedIds.from_bytes(state.trained_ids)
    except ValueError as error:
        raise CorruptCheckpoint(f"the training state of step {state.step} is damaged: {error}") from error


def order_of(state: TrainingState | None, config: RunConfig) -> SuccessOrder | None:
    """The order by success as of a state; None where the run has another. Raises CorruptCheckpoint."""
    if config.task.get("order") != "by-success":
        return None
    streaks = state.streaks if state else b""
    return SuccessOrder(num_prompts=config.num_prompts, seed=config.seed, streaks=streaks)
