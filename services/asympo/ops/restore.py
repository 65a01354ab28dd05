"""`asympo restore`: a backup back into a broker and a directory that have no run of its name."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from asympo.common.checkpoints import directory
from asympo.common.commands import CommandParser, write_json
from asympo.common.errors import BadSetting
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.rollout_log import Broker, RunLog
from asympo.ops.access import add_broker_flags, add_checkpoint_root_flag, open_new_broker
from asympo.ops.backup_files import BROKER_FILE, BackupManifest, copy_storage, open_backup, read_pieces
from asympo.run.directory import RunDirectory
from asympo.run.prepare.broker import noted_broker


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo restore",
        description="Restore a backup of `asympo backup` into an empty broker and directory.",
    )
    add_broker_flags(parser)
    parser.add_argument("backup", type=given_path, metavar="DIR")
    add_checkpoint_root_flag(parser)
    arguments = parser.parse_args(argv)
    where, root = arguments.directory, arguments.checkpoint_root
    if not arguments.redis_url and where.resolve() != root.resolve():
        raise BadSetting(
            f"--directory is {where} and --checkpoint-root {root}, but for a run with a broker of its own "
            "both are one directory: give only one of them, or the broker as --redis-url"
        )
    manifest = open_backup(arguments.backup)
    run_directory = directory_of_run(arguments.checkpoint_root, manifest.run)
    _refuse_checkpoints(run_directory)
    with open_new_broker(arguments.redis_url, directory=arguments.directory, run=manifest.run) as broker:
        restore(arguments.backup, manifest, broker, run_directory)
        held = RunDirectory(run_directory)
        if held.read_mark():
            # Its start is to find this broker, not the one that the backup is of.
            held.write_mark(**noted_broker(None, arguments.redis_url))
    values = {
        "run": manifest.run,
        "state": manifest.state_name,
        "last_sequence": manifest.last_sequence,
        "leases_taken_back": manifest.num_leases,
    }
    if arguments.json:
        write_json(values)
    else:
        sys.stdout.write(
            f"run {manifest.run} is as it was, up to group {manifest.last_sequence}: start its learner; "
            f"{manifest.num_leases} prompts that were being answered are asked again\n"
        )
    return 0


def restore(backup: Path, manifest: BackupManifest, broker: Broker, run_directory: Path) -> None:
    """Files, then the broker's keys; takes the files away again when the broker refuses them.

    Raises BadSetting when either has a run of the name, PublishFailed when storage fails.
    """
    if manifest.run in broker.run_names():
        raise BadSetting(
            f"the broker at {broker.url} has a run {manifest.run!r}: stop its services and delete it "
            f"(asympo runs delete {manifest.run} --redis-url URL --yes), or restore to another broker"
        )
    what = f"the run {manifest.run}"
    with (
        directory.storage_errors_as_publish_failed(what, run_directory.parent),
        _placed(backup, manifest, run_directory),
    ):
        RunLog(broker, manifest.run).copies.put_back(read_pieces(backup / BROKER_FILE))


def _refuse_checkpoints(run_directory: Path) -> None:
    found = [
        name for name in ("policy", "train", "archive", "trained.jsonl") if (run_directory / name).exists()
    ]
    if found:
        raise BadSetting(
            f"{run_directory} holds {', '.join(found)} of a run: move it away, or give another "
            "--checkpoint-root"
        )


@contextmanager
def _placed(backup: Path, manifest: BackupManifest, run_directory: Path) -> Iterator[None]:
    """The files are in place inside the block, and stay unless it fails."""
    _refuse_checkpoints(run_directory)
    directory.make_durable_directory(run_directory)
    temporary = run_directory / f".restore-{secrets.token_hex(8)}"
    placed: list[Path] = []
    try:
        temporary.mkdir()
        copy_storage(backup, manifest, temporary)
        for path in sorted(temporary.iterdir()):
            target = run_directory / path.name
            if os.path.lexists(target):
                raise BadSetting(f"{target} exists: move it away, or give another --checkpoint-root")
            os.rename(path, target)
            placed.append(target)
        directory.flush_directory(run_directory)
        yield
    except BaseException:
        for path in placed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
