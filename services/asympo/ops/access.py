"""How the commands that look into a run find its broker and its files."""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.rollout_log import Broker, RunLog
from asympo.common.settings import SERVICES_ROOT, add_object_store_flags
from asympo.local.broker import LocalBroker, broker_url, find_broker_binary
from asympo.run.directory import RunDirectory
from asympo.run.prepare.broker import noted_broker
from asympo.run.settings import RUNS_DIRECTORY

CHECK_PLACE = (
    f"check --run and --checkpoint-root (services that nobody told where keep theirs in {SERVICES_ROOT})"
)
"""What to do where no policies are found."""


class _PlaceOfRuns(argparse.Action):
    """A run of this machine has broker and files in one directory: a flag given alone says where both are."""

    _NAMES = ("directory", "checkpoint_root")

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.places_given = {*getattr(namespace, "places_given", ()), self.dest}
        setattr(namespace, self.dest, values)
        for name in self._NAMES:
            if name not in namespace.places_given:
                setattr(namespace, name, values)


def add_broker_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis-url", default=os.environ.get("REDIS_URL"), help="broker; default REDIS_URL")
    parser.add_argument(
        "--directory",
        type=given_path,
        action=_PlaceOfRuns,
        default=RUNS_DIRECTORY,
        help="directory of this machine's runs; default: --checkpoint-root if that is given, else runs",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")


def add_checkpoint_root_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint-root",
        type=given_path,
        action=_PlaceOfRuns,
        default=RUNS_DIRECTORY,
        help="directory of all runs; default: --directory if that is given, else runs; services that nobody "
        f"told where keep theirs in {SERVICES_ROOT}",
    )


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """For commands that read checkpoints wherever a run keeps them."""
    add_checkpoint_root_flag(parser)
    add_object_store_flags(parser)


@contextmanager
def open_broker(redis_url: str | None, *, directory: Path, run: str) -> Iterator[Broker]:
    """The given broker, else that of the run on this machine; one that is stopped is started meanwhile."""
    if redis_url:
        yield from _connected(redis_url)
        return
    held = RunDirectory(directory_of_run(directory, run))
    data = held.path / "broker"
    if not data.is_dir():
        raise BadSetting(
            f"there is no run {run} with a broker of its own in {directory}: give --redis-url or --directory"
        )
    if url := held.live_broker_url:
        yield from _connected(url)
        return
    with held:
        held.write_mark(**noted_broker(broker_url(data), None))
        yield from _started(held)


@contextmanager
def open_new_broker(redis_url: str | None, *, directory: Path, run: str) -> Iterator[Broker]:
    """The given broker, else a new one of the run on this machine, which is stopped at the end."""
    if redis_url:
        yield from _connected(redis_url)
        return
    # Not marked: the run's own mark may be among what is to come.
    held = RunDirectory(directory_of_run(directory, run), is_marked=False)
    data = held.path / "broker"
    if data.is_dir():
        raise BadSetting(f"{data} holds a broker's data: move it away, or give --redis-url or --directory")
    is_new = not held.path.is_dir() or not any(held.path.iterdir())
    with held:
        try:
            yield from _started(held)
            held.write_mark(**noted_broker(broker_url(data), None))
        except BaseException:
            shutil.rmtree(held.path if is_new else data, ignore_errors=True)
            raise


@contextmanager
def open_log(redis_url: str | None, *, directory: Path, run: str) -> Iterator[RunLog]:
    """The log of a run that exists; BadSetting names those that do."""
    with open_broker(redis_url, directory=directory, run=run) as broker:
        names = broker.run_names()
        if run not in names:
            known = ", ".join(names) or "none"
            raise BadSetting(f"the broker {broker.url} knows no run {run}: it has {known}")
        yield RunLog(broker, run)


def _started(held: RunDirectory) -> Iterator[Broker]:
    """The broker of a directory that we hold; it ends with us, however we end."""
    broker = LocalBroker(
        binary=find_broker_binary(held.path / "broker").path,
        directory=held.path / "broker",
        log_path=held.path / "logs" / "broker.log",
        while_held=held.lock_path,
    ).start()
    try:
        yield from _connected(broker.url)
    finally:
        broker.stop(deadline_seconds=30)


def _connected(url: str) -> Iterator[Broker]:
    broker = Broker.connect(url, max_retries=2)
    try:
        yield broker
    finally:
        broker.close()
