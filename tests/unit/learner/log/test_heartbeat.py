"""A fence stays alive between two turns of the thread that beats for it."""

from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.rollout_log import Fence
from asympo.learner.log.heartbeat import STALLED_SECONDS, Heartbeat, turn_seconds


@pytest.mark.parametrize(("heartbeat", "turn"), [(0.6, 0.2), (1.5, 0.5), (10.0, 1.0)])
def test_heart_turns_three_times_before_its_fence_expires(heartbeat: float, turn: float) -> None:
    fence = Fence(number=1, token="t", holder="learner", heartbeat_seconds=heartbeat, server_id="s")
    assert turn_seconds(fence) == pytest.approx(turn)


def test_heartbeat_counts_as_alive_until_it_is_started_and_as_dead_once_it_stalls() -> None:
    now = [0.0]
    nothing: Any = SimpleNamespace()
    clock: Any = SimpleNamespace(monotonic_seconds=lambda: now[0])
    heartbeat = Heartbeat(
        run_log=nothing, learner=nothing, metrics=nothing, clock=clock, on_lost=lambda error: None
    )
    now[0] = 10 * STALLED_SECONDS
    assert heartbeat.not_alive_reason == ""
    heartbeat.start()
    heartbeat.stop()
    now[0] += STALLED_SECONDS
    assert heartbeat.not_alive_reason == ""
    now[0] += 1
    assert heartbeat.not_alive_reason == "no heartbeat for 121 s"
