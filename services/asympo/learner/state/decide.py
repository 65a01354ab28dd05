"""A learner's hold on what its run has decided: found at the start, added to where it must be."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import transformers

from asympo.common.errors import CorruptCheckpoint, PublishFailed
from asympo.common.lifecycle import StopSignal
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.decision_files import DecisionFiles
from asympo.learner.state.decisions import Decision, Decisions, decode_decisions, encode_decisions
from asympo.learner.state.store import TrainingState
from asympo.learner.step.compute import Compute, choose_compute

log = logging.getLogger(__name__)


def find_decisions(files: DecisionFiles, *, mirrored: bytes | None, state: TrainingState | None) -> Decisions:
    """What the run has decided so far: on storage, else in the broker, else with the training state."""
    found = [decisions for decisions in (files.newest(), _decoded(mirrored)) if decisions is not None]
    if found:
        return max(found, key=lambda decisions: decisions.rank)
    if state is not None and state.decisions:
        return Decisions(fence=state.fence, entries=(Decision(from_step=1, decided=state.decisions),))
    return Decisions()


def _decoded(mirrored: bytes | None) -> Decisions | None:
    if mirrored is None:
        return None
    try:
        return decode_decisions(mirrored, what="the broker's copy of the decisions")
    except CorruptCheckpoint as error:
        log.warning("Decisions are passed over: %s", error)
        return None


class DecisionLog:
    """Appends under the current fence: to storage, which counts, then to the broker, which shows it."""

    def __init__(
        self,
        found: Decisions,
        *,
        files: DecisionFiles,
        fence: Callable[[], int],
        mirror: Callable[[bytes], None],
        stop: StopSignal,
        retry_seconds: float,
    ) -> None:
        self._decisions = found
        self._files = files
        self._fence = fence
        self._mirror = mirror
        self._stop = stop
        self._retry_seconds = retry_seconds

    def at(self, step: int) -> dict[str, Any]:
        """What holds for a step; JSON values."""
        return self._decisions.at(step)

    def begin(
        self, settings: LearnerSettings, *, step: int, num_ranks: int, find_path: Callable[[], ForwardPath]
    ) -> Compute:
        """What holds from the step after `step`, durable: as the run has decided, or as it decides now.

        `find_path` tries which way of computing the model is right, where that is not known or was found
        with another version of transformers. Raises BadSetting as choose_compute does, and PublishFailed
        when told to stop before storage took it.
        """
        known = self.at(step + 1)
        compute = choose_compute(
            device=settings.device,
            compute_dtype=settings.compute_dtype,
            share_prefixes=settings.share_prefixes,
            attention=settings.attention,
            decided=known,
            num_threads=settings.num_threads,
            num_ranks=num_ranks,
            decide_anew=settings.decide_anew,
        )
        compute = _with_path(compute, find_path)
        asked = [settings.token_budget, settings.head_rows(compute.device)]
        limits = known.get("row_limits", {})
        used = limits["used"] if limits.get("asked") == asked else asked
        if limits and used is asked:
            log.warning(
                "The run was trained with token_budget %d and head_chunk_rows %d so far and goes on with %d "
                "and %d: same groups, same order, but no longer bit for bit what an undisturbed run gives",
                *(*limits["asked"], *asked),
            )
        decided = {**compute.to_decisions(), "row_limits": {"asked": asked, "used": used}}
        # Later ones of a learner that had come further are kept only where this one would choose the same.
        if any(_choices(other) != _choices(decided) for other in (known, *self._decisions.after(step))):
            self._decisions = self._decisions.appended(from_step=step + 1, decided=decided)
        # In any case under this fence: what an older one adds from now on does not count.
        self._seal()
        return compute

    def row_limits(self, step: int) -> tuple[int, int]:
        """Most tokens of a row and logits at once."""
        tokens, logits = self.at(step)["row_limits"]["used"]
        return tokens, logits

    def rows_made_smaller(self, limits: tuple[int, int], *, step: int) -> None:
        """Memory ran out: smaller rows from this step on. Returns once that is durable."""
        decided = self.at(step)
        decided["row_limits"] = {**decided["row_limits"], "used": list(limits)}
        self._decisions = self._decisions.appended(from_step=step, decided=decided)
        self._seal()

    def mirror(self) -> None:
        """Writes the list to the broker, again if the broker has lost it."""
        self._mirror(encode_decisions(self._decisions))

    def _seal(self) -> None:
        self._decisions = replace(self._decisions, fence=self._fence())
        while True:
            try:
                self._files.seal(self._decisions)
                break
            except PublishFailed as error:
                log.error("%s; the next attempt is in %.0f s", error, self._retry_seconds)
                if self._stop.wait(self._retry_seconds):
                    raise
        self.mirror()


def _with_path(compute: Compute, find_path: Callable[[], ForwardPath]) -> Compute:
    version = transformers.__version__
    if compute.path is not None and compute.transformers == version:
        return compute
    path = asdict(find_path())
    if compute.path not in (None, path):
        log.warning(
            "With transformers %s another way of computing this model is right than the one that the run was "
            "trained in so far: it goes on %s, no longer bit for bit what an undisturbed run gives",
            *(version, ForwardPath(**path)),
        )
    return replace(compute, path=path, transformers=version)


def _choices(decided: Mapping[str, Any]) -> dict[str, Any]:
    """All but what memory made of it."""
    return {**decided, "row_limits": decided.get("row_limits", {}).get("asked")}
