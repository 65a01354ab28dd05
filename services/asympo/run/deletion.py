"""Deleting a run's log from a broker that several may use."""

from asympo.common.errors import BadSetting
from asympo.common.rollout_log import RunLog


def check_nobody_trains(log: RunLog) -> None:
    """BadSetting while a learner owns the run, here or on another machine."""
    stats = log.stats.read()
    if stats.is_fence_alive:
        raise BadSetting(
            f"the learner {stats.fence_holder} still works on the run {log.run} at {log.broker.url}: stop it "
            "first (one that was killed counts until its heartbeat expires), or choose another run name"
        )


def delete_log(log: RunLog) -> None:
    """Every key of the run; BadSetting while a learner owns it."""
    check_nobody_trains(log)
    log.state.delete()
