"""Opens policies where the settings say they are: in a directory, or in an object store with copies there."""

from pathlib import Path

from asympo.common.checkpoints.store import PolicyStore
from asympo.common.object_store import ObjectStoreOptions


def open_policies(root: Path, run: str, options: ObjectStoreOptions, *, cached: int) -> PolicyStore:
    """The policies of one run; `cached` limits the copies that `verify` leaves. Asks no store anything."""
    if not options.is_given:
        return PolicyStore(root, run)
    # Half a second that only those pay who use it.
    from asympo.common.checkpoints.bucket import Bucket
    from asympo.common.checkpoints.shared_policies import SharedPolicyStore

    return SharedPolicyStore(root, run, bucket=Bucket(options), cached=cached)
