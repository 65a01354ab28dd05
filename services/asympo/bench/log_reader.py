"""The learner's side of the log benchmark: reads in order, frees and commits after every step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asympo.bench.log_load import Shared
from asympo.common.rollout_log import Broker, RunConfig, RunLog, RunState
from asympo.common.rollout_log.keys import key
from asympo.common.trained_ids import TrainedIds

_BLOCK_SECONDS = 0.2
_MAX_SAMPLES = 20_000


@dataclass(kw_only=True, slots=True)
class ReaderResult:
    """What the learner saw."""

    num_groups: int = 0
    """Read in order."""
    cpu_seconds: float = 0.0
    """Of its process."""
    wall_seconds: float = 0.0
    """From its first read to its last."""
    read_seconds: list[float] = field(default_factory=list)
    """From the append to the moment at which the learner holds the group; a sample, to the millisecond."""


class _CountingBroker(Broker):
    """Says how many scripts it has run."""

    count: Any = None
    """A multiprocessing.Value."""

    def run_script(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        self.count.value += 1
        return super().run_script(name, keys, arguments)


def read_product(url: str, config: RunConfig, shared: Shared) -> ReaderResult:
    """The product's way: fenced reads, one free, announcement and commit for every step."""
    broker = _CountingBroker.connect(url)
    assert isinstance(broker, _CountingBroker)
    broker.count = shared.reader_calls
    run_log, result = RunLog(broker, config.run), ReaderResult()
    fence = run_log.fence.take("bench")
    trained = TrainedIds(num_prompts=config.num_prompts)
    fence = run_log.reconciler.reconcile(fence, committed=None, trained=trained).fence
    run_log.policies.announce(fence, step=0, digest="0")
    run_log.state.set(RunState.RUNNING, fence=fence)
    sequence, step, pending = 0, 0, list[str]()
    start_wall, start_cpu = time.perf_counter(), time.process_time()
    while not shared.stop.is_set():
        wanted = config.groups_per_step - len(pending)
        entries = run_log.reader.read(
            after_sequence=sequence, max_count=wanted, block_seconds=_BLOCK_SECONDS, fence=fence
        )
        _count(result, shared, [entry.appended_at_seconds for entry in entries])
        if not entries:
            continue
        sequence = entries[-1].sequence
        pending += [entry.group_id for entry in entries]
        if len(pending) < config.groups_per_step:
            continue
        step += 1
        if step % config.publish_every == 0:
            run_log.policies.announce(fence, step=step, digest=str(step))
        run_log.commits.free(fence, pending, trained_sequence=sequence)
        run_log.commits.commit(
            fence, sequence=sequence, state_name=f"step-{step}", step=step, group_ids=pending
        )
        pending = []
    result.wall_seconds = time.perf_counter() - start_wall
    result.cpu_seconds = time.process_time() - start_cpu
    broker.close()
    return result


def read_bare(url: str, config: RunConfig, shared: Shared) -> ReaderResult:
    """XREAD, and XTRIM after every step: the same bytes, no promises."""
    broker, result = Broker.connect(url), ReaderResult()
    log, after_id, num_pending = key(config.run, "log"), "0", 0
    start_wall, start_cpu = time.perf_counter(), time.process_time()
    while not shared.stop.is_set():
        entries = broker.blocking_read(
            log,
            after_id=after_id,
            max_count=config.groups_per_step - num_pending,
            block_seconds=_BLOCK_SECONDS,
        )
        # A stream id starts with the broker's clock.
        _count(result, shared, [int(entry[0].partition("-")[0]) / 1000 for entry in entries])
        if not entries:
            continue
        after_id = entries[-1][0]
        num_pending += len(entries)
        if num_pending >= config.groups_per_step:
            broker.command("XTRIM", log, "MINID", after_id)
            num_pending = 0
    result.wall_seconds = time.perf_counter() - start_wall
    result.cpu_seconds = time.process_time() - start_cpu
    broker.close()
    return result


def _count(result: ReaderResult, shared: Shared, appended: list[float]) -> None:
    result.num_groups += len(appended)
    shared.consumed.value += len(appended)
    if len(result.read_seconds) < _MAX_SAMPLES:
        now = time.time()
        result.read_seconds += [max(0.0, now - moment) for moment in appended]
