"""Held groups: nothing passes between a reload and its verdict."""

import asyncio

import pytest
from asympo.generator.reload.gate import VerdictGate

pytestmark = pytest.mark.asyncio


async def waiting(gate: VerdictGate, count: int) -> "list[asyncio.Task[bool]]":
    tasks = [asyncio.create_task(gate.passes()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_gate_lets_groups_pass_when_no_reload_is_under_way() -> None:
    assert await VerdictGate().passes()


async def test_gate_holds_groups_until_the_policy_is_accepted() -> None:
    gate = VerdictGate()
    gate.shut()
    tasks = await waiting(gate, 3)
    assert gate.num_held == 3
    assert not any(task.done() for task in tasks)
    gate.open()
    assert await asyncio.gather(*tasks) == [True, True, True]
    assert gate.num_held == 0


async def test_gate_hands_held_groups_back_and_stays_shut_when_the_policy_failed() -> None:
    gate = VerdictGate()
    gate.shut()
    held = await waiting(gate, 2)
    gate.reject()
    assert await asyncio.gather(*held) == [False, False]
    [late] = await waiting(gate, 1)
    assert gate.is_shut
    assert not late.done()
    gate.open()
    assert await late


async def test_what_was_begun_before_weights_failed_does_not_pass_after_the_fallback() -> None:
    gate = VerdictGate()
    opened = await gate.opened()
    gate.shut()
    gate.reject()
    gate.open()
    assert not await gate.passes(opened)
    assert await gate.passes(await gate.opened())


async def test_gate_keeps_its_verdict_when_one_held_group_is_cancelled() -> None:
    gate = VerdictGate()
    gate.shut()
    cancelled, other = await waiting(gate, 2)
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.open()
    assert await other
    assert gate.num_held == 0


async def test_gate_keeps_new_work_out_from_a_failed_policy_to_its_fallback() -> None:
    gate = VerdictGate()
    gate.shut()
    opened = asyncio.create_task(gate.opened())
    await asyncio.sleep(0)
    gate.reject()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not opened.done()
    gate.open()
    await opened
