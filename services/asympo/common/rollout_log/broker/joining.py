"""How a service comes to its run, however long that takes."""

import logging

from asympo.common.errors import NoProgress
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.rollout_log.run_log import RunLog

log = logging.getLogger(__name__)

_REMIND_EVERY = 15
"""A line in the log after this many waits for a run that nobody has created."""


async def join_run(run_log: RunLog, calls: Calls, *, wait_seconds: float) -> tuple[RunConfig, str]:
    """The run's config and id, once its learner has created it.

    Raises RunConfigMismatch when another version of ASymPO created it.
    """
    num_waits = 0
    while True:
        try:
            return await calls.until_answered(run_log.state.wait_to_join, wait_seconds)
        except NoProgress:
            if num_waits % _REMIND_EVERY == 0:
                log.info("Run %s does not exist yet: waiting for its learner", run_log.run)
            num_waits += 1
