"""Opens steps where the settings say they are: in a directory, or in an object store with copies there."""

from pathlib import Path

from asympo.common.checkpoints.directory_steps import DirectorySteps
from asympo.common.checkpoints.files import BucketFiles, DirectoryFiles, Files
from asympo.common.checkpoints.steps import Kind, M, Steps
from asympo.common.checkpoints.store import POLICIES, PolicyStore
from asympo.common.names import check_run_name
from asympo.common.object_store import DeltaOptions, ObjectStoreOptions


def open_policies(
    root: Path,
    run: str,
    options: ObjectStoreOptions | None = None,
    *,
    deltas: DeltaOptions | None = None,
    cached: int | None = None,
) -> PolicyStore:
    """The policies of one run; `cached` limits the copies that `verify` leaves. Asks no store anything.

    Without `deltas` none is published as a difference, and copies of those in a directory are neither taken
    from services of this machine nor left to them.
    """
    return PolicyStore(open_steps(root, run, POLICIES, options, deltas=deltas, cached=cached))


def open_steps(
    root: Path,
    run: str,
    kind: Kind[M],
    options: ObjectStoreOptions | None,
    *,
    deltas: DeltaOptions | None = None,
    cached: int | None = None,
) -> Steps[M]:
    """The steps of one kind of a run; asks no store anything."""
    every = deltas.keyframe_every if deltas is not None else 1
    if options is None or not options.is_given:
        return DirectorySteps(
            *(root, run, kind),
            keyframe_every=every,
            cache=deltas.cache if deltas is not None else None,
            cached=cached,
            shares_copies=deltas is not None,
        )
    # Half a second that only those pay who use it.
    from asympo.common.checkpoints.bucket import Bucket
    from asympo.common.checkpoints.bucket_steps import BucketSteps

    return BucketSteps(root, run, kind, bucket=Bucket(options), cached=cached, keyframe_every=every)


def open_files(path: Path, options: ObjectStoreOptions | None) -> Files:
    """The files of `<root>/<run>/<directory>`; asks no store anything."""
    check_run_name(path.parent.name)
    if options is None or not options.is_given:
        return DirectoryFiles(path)
    from asympo.common.checkpoints.bucket import Bucket

    return BucketFiles(path, bucket=Bucket(options))
