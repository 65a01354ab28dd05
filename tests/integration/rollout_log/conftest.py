"""Every test of the log runs against both servers that CI has: Redis and Valkey."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BrokerChanged
from asympo.common.rollout_log import (
    AppendResult,
    Broker,
    Fence,
    Lease,
    LogEntry,
    RunConfig,
    RunLog,
    RunState,
)
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.trained_ids import TrainedIds
from asympo.local.broker import LocalBroker

from tests.conftest import require, start_broker, valkey_binary

SERVERS = ("redis", "valkey")


def server_binary(server: str) -> str:
    if server == "valkey":
        return valkey_binary()
    found = shutil.which("redis-server")
    require(found is not None, "redis-server (apt-get install redis-server)")
    return str(found)


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared_server(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """One server of each kind for all tests that do not break it; fsync off for speed."""
    process = start_broker(server_binary(server), tmp_path_factory.mktemp(server), "--appendfsync", "no")
    yield process
    process.kill()


@pytest.fixture
def start_server(server: str, tmp_path: Path) -> Iterator[Callable[..., LocalBroker]]:
    """Starts servers that this test may break."""
    started: list[LocalBroker] = []

    def start(*extra: str) -> LocalBroker:
        data_dir = tmp_path / f"broker-{len(started)}"
        started.append(start_broker(server_binary(server), data_dir, *extra))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def broker(shared_server: LocalBroker) -> Iterator[Broker]:
    broker = Broker.connect(shared_server.url)
    yield broker
    broker.close()


@pytest.fixture
def log(broker: Broker, run_name: str) -> RunLog:
    return RunLog(broker, run_name)


def config_of(run: str, **overrides: Any) -> RunConfig:
    base = RunConfig(
        run=run,
        group_size=4,
        groups_per_step=4,
        max_groups_per_step=8,
        max_staleness=1,
        num_prompts=50,
        seed=3,
        model="tiny",
    )
    return dataclasses.replace(base, **overrides)


@dataclasses.dataclass
class Learner:
    """The smallest learner that keeps the protocol: consumes entries in order and remembers what."""

    log: RunLog
    fence: Fence
    trained: TrainedIds
    sequence: int = 0
    step: int = 0

    def consume(self, count: int, *, block_seconds: float = 1.0) -> list[LogEntry]:
        entries = self.log.reader.read(
            after_sequence=self.sequence, max_count=count, block_seconds=block_seconds, fence=self.fence
        )
        for entry in entries:
            assert self.trained.add(entry.group_id), f"{entry.group_id} would be trained twice"
            self.sequence = entry.sequence
        self.log.commits.free(
            self.fence, [entry.group_id for entry in entries], trained_sequence=self.sequence
        )
        return entries

    def heal(self) -> None:
        """One more read, as a learner makes them, and a reconcile where that finds the broker changed."""
        try:
            self.consume(1, block_seconds=0.0)
            self.commit([])
        except BrokerChanged:
            self.log.reconciler.reconcile(
                self.fence, committed=None, trained=self.trained, trained_sequence=self.sequence
            )

    def commit(self, group_ids: list[str], **options: Any) -> None:
        self.step += 1
        self.log.commits.commit(
            self.fence,
            sequence=self.sequence,
            state_name=f"step-{self.step}",
            step=self.step,
            group_ids=group_ids,
            **options,
        )


def lose(log: RunLog, *nouns: str) -> None:
    """As a broker that comes back without these keys of the run; without any, if none are named."""
    log.broker.command("DEL", *map(log.access.key, nouns or NOUNS))


def start_run(log: RunLog, **overrides: Any) -> Learner:
    """Creates a run, announces its first policy and lets generators in."""
    config = log.state.create_or_join(config_of(log.run, **overrides))
    fence = log.fence.take("learner-0")
    trained = TrainedIds(num_prompts=config.num_prompts)
    fence = log.reconciler.reconcile(fence, committed=None, trained=trained).fence
    log.policies.announce(fence, step=0, digest="d0")
    log.state.set(RunState.RUNNING, fence=fence)
    return Learner(log=log, fence=fence, trained=trained)


def must_lease(log: RunLog, *, holder: str = "gen-0", policy_step: int = 0) -> Lease:
    lease = log.leases.acquire(holder=holder, policy_step=policy_step)
    assert isinstance(lease, Lease), lease
    return lease


def let_expire(log: RunLog, lease: Lease) -> None:
    """As if its holder had been silent for as long as it may be."""
    log.broker.command("ZADD", log.access.key("deadlines"), 1, lease.token)


def let_heartbeat_expire(log: RunLog) -> None:
    """As if the run's learner had been silent for as long as it may be."""
    log.broker.command("HSET", log.access.key("learner"), "fence_deadline_ms", 1)


def must_append(log: RunLog, lease: Lease | None = None, payload: bytes = b"payload") -> AppendResult:
    result = log.leases.append(lease or must_lease(log), payload, producer="gen-0")
    assert result.outcome == "appended", result
    return result
