"""Which function injects which kind of fault."""

from collections.abc import Mapping

from asympo.chaos.faults.base import Inject
from asympo.chaos.faults.kills import kill_broker, kill_generator, kill_learner, stop_past_lease
from asympo.chaos.faults.links import duplicate_append, link_delay, link_drop, link_reset
from asympo.chaos.faults.machines import broker_rollback, clock_jump, disk_full, slow_fsync
from asympo.chaos.faults.storage import torn_checkpoint, zombie_learner
from asympo.chaos.schedule import FaultKind

INJECTIONS: Mapping[FaultKind, Inject] = {
    FaultKind.KILL_GENERATOR: kill_generator,
    FaultKind.KILL_LEARNER: kill_learner,
    FaultKind.KILL_BROKER: kill_broker,
    FaultKind.STOP_PAST_LEASE: stop_past_lease,
    FaultKind.LINK_DELAY: link_delay,
    FaultKind.LINK_DROP: link_drop,
    FaultKind.LINK_RESET: link_reset,
    FaultKind.SLOW_FSYNC: slow_fsync,
    FaultKind.BROKER_ROLLBACK: broker_rollback,
    FaultKind.DISK_FULL: disk_full,
    FaultKind.TORN_CHECKPOINT: torn_checkpoint,
    FaultKind.DUPLICATE_APPEND: duplicate_append,
    FaultKind.CLOCK_JUMP: clock_jump,
    FaultKind.ZOMBIE_LEARNER: zombie_learner,
}
