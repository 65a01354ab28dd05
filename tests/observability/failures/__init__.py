"""Failures made on purpose in a small run or release, for the recordings that the alerts are tested on.

A recording has one sample a second. It is played back at `Failure.pace` seconds a sample, so that a minute
becomes an hour: how series begin, end, start over and relate to each other is real. One module for each
group of alerts; what is not about real processes does not belong here.
"""

from typing import Any

from tests.observability.failures import log, pods, policies, processes, quiet, training, waits
from tests.observability.failures.scene import Failure

FAILURES: dict[str, Failure[Any]] = (
    quiet.FAILURES
    | waits.FAILURES
    | log.FAILURES
    | policies.FAILURES
    | training.FAILURES
    | processes.FAILURES
    | pods.FAILURES
)
