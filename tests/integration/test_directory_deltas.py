"""Policies shared as differences in a directory: the same bits arrive, and no link of a chain is lost."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.common import errors
from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.digests import tensor_spans
from asympo.common.checkpoints.directory_steps import DirectorySteps
from asympo.common.checkpoints.names import MANIFEST_NAME, StepName
from asympo.common.checkpoints.opening import open_policies
from asympo.common.object_store import DeltaOptions

from tests.integration.objects.test_deltas import expected, prune_beside_readers, publish, weights_of
from tests.integration.objects.test_policies import flip_a_byte
from tests.integration.test_checkpoint_faults import max_file_bytes

WEIGHTS = "model-00001-of-00002.safetensors"
Opener = Callable[..., PolicyStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Opener:
    """A store as one machine has it: its own disk, and the directory that all share."""

    def opener(machine: str, *, keyframe_every: int = 1) -> PolicyStore:
        deltas = DeltaOptions(keyframe_every=keyframe_every, cache=tmp_path / "disks" / machine)
        return open_policies(tmp_path / "shared", "run", deltas=deltas)

    return opener


def stored(store: PolicyStore) -> dict[int, Path]:
    """By step: the weights where all see them."""
    return {int(path.parent.name[5:13]): path for path in sorted(store.path.glob(f"step-*/{WEIGHTS}*"))}


def is_whole(store: PolicyStore) -> dict[int, bool]:
    return {step: path.name == WEIGHTS for step, path in stored(store).items()}


def ref_of(store: PolicyStore, step: int) -> PolicyRef:
    found = store.find(step=step, fence=1)
    assert found is not None
    return found


def test_policies_are_shared_as_differences_and_are_read_bit_for_bit(
    open_store: Opener, tmp_path: Path
) -> None:
    learner, warm = open_store("learner", keyframe_every=4), open_store("warm")
    neighbour = open_store("warm")
    for step in range(1, 11):
        mine = publish(learner, step)
        newest = warm.newest(with_digests=True)
        assert newest is not None
        assert weights_of(newest.path) == weights_of(mine.path) == expected(step, tmp_path)
        inode = (newest.path / WEIGHTS).stat().st_ino
        neighbour.verify(ref_of(neighbour, step))
        assert (newest.path / WEIGHTS).stat().st_ino == inode, "one copy for all of a machine"
    assert is_whole(learner) == {step: step in (1, 5, 9) for step in range(1, 11)}
    sizes = {step: path.stat().st_size for step, path in stored(learner).items()}
    assert max(sizes[step] for step in sizes if step not in (1, 5, 9)) < 0.02 * sizes[1]
    for step in sizes:
        cold = open_store(f"cold-{step}")
        ref = ref_of(cold, step)
        cold.verify(ref)
        assert weights_of(ref.path) == expected(step, tmp_path)
    assert len([*mine.path.parent.glob("step-*")]) <= 3
    room = mine.path.parent
    del learner, warm, neighbour
    assert not room.exists(), "nothing stays when the last process ends"


def test_copies_used_last_stay_when_the_clock_steps_back(open_store: Opener) -> None:
    learner, reader = open_store("learner", keyframe_every=9), open_store("reader")
    for step in range(1, 7):
        mine, newest = publish(learner, step), reader.newest(with_digests=True)
        assert newest is not None
        for room in {mine.path.parent, newest.path.parent} - {learner.path}:
            steps = sorted(int(path.name[5:13]) for path in room.glob("step-*"))
            assert steps == [*range(max(2, step - 2), step + 1)]
            if step == 4:
                for copy in room.glob("step-*"):
                    later = copy.stat().st_mtime_ns + 86_400_000_000_000
                    os.utime(copy, ns=(later, later))
    assert all(is_whole(learner)[step] is (step == 1) for step in range(1, 7))


def test_copy_that_another_process_finishes_meanwhile_stays_whole(open_store: Opener, tmp_path: Path) -> None:
    learner, warm = open_store("learner", keyframe_every=4), open_store("warm")
    for step in (1, 2):
        publish(learner, step)
    held = warm.newest(with_digests=True)
    assert held is not None
    target = tmp_path / "target"
    target.mkdir()
    steps = warm._steps
    assert isinstance(steps, DirectorySteps)
    steps._undo(StepName(step=2, fence=1), warm.load_manifest(held), target)
    assert weights_of(target) == weights_of(held.path) == expected(2, tmp_path)


@pytest.mark.parametrize("keep", [1, 3])
def test_no_link_of_a_kept_chain_is_deleted(open_store: Opener, tmp_path: Path, keep: int) -> None:
    learner = open_store("learner", keyframe_every=4)
    for step in range(1, 13):
        publish(learner, step)
        learner.prune(keep=keep)
        found = [ref.step for ref in learner.list()]
        oldest_kept = max(1, step - keep + 1)
        assert found[-keep:] == [*range(oldest_kept, step + 1)]
        assert found[0] >= oldest_kept - 3, "only what the oldest kept one is made of"
        reader = open_store(f"reader-{step}")
        for ref in reader.list()[-keep:]:
            reader.verify(ref)
            assert weights_of(ref.path) == expected(ref.step, tmp_path)


def test_reader_that_holds_a_policy_gets_it_while_the_learner_publishes_and_prunes(
    open_store: Opener, tmp_path: Path
) -> None:
    learner = open_store("learner", keyframe_every=5)
    publish(learner, 1)
    prune_beside_readers(learner, open_store, [expected(step, tmp_path) for step in range(24)])


def truncate(delta: Path) -> None:
    os.truncate(delta, delta.stat().st_size - 1)


def add(delta: Path) -> None:
    (delta.parent / "vocab.txt").write_text("")


def add_bytes(delta: Path) -> None:
    delta.write_bytes(delta.read_bytes() + b"x")


def add_another(delta: Path) -> None:
    shutil.copyfile(delta, delta.with_name(delta.name[:-1] + ("0" if delta.name[-1] != "0" else "1")))


def link(delta: Path) -> None:
    delta.rename(delta.parent.parent / "elsewhere")
    delta.symlink_to(delta.parent.parent / "elsewhere")


def drop_parent(delta: Path) -> None:
    shutil.rmtree(delta.parent.with_name("step-00000002-f0001"))


def flip_parent(delta: Path) -> None:
    flip_a_byte(next(delta.parent.with_name("step-00000002-f0001").glob(f"{WEIGHTS}*")))


@pytest.mark.parametrize(
    "spoil", [truncate, Path.unlink, add, add_bytes, add_another, flip_a_byte, link, drop_parent, flip_parent]
)
def test_bad_difference_is_refused_in_one_sentence_and_the_next_whole_policy_serves(
    open_store: Opener, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    learner, reader = open_store("learner", keyframe_every=4), open_store("reader")
    for step in (1, 2):
        publish(learner, step)
    good = reader.newest(with_digests=True)
    assert good is not None
    publish(learner, 3)
    spoil(stored(learner)[3])
    # Whoever has the parent needs no link.
    first, reader = reader, open_store("late-reader")
    with pytest.raises(errors.CorruptCheckpoint) as caught:
        reader.verify(ref_of(reader, 3))
    assert "\n" not in str(caught.value)
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert newest.step < 3
    assert weights_of(good.path) == expected(2, tmp_path), f"what {first} serves is left alone"
    assert [path for path in newest.path.parent.iterdir() if path.name.startswith(".get")] == []
    for step in (4, 5):
        publish(learner, step)
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert (newest.step, weights_of(newest.path)) == (5, expected(5, tmp_path))


def test_full_disk_for_copies_is_told_and_whole_policies_go_on(open_store: Opener, tmp_path: Path) -> None:
    learner, reader = open_store("learner", keyframe_every=3), open_store("reader")
    for step in (1, 2):
        publish(learner, step)
    with max_file_bytes(1 << 15), pytest.raises(OSError, match="File too large"):
        reader.verify(ref_of(reader, 2))
    reader.verify(ref_of(reader, 2))
    for step in (3, 4):
        publish(learner, step)
    with max_file_bytes(1 << 15):
        newest = reader.newest(with_digests=True)
    assert newest is not None
    assert newest.step == 4


def test_learner_shares_whole_weights_on_any_doubt(open_store: Opener, tmp_path: Path) -> None:
    learner = open_store("learner", keyframe_every=32)
    for step in (1, 2):
        publish(learner, step)
    flip_a_byte(learner.list()[-1].path / WEIGHTS)
    for step in (3, 4):
        publish(learner, step)
    shutil.rmtree(learner.path / "step-00000003-f0001")
    for step in (5, 6):
        publish(learner, step)
    again = open_store("learner", keyframe_every=32)
    publish(again, 7)
    shutil.rmtree(tmp_path / "disks")
    (tmp_path / "disks").write_text("no directory")
    publish(again, 8)
    assert is_whole(learner) == {1: True, 2: False, 4: False, 5: True, 6: False, 7: True, 8: True}
    reader = open_policies(tmp_path / "shared", "run")
    for ref in reader.list():
        reader.verify(ref)
        assert weights_of(ref.path) == expected(ref.step, tmp_path)


@pytest.mark.parametrize("step", [1, 2], ids=["shared whole", "shared as a difference"])
def test_policy_that_was_altered_where_it_lies_is_never_built_on(
    open_store: Opener, tmp_path: Path, step: int
) -> None:
    learner = open_store("learner", keyframe_every=32)
    for each in range(1, step + 1):
        publish(learner, each)
    copy = learner.list()[-1].path / WEIGHTS
    before = copy.stat()
    with copy.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for each in (step + 1, step + 2):
        publish(learner, each)
    whole = is_whole(learner)
    assert (whole[step + 1], whole[step + 2]) == (True, False)
    reader = open_store("reader")
    for each in (step + 1, step + 2):
        reader.verify(ref_of(reader, each))
        assert weights_of(ref_of(reader, each).path) == expected(each, tmp_path)


def test_difference_costs_no_digest_beside_those_in_the_manifest(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = open_store("learner", keyframe_every=4)
    publish(learner, 1)
    sizes: list[int] = []
    sha256 = hashlib.sha256

    class Counting:
        def __init__(self, content: bytes = b"") -> None:
            self._inner = sha256()
            self.update(content)

        def update(self, content: bytes | memoryview) -> None:
            sizes.append(len(content))
            self._inner.update(content)

        def hexdigest(self) -> str:
            return self._inner.hexdigest()

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", Counting)
        mine = publish(learner, 2)
    assert not is_whole(learner)[2]
    files = [path for path in mine.path.iterdir() if path.name != MANIFEST_NAME]
    of_files = sum(path.stat().st_size for path in files)
    of_tensors = sum(
        tensor.span.size for path in mine.path.glob("*.safetensors") for tensor in tensor_spans(path)
    )
    of_manifests = sum(sizes) - of_files - of_tensors
    assert 0 <= of_manifests < of_tensors // 4


WRITER = """
import os, signal, sys
from pathlib import Path
from asympo.common.checkpoints import delta, directory
from asympo.common.checkpoints.opening import open_policies
from asympo.common.object_store import DeltaOptions
from tests.integration.objects.test_deltas import publish

deltas = DeltaOptions(keyframe_every=8, cache=Path(sys.argv[1]) / "disks" / "learner")
store = open_policies(Path(sys.argv[1]) / "shared", "run", deltas=deltas)
publish(store, 1)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

rename, num_renames = os.rename, 0

def rename_or_die(*paths):
    global num_renames
    num_renames += 1
    if num_renames == int(sys.argv[2]):
        die()
    rename(*paths)

if sys.argv[2] == "delta":
    delta.write_delta = die
else:
    os.rename = rename_or_die
publish(store, 2)
"""


@pytest.mark.parametrize(("point", "newest_step"), [("delta", 1), ("1", 1), ("2", 2)])
def test_learner_killed_while_it_shares_a_difference_loses_nothing(
    open_store: Opener, tmp_path: Path, point: str, newest_step: int
) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), point]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    learner, reader = open_store("learner", keyframe_every=8), open_store("reader")
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert newest.step == newest_step
    assert weights_of(newest.path) == expected(newest_step, tmp_path)
    learner.take_over(2)
    publish(learner, 3, fence=2)
    publish(learner, 4, fence=2)
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert weights_of(newest.path) == expected(4, tmp_path)
    assert [path.name for path in learner.path.iterdir() if path.name.startswith(".")] == []


READER = """
import os, signal, sys
from pathlib import Path
from asympo.common.checkpoints import delta
from asympo.common.checkpoints.opening import open_policies
from asympo.common.object_store import DeltaOptions

store = open_policies(
    Path(sys.argv[1]) / "shared", "run", deltas=DeltaOptions(cache=Path(sys.argv[1]) / "disks" / "reader")
)
apply = delta.apply_delta

def apply_and_die(*paths):
    apply(*paths)
    os.kill(os.getpid(), signal.SIGKILL)

delta.apply_delta = apply_and_die
store.newest(with_digests=True)
"""


def test_reader_killed_while_it_undoes_a_difference_leaves_nothing(
    open_store: Opener, tmp_path: Path
) -> None:
    learner = open_store("learner", keyframe_every=8)
    for step in (1, 2):
        publish(learner, step)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    torn = [*(tmp_path / "disks" / "reader").rglob(".get-*")]
    assert len(torn) == 1
    reader = open_store("reader")
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert weights_of(newest.path) == expected(2, tmp_path)
    assert not torn[0].exists()
