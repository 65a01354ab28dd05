"""Runs on a Redis Cluster: each keeps to one slot, several are spread over its masters."""

import time
from collections.abc import Callable
from itertools import count

import pytest
import redis
from asympo.common.errors import BrokerUnavailable
from asympo.common.rollout_log import Broker, RunLog, list_runs
from asympo.common.rollout_log.keys import key, run_of_key
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.local.broker import LocalBroker
from asympo.local.ports import free_port

from tests.integration.rollout_log.conftest import Learner, must_append, must_lease, start_run

NUM_SLOTS = 16384
RUNS_PER_MASTER = 2


def until(is_true: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_whole(node: redis.Redis) -> bool:
    """Whether it knows an owner of every slot."""
    state = node.cluster("info")
    return state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "3"


@pytest.fixture
def masters(start_server: Callable[..., LocalBroker]) -> list[redis.Redis]:
    """Three masters without replicas, a third of the slots each."""
    processes = [
        start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) for _ in range(3)
    ]
    nodes = [redis.Redis(port=process.port or 0) for process in processes]
    for number, node in enumerate(nodes):
        first, last = NUM_SLOTS * number // 3, NUM_SLOTS * (number + 1) // 3 - 1
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        # Different epochs, else the masters quarrel about who is first before they agree.
        node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for other in processes[1:]:
        bus = other.extra[other.extra.index("--cluster-port") + 1]
        nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
    until(lambda: all(is_whole(node) for node in nodes))
    return nodes


def spread(broker: Broker, prefix: str) -> dict[str, int]:
    """Names of runs, as many on each master, with the master's port."""
    found: dict[str, int] = {}
    for number in count():
        name = f"{prefix}-{number}"
        port = broker.client.get_node_from_key(key(name, "run")).port
        if list(found.values()).count(port) < RUNS_PER_MASTER:
            found[name] = port
        if len(found) == 3 * RUNS_PER_MASTER:
            return found
    raise AssertionError


def train_a_step(log: RunLog, learner: Learner) -> None:
    """From lease to commit, with one lease left."""
    groups = [must_append(log, must_lease(log), log.run.encode()).sequence for _ in range(3)]
    must_lease(log)
    entries = learner.consume(3)
    assert [entry.sequence for entry in entries] == groups
    assert {entry.payload for entry in entries} == {log.run.encode()}
    learner.commit([entry.group_id for entry in entries])


def test_runs_are_spread_over_three_masters_and_each_keeps_to_its_slot(
    masters: list[redis.Redis], run_name: str
) -> None:
    port = masters[0].connection_pool.connection_kwargs["port"]
    broker = Broker.connect(f"redis://127.0.0.1:{port}/0")
    runs = spread(broker, run_name)
    logs = {name: RunLog(broker, name) for name in runs}
    learners = {name: start_run(log) for name, log in logs.items()}
    for _ in range(2):
        for name, log in logs.items():
            train_a_step(log, learners[name])
    for name, log in logs.items():
        stats = log.stats.read()
        assert (stats.appended, stats.trained, stats.open, stats.leases) == (6, 6, 0, 2), name
        assert log.stats.broker_info().mode == "cluster"
    slots: dict[str, set[int]] = {}
    for node in masters:
        port = node.connection_pool.connection_kwargs["port"]
        for each in node.scan_iter(count=1000):
            run = run_of_key(each.decode())
            assert run is not None
            assert runs[run] == port, "no key of a run lies on another master"
            slots.setdefault(run, set()).add(int(node.execute_command("CLUSTER", "KEYSLOT", each)))
    assert {run: len(found) for run, found in slots.items()} == dict.fromkeys(runs, 1)
    assert broker.run_names() == [summary.run for summary in list_runs(broker)] == sorted(runs)
    logs[min(runs)].state.delete()
    assert broker.run_names() == sorted(runs)[1:]
    broker.close()


def test_slot_on_its_way_to_another_master_is_waited_for(masters: list[redis.Redis], run_name: str) -> None:
    port = masters[0].connection_pool.connection_kwargs["port"]
    broker = Broker.connect(f"redis://127.0.0.1:{port}/0")
    log = RunLog(broker, run_name)
    start_run(log)
    must_append(log, payload=b"p" * MIN_APART_BYTES)
    moved = log.access.key("payloads")
    ports = {node.connection_pool.connection_kwargs["port"]: node for node in masters}
    source_port = broker.client.get_node_from_key(moved).port
    source, target_port = ports.pop(source_port), min(ports)
    names = [node.execute_command("CLUSTER", "MYID").decode() for node in (source, ports[target_port])]
    slot = source.execute_command("CLUSTER", "KEYSLOT", moved)
    ports[target_port].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    source.execute_command("MIGRATE", "127.0.0.1", target_port, moved, 0, 5000)
    with pytest.raises(BrokerUnavailable, match="non local key"):
        list(log.reader.iter_entries())
    broker.close()


def test_warnings_of_a_cluster_are_those_of_all_its_masters(masters: list[redis.Redis]) -> None:
    port = masters[0].connection_pool.connection_kwargs["port"]
    broker = Broker.connect(f"redis://127.0.0.1:{port}/0")
    assert broker.info().warnings == ()
    masters[1].config_set("appendfsync", "everysec")
    masters[2].config_set("maxmemory-policy", "allkeys-lru")
    assert sorted(warning.rpartition("; ")[2] for warning in broker.info().warnings) == [
        "set appendfsync always",
        "set maxmemory-policy noeviction",
    ]
    broker.close()
