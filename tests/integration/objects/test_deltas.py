"""Policies that travel to a bucket as differences: the same bits arrive, and no link of a chain is lost."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from asympo.common import errors
from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.object_store import ObjectStoreOptions
from safetensors.numpy import save_file

from tests.integration.objects.conftest import Opener
from tests.integration.objects.test_policies import flip_a_byte, keys_of
from tests.object_store import ObjectServer
from tests.object_store_victim import PROBE

SIZE = 1 << 16


def fill_with(step: int) -> Callable[[Path], None]:
    """Weights in two files, of which each step moves a few values of the first."""

    def fill(path: Path) -> None:
        rng = np.random.default_rng(7)
        body = rng.integers(0, 1 << 16, SIZE, np.uint16)
        for past in range(1, step + 1):
            body[np.random.default_rng(past).choice(SIZE, 200, replace=False)] += 1
        save_file({"body": body}, path / "model-00001-of-00002.safetensors")
        save_file({"head": np.arange(64)}, path / "model-00002-of-00002.safetensors")
        (path / "config.json").write_text("{}")
        (path / "tokenizer.json").write_text("a word\n" * 30_000)

    return fill


def publish(store: PolicyStore, step: int, *, fence: int = 1) -> PolicyRef:
    return store.publish(step=step, fence=fence, fill=fill_with(step), probe=PROBE)


def weights_of(path: Path) -> bytes:
    return (path / "model-00001-of-00002.safetensors").read_bytes()


def expected(step: int, tmp_path: Path) -> bytes:
    path = tmp_path / f"expected-{step}"
    if not path.is_dir():
        path.mkdir()
        fill_with(step)(path)
    return weights_of(path)


def is_whole(store: PolicyStore, bucket: Bucket) -> dict[str, bool]:
    """By name of a policy in the bucket: whether its weights lie there whole."""
    found: dict[str, bool] = {}
    for key in keys_of(store, bucket):
        if "model-00001" in key:
            found[key.split("/")[2]] = key.endswith(".safetensors")
    return found


class CountingBucket(Bucket):
    """Counts the bytes that are brought."""

    def __init__(self, options: ObjectStoreOptions) -> None:
        super().__init__(options)
        self.num_bytes = 0

    def download(self, keys: Mapping[str, Path]) -> None:
        super().download(keys)
        self.num_bytes += sum(path.stat().st_size for path in keys.values())


def test_policies_travel_as_differences_and_arrive_bit_for_bit(
    open_store: Opener, options: ObjectStoreOptions, bucket: Bucket, tmp_path: Path
) -> None:
    learner = open_store("learner", keyframe_every=4)
    learner.take_over(1)
    through = CountingBucket(options)
    warm = open_store("warm", through=through, cached=2)
    sizes = []
    for step in range(1, 7):
        publish(learner, step)
        before = through.num_bytes
        newest = warm.newest()
        assert newest is not None
        warm.verify(newest)
        assert weights_of(newest.path) == expected(step, tmp_path)
        sizes.append(through.num_bytes - before)
    assert [*is_whole(learner, bucket).values()] == [step in (1, 5) for step in range(1, 7)]
    small = [size for step, size in enumerate(sizes, 1) if step not in (1, 5)]
    assert max(small) < 0.02 * min(sizes[step - 1] for step in (1, 5))
    for ref in learner.list():
        # From nothing: the keyframe and what was added since.
        cold = open_store(f"cold-{ref.step}")
        cold.verify(ref_of(cold, ref))
        assert weights_of(cold.path / ref.name) == expected(ref.step, tmp_path)
        assert [path.name for path in cold.path.iterdir()] == [ref.name]


def ref_of(store: PolicyStore, ref: PolicyRef) -> PolicyRef:
    found = store.find(step=ref.step, fence=ref.fence)
    assert found is not None
    return found


def test_no_link_of_a_kept_chain_is_deleted_and_none_stays_for_long(
    open_store: Opener, tmp_path: Path
) -> None:
    learner, keep = open_store("learner", keyframe_every=3), 2
    learner.take_over(1)
    for step in range(1, 8):
        publish(learner, step)
        learner.prune(keep=keep)
        found = [ref.step for ref in learner.list()]
        assert found[-keep:] == [*range(max(1, step - keep + 1), step + 1)]
        oldest_kept = found[-keep:][0]
        assert found[0] >= oldest_kept - 2, "only what the oldest kept one is made of"
        reader = open_store(f"reader-{step}")
        for ref in reader.list()[-keep:]:
            reader.verify(ref)
            assert weights_of(ref.path) == expected(ref.step, tmp_path)
    assert len([*learner.path.iterdir()]) <= keep + 1


def prune_beside_readers(
    learner: PolicyStore, open_store: Callable[[str], PolicyStore], wanted: list[bytes]
) -> None:
    """Publishes from step 2 on and keeps one policy, while readers on two machines hold what they read."""
    held: dict[str, str] = {}
    lock, done = threading.Lock(), threading.Event()
    failures: list[BaseException] = []

    def read(machine: str) -> None:
        try:
            for number in itertools.count():
                is_last, reader = done.is_set(), open_store(f"{machine}-{number}")
                with lock:
                    ref = reader.newest()
                    assert ref is not None
                    held[machine] = ref.name
                reader.verify(ref)
                assert weights_of(ref.path) == wanted[ref.step]
                if is_last:
                    return
        except BaseException as error:  # noqa: BLE001  # the main thread shows it
            failures.append(error)

    def is_held(ref: PolicyRef) -> bool:
        with lock:
            return ref.name in held.values()

    readers = [threading.Thread(target=read, args=(name,)) for name in ("a", "b")]
    for reader in readers:
        reader.start()
    for step in range(2, len(wanted)):
        publish(learner, step)
        learner.prune(keep=1, is_in_use=is_held)
    done.set()
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()
    assert failures == []


def test_reader_that_holds_a_policy_gets_it_while_the_learner_publishes_and_prunes(
    open_store: Opener, tmp_path: Path
) -> None:
    """The lease is what protects it; its links must be protected with it."""
    learner = open_store("learner", keyframe_every=5)
    learner.take_over(1)
    publish(learner, 1)
    prune_beside_readers(learner, open_store, [expected(step, tmp_path) for step in range(12)])


def test_damaged_difference_is_refused_and_the_next_whole_policy_serves(
    open_store: Opener, bucket: Bucket, server: ObjectServer, options: ObjectStoreOptions, tmp_path: Path
) -> None:
    learner = open_store("learner", keyframe_every=3)
    learner.take_over(1)
    publish(learner, 1)
    publish(learner, 2)
    key = next(key for key in keys_of(learner, bucket) if ".from-" in key)
    where = {"Bucket": options.bucket, "Key": options.prefix + key}
    content = bytearray(server.client.get_object(**where)["Body"].read())
    content[-3] ^= 1
    server.client.put_object(**where, Body=bytes(content))
    reader = open_store("reader")
    newest = reader.newest()
    assert newest is not None
    with pytest.raises(errors.CorruptCheckpoint):
        reader.verify(newest)
    assert [*reader.path.iterdir()] == []
    publish(learner, 3)
    with pytest.raises(errors.CorruptCheckpoint):
        reader.verify(ref_of(reader, learner.list()[-1]))
    publish(learner, 4)
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert (newest.step, weights_of(newest.path)) == (4, expected(4, tmp_path))


def test_damaged_copy_of_the_parent_is_found_and_the_policy_is_built_from_the_bucket(
    open_store: Opener, tmp_path: Path
) -> None:
    learner, reader = open_store("learner", keyframe_every=8), open_store("reader")
    learner.take_over(1)
    first = publish(learner, 1)
    reader.verify(ref_of(reader, first))
    flip_a_byte(reader.path / first.name / "model-00001-of-00002.safetensors")
    second = ref_of(reader, publish(learner, 2))
    reader.verify(second)
    assert weights_of(second.path) == expected(2, tmp_path)


def test_learner_killed_between_a_difference_and_its_manifest_leaves_the_policy_before(
    open_store: Opener, options: ObjectStoreOptions, bucket: Bucket, tmp_path: Path, run_name: str
) -> None:
    command = [sys.executable, "-m", "tests.object_store_victim", "before-manifest-of-delta"]
    command += [str(tmp_path / "victim"), run_name, json.dumps(options.model_dump(mode="json"))]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    learner, reader = open_store("victim", keyframe_every=8), open_store("reader")
    assert any(".from-step-00000001" in key for key in keys_of(learner, bucket)), "it died where it should"
    learner.take_over(2)
    assert not any("/step-00000002" in key for key in keys_of(learner, bucket))
    newest = reader.newest(with_digests=True)
    assert newest is not None
    assert newest.step == 1
    publish(learner, 2, fence=2)
    assert [ref.step for ref in learner.prune(keep=1)] == [1]


def test_copy_of_the_parent_that_another_process_deletes_meanwhile_is_not_needed(
    open_store: Opener, options: ObjectStoreOptions, tmp_path: Path
) -> None:
    class Rival(Bucket):
        """Deletes the copies here at the worst moment, as a generator with the same cache may."""

        def download(self, keys: Mapping[str, Path]) -> None:
            super().download(keys)
            shutil.rmtree(reader.path / first.name, ignore_errors=True)

    learner, reader = open_store("learner", keyframe_every=8), open_store("reader", through=Rival(options))
    learner.take_over(1)
    first = publish(learner, 1)
    reader.verify(ref_of(reader, first))
    open_store("reader").verify(ref_of(reader, first))
    second = ref_of(reader, publish(learner, 2))
    reader.verify(second)
    assert weights_of(second.path) == expected(2, tmp_path)


def test_learner_sends_whole_weights_on_any_doubt(
    open_store: Opener, options: ObjectStoreOptions, bucket: Bucket, tmp_path: Path
) -> None:
    class FailingBucket(Bucket):
        is_failing = False

        def upload(self, files: Mapping[str, Path]) -> None:
            super().upload(files)
            if self.is_failing:
                raise StoreError("the connection broke")

    through = FailingBucket(options)
    learner = open_store("learner", keyframe_every=99, through=through)
    learner.take_over(1)
    publish(learner, 1)
    publish(learner, 2)
    through.is_failing = True
    with pytest.raises(errors.PublishFailed, match="connection broke"):
        publish(learner, 3)
    through.is_failing = False
    publish(learner, 3)
    flip_a_byte(learner.path / "step-00000003-f0001" / "model-00001-of-00002.safetensors")
    publish(learner, 4)
    publish(learner, 5)
    # Somebody deletes a link by hand.
    bucket.delete(key for key in keys_of(learner, bucket) if "/step-00000004" in key)
    assert [ref.step for ref in open_store("a-reader").list()] == [1, 2, 3]
    publish(learner, 6)
    publish(learner, 7)
    again = open_store("learner", keyframe_every=99)
    again.take_over(2)
    publish(again, 8, fence=2)
    whole = {int(name[5:13]): value for name, value in is_whole(learner, bucket).items()}
    assert whole == {1: True, 2: False, 3: True, 5: False, 6: True, 7: False, 8: True}
    reader = open_store("reader")
    for ref in reader.list():
        reader.verify(ref)
        assert weights_of(ref.path) == expected(ref.step, tmp_path)
