"""The archive through a real S3 server: what a state names is read on any machine, and nothing else is."""

import dataclasses
from pathlib import Path

import pytest
from asympo.common.archive import ArchiveStore, PartRef, open_archive
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.errors import CorruptArchive, PublishFailed, StorageUnavailable
from asympo.common.object_store import ObjectStoreOptions
from asympo.learner.state.open import open_states
from asympo.local.ports import free_port

from tests.integration.test_training_state import build, state
from tests.object_store import ObjectServer
from tests.unit.archive.test_store import entry, write


class Machine:
    """One machine's own disk, and the bucket."""

    def __init__(self, root: Path, run: str, options: ObjectStoreOptions) -> None:
        self.states = open_states(root, run, options)
        self.archive: ArchiveStore = open_archive(root / run, options)

    def save(self, tip: PartRef, *, fence: int = 1) -> None:
        """A training state that names a part."""
        model, optimizer = build()
        named = dataclasses.replace(state(step=tip.last, fence=fence, sequence=tip.last), archive=tip)
        self.states.save(named, model=model, optimizer=optimizer)


@pytest.fixture
def learner(options: ObjectStoreOptions, run_name: str, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "learner", run_name, options)


@pytest.fixture
def reader(options: ObjectStoreOptions, run_name: str, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "reader", run_name, options)


def test_archive_is_read_on_a_machine_that_has_no_state(learner: Machine, reader: Machine) -> None:
    learner.states.take_over(1)
    assert reader.archive.newest_tip() is None
    first = write(learner.archive, [1, 2], parent=None)
    learner.save(write(learner.archive, [3], parent=first))
    assert list(reader.archive.entries()) == [entry(number) for number in (1, 2, 3)]
    assert [read.sequence for read in reader.archive.entries(after_sequence=2)] == [3]
    assert not learner.archive.path.exists(), "parts go into the bucket alone"
    assert not reader.states.path.exists(), "to find the newest part no state is fetched"
    # Tried again after an answer that was lost.
    assert write(learner.archive, [1, 2], parent=None) == first


def test_parts_of_a_zombie_are_neither_read_nor_kept(learner: Machine, reader: Machine) -> None:
    learner.states.take_over(1)
    base = write(learner.archive, [1], parent=None)
    learner.save(base)
    dead = write(learner.archive, [2], parent=base, group_id="dead")
    learner.states.take_over(2)
    mine = write(learner.archive, [2, 3], parent=base, fence=2, group_id="mine")
    newer = write(learner.archive, [2], parent=base, fence=3, group_id="newer")
    learner.save(mine, fence=2)
    assert [read.group_id for read in reader.archive.entries()] == ["0-1", "mine-2", "mine-3"]
    assert learner.archive.sweep(after_sequence=1, fence=2, kept={mine.name}) == [dead.name]
    assert learner.archive.highest_fence() == 3
    learner.archive.delete(newer.name)
    assert learner.archive.highest_fence() == 2


def test_damaged_copy_of_a_part_is_fetched_anew(learner: Machine, reader: Machine) -> None:
    learner.states.take_over(1)
    part = write(learner.archive, [1, 2], parent=None)
    learner.save(part)
    expected = list(reader.archive.entries())
    copy = reader.archive.path / part.name
    whole = copy.read_bytes()
    for damaged in (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], whole[:-20]):
        copy.write_bytes(damaged)
        assert list(reader.archive.entries()) == expected
        assert copy.read_bytes() == whole


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_damaged_part_in_the_bucket_is_refused_by_name(
    learner: Machine,
    reader: Machine,
    damage: str,
    bucket: Bucket,
    server: ObjectServer,
    options: ObjectStoreOptions,
) -> None:
    learner.states.take_over(1)
    part = write(learner.archive, [1, 2], parent=None)
    learner.save(part)
    key = f"{learner.archive.path.parent.name}/archive/{part.name}"
    content = bytearray(bucket.read(key, max_bytes=1 << 20))
    bucket.delete([key])
    if damage == "flip":
        content[40] ^= 1
        server.client.put_object(Bucket=options.bucket, Key=options.prefix + key, Body=bytes(content))
        with pytest.raises(PublishFailed, match="never overwritten"):
            write(learner.archive, [1, 2], parent=None)
    with pytest.raises(CorruptArchive, match=part.name):
        list(reader.archive.entries())


def test_store_that_does_not_answer_is_no_damage(tmp_path: Path) -> None:
    absent = ObjectStoreOptions(url="s3://bucket/prefix", endpoint=f"http://127.0.0.1:{free_port()}")
    archive = open_archive(tmp_path / "run", absent)
    with pytest.raises(PublishFailed, match="could not be asked"):
        write(archive, [1], parent=None)
    ref = PartRef(name="seq-000000000001-000000000001-f0001-00000000.parquet", sha256="", first=1, last=1)
    with pytest.raises(StorageUnavailable, match=r"seq-.* cannot be fetched"):
        archive.bring(ref)
