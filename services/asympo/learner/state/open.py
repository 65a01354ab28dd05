"""Opens training states where the settings say they are, once their storage can be relied upon."""

import logging
from pathlib import Path

import torch.distributed as dist

from asympo.common.checkpoints.opening import open_steps
from asympo.common.errors import StorageUnavailable
from asympo.common.lifecycle import StopSignal
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import KnownRun
from asympo.learner.state.decision_files import open_decisions
from asympo.learner.state.store import STATES, StateStore

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


def open_states(
    root: Path,
    run: str,
    options: ObjectStoreOptions | None = None,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> StateStore:
    """The training states of the run; asks no store anything."""
    steps = open_steps(root, run, STATES, options)
    decisions = open_decisions(steps.path.parent, options)
    return StateStore(steps, decisions=decisions, process_group=process_group)


def known_run(root: Path, run: str, options: ObjectStoreOptions, *, stop: StopSignal) -> KnownRun:
    """The run that the newest training state is of; empty when there is none.

    Raises as `wait_for_storage` does.
    """
    wait_for_storage(options, stop=stop)
    return open_states(root, run, options).newest_run()


def wait_for_storage(options: ObjectStoreOptions, *, stop: StopSignal) -> None:
    """Returns once the object store, if one is used, does everything that is needed of it.

    Raises BadSetting when it refuses or cannot, StorageUnavailable when told to stop before it answered.
    """
    if not options.is_given:
        return
    # Half a second that only those pay who use it.
    from asympo.common.checkpoints.bucket import Bucket, StoreError
    from asympo.common.checkpoints.bucket_check import try_writing

    bucket = Bucket(options)
    while True:
        try:
            for sentence in try_writing(bucket):
                log.info("Object store: %s", sentence)
            return
        except StoreError as error:
            log.warning("Waiting for the object store: %s", error.strerror)
            if stop.wait(_RETRY_SECONDS):
                raise StorageUnavailable(f"the object store never answered: {error.strerror}") from error
