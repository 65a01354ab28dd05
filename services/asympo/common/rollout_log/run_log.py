"""The rollout log of one run: everything a service may do with it."""

from asympo.common.rollout_log.append import Appends
from asympo.common.rollout_log.commits import Commits
from asympo.common.rollout_log.copies import Copies
from asympo.common.rollout_log.dead_letters import DeadLetters
from asympo.common.rollout_log.leases import Leases
from asympo.common.rollout_log.policies import Policies
from asympo.common.rollout_log.presence import Presence
from asympo.common.rollout_log.reader import Reader
from asympo.common.rollout_log.reconcile import Reconciles
from asympo.common.rollout_log.run_state import RunStates
from asympo.common.rollout_log.stats import Stats


class RunLog(
    RunStates, Leases, Appends, Reader, Reconciles, Commits, DeadLetters, Policies, Presence, Stats, Copies
):
    """``RunLog(broker, run)``. Blocking; share it between threads, call it from ``asyncio.to_thread``."""
