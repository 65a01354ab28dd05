"""Leases are handed out no faster than faults happen, and at full speed once there are none to come."""

import asyncio

import pytest
from asympo.chaos import pace as pace_module
from asympo.chaos.pace import GROUPS_PER_FAULT, HEAD_START_GROUPS, Pace, num_prompts_for
from asympo.chaos.resp import encode_command, parse_request
from asympo.common.rollout_log.lua import load_script

ACQUIRE = parse_request(encode_command("EVALSHA", load_script("acquire").sha1, 0, "token"))
APPEND = parse_request(encode_command("EVALSHA", load_script("append").sha1, 0, "token"))


def ahead(num_faults: int) -> Pace:
    pace = Pace(num_faults=num_faults)
    for _ in range(HEAD_START_GROUPS + GROUPS_PER_FAULT + 1):
        pace.granted()
    return pace


async def is_held(pace: Pace, request: object = ACQUIRE) -> bool:
    admitted = asyncio.ensure_future(pace.admit(request))  # type: ignore[arg-type]
    done, _ = await asyncio.wait({admitted}, timeout=0.05)
    admitted.cancel()
    return not done


def test_pace_holds_requests_for_leases_only_while_the_run_is_ahead() -> None:
    async def run() -> None:
        pace = Pace(num_faults=3)
        assert not await is_held(pace)
        pace = ahead(3)
        assert await is_held(pace)
        assert not await is_held(pace, APPEND)

    asyncio.run(run())


def test_pace_lets_go_when_a_fault_is_done_and_for_good_after_the_last() -> None:
    async def run() -> None:
        pace = ahead(2)
        waiting = asyncio.ensure_future(pace.admit(ACQUIRE))
        await asyncio.sleep(0)
        pace.fault_done()
        await asyncio.wait_for(waiting, 1.0)
        assert not pace.is_ahead
        for _ in range(10 * GROUPS_PER_FAULT):
            pace.granted()
        assert pace.is_ahead
        pace.fault_done()
        assert not pace.is_ahead

    asyncio.run(run())


def test_pace_never_holds_a_request_longer_than_a_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "_SLOWEST_SECONDS", 0.01)
    asyncio.run(asyncio.wait_for(ahead(3).admit(ACQUIRE), 1.0))


@pytest.mark.parametrize("num_faults", [1, 20, 210])
def test_run_has_prompts_for_every_fault_and_a_quiet_end(num_faults: int) -> None:
    assert num_prompts_for(num_faults) > HEAD_START_GROUPS + GROUPS_PER_FAULT * (num_faults + 1)
