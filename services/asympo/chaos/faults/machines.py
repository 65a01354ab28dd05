"""Disks that are slow or full, clocks that jump, a broker that goes back in time."""

import asyncio
import contextlib
import signal
import time
from typing import Any

from asympo.chaos.broker import PROBE_KEY, RefusedCommand
from asympo.chaos.evidence import Rollback
from asympo.chaos.faults.base import NotObserved, Stage
from asympo.chaos.processes import Supervised
from asympo.chaos.shim import Control
from asympo.chaos.system import STEP, ProxiedProcess
from asympo.common.errors import BrokerUnavailable

_EFFECT_SECONDS = 30.0
RECONCILED = "Reconciled with the broker"


async def slow_fsync(stage: Stage) -> dict[str, Any]:
    """Every fsync of broker or learner takes a while; the broker's is measured with a write of ours."""
    system, seconds = stage.system, stage.rng.uniform(0.2, 0.5)
    if stage.rng.random() < 0.5:
        learner = await system.learner_training()
        return await _slow_learner(learner, seconds)
    control = _control(system.broker_control)
    control.slow_fsync(seconds)
    try:
        measured = await system.broker.write_seconds()
        await asyncio.sleep(2 * seconds)
    finally:
        control.slow_fsync(0.0)
    if measured < seconds:
        raise NotObserved(f"a write took {measured:.3f} s although every fsync takes {seconds:.3f} s more")
    return {"process": "broker", "delay_seconds": round(seconds, 3), "write_seconds": round(measured, 3)}


async def _slow_learner(learner: ProxiedProcess, seconds: float) -> dict[str, Any]:
    control = _control(learner.control)
    before = control.num_slow_fsyncs
    control.slow_fsync(seconds)
    try:
        await _until(lambda: control.num_slow_fsyncs > before + 1, "the learner synced nothing")
    finally:
        control.slow_fsync(0.0)
    slow = control.num_slow_fsyncs - before
    return {"process": learner.name, "delay_seconds": round(seconds, 3), "slow_fsyncs": slow}


async def disk_full(stage: Stage) -> dict[str, Any]:
    """ENOSPC for what the learner writes until it says so, or for the broker's log until it gives up."""
    system = stage.system
    if stage.rng.random() < 0.25:
        return await _broker_disk_full(stage)
    learner = await system.learner_training()
    control, process = _control(learner.control), learner.process
    before, begun, life = control.num_refused_writes, time.monotonic(), process.life
    control.fill_disk(system.checkpoints)
    try:
        await _until(lambda: control.num_refused_writes > before, "the learner wrote nothing")
        await process.until(
            lambda: any(
                at > begun and ("No space left" in text or "does not fit" in text) for at, text in life.lines
            ),
            timeout_seconds=_EFFECT_SECONDS,
        )
    except TimeoutError:
        raise NotObserved("the learner said nothing of a full disk") from None
    finally:
        control.free_disk()
    freed_at = time.monotonic()
    await process.said(STEP, timeout_seconds=_EFFECT_SECONDS, after=freed_at)
    return {"process": learner.name, "refused_writes": control.num_refused_writes - before}


async def _broker_disk_full(stage: Stage) -> dict[str, Any]:
    broker = stage.system.broker
    control, life = _control(stage.system.broker_control), broker.process.life
    before = control.num_refused_writes
    control.fill_disk(broker.directory)
    life.is_wanted_dead = True
    try:
        # A write of ours hastens what the next append would bring.
        with contextlib.suppress(BrokerUnavailable, RefusedCommand):
            await broker.ask("SET", PROBE_KEY, "full", timeout_seconds=2.0)
        await broker.process.until(lambda: life.exit_code is not None, timeout_seconds=_EFFECT_SECONDS)
    except TimeoutError:
        raise NotObserved("the broker did not notice that its disk is full") from None
    finally:
        control.free_disk()
    await broker.process.until(lambda: broker.process.life is not life, timeout_seconds=10.0)
    await broker.answering()
    refused = control.num_refused_writes - before
    return {"process": "broker", "refused_writes": refused, "exit_code": life.exit_code}


async def clock_jump(stage: Stage) -> dict[str, Any]:
    """The wall clock of one process jumps forth, or back to where it was; ours is the witness."""
    system, rng = stage.system, stage.rng
    seconds = rng.uniform(3.0, 15.0) * rng.choice([1, -1])
    if rng.random() < 0.6:
        return await _broker_clock_jump(stage, seconds)
    client = await system.learner_training()
    control = _control(client.control)
    shift = 0.0 if control.clock_shift_seconds else seconds
    if shift == 0.0:
        jump = -control.clock_shift_seconds
        before = control.num_shifted_reads
        await _until(lambda: control.num_shifted_reads > before, f"{client.name} did not read its clock")
        control.shift_clock(0.0)
        return {"process": client.name, "jump_seconds": round(jump, 3)}
    before = control.num_shifted_reads
    control.shift_clock(shift)
    await _until(lambda: control.num_shifted_reads > before, f"{client.name} did not read its clock")
    return {"process": client.name, "jump_seconds": round(shift, 3)}


async def _broker_clock_jump(stage: Stage, seconds: float) -> dict[str, Any]:
    broker, control = stage.system.broker, _control(stage.system.broker_control)
    before = control.clock_shift_seconds
    ahead_before = await _ahead_seconds(broker)
    control.shift_clock(0.0 if before else seconds)
    ahead_after = await _ahead_seconds(broker)
    jumped, wanted = ahead_after - ahead_before, (-before if before else seconds)
    if abs(jumped - wanted) > 1.0:
        control.shift_clock(before)
        raise NotObserved(f"the broker's TIME went {jumped:+.3f} s, not {wanted:+.3f} s")
    return {"process": "broker", "jump_seconds": round(jumped, 3)}


async def _ahead_seconds(broker: Any) -> float:
    return float(await broker.now_seconds()) - time.time()


async def broker_rollback(stage: Stage) -> dict[str, Any]:
    """The broker dies and comes back with an older log: acknowledged groups are gone from it."""
    system = stage.system
    learner = await system.learner_training()
    broker, copy = system.broker, system.directory / "rollback-copy"
    held = await broker.copy_data(copy)
    wanted = held + stage.rng.randint(1, 6)
    async with asyncio.timeout(_EFFECT_SECONDS * 2):
        while (reached := await broker.run_number("last_sequence")) < wanted:
            await asyncio.sleep(0.05)
    doors = [client.link for client in system.clients]
    for door in doors:
        # Nobody may append between the restart and our look at what is left.
        door.is_shut = True
        door.reset()
    try:
        life = await broker.kill(is_restarted=False)
        await broker.start_from(copy)
        restored = await broker.run_number("last_sequence")
        went_at = time.monotonic()
    finally:
        for door in doors:
            door.is_shut = False
    try:
        await _reconciled(learner.process, after=went_at)
    finally:
        # Even when we saw too little of it, the auditor has to know what the broker took back.
        now = time.time()
        rollback = Rollback(held_sequence=restored, lost_up_to=reached, settled_at_seconds=now)
        system.rollbacks.append(rollback)
    if life.exit_code != -signal.SIGKILL:
        raise NotObserved(f"the broker had ended by itself with {life.exit_code}")
    if restored >= reached:
        raise NotObserved(f"the broker came back with all {reached} groups")
    return {"process": "broker", "held_sequence": restored, "lost_up_to": reached}


async def _reconciled(process: Supervised, *, after: float) -> None:
    await process.said(RECONCILED, timeout_seconds=_EFFECT_SECONDS * 2, after=after)


async def _until(condition: Any, problem: str) -> None:
    try:
        async with asyncio.timeout(_EFFECT_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise NotObserved(problem) from None


def _control(control: Control | None) -> Control:
    assert control is not None, "kinds that need the library are left out without it"
    return control
