"""Publishes beside the training thread; frees the slots of what was trained once its policy is visible."""

import bisect
import logging
from collections.abc import Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from asympo.common.checkpoints import PolicyRef
from asympo.common.clock import Clock
from asympo.common.errors import PublishFailed
from asympo.common.rollout_log import PolicyAnnouncement
from asympo.learner.control import LearnerControl
from asympo.learner.log.session import LogSession
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.model.weights import Weights
from asympo.learner.publish.policy_writer import PolicyWriter, PreparedPolicy
from asympo.learner.record.traces import GroupTraces
from asympo.learner.step.probe import ProbeText

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What the background has done."""

    ref: PolicyRef
    num_bytes: int
    policy: PolicyAnnouncement | None
    """None: the broker did not take it, so the training thread announces and frees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """The one publish in flight."""

    step: int
    group_ids: tuple[str, ...]
    """Slots that it frees."""
    begun_at: float
    future: Future[_Written]


class BackgroundPublisher:
    """At most one publish in flight; every method is for the training thread.

    Weights are rounded into the publisher's copy before `begin` returns, so the next step may change the
    policy at once. Writing, digests and flushing follow in a thread of their own, then the announcement, then
    the slots: a group's slot is never freed before a policy shows what was learnt from it. That thread tries
    the broker once; whatever needs patience or a reconcile is left to the training thread.
    """

    def __init__(
        self,
        *,
        publisher: PolicyWriter,
        weights: Weights,
        session: LogSession,
        learner: LearnerControl,
        metrics: LearnerMetrics,
        traces: GroupTraces,
        clock: Clock,
        retry_seconds: float,
    ) -> None:
        self._publisher = publisher
        self._weights = weights
        self._session = session
        self._learner = learner
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._job: _Job | None = None
        self._held: list[str] = []
        self._times: list[float] = []
        self._seconds = 0.0
        self._num_bytes = 0
        self._ended_at = 0.0
        self.published_step: int | None = None
        """Step of the newest policy that is visible."""
        self.retry_at: float | None = None
        """When to try again what could not be published; None when nothing is owed or it is being tried."""

    def start(self, *, step: int) -> None:
        """Publishes the policy of the loaded state unless it is the newest one, and not marked bad."""
        newest = self._publisher.adopt_newest()
        if (
            newest is not None
            and newest.step == step
            and self._session.report_against(step=newest.step, fence=newest.fence) is None
            and self._publisher.is_published(self._weights)
        ):
            announced = self._session.announce(
                step=newest.step, digest=newest.digest, policy_fence=newest.fence
            )
            self._learner.set_policy(announced)
            self._metrics.policy_adopted(published_at_seconds=announced.published_at_seconds)
            self.published_step = step
        else:
            self.publish(step=step)
        self._times = self._session.publish_times()

    def publish(self, *, step: int, probes: Sequence[ProbeText] = ()) -> bool:
        """Publishes and waits for it; whether it is visible."""
        self.begin(step=step, probes=probes)
        self.settle(wait=True)
        return self.published_step == step

    def begin(self, *, step: int, probes: Sequence[ProbeText]) -> None:
        """Starts to publish the policy as it is now, once the publish before has ended."""
        self.settle(wait=True)
        begun_at = self._clock.monotonic_seconds()
        prepared = self._publisher.prepare(
            self._weights, step=step, fence=self._session.fence.number, probes=probes
        )
        group_ids = tuple(self._held)
        self.retry_at = None
        self._job = _Job(
            step=step,
            group_ids=group_ids,
            begun_at=begun_at,
            future=self._pool.submit(self._write, prepared, group_ids),
        )

    def settle(self, *, wait: bool) -> None:
        """Takes note of a publish that has ended; with `wait`, of the one in flight.

        Raises whatever stopped it other than storage, which is tried again later.
        """
        job = self._job
        if job is None or not (wait or job.future.done()):
            return
        self._job = None
        try:
            written = job.future.result()
        except PublishFailed as error:
            log.error("%s; the next attempt is in %.0f s", error, self._retry_seconds)
            self._metrics.publish_failed()
            self._ended_at = self._clock.monotonic_seconds()
            self.retry_at = self._ended_at + self._retry_seconds
            return
        policy = written.policy
        if policy is None:
            ref = written.ref
            policy = self._session.announce(step=ref.step, digest=ref.digest, policy_fence=ref.fence)
            self._session.free(job.group_ids)
            self._learner.set_policy(policy)
            self._ended_at = self._clock.monotonic_seconds()
        del self._held[: len(job.group_ids)]
        self.retry_at = None
        self.published_step = job.step
        self._times.append(policy.published_at_seconds)
        seconds = self._ended_at - job.begun_at
        self._seconds += seconds
        self._num_bytes += written.num_bytes
        self._traces.published(job.group_ids, step=job.step, begun=job.begun_at, ended=self._ended_at)
        self._metrics.published(seconds=seconds, at_seconds=self._clock.now_seconds())

    def hold(self, group_ids: Sequence[str], *, freed: Set[str] = frozenset()) -> None:
        """Slots that the next policy frees; those `freed` already stay free in a reconcile."""
        self._held.extend(group_ids)
        self._session.hold([group_id for group_id in group_ids if group_id not in freed])

    @property
    def held(self) -> frozenset[str]:
        """Groups whose slots wait for a policy, one that is being published included."""
        return frozenset(self._held)

    def staleness_of(self, appended_at_seconds: float) -> int:
        """Policies announced since then."""
        return len(self._times) - bisect.bisect_right(self._times, appended_at_seconds)

    def seconds_since(self, since: float) -> float:
        """How much of the time since `since` a publish was in flight."""
        until = self._clock.monotonic_seconds() if self.is_in_flight else self._ended_at
        return max(0.0, until - since)

    def take_totals(self) -> tuple[float, int]:
        """Duration and bytes of what was published since this was asked last."""
        totals = (self._seconds, self._num_bytes)
        self._seconds, self._num_bytes = 0.0, 0
        return totals

    def close(self) -> None:
        """Waits for the background thread and ignores what it did."""
        self._pool.shutdown(wait=True)

    @property
    def is_in_flight(self) -> bool:
        """Whether a policy is being written or announced."""
        return self._job is not None and not self._job.future.done()

    def _write(self, prepared: PreparedPolicy, group_ids: Sequence[str]) -> _Written:
        ref = self._publisher.write(prepared)
        num_bytes = self._publisher.num_bytes
        policy = self._session.try_announce(
            step=ref.step, digest=ref.digest, policy_fence=ref.fence, group_ids=group_ids
        )
        if policy is not None:
            self._learner.set_policy(policy)
        self._ended_at = self._clock.monotonic_seconds()
        self._publisher.prune(
            is_in_use=lambda policy: (
                self._learner.evals.is_best(policy) or self._session.is_policy_in_use(policy)
            )
        )
        return _Written(ref=ref, num_bytes=num_bytes, policy=policy)
