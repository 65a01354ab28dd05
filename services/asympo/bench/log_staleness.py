"""The queue bound under stragglers: simulated generators and a simulated learner on the real scripts."""

import random
import threading
import time
from dataclasses import dataclass, field

from asympo.common.rollout_log import (
    Broker,
    Fence,
    Lease,
    LogEntry,
    Refused,
    RunConfig,
    RunLog,
    RunState,
    queue_staleness,
)
from asympo.common.trained_ids import TrainedIds

SLOW_SHARE, SLOW_FACTOR = 0.05, 30
_JOIN_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class StalenessCase:
    """One setting."""

    url: str
    run: str
    """Name of its own run; deleted afterwards."""
    max_staleness: int
    publish_every: int
    num_generators: int = 12
    groups_per_step: int = 4
    work_seconds: float = 0.004
    """Time for a usual group; a slow one takes `SLOW_FACTOR` times as long."""
    step_seconds: float = 0.004
    """Time for an optimizer step."""
    seconds: float
    seed: int = 0


@dataclass(kw_only=True)
class StalenessResult:
    """In published policies."""

    max_queue_staleness_seen: int = 0
    max_queue_staleness_allowed: int
    mean_queue_staleness: float = 0.0
    max_generation_staleness_seen: int = 0
    mean_generation_staleness: float = 0.0
    num_steps: int = 0
    num_groups: int = 0
    _total: int = field(default=0, repr=False)

    def count(self, staleness: list[int]) -> None:
        """One trained step."""
        self.num_steps += 1
        self.num_groups += len(staleness)
        self._total += sum(staleness)
        self.max_queue_staleness_seen = max(self.max_queue_staleness_seen, *staleness)
        self.mean_queue_staleness = self._total / self.num_groups


def run_staleness(case: StalenessCase) -> StalenessResult:
    """Trains for some seconds as fast as slots allow; raises RuntimeError when a thread fails."""
    config = RunConfig(
        run=case.run,
        group_size=2,
        groups_per_step=case.groups_per_step,
        max_groups_per_step=case.groups_per_step,
        publish_every=case.publish_every,
        max_staleness=case.max_staleness,
        num_prompts=100_000,
        model="bench",
    )
    broker, stop = Broker.connect(case.url), threading.Event()
    run_log, failures = RunLog(broker, case.run), list[BaseException]()
    run_log.state.create_or_join(config)
    fence = run_log.fence.take("bench")
    trained = TrainedIds(num_prompts=config.num_prompts)
    fence = run_log.reconciler.reconcile(fence, committed=None, trained=trained).fence
    run_log.policies.announce(fence, step=0, digest="0")
    run_log.state.set(RunState.RUNNING, fence=fence)

    def generate(number: int) -> None:
        try:
            _generate(case, run_log, stop, random.Random(case.seed * 1000 + number))
        except Exception as error:  # noqa: BLE001  a thread's edge: raised again by the caller
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(case.num_generators)]
    try:
        for thread in threads:
            thread.start()
        result = _train(case, config, run_log, fence, stop)
    finally:
        stop.set()
        run_log.state.set(RunState.FINISHED, fence=fence)
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        stats = run_log.stats.read()
        run_log.state.delete()
        broker.close()
    if failures:
        raise RuntimeError("a simulated generator failed: the measurement is void") from failures[0]
    result.max_generation_staleness_seen = stats.generation_staleness_max
    result.mean_generation_staleness = stats.generation_staleness_policies_total / max(1, stats.appended)
    return result


def _generate(case: StalenessCase, run_log: RunLog, stop: threading.Event, rng: random.Random) -> None:
    name, payload = threading.current_thread().name, b"x" * 1024
    while not stop.is_set():
        policy = run_log.policies.latest()
        answer = run_log.leases.acquire(holder=name, policy_step=policy.step if policy else 0)
        if isinstance(answer, Refused):
            run_log.leases.wait_for_slot(0.1, refused=answer)
            continue
        assert isinstance(answer, Lease)
        is_slow = rng.random() < SLOW_SHARE
        stop.wait(case.work_seconds * (SLOW_FACTOR if is_slow else 1))
        run_log.leases.append(answer, payload, producer=name)


def _train(
    case: StalenessCase, config: RunConfig, run_log: RunLog, fence: Fence, stop: threading.Event
) -> StalenessResult:
    """The order of a step: train, publish, free, commit; slots are held until their policy is published."""
    result = StalenessResult(max_queue_staleness_allowed=config.max_staleness)
    deadline, sequence, step = time.monotonic() + case.seconds, 0, 0
    published, held = run_log.policies.publish_times(), list[str]()
    while time.monotonic() < deadline and not stop.is_set():
        segment: list[LogEntry] = []
        while len(segment) < config.groups_per_step and time.monotonic() < deadline and not stop.is_set():
            segment += run_log.reader.read(
                after_sequence=sequence,
                max_count=config.groups_per_step - len(segment),
                block_seconds=0.1,
                fence=fence,
            )
            sequence = segment[-1].sequence if segment else sequence
        if len(segment) < config.groups_per_step:
            break
        stop.wait(case.step_seconds)
        step += 1
        result.count([queue_staleness(entry.appended_at_seconds, published) for entry in segment])
        held += [entry.group_id for entry in segment]
        if step % config.publish_every == 0:
            announcement = run_log.policies.announce(fence, step=step, digest=str(step))
            published.append(announcement.published_at_seconds)
            run_log.commits.free(fence, held, trained_sequence=sequence)
            run_log.commits.commit(fence, sequence=sequence, state_name=str(step), step=step, group_ids=held)
            held = []
    return result
