"""Garbage through every door of a real run; and that each counter moves when its promise is broken."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest
from asympo.chaos.hostile import run as hostile_run
from asympo.chaos.hostile.doors import Door
from asympo.chaos.hostile.garbage import Garbage, valid_message
from asympo.chaos.hostile.run import MAX_GROWTH_BYTES, HostileReport, HostileRun
from asympo.chaos.hostile.system import RUN, HostileSystem
from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import InvalidRecord
from asympo.common.rollout_log import Broker, Lease, RunLog

LIMITS = WireLimits(vocab_size=512, max_responses=1024)


def start(directory: Path, broker_binary: str, *, num_cases: int, seed: int = 3) -> HostileRun:
    system = HostileSystem(directory=directory, seed=seed, broker_binary=broker_binary)
    return HostileRun(system=system, seed=seed, num_cases=num_cases, say=print)


@pytest.mark.timeout(300)
def test_nothing_that_is_sent_stops_fills_or_steers_the_run(tmp_path: Path, broker_binary: str) -> None:
    run = start(tmp_path / "hostile", broker_binary, num_cases=70)
    report = asyncio.run(run.run())
    assert report.problems == []
    assert report.to_dict()["cases"] == 70
    assert len(report.doors) == 15, "every door"
    assert report.steps > 10
    assert (report.steps_stopped, report.records_trained_that_should_not) == (0, 0)
    assert 0 < report.peak_growth_bytes < MAX_GROWTH_BYTES
    assert report.set_aside


@pytest.mark.timeout(300)
def test_counters_move_when_a_promise_is_broken(
    tmp_path: Path, broker_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile_run, "MAX_GROWTH_BYTES", 0)
    run = start(tmp_path / "hostile", broker_binary, num_cases=2)
    report, is_planted = run.report, asyncio.Event()

    def trained(system: HostileSystem) -> str:
        """What an honest generator might append, from one that keeps no journal."""
        broker = Broker.connect(f"redis://127.0.0.1:{system.broker.port}/0")
        log = RunLog(broker, RUN)
        policy = log.policies.latest()
        assert policy is not None
        lease = log.leases.acquire(holder="planted", policy_step=policy.step)
        while not isinstance(lease, Lease):
            log.leases.wait_for_slot(5.0, refused=lease)
            lease = log.leases.acquire(holder="planted", policy_step=policy.step)
        payload = valid_message(lease.group_id, Garbage("planted").rng).SerializeToString()
        outcome = log.leases.append(lease, payload, producer="planted").outcome.value
        broker.close()
        return outcome

    async def planted(system: HostileSystem) -> str:
        outcome = await asyncio.to_thread(trained, system)
        is_planted.set()
        return outcome

    async def stopped(system: HostileSystem) -> str:
        await is_planted.wait()
        # From now on only: the start takes its time on a busy machine.
        monkeypatch.setattr(hostile_run, "_STALL_SECONDS", 1.0)
        system.learner.send(signal.SIGSTOP)
        while report.steps_stopped == 0:
            await asyncio.sleep(0.05)
        monkeypatch.undo()
        monkeypatch.setattr(hostile_run, "MAX_GROWTH_BYTES", 0)
        system.learner.send(signal.SIGCONT)
        return "stopped"

    def doors(system: HostileSystem) -> list[Door]:
        return [
            Door(name="planted", put=lambda _: planted(system)),
            Door(name="stopped", put=lambda _: stopped(system)),
        ]

    asyncio.run(run.run(doors))
    assert report.doors["planted"] == {"appended": 1}
    assert report.records_trained_that_should_not >= 1
    assert report.steps_stopped >= 1
    assert sum("was trained" in problem for problem in report.problems) == 1
    assert any("memory grew" in problem for problem in report.problems)


@pytest.mark.timeout(120)
def test_service_that_cannot_start_ends_the_wait_for_it(tmp_path: Path, broker_binary: str) -> None:
    run = start(tmp_path / "hostile", broker_binary, num_cases=1)
    with socket.create_server(("127.0.0.1", run.system.ports["generator", "grpc"])):
        report = asyncio.run(run.run())
    assert any(problem.startswith("generator ended with 2") for problem in report.problems), report.problems


def test_record_that_is_called_hostile_is_refused_and_the_other_is_not() -> None:
    """What the count rests on; a learner's own limits come on top of these."""
    garbage, refused, longer = Garbage("records"), set[str](), set[str]()
    decode_group(valid_message("0-0", garbage.rng).SerializeToString(), limits=LIMITS)
    for _ in range(400):
        fault, payload = garbage.record()
        try:
            group = decode_group(payload, limits=LIMITS)
        except InvalidRecord:
            refused.add(fault)
            continue
        rows = [len(each.token_ids) or len(each.text) for each in group.responses]
        assert group.group_id != "0-0" or len(group.responses) > 4 or max(rows) > 2048, fault
        longer.add(fault)
    assert len(refused | longer) == 25


def test_same_seed_gives_the_same_cases() -> None:
    def cases(seed: str) -> list[bytes]:
        garbage = Garbage(seed)
        return [garbage.data() for _ in range(50)] + [garbage.record()[1] for _ in range(50)]

    assert cases("a") == cases("a") != cases("b")


def test_report_names_the_service_that_grew_most() -> None:
    report = HostileReport(seed=0, growth_bytes={"learner": 3, "broker": 5})
    assert report.to_dict()["peak_growth_bytes"] == 5
