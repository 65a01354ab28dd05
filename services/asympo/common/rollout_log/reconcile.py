"""Making broker and training state agree again, on every start and every reconnect of the learner.

Everything a run has issued is in exactly one place: consumed (trained ids), in the log and open, leased,
queued for reissue, or set aside. A broker that lost state breaks that; this finds what is in two or in none.
"""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from asympo.common.errors import BrokerRefused, SequenceGap
from asympo.common.group_ids import parse_own_id
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.commits import commit_of
from asympo.common.rollout_log.order.permutation import permuted_index
from asympo.common.rollout_log.order.rests import Rests, rests_of
from asympo.common.rollout_log.run_state import RunStates
from asympo.common.rollout_log.types import CommitRecord, Fence, ReconcileReport
from asympo.common.trained_ids import TrainedIds

_IDS_PER_SCAN = 200
_MAX_OPEN_EPOCHS = 100_000
"""Begun and not complete; more are nobody's doing but that of a made-up number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Survey:
    """What the broker holds, as one script saw it."""

    fence: Fence
    commit: CommitRecord | None
    last_sequence: int
    num_lost: int
    is_rolled_back: bool
    seed: int
    num_prompts: int
    epoch: int
    position: int
    num_holes: int
    open_ids: set[str]
    leased_ids: set[str]
    queued_ids: set[str]
    set_aside_ids: set[str]
    resting: dict[int, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Repairs:
    """What has to change. Sets of group ids; sequences for `forked`."""

    covered: set[str]
    lost_open: set[str]
    reopened: set[str]
    reissued: set[str]
    forked: list[int]
    epoch: int
    position: int


class Reconciler:
    """The learner's repair of a run's bookkeeping."""

    def __init__(self, run: RunAccess, states: RunStates) -> None:
        self._run = run
        self._states = states
        self._rests = Rests(run)

    def reconcile(
        self,
        fence: Fence,
        *,
        committed: CommitRecord | None,
        trained: TrainedIds,
        trained_sequence: int = 0,
        held: Set[str] = frozenset(),
    ) -> ReconcileReport:
        """Brings Redis up to what the learner knows; safe to repeat, safe while generators work.

        `committed`: the durable state the learner runs from. `trained`: every id consumed so far, in memory
        included. `trained_sequence`: last entry consumed in memory, 0 on a start; a learner that reconciles
        in mid-run drops what it has read beyond that and reads it again. `held`: trained groups that keep
        their slots, because no policy shows yet what was learnt from them. What rests in epochs that have
        begun is added to `trained`, and put back where the broker lost it. A run that the broker has lost as
        a whole is created again. Raises Fenced when another learner has taken over or the run was deleted,
        SequenceGap when the state is older than what was trimmed.
        """
        consumed_to = max(trained_sequence, committed.sequence if committed else 0)
        # Generators keep leasing while this side compares, and somebody may purge: a settle that finds either
        # changes nothing, and the survey is made again.
        while True:
            survey = self._survey(fence, committed, consumed_to, is_start=trained_sequence == 0)
            # Another learner may have committed entries that are still to be read by this one.
            in_log = self._ids_in_log(after=min(survey.commit.sequence, consumed_to) if survey.commit else 0)
            self._refuse_old_state(survey, consumed_to)
            self._agree_on_rests(survey, trained)
            repairs = _repairs(survey, in_log, trained, consumed_to, held)
            if self._settle(survey, repairs, committed):
                break
        newest = max(
            (record for record in (survey.commit, committed) if record),
            key=lambda record: (record.sequence, record.fence),
            default=None,
        )
        return ReconcileReport(
            fence=survey.fence,
            commit=newest,
            last_sequence=survey.last_sequence,
            lost_sequences=survey.num_lost + len(repairs.forked),
            num_freed=len(repairs.covered - held),
            num_reopened=len(repairs.reopened - survey.open_ids),
            num_reissued=len(repairs.reissued),
            was_rolled_back=survey.is_rolled_back or bool(repairs.forked),
        )

    def _survey(
        self, fence: Fence, committed: CommitRecord | None, consumed_to: int, *, is_start: bool
    ) -> _Survey:
        # On a start, a training state written under our own number means the number was given out twice.
        least = (committed.fence + int(is_start)) if committed else 0
        heartbeat_ms = int(fence.heartbeat_seconds * 1000)
        arguments = (
            *(fence.number, fence.token, least, consumed_to, fence.holder, heartbeat_ms),
            *(fence.run_id, fence.total_steps, fence.server_id),
        )
        while (reply := self._run.call("survey", *arguments))[0] == b"MISSING":
            self._states.create_again(run_id=fence.run_id)
        if reply[0] in (b"FENCED", b"DELETED"):
            self._run.raise_refused(text(reply[0]), fence, reply)
        head, commit, *groups = reply[1:]
        new_number, last, lost, rolled_back, seed, num_prompts, epoch, position, holes = map(number, head[:9])
        return _Survey(
            fence=replace(fence, number=new_number, server_id=text(head[9]), run_id=text(head[10])),
            commit=commit_of(commit),
            last_sequence=last,
            num_lost=lost,
            is_rolled_back=bool(rolled_back),
            seed=seed,
            num_prompts=num_prompts,
            epoch=epoch,
            position=position,
            num_holes=holes,
            open_ids=set(map(text, groups[0])),
            leased_ids=set(map(text, groups[1])),
            queued_ids=set(map(text, groups[2])),
            set_aside_ids=set(map(text, groups[3])),
            resting=rests_of(groups[4], num_prompts),
        )

    def _agree_on_rests(self, survey: _Survey, trained: TrainedIds) -> None:
        for epoch, bits in survey.resting.items():
            if epoch <= survey.epoch:
                trained.rest(epoch, bits)
        for epoch, bits in trained.resting().items():
            if survey.resting.get(epoch) != bits:
                self._rests.put_back(survey.fence, epoch=epoch, bits=bits)

    def _ids_in_log(self, *, after: int) -> dict[int, str]:
        """Group id by sequence of every entry after a number, without moving payloads."""
        found: dict[int, str] = {}
        while True:
            flat = self._run.call("log_ids", after, _IDS_PER_SCAN)
            if not flat:
                return found
            for sequence, group_id in zip(flat[::2], flat[1::2], strict=True):
                if group_id:
                    found[number(sequence)] = text(group_id)
            after = number(flat[-2])

    def _refuse_old_state(self, survey: _Survey, consumed_to: int) -> None:
        if survey.commit is None or survey.commit.sequence <= consumed_to:
            return
        # An older state will do as long as the log still has every entry since: they are trained again.
        first = self._run.call("log_ids", consumed_to, 1)
        if not first or not first[1] or number(first[0]) != consumed_to + 1:
            raise SequenceGap(
                f"run {self._run.name!r} is committed up to entry {survey.commit.sequence} in training state "
                f"{survey.commit.state_name!r}, but the training state given covers only {consumed_to} "
                "and the entries between are gone: restore that state, or start a new run"
            )

    def _settle(self, survey: _Survey, repairs: _Repairs, committed: CommitRecord | None) -> bool:
        """Applies the repairs in one script; False when a prompt was issued or an entry purged meanwhile."""
        record = (
            (committed.sequence, committed.state_name, committed.step, committed.fence)
            if committed
            else (0, "", 0, 0)
        )
        lists = (
            sorted(repairs.covered),
            sorted(repairs.lost_open),
            sorted(repairs.reopened),
            sorted(repairs.reissued),
            repairs.forked,
        )
        cursor = (survey.epoch, survey.position, survey.num_holes, repairs.epoch, repairs.position)
        flat = [item for items in lists for item in (len(items), *items)]
        reply = self._run.call_fenced(survey.fence, "settle", *cursor, *record, *flat)
        return bool(reply[0] == b"OK")


def _repairs(
    survey: _Survey, in_log: dict[int, str], trained: TrainedIds, consumed_to: int, held: Set[str]
) -> _Repairs:
    # Entries up to the cursor whose group was not consumed carry numbers given out twice: once by the history
    # that the broker lost, which the learner read, and again by the one it has now. The reader is past them,
    # so their prompts are issued again.
    forked = [seq for seq, group_id in in_log.items() if seq <= consumed_to and group_id not in trained]
    unread = {group_id for seq, group_id in in_log.items() if seq > consumed_to and group_id not in trained}
    known = survey.open_ids | survey.leased_ids | survey.queued_ids
    covered = {group_id for group_id in known if group_id in trained}
    # Groups with a slot that are neither in the log nor consumed: their entries are lost, and nobody else
    # would free the slots.
    lost_open = survey.open_ids - unread - covered
    elsewhere = survey.leased_ids | survey.queued_ids | survey.set_aside_ids
    placed = {group_id for group_id in elsewhere | unread if group_id not in trained}
    missing, epoch, position = _missing(survey, trained, placed)
    return _Repairs(
        covered=covered,
        lost_open=lost_open,
        # Those held are dropped everywhere with what else is covered, and then put back into open.
        reopened=(unread - survey.open_ids) | held,
        reissued=missing,
        forked=forked,
        epoch=epoch,
        position=position,
    )


def _missing(survey: _Survey, trained: TrainedIds, placed: set[str]) -> tuple[set[str], int, int]:
    """Ids that were issued and are nowhere to be found, and the prompt cursor after the last id issued.

    Epochs with counts that add up are not examined id by id.
    """
    placed_in = Counter(own[0] for group_id in placed if (own := parse_own_id(group_id)))
    epochs_seen = [survey.epoch, trained.complete_epochs, *trained.partial_epochs()]
    last_epoch, first_epoch = max(epochs_seen), min(trained.complete_epochs, survey.epoch)
    if last_epoch - first_epoch > _MAX_OPEN_EPOCHS:
        raise BrokerRefused(
            f"the broker says that epoch {last_epoch} has begun, and {first_epoch} epochs are trained: "
            "its run is not the one of this training state; restore the right one, or start a new run"
        )
    missing: set[str] = set()
    epoch, position = survey.epoch, survey.position
    for current in range(first_epoch, last_epoch + 1):
        issued = survey.num_prompts if current < last_epoch else 0
        if current == survey.epoch:
            issued = max(issued, survey.position)
        accounted = trained.num_in_epoch(current) + placed_in[current]
        if current == last_epoch:
            epoch, position = current, issued
        # After a rollback the sum can be right by accident: one id lost, another issued twice.
        is_partly_asked = current == last_epoch and current in trained.resting()
        if accounted == issued and not survey.is_rolled_back and not is_partly_asked:
            continue
        order = list(_order(survey, current))
        used = [
            place
            for place, index in enumerate(order)
            if (trained.contains(current, index) and not trained.is_resting(current, index))
            or f"{current}-{index}" in placed
        ]
        issued = max(issued, used[-1] + 1 if used else 0)
        rest = {place for place, index in enumerate(order) if trained.is_resting(current, index)}
        missing |= {f"{current}-{order[place]}" for place in set(range(issued)).difference(used, rest)}
        while issued in rest:
            issued += 1
        if current == last_epoch:
            epoch, position = current, issued
    return missing, epoch, position


def _order(survey: _Survey, epoch: int) -> Iterator[int]:
    """Prompt indexes of one epoch in the order of issue."""
    for position in range(survey.num_prompts):
        yield permuted_index(seed=survey.seed, epoch=epoch, position=position, num_prompts=survey.num_prompts)
