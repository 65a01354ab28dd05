"""Training states through a real S3 server: an empty disk, a zombie, ranks on one machine, what is pruned."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from asympo.common import errors
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import CommitRecord
from asympo.learner.state.decisions import Decision, Decisions
from asympo.learner.state.open import open_states
from asympo.learner.state.saver import find_state
from asympo.learner.torchrun import Launch
from asympo.local.ports import free_port

from tests.integration.test_training_state import assert_same, build, state, train


def commit_of(name: str, *, fence: int, sequence: int) -> CommitRecord:
    return CommitRecord(sequence=sequence, state_name=name, step=3, fence=fence)


def test_learner_on_an_empty_disk_continues_bit_for_bit(
    options: ObjectStoreOptions, run_name: str, tmp_path: Path
) -> None:
    before = open_states(tmp_path / "before", run_name, options)
    before.take_over(1)
    model, optimizer = build()
    train(model, optimizer, 5)
    name = before.save(state(), model=model, optimizer=optimizer)
    train(model, optimizer, 4)
    shutil.rmtree(tmp_path / "before")

    after = open_states(tmp_path / "after", run_name, options)
    after.take_over(2)
    found = find_state(after, commit=commit_of(name, fence=1, sequence=30))
    assert found == (name, state())
    other, other_optimizer = build(seed=1)
    after.load(name, model=other, optimizer=other_optimizer)
    train(other, other_optimizer, 4)
    assert_same(model.state_dict(), other.state_dict())
    assert (after.path / name / "manifest.json").exists()


def test_state_that_a_zombie_saves_does_not_exist(
    options: ObjectStoreOptions, run_name: str, tmp_path: Path
) -> None:
    zombie, current = (open_states(tmp_path / name, run_name, options) for name in ("zombie", "current"))
    zombie.take_over(1)
    model, optimizer = build()
    kept = zombie.save(state(), model=model, optimizer=optimizer)
    current.take_over(2)
    with pytest.raises(errors.Fenced, match="fence 2"):
        zombie.save(state(step=4, sequence=40), model=model, optimizer=optimizer)
    assert current.names() == [kept]
    assert list(zombie.path.iterdir()) == [zombie.path / kept]


def test_decisions_lie_in_the_bucket_alone(
    bucket: Bucket, options: ObjectStoreOptions, run_name: str, tmp_path: Path
) -> None:
    zombie, current = (open_states(tmp_path / name, run_name, options) for name in ("zombie", "current"))
    first = Decisions(fence=1, entries=(Decision(from_step=1, decided={"device": "cpu"}),))
    zombie.decisions.seal(first)
    # A retry whose first answer was lost.
    zombie.decisions.seal(first)
    assert current.decisions.newest() == first
    assert current.highest_fence() == 1
    longer = replace(first.appended(from_step=4, decided={"device": "cuda"}), fence=2)
    current.decisions.seal(longer)
    with pytest.raises(errors.Fenced, match="higher fence"):
        zombie.decisions.seal(first.appended(from_step=3, decided={}))
    assert zombie.decisions.newest() == longer
    keys = [found.key for found in bucket.find(f"{run_name}/")]
    assert keys == [f"{run_name}/train/decisions-f0002-n0002.json"]
    assert not list(tmp_path.rglob("decisions-*"))
    with pytest.raises(errors.Fenced, match="with the same fence"):
        current.decisions.seal(replace(longer, entries=longer.entries[::-1]))


def test_store_that_does_not_answer_fails_a_save_which_is_tried_again_and_a_start(
    credentials: None, run_name: str, tmp_path: Path
) -> None:
    absent = ObjectStoreOptions(url="s3://bucket/prefix", endpoint=f"http://127.0.0.1:{free_port()}")
    store = open_states(tmp_path, run_name, absent)
    model, optimizer = build()
    with pytest.raises(errors.PublishFailed, match="training state of step 3 could not be written"):
        store.save(state(), model=model, optimizer=optimizer)
    with pytest.raises(errors.PublishFailed, match="what the run has decided could not be written"):
        store.decisions.seal(Decisions(fence=1))
    for ask in (store.decisions.newest, store.decisions.highest_fence):
        with pytest.raises(errors.StorageUnavailable, match="what the run has decided cannot be read"):
            ask()


def test_damaged_copy_of_a_state_is_brought_again(
    options: ObjectStoreOptions, run_name: str, tmp_path: Path
) -> None:
    store = open_states(tmp_path, run_name, options)
    store.take_over(1)
    model, optimizer = build()
    name = store.save(state(), model=model, optimizer=optimizer)
    file = store.path / name / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store.verify(name)
    assert file.read_bytes() != bytes(content)


def test_old_states_go_and_needed_and_retained_ones_stay(
    options: ObjectStoreOptions, run_name: str, tmp_path: Path
) -> None:
    store = open_states(tmp_path, run_name, options)
    store.take_over(1)
    model, optimizer = build()
    names = [
        store.save(state(step=step, sequence=10 * step), model=model, optimizer=optimizer)
        for step in range(1, 6)
    ]
    store.retain(names[0])
    assert store.prune(keep=1, needed={names[2]}) == [names[1], names[3]]
    assert store.names() == [names[0], names[2], names[4]]
    assert sorted(path.name for path in store.path.iterdir()) == store.names()
    shutil.rmtree(store.path)
    assert store.read(names[0]) == state(step=1, sequence=10)


def test_what_an_object_store_cannot_hold_is_refused_by_name() -> None:
    options = ObjectStoreOptions(url="s3://bucket/prefix")
    environment = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    launch = Launch.from_environment(environment)
    with pytest.raises(errors.BadSetting, match="2 of 4 ranks"):
        launch.check_storage(options)
    launch.check_storage(ObjectStoreOptions())
    Launch.from_environment({**environment, "LOCAL_WORLD_SIZE": "4"}).check_storage(options)
