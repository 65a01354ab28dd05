"""Hours of one run on a simulated clock: learner, generators, scrapes, rule, autoscaler."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from deploy.autoscaling_simulation.hpa import Hpa, HpaSettings
from deploy.autoscaling_simulation.rules import RecordingRules
from deploy.autoscaling_simulation.series import Labels, SeriesStore
from deploy.autoscaling_simulation.slots import Group, SimulatedLog

LEASE_SECONDS = 15.0
DRAIN_SECONDS = 25.0
RUN: Labels = frozenset({("namespace", "default"), ("run", "simulated")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How fast both sides work, from one moment on."""

    from_seconds: float = 0.0
    step_seconds: float = 30.0
    """The learner's forward, backward and optimizer of one step."""
    group_seconds: float = 20.0
    """Sampling one group alone on a generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Generators of one kind."""

    name: str = "generator"
    weight: float | None = 1.0
    """Its share; None keeps its first number for ever."""
    first_replicas: int = 1
    groups_in_flight: int = 8
    """Groups that one generator holds at once."""
    preemptions_per_hour: float = 0.0
    """Of each generator."""
    room: tuple[tuple[float, int], ...] = ()
    """From when on the cluster has nodes for how many of them; without limit when empty."""

    @property
    def labels(self) -> Labels:
        return RUN | {("pool", self.name)}

    def room_at(self, now: float) -> int:
        return [num for since, num in self.room if since <= now][-1] if self.room else 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One simulated run."""

    name: str
    hours: float = 6.0
    groups_per_step: int = 64
    max_staleness: int = 2
    contention: float = 1.0
    """How much longer a group takes on a full generator than alone: 1 doubles it."""
    loads: tuple[Load, ...] = (Load(),)
    """In order of time."""
    spread: float = 0.4
    """Standard deviation of the logarithm of a group's time."""
    without_signal_ratio: float = 0.1
    publish_seconds: float = 2.0
    pools: tuple[Pool, ...] = (Pool(),)
    start_seconds: float = 180.0
    """From the pod's creation to ready, give or take a third; scraped from the first third on."""

    @property
    def capacity(self) -> int:
        return (1 + self.max_staleness) * self.groups_per_step

    @property
    def max_replicas(self) -> int:
        """Of a pool whose generators hold least."""
        return math.ceil(self.capacity / min(pool.groups_in_flight for pool in self.pools))

    def load_at(self, now: float) -> Load:
        return [load for load in self.loads if load.from_seconds <= now][-1]


@dataclass(kw_only=True, slots=True, eq=False)
class Pod:
    """One generator."""

    name: str
    pool: Pool
    scraped_at: float
    ready_at: float
    is_ready: bool = False
    is_gone: bool = False
    held: set[int] = field(default_factory=set)

    @property
    def labels(self) -> Labels:
        return self.pool.labels | {("pod", self.name)}


@dataclass(kw_only=True, slots=True)
class Trace:
    """What is plotted, one value each scrape."""

    times: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    by_pool: dict[str, list[int]] = field(default_factory=dict)
    """Replicas of each pool."""
    ready: list[int] = field(default_factory=list)
    wanted: list[float] = field(default_factory=list)
    waited_seconds: list[float] = field(default_factory=list)
    """Since the start."""
    free_slots: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


class Simulation:
    """Deterministic for a scenario and a seed."""

    def __init__(self, scenario: Scenario, *, seed: int, rules: RecordingRules) -> None:
        self._scenario = scenario
        self._random = random.Random(f"{scenario.name}:{seed}")
        self._rules = rules
        self.store = SeriesStore()
        self._log = SimulatedLog(capacity=scenario.capacity)
        self._hpas = {
            pool: Hpa(settings=HpaSettings(max_replicas=scenario.max_replicas)) for pool in scenario.pools
        }
        self._pods: list[Pod] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = self._num_pods = 0
        self._now = 0.0
        self._replicas = {pool: pool.first_replicas for pool in scenario.pools}
        self._num_steps = 0
        self._segment: list[Group] = []
        self._waiting_since: float | None = 0.0
        self._waited_seconds = 0.0
        self.trace = Trace()

    def run(self) -> Trace:
        """To the end of the scenario."""
        self._keep_replicas()
        for pool in self._scenario.pools:
            for since, _ in pool.room:
                self._after(since, self._lose_nodes)
        self._after(0.0, self._scrape)
        end = self._scenario.hours * 3600
        while self._events[0][0] <= end:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return self.trace

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (self._now + seconds, self._num_events, event))

    # --- learner ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what is there; train once a segment is complete."""
        if self._waiting_since is None:
            return
        while self._log.backlog:
            group = self._log.backlog.popleft()
            if not group.has_signal:
                self._log.free([group.group_id])
                continue
            self._segment.append(group)
            if len(self._segment) == self._scenario.groups_per_step:
                self._waited_seconds += self._now - self._waiting_since
                self._waiting_since = None
                seconds = self._scenario.load_at(self._now).step_seconds * self._random.uniform(0.9, 1.1)
                self._after(seconds + self._scenario.publish_seconds, self._published)
                return

    def _published(self) -> None:
        self._log.free([group.group_id for group in self._segment])
        self._segment = []
        self._num_steps += 1
        self._waiting_since = self._now
        self._read()
        self._lease()

    # --- generators ------------------------------------------------------------------------------------

    def _keep_replicas(self) -> None:
        """The Deployment's controller: as many pods as wanted; those not ready go first, then the newest."""
        for pool, replicas in self._replicas.items():
            own = self._pods_of(pool)
            while len(own) < min(replicas, pool.room_at(self._now)):
                own.append(self._new_pod(pool))
            own.sort(key=lambda pod: (not pod.is_ready, pod.ready_at))
            while len(own) > replicas:
                pod = own.pop()
                self._pods.remove(pod)
                self._stop(pod)

    def _pods_of(self, pool: Pool) -> list[Pod]:
        return [pod for pod in self._pods if pod.pool is pool]

    def _new_pod(self, pool: Pool) -> Pod:
        self._num_pods += 1
        seconds = self._scenario.start_seconds * self._random.uniform(2 / 3, 4 / 3)
        pod = Pod(
            name=f"generator-{self._num_pods}",
            pool=pool,
            scraped_at=self._now + seconds / 3,
            ready_at=self._now + seconds,
        )
        self._pods.append(pod)
        self._after(seconds, partial(self._pod_ready, pod))
        return pod

    def _lose_nodes(self) -> None:
        """Pods for which there are no longer nodes are killed."""
        for pool in self._scenario.pools:
            for pod in self._pods_of(pool)[pool.room_at(self._now) :]:
                self._preempt(pod)
        self._keep_replicas()

    def _pod_ready(self, pod: Pod) -> None:
        if pod.is_gone:
            return
        pod.is_ready = True
        if rate := pod.pool.preemptions_per_hour:
            self._after(self._random.expovariate(rate / 3600), partial(self._preempt, pod))
        self._lease()

    def _stop(self, pod: Pod) -> None:
        """Drain: lease nothing more, finish what ends in time, hand back the rest."""
        pod.is_gone = True

        def hand_back() -> None:
            for group_id in pod.held:
                self._log.hand_back(group_id)
            pod.held.clear()
            self._lease()

        self._after(DRAIN_SECONDS, hand_back)

    def _preempt(self, pod: Pod) -> None:
        """Killed: its leases run out, its replacement starts from nothing."""
        if pod.is_gone:
            return
        pod.is_gone = True
        self._pods.remove(pod)
        for group_id in pod.held:
            self._log.lose_holder(group_id, expires_at=self._now + LEASE_SECONDS)
        pod.held.clear()
        self._after(LEASE_SECONDS, self._lease)
        self._keep_replicas()

    def _lease(self) -> None:
        """Every ready generator takes what it may; who asks first is chance."""
        self._log.expire(self._now)
        askers = [pod for pod in self._pods if pod.is_ready and len(pod.held) < pod.pool.groups_in_flight]
        while askers and (group_id := self._log.acquire()) is not None:
            pod = self._random.choice(askers)
            pod.held.add(group_id)
            limit = pod.pool.groups_in_flight
            fullness = len(pod.held) / limit
            seconds = self._scenario.load_at(self._now).group_seconds * (
                1 + self._scenario.contention * fullness
            )
            seconds *= self._random.lognormvariate(0.0, self._scenario.spread)
            self._after(seconds, partial(self._answer, pod, group_id))
            if len(pod.held) == limit:
                askers.remove(pod)

    def _answer(self, pod: Pod, group_id: int) -> None:
        if group_id not in pod.held:
            return
        pod.held.remove(group_id)
        has_signal = self._random.random() >= self._scenario.without_signal_ratio
        self._log.append(Group(group_id=group_id, has_signal=has_signal))
        self._read()
        self._lease()

    # --- scrape, rule, autoscaler ----------------------------------------------------------------------

    def _scrape(self) -> None:
        now, log, ready = self._now, self._log, {}
        log.expire(now)
        scraped = [pod for pod in self._pods if pod.scraped_at <= now]
        slots = {"capacity": log.capacity, "leased": len(log.leases), "open": len(log.open)}
        waited = self._waited_seconds + (now - self._waiting_since if self._waiting_since is not None else 0)
        ready = {pod.labels: float(pod.is_ready) for pod in scraped}
        record = self.store.record
        record("asympo_learner_slots", now, {RUN | {("state", k)}: float(v) for k, v in slots.items()})
        record("asympo_learner_waited_seconds_total", now, {RUN: waited})
        record("asympo_generator_ready", now, ready)
        record("asympo_generator_groups_in_flight", now, {p.labels: float(len(p.held)) for p in scraped})
        limits = {pod.labels: float(pod.pool.groups_in_flight) for pod in scraped}
        record("asympo_generator_max_groups_in_flight", now, limits)
        weights = {pool.labels: pool.weight for pool in self._scenario.pools if pool.weight is not None}
        record("asympo:pool_weight", now, weights)
        wanted = self._rules.evaluate(self.store, now)
        for pool in self._scenario.pools:
            if pool.weight is not None:
                self._replicas[pool] = self._hpas[pool].replicas(
                    now, current=self._replicas[pool], metric=wanted.get(pool.labels)
                )
            self.trace.by_pool.setdefault(pool.name, []).append(self._replicas[pool])
        self._keep_replicas()
        trace = self.trace
        trace.times.append(now)
        trace.replicas.append(sum(self._replicas.values()))
        trace.ready.append(int(sum(ready.values())))
        trace.wanted.append(sum(wanted.values()) if wanted else math.nan)
        trace.waited_seconds.append(waited)
        trace.free_slots.append(log.num_free)
        trace.steps.append(self._num_steps)
        self._after(self._rules.interval_seconds, self._scrape)
