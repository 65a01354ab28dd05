"""Policies through a real S3 server over HTTP: what is visible, to whom, and after which accident."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asympo.common import errors
from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.checkpoints.bucket_check import try_reading, try_writing
from asympo.common.checkpoints.names import StepName
from asympo.common.checkpoints.opening import open_policies
from asympo.common.object_store import ObjectStoreOptions
from asympo.local.ports import free_port
from pydantic import ValidationError
from safetensors.numpy import save_file

from tests.integration.objects.conftest import Opener
from tests.object_store import ObjectServer
from tests.object_store_victim import PROBE


def fill_with(value: float) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        save_file({"body": np.full((64, 64), value, np.float32)}, path / "model.safetensors")
        (path / "config.json").write_text("{}")

    return fill


def publish(store: PolicyStore, step: int, fence: int = 1) -> PolicyRef:
    return store.publish(step=step, fence=fence, fill=fill_with(step), probe=PROBE)


def keys_of(store: PolicyStore, bucket: Bucket) -> list[str]:
    """Keys of the store's part of the bucket, in the bucket."""
    return [found.key for found in bucket.find(f"{store.path.parent.name}/policy/")]


def test_generator_brings_the_newest_policy_into_its_cache_when_it_verifies(open_store: Opener) -> None:
    learner, generator = open_store("learner"), open_store("generator")
    assert generator.newest() is None
    learner.take_over(1)
    first, second = publish(learner, 1), publish(learner, 2)
    found = generator.newest()
    assert found is not None
    assert (found.step, found.digest) == (2, second.digest)
    assert not found.path.exists()
    manifest = generator.verify(found)
    assert manifest.digest == second.digest
    assert (found.path / "model.safetensors").read_bytes() == (second.path / "model.safetensors").read_bytes()
    assert [ref.digest for ref in generator.list()] == [first.digest, second.digest]
    assert generator.newest(exclude={second.name}) == generator.find(step=1, fence=1)
    assert generator.load_manifest(found) == manifest


def test_cache_stays_bounded_and_leaves_no_dead_download(open_store: Opener) -> None:
    learner, generator = open_store("learner"), open_store("generator", cached=2)
    learner.take_over(1)
    refs = [publish(learner, step) for step in range(1, 5)]
    dead = generator.path / f".get-{refs[0].name}-0123456789abcdef"
    dead.mkdir(parents=True)
    (dead / "model.safetensors").write_bytes(b"half")
    for ref in refs:
        generator.verify(generator.find(step=ref.step, fence=1) or ref)
    assert sorted(path.name for path in generator.path.iterdir()) == [refs[2].name, refs[3].name]


def test_copy_that_is_served_makes_no_room_for_those_that_come(open_store: Opener) -> None:
    learner, generator = open_store("learner"), open_store("generator", cached=2)
    learner.take_over(1)
    for step in range(1, 4):
        publish(learner, step)
    served, skipped, last = generator.list()
    generator.verify(served)
    for ref in (skipped, last):
        generator.verify(ref, served=served)
    assert [ref.path.is_dir() for ref in (served, skipped, last)] == [True, False, True]


def test_cached_copy_that_was_damaged_is_brought_again(open_store: Opener) -> None:
    learner, generator = open_store("learner"), open_store("generator")
    learner.take_over(1)
    publish(learner, 1)
    ref = generator.newest()
    assert ref is not None
    generator.verify(ref)
    flip_a_byte(ref.path / "model.safetensors")
    generator.verify(ref)
    assert generator.verify(ref).digest == ref.digest


def test_copy_of_an_earlier_run_of_the_same_name_is_brought_again(open_store: Opener, bucket: Bucket) -> None:
    learner, generator = open_store("learner"), open_store("generator")
    learner.take_over(1)
    publish(learner, 1)
    before = generator.newest()
    assert before is not None
    generator.verify(before)
    bucket.delete([found.key for found in bucket.find(f"{learner.path.parent.name}/")])
    learner = open_store("another learner")
    learner.take_over(1)
    now = learner.publish(step=1, fence=1, fill=fill_with(7), probe=PROBE)
    generator = open_store("generator")
    found = generator.newest()
    assert found is not None
    assert found.digest == now.digest != before.digest
    assert generator.verify(found).digest == now.digest


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_policy_with_a_corrupt_byte_in_the_bucket_is_refused_and_leaves_nothing(
    open_store: Opener, server: ObjectServer, options: ObjectStoreOptions, bucket: Bucket
) -> None:
    learner, generator = open_store("learner"), open_store("generator")
    learner.take_over(1)
    publish(learner, 1)
    key = next(key for key in keys_of(learner, bucket) if key.endswith("model.safetensors"))
    where = {"Bucket": options.bucket, "Key": options.prefix + key}
    content = bytearray(server.client.get_object(**where)["Body"].read())
    content[-1] ^= 1
    server.client.put_object(**where, Body=bytes(content))
    ref = generator.newest()
    assert ref is not None
    with pytest.raises(errors.CorruptCheckpoint, match="does not match the digest"):
        generator.verify(ref)
    assert list(generator.path.iterdir()) == []


def test_policy_that_lacks_an_object_is_passed_over(open_store: Opener, bucket: Bucket) -> None:
    learner = open_store("learner")
    learner.take_over(1)
    publish(learner, 1)
    publish(learner, 2)
    bucket.delete(
        key for key in keys_of(learner, bucket) if "00000002" in key and key.endswith("config.json")
    )
    newest = open_store("generator").newest()
    assert newest is not None
    assert newest.step == 1


@pytest.mark.parametrize("point", ["before-manifest", "inside-upload"])
def test_learner_killed_while_it_publishes_shows_nothing_and_the_next_one_sweeps(
    point: str,
    open_store: Opener,
    server: ObjectServer,
    options: ObjectStoreOptions,
    bucket: Bucket,
    tmp_path: Path,
    run_name: str,
) -> None:
    command = [sys.executable, "-m", "tests.object_store_victim", point, str(tmp_path / "victim"), run_name]
    command.append(json.dumps(options.model_dump(mode="json")))
    died = subprocess.run(command, check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    parts = server.client.list_multipart_uploads(Bucket=options.bucket).get("Uploads", [])
    learner = open_store("victim")
    left = [key for key in keys_of(learner, bucket) if "/step-" in key]
    assert parts if point == "inside-upload" else left, "it died where it should"
    assert open_store("generator").newest() is None

    learner.take_over(2)
    assert [key for key in keys_of(learner, bucket) if "/step-" in key] == []
    assert not server.client.list_multipart_uploads(Bucket=options.bucket).get("Uploads")
    assert list(learner.path.iterdir()) == []
    publish(learner, 1, fence=2)
    newest = open_store("generator").newest()
    assert newest is not None
    assert (newest.step, newest.fence) == (1, 2)


class HeldBucket(Bucket):
    """Stands still before the manifest, as a stopped process would, until it is let go."""

    def __init__(self, options: ObjectStoreOptions) -> None:
        super().__init__(options)
        self.reached, self.let_go = threading.Event(), threading.Event()

    def create(self, key: str, content: bytes) -> bool:
        if key.endswith("manifest.json"):
            self.reached.set()
            assert self.let_go.wait(60)
        return super().create(key, content)


def test_zombie_that_wakes_before_its_manifest_makes_nothing_visible(
    open_store: Opener, options: ObjectStoreOptions
) -> None:
    earlier = open_store("zombie")
    earlier.take_over(1)
    kept = publish(earlier, 49)
    held = HeldBucket(options)
    zombie = open_store("zombie", through=held)
    thread = threading.Thread(target=publish, args=(zombie, 50))
    thread.start()
    assert held.reached.wait(60)
    current = open_store("current")
    # Not yet a step of its own: only the claim of fence 2 tells readers.
    current.take_over(2)
    held.let_go.set()
    thread.join(60)
    generator = open_store("generator")
    assert [ref.name for ref in generator.list()] == [kept.name]
    assert generator.find(step=50, fence=1) is None
    with pytest.raises(errors.Fenced, match="fence 2"):
        publish(zombie, 51)
    assert "step-00000050-f0001" in current.sweep(fence=2)
    publish(current, 49, fence=2)
    assert [ref.name for ref in generator.list()] == [kept.name, "step-00000049-f0002"]


def test_zombie_does_not_change_what_is_there_when_it_publishes_a_step_again(open_store: Opener) -> None:
    first = open_store("first")
    first.take_over(1)
    ref = publish(first, 1)
    again = open_store("second")
    with pytest.raises(errors.PublishFailed, match="never overwritten"):
        again.publish(step=1, fence=1, fill=fill_with(9), probe=PROBE)
    assert list(again.path.iterdir()) == []
    first.sweep(fence=1)
    shutil.rmtree(first.path)
    assert first.verify(ref).digest == ref.digest


def test_fence_is_claimed_once(open_store: Opener) -> None:
    first = open_store("first")
    first.take_over(3)
    first.take_over(3)
    with pytest.raises(errors.Fenced, match="same fence 3"):
        open_store("second").take_over(3)
    with pytest.raises(errors.Fenced, match="fence 3"):
        open_store("second").take_over(2)
    assert open_store("third").highest_fence() == 3


def test_damaged_record_of_who_took_over_hides_everything_instead_of_showing_too_much(
    open_store: Opener, server: ObjectServer, options: ObjectStoreOptions, bucket: Bucket
) -> None:
    learner = open_store("learner")
    learner.take_over(1)
    publish(learner, 1)
    key = next(key for key in keys_of(learner, bucket) if "/fence-" in key)
    server.client.put_object(Bucket=options.bucket, Key=options.prefix + key, Body=b"{}")
    with pytest.raises(StoreError, match="does not match its own digest"):
        open_store("generator").newest()


class DeafBucket(Bucket):
    """Loses the answer to one manifest: it is written, and its writer does not know."""

    is_deaf = True

    def create(self, key: str, content: bytes) -> bool:
        created = super().create(key, content)
        if self.is_deaf and key.endswith("manifest.json"):
            self.is_deaf = False
            raise StoreError("no answer")
        return created


def test_publish_tried_again_after_a_lost_answer_finds_its_own_policy(
    open_store: Opener, options: ObjectStoreOptions
) -> None:
    learner = open_store("learner", through=DeafBucket(options))
    learner.take_over(1)
    with pytest.raises(errors.PublishFailed, match="no answer"):
        publish(learner, 1)
    # Its first attempt is visible, and another one may say something else of the parent.
    ref = learner.publish(step=1, fence=1, fill=fill_with(1), probe=PROBE, parent="0" * 64)
    newest = open_store("generator").newest(with_digests=True)
    assert newest is not None
    assert newest.digest == ref.digest == learner.verify(ref).digest


def test_pruning_respects_two_generators_that_are_reading(open_store: Opener, bucket: Bucket) -> None:
    learner = open_store("learner")
    learner.take_over(1)
    refs = [publish(learner, step) for step in range(1, 6)]
    held = {refs[0].name, refs[2].name}
    errors_seen: list[BaseException] = []

    def read(machine: str, ref: PolicyRef) -> None:
        try:
            for turn in range(2):
                generator = open_store(f"{machine}-{turn}")
                generator.verify(generator.find(step=ref.step, fence=1) or ref)
        except BaseException as error:  # noqa: BLE001  # the main thread shows it
            errors_seen.append(error)

    readers = [
        threading.Thread(target=read, args=(f"generator-{i}", ref))
        for i, ref in enumerate((refs[0], refs[2]))
    ]
    for reader in readers:
        reader.start()
    deleted = learner.prune(keep=2, is_in_use=lambda ref: ref.name in held)
    for reader in readers:
        reader.join(60)
    assert errors_seen == []
    assert [ref.step for ref in deleted] == [2]
    assert [ref.step for ref in open_store("late").list()] == [1, 3, 4, 5]
    assert not any(refs[1].name in key for key in keys_of(learner, bucket))
    assert not refs[1].path.exists()


def test_policy_deleted_while_it_is_brought_is_corrupt_and_not_half_there(open_store: Opener) -> None:
    learner, generator = open_store("learner"), open_store("generator")
    learner.take_over(1)
    ref = publish(learner, 1)
    assert generator.newest() is not None
    publish(learner, 2)
    publish(learner, 3)
    learner.prune(keep=2)
    with pytest.raises(errors.CorruptCheckpoint, match="deleted"):
        generator.verify(PolicyRef(step=1, fence=1, path=generator.path / ref.name, digest=ref.digest))
    assert list(generator.path.iterdir()) == []


def test_store_that_does_not_answer_fails_a_publish_and_keeps_the_disk_clean(tmp_path: Path) -> None:
    options = ObjectStoreOptions(url="s3://bucket/prefix", endpoint=f"http://127.0.0.1:{free_port()}")
    store = open_policies(tmp_path, "run", options)
    with pytest.raises(errors.PublishFailed, match="could not be asked"):
        publish(store, 1)
    assert not store.path.exists() or list(store.path.iterdir()) == []
    with pytest.raises(OSError, match="could not be asked"):
        store.newest()


def test_trial_says_what_works_and_refuses_a_bucket_that_is_not_there(
    options: ObjectStoreOptions, bucket: Bucket
) -> None:
    assert len(list(try_writing(bucket))) == 5
    assert bucket.find(".") == []
    absent = options.model_copy(update={"url": "s3://no-such-bucket"})
    with pytest.raises(errors.BadSetting, match=r"NoSuchBucket.*credentials"):
        try_reading(Bucket(absent))


class CarelessBucket(Bucket):
    """A store that ignores the condition."""

    def create(self, key: str, content: bytes) -> bool:
        super().create(key, content)
        return True


def test_trial_refuses_a_store_that_ignores_conditions(options: ObjectStoreOptions) -> None:
    with pytest.raises(errors.BadSetting, match="If-None-Match"):
        list(try_writing(CarelessBucket(options)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "https://bucket/x"}, "s3://BUCKET"),
        ({"url": "s3://bucket/a b"}, "prefix"),
        ({"endpoint": "https://store"}, "without object_store.url"),
        ({"url": "s3://bucket", "endpoint": "store:9000"}, "https://HOST"),
        ({"url": "s3://bucket", "endpoint": "http://store", "ca_file": "/ca.pem"}, "is for https"),
    ],
)
def test_contradictory_options_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectStoreOptions.model_validate(values)


def test_keys_are_a_directory_that_other_tools_can_copy(open_store: Opener, bucket: Bucket) -> None:
    learner = open_store("learner")
    learner.take_over(7)
    ref = publish(learner, 42, fence=7)
    name, payload = StepName(step=42, fence=7), ref.digest[:16]
    root = f"{learner.path.parent.name}/policy"
    assert keys_of(learner, bucket) == [
        f"{root}/fence-00000007.json",
        f"{root}/{name}/{payload}/config.json",
        f"{root}/{name}/{payload}/model.safetensors",
        f"{root}/{name}/manifest.json",
    ]
