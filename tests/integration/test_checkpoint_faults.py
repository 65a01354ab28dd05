import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asympo.common import errors
from asympo.common.checkpoints import PolicyRef, PolicyStore, directory, verify
from asympo.common.checkpoints.opening import open_policies

from tests.file_modes import modes_that_bind_root
from tests.integration.test_checkpoint_store import PROBE, fill_with, publish


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return open_policies(tmp_path, "run")


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)


def cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 100)


def drop_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def drop_file(path: Path) -> None:
    (path / "config.json").unlink()


def add_file(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def add_code(path: Path) -> None:
    (path / "modeling.py").write_text("import os")


def add_directory(path: Path) -> None:
    (path / "vocab.json").mkdir()


def link_file(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.rename(path.parent / "elsewhere")
    weights.symlink_to(path.parent / "elsewhere")


def link_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.rename(path.parent / "elsewhere")
    manifest.symlink_to(path.parent / "elsewhere")


def link_directory(path: Path) -> None:
    moved = path.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


def link_file_to_itself(path: Path) -> None:
    (path / "vocab.json").symlink_to("vocab.json")


def put_fifo(path: Path) -> None:
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def rename_to_other_step(path: Path) -> None:
    path.rename(path.with_name("step-00000003-f0001"))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_manifest,
        drop_manifest,
        drop_file,
        add_file,
        add_code,
        add_directory,
        link_file,
        link_manifest,
        link_directory,
        link_file_to_itself,
        put_fifo,
        rename_to_other_step,
    ],
)
def test_damaged_policy_is_invisible_and_the_one_before_serves(
    store: PolicyStore, damage: Callable[[Path], None]
) -> None:
    good, torn = publish(store, 1), publish(store, 2)
    damage(torn.path)
    assert store.newest() == good
    assert store.list() == [good]
    with pytest.raises(errors.CorruptCheckpoint):
        store.verify(torn)


@pytest.mark.parametrize("mode", [0o000, 0o600])
@pytest.mark.parametrize("step", [1, 9])
def test_directory_that_may_not_be_read_stops_neither_readers_nor_pruning(
    store: PolicyStore, caplog: pytest.LogCaptureFixture, step: int, mode: int
) -> None:
    odd, *refs = sorted((publish(store, each) for each in (2, 3, 4, step)), key=lambda ref: ref.step != step)
    odd.path.chmod(mode)
    (store.path / f".get-{odd.name}-0123456789abcdef").mkdir(mode=0)
    with modes_that_bind_root():
        assert store.newest() == refs[-1]
        assert store.list() == refs
        assert store.prune(keep=1) == refs[:2]
        assert store.highest_fence() == 1
        assert store.sweep(fence=1) == []
        assert publish(store, 10) == store.newest()
    assert f"{odd.path}" in caplog.text
    odd.path.chmod(0o700)
    assert odd in store.list(), "what could not be looked at is not deleted"


def test_no_link_is_deleted_while_a_disk_fails_and_the_log_names_the_directory(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refs = [publish(store, step) for step in range(3)]
    listdir = os.listdir

    def flaky(path: str | Path) -> list[str]:
        if str(path) == str(refs[1].path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listdir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", flaky)
        assert store.list() == [refs[0], refs[2]]
        assert store.prune(keep=1) == []
    assert f"stay for now, as {refs[1].path} fails: Input/output error" in caplog.text
    assert store.list() == refs


def test_policy_that_vanishes_while_it_is_looked_at_is_passed_over(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, gone = publish(store, 1), publish(store, 2)
    check_files = directory.check_files

    def look_and_lose(path: Path, *, allowed: Callable[[str], bool]) -> list[str]:
        found = check_files(path, allowed=allowed)
        if path == gone.path:
            directory.delete_step(path)
        return found

    monkeypatch.setattr(verify, "check_files", look_and_lose)
    assert store.list() == [good]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_flipped_byte_is_found_by_digests(store: PolicyStore, name: str) -> None:
    good, torn = publish(store, 1), publish(store, 2)
    content = bytearray((torn.path / name).read_bytes())
    content[-1] ^= 0x10
    (torn.path / name).write_bytes(content)
    assert store.newest() == torn, "sizes alone cannot tell"
    assert store.newest(with_digests=True) == good
    with pytest.raises(errors.CorruptCheckpoint, match="does not match the digest"):
        store.verify(torn)


def test_replaced_policy_is_refused_when_another_one_was_announced(
    store: PolicyStore, tmp_path: Path
) -> None:
    announced = publish(store, 1)
    other = open_policies(tmp_path, "other").publish(step=1, fence=1, fill=fill_with(5), probe=PROBE)
    announced.path.rename(tmp_path / "away")
    other.path.rename(announced.path)
    with pytest.raises(errors.CorruptCheckpoint, match="does not hold the manifest"):
        store.verify(announced)


@contextmanager
def max_file_bytes(limit: int) -> Iterator[None]:
    """The kernel refuses every write beyond this size with EFBIG, midway in a file, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_publish_fails_in_one_sentence_and_cleans_up_when_files_cannot_grow(store: PolicyStore) -> None:
    good = publish(store, 1)
    with (
        max_file_bytes(8192),
        pytest.raises(errors.PublishFailed, match=r"step 2 does not fit under .* free"),
    ):
        publish(store, 2)
    assert [path.name for path in store.path.iterdir()] == [good.name]
    assert publish(store, 2) == store.newest(), "the retry succeeds once there is space"


def test_publish_fails_in_one_sentence_and_cleans_up_when_the_disk_is_full(store: PolicyStore) -> None:
    def fill(path: Path) -> None:
        fill_with(1)(path)
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(errors.PublishFailed, match="No space left on device") as caught:
        store.publish(step=1, fence=1, fill=fill, probe=PROBE)
    assert "\n" not in str(caught.value)
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_publish_leaves_nothing_when_storage_fails_late(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    good = publish(store, 1)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, broken)
        with pytest.raises(errors.PublishFailed, match="Input/output error"):
            publish(store, 2)
    assert [path.name for path in store.path.iterdir()] == [good.name]


def test_publish_whose_last_flush_fails_shows_nothing_and_succeeds_when_tried_again(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = publish(store, 1)
    real = directory.flush_directory

    def flush(path: Path) -> None:
        if path == store.path and any(each.name.startswith("step-00000002") for each in path.iterdir()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(directory, "flush_directory", flush)
        with pytest.raises(errors.PublishFailed, match="Input/output error"):
            publish(store, 2)
    assert [path.name for path in store.path.iterdir()] == [good.name]
    assert store.newest() == good
    assert publish(store, 2) == store.newest(with_digests=True)


def test_publish_cleans_up_when_filling_is_interrupted(store: PolicyStore) -> None:
    def fill(path: Path) -> None:
        fill_with(1)(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(step=1, fence=1, fill=fill, probe=PROBE)
    assert list(store.path.iterdir()) == []


WRITER = """
import os, sys
from pathlib import Path
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.opening import open_policies
from tests.file_modes import modes_that_bind_root
from tests.integration.test_checkpoint_store import PROBE, fill_with

store, point = open_policies(Path(sys.argv[1]), "run"), sys.argv[2]

def stop(*_):
    print("here", flush=True)
    sys.stdin.read()

def fill(path):
    fill_with(2)(path)
    if point == "fill":
        stop()

if point == "flush_files":
    directory.flush_files = stop
elif point == "rename":
    os.rename = stop
store.publish(step=2, fence=1, fill=fill, probe=PROBE)
"""


@pytest.mark.parametrize("point", ["fill", "flush_files", "rename"])
def test_reader_is_unaffected_and_the_rest_is_swept_when_the_writer_is_killed(
    store: PolicyStore, tmp_path: Path, point: str
) -> None:
    good = publish(store, 1)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), point], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    with writer.stdin, writer.stdout:
        assert writer.stdout.readline() == b"here\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
    assert len(list(store.path.iterdir())) == 2, "the torn directory is there"
    assert store.newest(with_digests=True) == good
    assert store.list() == [good]
    assert store.sweep(fence=0) == [], "a zombie deletes nothing of a newer learner"
    again: PolicyRef = publish(store, 2, fence=2)
    assert {path.name for path in store.path.iterdir()} == {good.name, again.name}
