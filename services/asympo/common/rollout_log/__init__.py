"""The rollout log: leases out, groups in, read in order, committed behind a fence.

The only importer of redis. Start with `Broker.connect(url)` and `RunLog(broker, run)`, with a part for
each concern: `leases`, `reader`, `fence`, `commits`, `policies`, ... The protocol itself is in
`scripts/`: a part names a script's keys and gives its reply a type. `broker/` alone knows redis-py.
"""

from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.broker.server_info import BrokerInfo
from asympo.common.rollout_log.copies import CopiedPiece
from asympo.common.rollout_log.order.permutation import permuted_index
from asympo.common.rollout_log.policies import queue_staleness
from asympo.common.rollout_log.producers.submissions import (
    PRODUCER_NAME,
    REMEMBERED_IDS,
    Submission,
    SubmitOutcome,
    Submitted,
    foreign_id,
)
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.rollout_log.run_log import RunLog, list_runs
from asympo.common.rollout_log.types import (
    AppendOutcome,
    AppendResult,
    BadPolicy,
    CommitRecord,
    DeadLetter,
    Fence,
    KnownRun,
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

__all__ = [
    "PRODUCER_NAME",
    "REMEMBERED_IDS",
    "AppendOutcome",
    "AppendResult",
    "BadPolicy",
    "Broker",
    "BrokerInfo",
    "CommitRecord",
    "CopiedPiece",
    "DeadLetter",
    "Fence",
    "KnownRun",
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
    "Submission",
    "SubmitOutcome",
    "Submitted",
    "foreign_id",
    "list_runs",
    "permuted_index",
    "queue_staleness",
]
