"""A fence stays alive between two turns of the thread that beats for it."""

import pytest
from asympo.common.rollout_log import Fence
from asympo.learner.log.heartbeat import turn_seconds


@pytest.mark.parametrize(("heartbeat", "turn"), [(0.6, 0.2), (1.5, 0.5), (10.0, 1.0)])
def test_heart_turns_three_times_before_its_fence_expires(heartbeat: float, turn: float) -> None:
    fence = Fence(number=1, token="t", holder="learner", heartbeat_seconds=heartbeat, server_id="s")
    assert turn_seconds(fence) == pytest.approx(turn)
