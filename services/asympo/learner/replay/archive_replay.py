"""Trains a run again from its archive and compares, bit for bit, with every state and policy that it left."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from asympo.common.archive import ArchivedEntry, EntryOutcome, PartInfo, open_archive
from asympo.common.archive.store import Part
from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import (
    BadSetting,
    CorruptArchive,
    CorruptCheckpoint,
    ReplayDiverged,
    SequenceGap,
    StorageUnavailable,
)
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import LogEntry
from asympo.learner.log.segment import LogSegment, SegmentReader
from asympo.learner.model.weights import is_adapted, named_weights
from asympo.learner.progress import Progress
from asympo.learner.publish.policy_files import read_weights
from asympo.learner.replay.consumer import LogConsumer
from asympo.learner.state.open import open_states
from asympo.learner.state.recipe import Recipe
from asympo.learner.state.saver import trained_ids_of
from asympo.learner.state.store import TrainingState
from asympo.learner.state.tensors import training_tensors
from asympo.learner.step.stepper import StepParts, build_reader, build_step_parts, rebuilt
from asympo.tasks.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstDifference:
    """The first thing that is not the same."""

    where: str
    """Directory of the training state or policy."""
    step: int
    tensor: str
    """Name as it is stored there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayReport:
    """What a replay found."""

    weights_identical: bool | None
    """Whether everything compared was the same to the last bit; None when there was nothing to compare."""
    first_step: int
    """Steps that were made when the replay began."""
    steps: int
    """Steps it made."""
    groups: int
    """Entries it consumed."""
    last_sequence: int
    """Where it ended."""
    states_compared: int
    policies_compared: int
    states_superseded: int
    """States of learners whose work was not carried on; not compared."""
    pruned: int
    """States and policies that the run's learner deleted before their turn came; not compared."""
    first_difference: FirstDifference | None


class ArchivedLog:
    """A part of the archive as a log that a SegmentReader reads, one recorded segment at a time."""

    num_reconciles = 0

    def __init__(self, *, progress: Progress) -> None:
        self.progress = progress
        self.segment: list[ArchivedEntry] = []
        """The segment that is handed out by the next read."""

    def read(self, *, after_sequence: int, max_count: int, block_seconds: float) -> Sequence[LogEntry]:
        """The recorded segment, once."""
        given, self.segment = self.segment, []
        return [entry.to_log_entry() for entry in given]

    def free(self, group_ids: Sequence[str]) -> None:
        """An archive has no slots."""

    def dead_letter(self, entry: LogEntry, reason: str) -> None:
        """An archive sets nothing aside: the segment holds the reason."""


class Replay:
    """One run, from its start or a training state of it, on one device."""

    def __init__(
        self,
        *,
        checkpoint_root: Path,
        run: str,
        from_state: str | None,
        any_build: bool,
        object_store: ObjectStoreOptions | None = None,
    ) -> None:
        self._states = open_states(checkpoint_root, run, object_store)
        self._policies = open_policies(checkpoint_root, run, object_store)
        self._archive = open_archive(checkpoint_root / run, object_store)
        self._any_build = any_build
        tip = self._archive.newest_tip()
        if tip is None:
            raise CorruptArchive(
                f"{checkpoint_root / run} has no archive: its learner must run with retain, and save once"
            )
        chain = self._archive.chain(tip)
        state = self._states.read(from_state) if from_state else None
        start = state.sequence if state else 0
        self._parts = [part for part in chain if part.info.last > start]
        self._num_groups = self._num_states = self._num_policies = self._num_pruned = 0
        self._states_by_part = self._states_named(chain)
        self._check_start(state, from_state)
        first = (self._parts or chain[-1:])[0]
        self._recipe = Recipe.of(first.info, any_build=any_build)
        self._recipe.set_up()
        self._tokenizer = load_tokenizer(self._recipe.settings.model)
        self._recipe.check_tokenizer(self._tokenizer)
        self._built: StepParts = build_step_parts(self._recipe.settings, self._recipe.compute)
        trained = self._trained = trained_ids_of(state, num_prompts=self._recipe.config.num_prompts)
        if from_state:
            self._states.load(from_state, model=self._built.policy.model, optimizer=self._built.optimizer)
        self._first_step = state.step if state else 0
        self._log = ArchivedLog(progress=Progress(step=self._first_step, sequence=start))
        self._training = LogConsumer(
            source=self._log,
            reader=self._reader(),
            stepper=self._built.stepper,
            trained=trained,
        )
        self._uncompared = {(ref.step, ref.fence): ref for ref in self._policies.list()}

    def run(self, *, until_step: int | None = None) -> ReplayReport:
        """Trains to the end of the archive, or to a step; ends early at the first difference.

        Raises SequenceGap, CorruptArchive, ReplayDiverged when the entries make other steps here than they
        made in the run, and BadSetting where this build or device cannot give the same bits.
        """
        difference: FirstDifference | None = None
        for part in self._parts:
            difference = self._replay(part, until_step)
            if difference is not None or self._is_over(until_step):
                break
        has_compared = bool(self._num_states or self._num_policies)
        return ReplayReport(
            weights_identical=difference is None if has_compared or difference else None,
            first_step=self._first_step,
            steps=self._training.progress.step - self._first_step,
            groups=self._num_groups,
            last_sequence=self._training.progress.sequence,
            states_compared=self._num_states,
            policies_compared=self._num_policies,
            states_superseded=self._num_superseded,
            pruned=self._num_pruned,
            first_difference=difference,
        )

    def save(self, directory: Path) -> None:
        """Writes what is trained, in float32, with config and tokenizer."""
        model = self._built.policy.model
        if is_adapted(model):
            from asympo.learner.publish.adapter_files import write_adapter

            write_adapter(directory, named_weights(model), model=model, base=self._recipe.settings.model)
        else:
            model.save_pretrained(directory)
        self._tokenizer.save_pretrained(directory)

    # --- one part --------------------------------------------------------------------------------------

    def _replay(self, part: Part, until_step: int | None) -> FirstDifference | None:
        self._follow_recipe(part)
        fence = part.info.fence
        difference = self._policy_difference(fence)
        for entries in segments_of(self._archive.read(part), after_sequence=self._log.progress.sequence):
            if difference is not None or self._is_over(until_step):
                return difference
            self._consume(entries, part.info)
            difference = self._policy_difference(fence)
        # Numbers after the last entry that the broker had lost.
        self._log.progress.sequence = max(self._log.progress.sequence, part.info.last)
        return difference or self._state_difference(part)

    def _consume(self, entries: list[ArchivedEntry], info: PartInfo) -> None:
        self._log.segment = entries
        if (step := entries[-1].step) is not None:
            for _, *limits in takewhile(lambda since: since[0] <= step, info.row_limits):
                self._training.stepper.row_limits = (limits[0], limits[1])
        segment = self._training.advance(is_last=True)
        check_same_segment(entries, segment, step=self._training.progress.step)
        self._num_groups += len(entries)
        if entries[-1].step is not None:
            log.info("Step %d, groups %d to %d", entries[-1].step, entries[0].sequence, entries[-1].sequence)

    def _is_over(self, until_step: int | None) -> bool:
        return until_step is not None and self._training.progress.step >= until_step

    def _follow_recipe(self, part: Part) -> None:
        """Settings may change whenever a learner starts; each part knows its own."""
        recipe = Recipe.of(part.info, any_build=self._any_build)
        if recipe == self._recipe:
            return
        if recipe.compute.device != self._recipe.compute.device:
            raise BadSetting(
                f"the run went from {self._recipe.compute.device} to {recipe.compute.device} at step "
                f"{part.info.step_before}: replay each part on its own with --from-state and --until-step"
            )
        recipe.set_up()
        self._built = rebuilt(self._built, recipe.settings, recipe.compute)
        self._recipe = recipe
        self._training.stepper, self._training.reader = self._built.stepper, self._reader()

    def _reader(self) -> SegmentReader:
        """Of segments as they were recorded: between two of them it holds nothing."""
        return build_reader(
            policy=self._built.policy,
            tokenizer=self._tokenizer,
            config=self._recipe.config,
            max_row_tokens=self._recipe.settings.max_row_tokens,
            log=self._log,
            is_trained=lambda group_id: group_id in self._trained,
        )

    # --- comparing -------------------------------------------------------------------------------------

    def _states_named(self, chain: Sequence[Part]) -> dict[str, list[str]]:
        """States by the digest of the part they end with; what names no part of the chain is superseded."""
        ends = {part.ref.sha256: part.info.last for part in chain}
        found: dict[str, list[str]] = {}
        self._num_superseded = 0
        for name in self._states.names():
            state = self._unless_pruned(name, self._states.read, there=self._states.present)
            if state is None:
                continue
            if state.archive is None or state.archive.sha256 not in ends:
                self._num_superseded += 1
            elif state.sequence == ends[state.archive.sha256]:
                found.setdefault(state.archive.sha256, []).append(name)
        return found

    def _unless_pruned(
        self, name: str, read: Callable[[str], T], *, there: Callable[[], Sequence[str]]
    ) -> T | None:
        """What `read` gives; None, and counted, where the run's learner has deleted it meanwhile."""
        try:
            return read(name)
        except (CorruptCheckpoint, StorageUnavailable, OSError):
            if name in there():
                raise
        self._num_pruned += 1
        log.info("%s was deleted before its turn came: not compared", name)
        return None

    def _state_difference(self, part: Part) -> FirstDifference | None:
        for name in self._states_by_part.get(part.ref.sha256, []):
            stored = self._unless_pruned(name, self._states.tensors, there=self._states.present)
            if stored is None:
                continue
            ours = training_tensors(self._built.policy.model, self._built.optimizer)
            tensor = first_difference(stored, ours)
            if tensor is not None:
                where = str(self._states.path / name)
                return FirstDifference(where=where, step=self._training.progress.step, tensor=tensor)
            self._num_states += 1
            log.info("Training state %s: the same", name)
        return None

    def _policy_difference(self, fence: int) -> FirstDifference | None:
        ref = self._uncompared.pop((self._training.progress.step, fence), None)
        if ref is None:
            return None
        model = self._built.policy.model
        stored = self._unless_pruned(
            ref.name, lambda _: _stored(self._policies, ref, model), there=self._policies_present
        )
        if stored is None:
            return None
        ours = named_weights(model)
        rounded = {name: ours[name].to(tensor.dtype).cpu() for name, tensor in stored.items()}
        tensor = first_difference(stored, rounded)
        if tensor is not None:
            return FirstDifference(where=str(ref.path), step=self._training.progress.step, tensor=tensor)
        self._num_policies += 1
        return None

    def _policies_present(self) -> list[str]:
        return [str(name) for name in self._policies.names()]

    def _check_start(self, state: TrainingState | None, from_state: str | None) -> None:
        if not self._parts:
            return
        first, start = self._parts[0].info, state.sequence if state else 0
        what = f"training state {from_state}" if from_state else "the start of the run"
        if first.first > start + 1:
            raise SequenceGap(
                f"the archive does not follow {what}: it begins with group {first.first}, after step "
                f"{first.step_before}; give --from-state with a state of that step"
            )
        if first.first <= start or (state and state.archive and state.archive != first.parent):
            raise BadSetting(f"{what} was superseded: give the one that the run continued from")


def segments_of(entries: Iterator[ArchivedEntry], *, after_sequence: int) -> Iterator[list[ArchivedEntry]]:
    """Entries as they were consumed together."""
    segment: list[ArchivedEntry] = []
    for entry in entries:
        if entry.sequence <= after_sequence:
            continue
        segment.append(entry)
        if entry.sequence == entry.segment_end:
            yield segment
            segment = []


def check_same_segment(entries: Sequence[ArchivedEntry], segment: LogSegment | None, *, step: int) -> None:
    """Raises ReplayDiverged unless the entries made here what they had made in the run."""
    span = f"groups {entries[0].sequence} to {entries[-1].sequence}"
    if segment is None or segment.last_sequence != entries[-1].segment_end:
        raise ReplayDiverged(f"{span} made one step in the run and does not here: groups_per_step differs")
    set_aside = {entry.sequence for entry in entries if entry.outcome is EntryOutcome.DEAD_LETTER}
    if set_aside != set(segment.reasons):
        number = min(set_aside ^ set(segment.reasons))
        raise ReplayDiverged(
            f"group {number} was {'' if number in set_aside else 'not '}set aside in the run: the model, its "
            "tokenizer or the limits of records differ"
        )
    recorded = entries[-1].step
    if recorded is not None and recorded != step:
        raise ReplayDiverged(f"{span} made step {recorded} in the run and step {step} here")


def first_difference(stored: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> str | None:
    """The first name, in order, whose tensor is not the same to the last bit."""
    for name in sorted(stored.keys() | ours.keys()):
        if name.startswith("rng."):
            continue
        if name not in stored or name not in ours or not _is_same(stored[name], ours[name]):
            return name
    return None


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in (a, b))
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _stored(policies: PolicyStore, ref: PolicyRef, model: PreTrainedModel) -> dict[str, Tensor]:
    policies.verify(ref)
    if not is_adapted(model):
        return read_weights(model, ref.path)
    from asympo.learner.publish.adapter_files import read_adapter

    return read_adapter(policies.path / ref.name, model)
