"""Which function injects which kind of fault."""

from collections.abc import Mapping

from asympo.chaos.faults.base import Inject
from asympo.chaos.faults.kills import kill_broker, kill_generator, kill_learner, stop_past_lease
from asympo.chaos.faults.links import duplicate_append, link_delay, link_drop, link_reset
from asympo.chaos.faults.machines import broker_rollback, clock_jump, disk_full, slow_fsync
from asympo.chaos.faults.storage import torn_checkpoint, zombie_learner
from asympo.chaos.schedule import Kind

INJECTIONS: Mapping[Kind, Inject] = {
    Kind.KILL_GENERATOR: kill_generator,
    Kind.KILL_LEARNER: kill_learner,
    Kind.KILL_BROKER: kill_broker,
    Kind.STOP_PAST_LEASE: stop_past_lease,
    Kind.LINK_DELAY: link_delay,
    Kind.LINK_DROP: link_drop,
    Kind.LINK_RESET: link_reset,
    Kind.SLOW_FSYNC: slow_fsync,
    Kind.BROKER_ROLLBACK: broker_rollback,
    Kind.DISK_FULL: disk_full,
    Kind.TORN_CHECKPOINT: torn_checkpoint,
    Kind.DUPLICATE_APPEND: duplicate_append,
    Kind.CLOCK_JUMP: clock_jump,
    Kind.ZOMBIE_LEARNER: zombie_learner,
}
