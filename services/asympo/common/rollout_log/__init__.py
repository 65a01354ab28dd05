"""The rollout log: leases out, groups in, read in order, committed behind a fence.

The only importer of redis. Start with ``Broker.connect(url)`` and ``RunLog(broker, run)``.
"""

from asympo.common.rollout_log.connection import Broker
from asympo.common.rollout_log.copies import CopiedPiece
from asympo.common.rollout_log.permutation import permuted_index
from asympo.common.rollout_log.policies import queue_staleness
from asympo.common.rollout_log.records import (
    AppendOutcome,
    AppendResult,
    BadPolicy,
    CommitRecord,
    DeadLetter,
    Fence,
    Lease,
    LogEntry,
    LogStats,
    PolicyAnnouncement,
    ReconcileReport,
    RefusalReason,
    Refused,
    RunState,
    RunSummary,
)
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.rollout_log.run_log import RunLog
from asympo.common.rollout_log.runs import list_runs
from asympo.common.rollout_log.server_info import BrokerInfo

__all__ = [
    "AppendOutcome",
    "AppendResult",
    "BadPolicy",
    "Broker",
    "BrokerInfo",
    "CommitRecord",
    "CopiedPiece",
    "DeadLetter",
    "Fence",
    "Lease",
    "LogEntry",
    "LogStats",
    "PolicyAnnouncement",
    "ReconcileReport",
    "RefusalReason",
    "Refused",
    "RunConfig",
    "RunLog",
    "RunState",
    "RunSummary",
    "list_runs",
    "permuted_index",
    "queue_staleness",
]
