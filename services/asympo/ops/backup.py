"""`asympo backup`: a consistent copy of a run, taken while it goes on.

The broker's keys first, then the newest training state. Whatever a learner commits and trims between the two
is covered by that state, and a broker that is older than a training state is brought up to it by every
learner's start. So nothing has to stand still, and the two need not be of one instant.
"""

import errno
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asympo import __version__
from asympo.common.archive import ArchiveStore, PartRef, open_archive
from asympo.common.archive.state_head import STATE_HEADS, StateHead
from asympo.common.checkpoints import PolicyStore, directory
from asympo.common.checkpoints.files import Files
from asympo.common.checkpoints.names import DECISION_FILES, MAX_DECISION_BYTES
from asympo.common.checkpoints.opening import open_files, open_policies, open_steps
from asympo.common.checkpoints.steps import Steps
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import verify_step
from asympo.common.commands import CommandParser, write_json
from asympo.common.errors import BadSetting, CorruptCheckpoint, SequenceGap
from asympo.common.names import directory_of_run
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.paths import given_path
from asympo.common.rollout_log import CopiedPiece, RunLog
from asympo.common.settings import object_store_of
from asympo.ops.access import add_broker_flags, add_checkpoint_flags, open_log
from asympo.ops.backup_files import BROKER_FILE, STORAGE, BackupManifest, is_kept_record, seal, write_pieces

_MAX_TRIES = 5
"""A learner may prune a state while it is copied."""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo backup",
        description="A copy of a run, taken while it goes on: log, newest policy and training state.",
    )
    add_broker_flags(parser)
    parser.add_argument("run", metavar="RUN")
    add_checkpoint_flags(parser)
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="DIR", help="a new directory for the backup"
    )
    arguments = parser.parse_args(argv)
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        run_directory = directory_of_run(arguments.checkpoint_root, arguments.run)
        manifest = back_up(log, run_directory, arguments.out, store=object_store_of(arguments))
    if arguments.json:
        write_json({"out": str(arguments.out), **_shown(manifest)})
    else:
        sys.stdout.write(
            f"{arguments.out}: run {manifest.run} up to group {manifest.last_sequence}, trained up to "
            f"{manifest.committed_sequence}, {sum(entry.size for entry in manifest.files) / 2**20:.1f} MiB\n"
        )
    return 0


def back_up(
    log: RunLog, run_directory: Path, out: Path, *, store: ObjectStoreOptions | None = None
) -> BackupManifest:
    """Writes the backup `out`.

    Raises BadSetting when it exists, PublishFailed, and what is wrong with the run: SequenceGap,
    CorruptArchive, CorruptCheckpoint, UnknownVersion. Nothing is left of a backup that failed.
    """
    if out.exists():
        raise BadSetting(f"{out} exists: give the backup a new directory")
    with directory.storage_errors_as_publish_failed(f"the backup of {log.run}", out.parent):
        out.mkdir(parents=True)
        try:
            return _write(log, run_directory, out, store)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise


def _write(log: RunLog, run_directory: Path, out: Path, store: ObjectStoreOptions | None) -> BackupManifest:
    seen = _Seen()
    write_pieces(out / BROKER_FILE, seen.watch(log.copies.read()))
    storage = out / STORAGE
    root, run = run_directory.parent, run_directory.name
    state_name, sequence, tip = _copy_state(open_steps(root, run, STATE_HEADS, store), storage / "train")
    seen.check(sequence, run=log.run)
    _copy_decisions(open_files(run_directory / "train", store), storage / "train")
    policy_name = _copy_policy(open_policies(root, run, store), storage / "policy")
    _copy_archive(open_archive(run_directory, store), storage / "archive", tip)
    # Behind the state: they hold at least what it covers, and whoever resumes replaces what is beyond.
    for path in sorted(run_directory.iterdir()) if run_directory.is_dir() else ():
        if path.is_file() and is_kept_record(path.name):
            storage.mkdir(exist_ok=True)
            shutil.copyfile(path, storage / path.name)
    return seal(
        out,
        release=__version__,
        run=log.run,
        at_seconds=time.time(),
        state_name=state_name,
        policy_name=policy_name,
        committed_sequence=sequence,
        last_sequence=seen.last_sequence,
        num_leases=seen.num_leases,
    )


@dataclass(kw_only=True)
class _Seen:
    """What passes by of the broker's keys while they are written to the file."""

    last_sequence: int = 0
    committed_sequence: int = 0
    num_leases: int = 0
    logged: set[int] = field(default_factory=set)
    holes: list[tuple[int, int]] = field(default_factory=list)

    def watch(self, pieces: Iterator[CopiedPiece]) -> Iterator[CopiedPiece]:
        for piece in pieces:
            if piece.noun == "run":
                fields = dict(zip(piece.items[::2], piece.items[1::2], strict=True))
                self.last_sequence = max(self.last_sequence, int(fields.get(b"last_sequence", 0)))
                self.committed_sequence = max(
                    self.committed_sequence, int(fields.get(b"committed_sequence", 0))
                )
            elif piece.noun == "log":
                self.logged.add(int(piece.items[0].partition(b"-")[0]))
            elif piece.noun == "leases":
                self.num_leases += len(piece.items) // 2
            elif piece.noun == "holes":
                pairs = zip(piece.items[::2], piece.items[1::2], strict=True)
                self.holes += [(int(first), int(last)) for first, last in pairs]
            yield piece

    def check(self, covered: int, *, run: str) -> None:
        """Every group is in the training state, in the log, or known to be lost."""
        lost = {number for first, last in self.holes for number in range(first, last + 1)}
        missing = set(range(covered + 1, self.last_sequence + 1)) - self.logged - lost
        if missing:
            raise SequenceGap(
                f"run {run!r}: group {min(missing)} is neither in the log nor in a training state, the "
                f"newest one covers {covered}: check --checkpoint-root"
            )


def _copy_state(heads: Steps[StateHead], target: Path) -> tuple[str | None, int, PartRef | None]:
    """Name, cursor and archive of the newest training state whose copy verifies; None before the first."""
    for _ in range(_MAX_TRIES):
        for name in reversed(heads.present()):
            copy = target / str(name)
            try:
                _copy_tree(heads.bring(name), copy)
                head = verify_step(copy, STATE_HEADS)
            except (CorruptCheckpoint, FileNotFoundError):
                # Torn, or pruned meanwhile.
                shutil.rmtree(copy, ignore_errors=True)
                continue
            return str(name), head.sequence, head.archive
        if not heads.present():
            return None, 0, None
    raise CorruptCheckpoint(f"no training state in {heads} could be copied whole")


def _copy_tree(source: Path, target: Path) -> None:
    """Like `shutil.copytree`, which tells of a full disk and of a file that is gone in the same way."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copy2(path, copy)


def _copy_decisions(files: Files, target: Path) -> None:
    """What the run has decided; behind the state, so that it says how that one was trained."""
    for _ in range(_MAX_TRIES):
        names = [name for name in files.names("decisions-") if DECISION_FILES.fullmatch(name)]
        try:
            for name in names:
                target.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(files.read(name, max_bytes=MAX_DECISION_BYTES))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            # A longer list has replaced it.
            for name in names:
                (target / name).unlink(missing_ok=True)
        else:
            return
    raise CorruptCheckpoint(f"what the run has decided could not be copied from {files}")


def _copy_policy(store: PolicyStore, target: Path) -> str | None:
    for _ in range(_MAX_TRIES):
        newest = store.newest()
        if newest is None:
            return None
        try:
            store.verify(newest)
            for path in store.directories(newest):
                _copy_tree(path, target / path.name)
                verify_step(target / path.name, POLICIES)
        except (CorruptCheckpoint, FileNotFoundError):
            shutil.rmtree(target, ignore_errors=True)
        else:
            return newest.name
    raise CorruptCheckpoint(f"no policy in {store.path} could be copied whole")


def _copy_archive(archive: ArchiveStore, target: Path, tip: PartRef | None) -> None:
    for part in archive.chain(tip):
        target.mkdir(parents=True, exist_ok=True)
        (target / part.ref.name).write_bytes(archive.content(part.ref))


def _shown(manifest: BackupManifest) -> dict[str, Any]:
    return {
        "run": manifest.run,
        "state": manifest.state_name,
        "policy": manifest.policy_name,
        "committed_sequence": manifest.committed_sequence,
        "last_sequence": manifest.last_sequence,
        "leases": manifest.num_leases,
        "bytes": sum(entry.size for entry in manifest.files),
    }
