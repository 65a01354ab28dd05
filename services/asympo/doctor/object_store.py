"""What doctor looks at in the object store that shares checkpoints."""

from collections.abc import Iterator

from asympo.common.checkpoints.bucket_check import try_reading, try_writing
from asympo.common.errors import BadSetting
from asympo.common.object_store import ObjectStoreOptions
from asympo.doctor.findings import Finding, kinds


def check_object_store(options: ObjectStoreOptions | None, *, is_reader: bool) -> Iterator[Finding]:
    """Reachability, permissions and conditional writes; of a generator's identity only what it needs."""
    if options is None:
        return
    from asympo.common.checkpoints.bucket import Bucket, StoreError

    ok, note, wrong = kinds("object store")
    bucket = Bucket(options)
    try:
        for sentence in [try_reading(bucket)] if is_reader else try_writing(bucket):
            yield (note if sentence.startswith("unfinished uploads cannot") else ok)(sentence)
    except BadSetting as error:
        yield wrong(
            str(error),
            "fix what it names; with a generator's identity, which may only read, add --reads-only",
        )
    except StoreError as error:
        yield wrong(
            str(error.strerror),
            "check endpoint, port and certificate authority, and network policies when this is a pod",
        )
