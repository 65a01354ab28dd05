"""A service waits for its storage rather than fail."""

import asyncio
import logging

from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log.broker.calls import Backoff, Calls

log = logging.getLogger(__name__)


async def wait_for_storage(options: ObjectStoreOptions, calls: Calls) -> None:
    """Returns once the object store, if one is used, lists what is in it, however long that takes.

    Raises BadSetting when it refuses.
    """
    if not options.is_given:
        return
    from asympo.common.checkpoints.bucket import Bucket, StoreError
    from asympo.common.checkpoints.bucket_check import try_reading

    bucket, backoff = Bucket(options), Backoff()
    while True:
        try:
            log.info("Object store: %s", await calls.run(try_reading, bucket))
            return
        except StoreError as error:
            log.warning("Waiting for the object store: %s", error.strerror)
            await asyncio.sleep(backoff.next_seconds())
