"""The learner's hold on the log: its fence, and calls that survive a broker that leaves or loses state."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from asympo.common.checkpoints import PolicyRef
from asympo.common.clock import Clock
from asympo.common.errors import BrokerChanged, BrokerRefused, BrokerUnavailable, Fenced
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import (
    BadPolicy,
    CommitRecord,
    Fence,
    KnownRun,
    LogEntry,
    LogStats,
    PolicyAnnouncement,
    RunLog,
    RunState,
)
from asympo.common.trained_ids import TrainedIds
from asympo.learner.log.order import SuccessOrder
from asympo.learner.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
_Ask = Callable[[Callable[[], Any]], Any]
_RETRY_SECONDS = 2.0
STOP_PATIENCE_SECONDS = 30.0
"""How long a stopping learner goes on asking a broker that does not answer."""
FULL_RATIO = 0.75
"""Of its limit; the rest may not be room for the groups that are on their way to it."""


class LogSession:
    """Every call of the training thread goes through here, so that it is fenced, retried and reconciled.

    A broker that does not answer is asked again for as long as the learner runs; one that restarted or failed
    over is reconciled with what was consumed, and told again which policy is the newest. Fenced passes
    through: it ends the process.
    """

    def __init__(
        self,
        *,
        run_log: RunLog,
        fence: Fence,
        stop: StopSignal,
        clock: Clock,
        trained: TrainedIds,
        progress: Progress,
        order: SuccessOrder | None = None,
    ) -> None:
        self._run_log = run_log
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        # Over each announcement and each reconcile, which announces again: none of them may undo another.
        self._announcing = threading.Lock()
        self._newest: Callable[[], PolicyAnnouncement] | None = None
        self._held: set[str] = set()
        self._fence = fence
        self.trained = trained
        """Ids of every group consumed, in memory included."""
        self.order = order
        """Decides who rests, where the run's order is by success."""
        self.progress = progress
        """Where the learner stands."""
        self._committed: CommitRecord | None = None
        self.num_reconciles = 0
        self._is_reconcile_due = False
        self._has_answered, self._has_changed = threading.Event(), threading.Event()
        self._state = (RunState.RUNNING, "")
        self._next_epoch = 1
        self._rests_needed_from = trained.complete_epochs

    @property
    def committed(self) -> CommitRecord | None:
        """Durable state that the run would be resumed from."""
        return self._committed

    def resume_from(self, committed: CommitRecord) -> None:
        """Stands where this commit stood, before the first `reconcile`."""
        self._committed = committed
        self.progress.sequence = self.progress.committed_sequence = committed.sequence
        self.progress.step = committed.step

    @property
    def fence(self) -> Fence:
        """The current one; a reconcile may raise its number."""
        with self._lock:
            return self._fence

    @property
    def run(self) -> KnownRun:
        """The run, for whoever finds it again by its training state."""
        return self._run_log.state.known_by(self.fence)

    def reconcile(self) -> None:
        """Makes broker and training state agree; once a policy was announced, that is the newest again."""
        self._reconcile(self._answered)

    def _reconcile(self, ask: _Ask) -> None:
        with self._announcing:
            with self._lock:
                held = frozenset(self._held)
            report = ask(
                lambda: self._run_log.reconciler.reconcile(
                    self.fence,
                    committed=self.committed,
                    trained=self.trained,
                    trained_sequence=self.progress.sequence if self.num_reconciles else 0,
                    held=held,
                )
            )
            with self._lock:
                self._fence = report.fence
            self.progress.fence = report.fence.number
            self.num_reconciles += 1
            log.info(
                "Reconciled with the broker: %d freed, %d reopened, %d issued again, %d numbers lost%s",
                *(report.num_freed, report.num_reopened, report.num_reissued, report.lost_sequences),
                "; the broker had lost acknowledged state" if report.was_rolled_back else "",
            )
            if self._newest is not None:
                ask(self._newest)
                ask(self._put_state_back)
            self._is_reconcile_due = False
            self._has_changed.clear()

    def read(self, *, after_sequence: int, max_count: int, block_seconds: float) -> Sequence[LogEntry]:
        """Entries in order; none after a reconcile, because the reader must start again."""
        before = self.num_reconciles

        def read_once() -> Sequence[LogEntry]:
            if self.num_reconciles != before:
                return []
            return self._run_log.reader.read(
                after_sequence=after_sequence,
                max_count=max_count,
                block_seconds=block_seconds,
                fence=self.fence,
            )

        return self._call(read_once)

    def heard(self, *, has_changed: bool) -> None:
        """Told by the heartbeat, in its thread: the broker answers, and whether it has lost something."""
        if has_changed:
            self._has_changed.set()
        self._has_answered.set()

    def stay(self) -> None:
        """Reconciles where that is due, for a learner that asks for nothing else.

        Only after the broker has answered a heartbeat: a call to one that is gone takes many seconds.
        """
        if not self._has_answered.is_set():
            return
        self._has_answered.clear()
        if not (self._is_reconcile_due or self._has_changed.is_set()):
            return
        self._is_reconcile_due = True
        try:
            self._reconcile(_once)
        except (BrokerChanged, BrokerUnavailable, BrokerRefused) as error:
            log.warning("The broker has lost part of the run, which is not brought back yet: %s", error)

    def is_at_end(self, after_sequence: int) -> bool:
        """Whether no entry follows."""
        return self._call(lambda: self._run_log.reader.is_at_end(after_sequence))

    def free(self, group_ids: Sequence[str]) -> None:
        """Frees the slots of groups."""
        self._call(lambda: self._free(group_ids))

    def hold(self, group_ids: Sequence[str]) -> None:
        """Groups that keep their slots until `free` or `try_announce`, through every reconcile."""
        with self._lock:
            self._held.update(group_ids)

    def dead_letter(self, entry: LogEntry, reason: str) -> None:
        """Sets an entry aside."""
        self._call(lambda: self._run_log.dead_letters.add(self.fence, entry, reason))

    def announce(self, *, step: int, digest: str, policy_fence: int) -> PolicyAnnouncement:
        """Makes a policy known that was published under this fence."""

        def announce_once() -> PolicyAnnouncement:
            with self._announcing:
                return self._announce(step=step, digest=digest, policy_fence=policy_fence)

        return self._call(announce_once)

    def try_announce(
        self, *, step: int, digest: str, policy_fence: int, group_ids: Sequence[str]
    ) -> PolicyAnnouncement | None:
        """Announces and frees, from any thread, asking once; None when that did not get through.

        Then `announce` and `free` are due: they wait, reconcile, and tell a fence that is lost from one that
        a reconcile has just replaced.
        """
        with self._announcing:
            try:
                policy = self._announce(step=step, digest=digest, policy_fence=policy_fence)
                self._free(group_ids)
            except (BrokerUnavailable, BrokerChanged, Fenced) as error:
                log.info("The policy of step %d is announced by the training thread: %s", step, error)
                return None
        return policy

    def mirror_decisions(self, content: bytes) -> None:
        """Shows what the run has decided, asking once: storage has it, and the next save shows it again."""
        try:
            self._run_log.decisions.replace(self.fence, content)
        except (BrokerUnavailable, BrokerChanged) as error:
            log.info("The broker's copy of the decisions waits for the next save: %s", error)

    def mirrored_decisions(self) -> bytes | None:
        """The broker's copy; None when there is none."""
        return self._call(self._run_log.decisions.read)

    def propose_rests(self) -> None:
        """Who rests in the next epoch, from what was consumed so far, asking once: nobody waits for it.

        An epoch that has begun keeps what was proposed for it last, and those who rest count as consumed.
        """
        rests = self._run_log.rests
        try:
            while self.order is not None:
                bits = self.order.resting(self._next_epoch)
                where = {"epoch": self._next_epoch, "keep_from": self._rests_needed_from}
                begun = rests.propose(self.fence, bits=bits, **where)
                if begun < self._next_epoch:
                    return
                for epoch, held in rests.read(num_prompts=self.trained.num_prompts).items():
                    if self._next_epoch <= epoch <= begun:
                        self.trained.rest(epoch, held)
                        num = int.from_bytes(held, "little").bit_count()
                        log.info("Epoch %d passes over %d prompts without signal", epoch, num)
                self._next_epoch = begun + 1
        except (BrokerUnavailable, BrokerChanged) as error:
            log.info("What rests in the next epoch waits for the next step: %s", error)

    def is_policy_in_use(self, policy: PolicyRef) -> bool:
        """Whether anyone serves, loads or measures it, from any thread; yes if the broker cannot be asked."""
        try:
            holders = self._run_log.presence.holders()
        except BrokerUnavailable as error:
            log.info("Policy %d is kept while the broker is away: %s", policy.step, error)
            return True
        wanted = (policy.step, policy.fence)
        return any(
            (each.get(f"{what}_step"), each.get(f"{what}_fence")) == wanted
            for each in holders
            for what in ("policy", "loading")
        )

    def is_broker_full(self) -> bool:
        """Whether the broker may be refusing groups for want of memory: then only a commit makes room."""
        info = self._answered(self._run_log.stats.broker_info)
        return info.maxmemory_bytes > 0 and info.used_memory_bytes >= FULL_RATIO * info.maxmemory_bytes

    def commit(
        self, *, state_name: str, step: int, group_ids: Sequence[str], num_consumed: int
    ) -> CommitRecord:
        """Makes the cursor durable."""
        sequence = self.progress.sequence
        record = self._call(
            lambda: self._run_log.commits.commit(
                self.fence,
                sequence=sequence,
                state_name=state_name,
                step=step,
                group_ids=group_ids,
                num_consumed=num_consumed,
            )
        )
        self._committed = record
        self._rests_needed_from = self.trained.complete_epochs
        self.progress.committed_sequence = record.sequence
        return record

    def set_state(self, state: RunState, *, reason: str = "") -> None:
        """Moves the run."""
        self._call(lambda: self._run_log.state.set(state, reason=reason, fence=self.fence))
        self._state = (state, reason)

    def stats(self) -> LogStats:
        """Counts of the run."""
        return self._call(self._run_log.stats.read)

    def publish_times(self) -> list[float]:
        """When each policy was announced."""
        return self._call(self._run_log.policies.publish_times)

    def latest_policy(self) -> PolicyAnnouncement | None:
        """The newest announcement."""
        return self._call(self._run_log.policies.latest)

    def report_against(self, *, step: int, fence: int) -> BadPolicy | None:
        """What a generator reported of a policy that it could not load or prove."""
        reports = self._call(self._run_log.policies.bad)
        return next((each for each in reports if (each.step, each.fence) == (step, fence)), None)

    def _announce(self, *, step: int, digest: str, policy_fence: int) -> PolicyAnnouncement:
        def announce() -> PolicyAnnouncement:
            return self._run_log.policies.announce(
                self.fence, step=step, digest=digest, policy_fence=policy_fence
            )

        # First: an announcement whose answer is lost may have been made.
        self._newest = announce
        return announce()

    def _put_state_back(self) -> None:
        """Where the broker lost it: running lets generators in, finished ends them; a pause stays."""
        stored, (state, reason) = self._run_log.state.get(), self._state
        is_lost = stored in (RunState.CREATED, RunState.FINISHED) or (
            state is RunState.FINISHED and stored is not RunState.FAILED
        )
        if is_lost and stored is not state:
            self._run_log.state.set(state, reason=reason, fence=self.fence)

    def _free(self, group_ids: Sequence[str]) -> None:
        self._run_log.commits.free(self.fence, group_ids, trained_sequence=self.progress.sequence)
        with self._lock:
            self._held.difference_update(group_ids)

    def _call(self, action: Callable[[], T]) -> T:
        while True:
            try:
                if self._is_reconcile_due:
                    self.reconcile()
                return self._answered(action)
            except BrokerChanged as error:
                # Also in the middle of a reconcile: a fail-over may follow a restart.
                log.warning("%s", error)
                self._is_reconcile_due = True

    def _answered(self, action: Callable[[], T]) -> T:
        stopped_at: float | None = None
        while True:
            try:
                return action()
            except BrokerUnavailable as error:
                if self._stop.is_set:
                    now = self._clock.monotonic_seconds()
                    stopped_at = now if stopped_at is None else stopped_at
                    if now - stopped_at > STOP_PATIENCE_SECONDS:
                        raise
                    self._clock.sleep(_RETRY_SECONDS)
                else:
                    self._stop.wait(_RETRY_SECONDS)
                log.warning("Waiting for the broker: %s", error)


def _once(action: Callable[[], T]) -> T:
    return action()
