import errno
import json
import math
import os
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from asympo.common import errors
from asympo.common.checkpoints import PolicyRef, PolicyStore, Probe, ProbeSequence
from asympo.common.checkpoints.cache import download_directory
from asympo.common.checkpoints.names import StepName
from asympo.common.checkpoints.opening import open_policies
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.ops.checkpoint.chosen import add_choice_flags, choose
from safetensors.numpy import save_file

PROBE = Probe(
    sequences=(ProbeSequence(token_ids=(1, 2, 3), num_prompt_tokens=1, mean_nll=2.5),), tolerance=0.02
)


def fill_with(value: float):  # type: ignore[no-untyped-def]
    def fill(path: Path) -> None:
        weights = {"body": np.full((64, 64), value, np.float32), "frozen": np.ones(3, np.float32)}
        save_file(weights, path / "model.safetensors")
        (path / "config.json").write_text("{}")

    return fill


def publish(store: PolicyStore, step: int, fence: int = 1, **kwargs: object) -> PolicyRef:
    return store.publish(step=step, fence=fence, fill=fill_with(step), probe=PROBE, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return open_policies(tmp_path, "run")


def test_policy_is_found_and_verifies_when_published(store: PolicyStore) -> None:
    assert store.newest() is None
    first = publish(store, 1)
    second = publish(store, 2, parent=first.digest)
    assert store.list() == [first, second]
    assert store.newest(with_digests=True) == second
    assert store.newest(exclude={second.name}) == first
    manifest = store.verify(second)
    assert (manifest.kind, manifest.parent, manifest.digest) == ("full", first.digest, second.digest)
    assert [tensor.name for tensor in manifest.tensors] == ["body", "frozen"]
    assert store.find(step=2, fence=1) == second
    assert store.find(step=3, fence=1) is None


def test_policy_of_a_zombie_is_ignored_when_a_higher_fence_has_published(store: PolicyStore) -> None:
    zombie = publish(store, 50, fence=6)
    current = publish(store, 42, fence=7)
    assert store.newest() == current
    with pytest.raises(errors.Fenced, match="fence 7"):
        publish(store, 51, fence=6)
    assert zombie in store.list()
    assert store.highest_fence() == 7


def test_policy_is_never_overwritten(store: PolicyStore) -> None:
    ref = publish(store, 1)
    with pytest.raises(errors.PublishFailed, match="already published"):
        store.publish(step=1, fence=1, fill=fill_with(9), probe=PROBE)
    assert store.verify(ref)


def test_publish_refuses_a_policy_whose_probe_is_not_finite(store: PolicyStore) -> None:
    sequence = ProbeSequence(token_ids=(1, 2), num_prompt_tokens=1, mean_nll=math.nan)
    with pytest.raises(errors.PublishFailed, match="not finite"):
        store.publish(step=1, fence=1, fill=fill_with(1), probe=Probe(sequences=(sequence,), tolerance=0.1))


def test_publish_refuses_files_outside_the_closed_list(store: PolicyStore) -> None:
    def fill(path: Path) -> None:
        fill_with(1)(path)
        (path / "modeling.py").write_text("import os")

    with pytest.raises(errors.BadModel, match=r"modeling\.py"):
        store.publish(step=1, fence=1, fill=fill, probe=PROBE)
    assert list(store.path.iterdir()) == []


def test_prune_spares_what_is_in_use(store: PolicyStore) -> None:
    refs = [publish(store, step) for step in range(6)]
    deleted = store.prune(keep=2, is_in_use=lambda ref: ref == refs[1])
    assert deleted == [refs[0], refs[2], refs[3]]
    assert store.list() == [refs[1], refs[4], refs[5]]
    assert {path.name for path in store.path.iterdir()} == {ref.name for ref in (refs[1], refs[4], refs[5])}


def test_prune_deletes_damaged_directories_only_below_the_kept_ones(store: PolicyStore) -> None:
    refs = [publish(store, step) for step in range(4)]
    for damaged in (refs[0], refs[3]):
        (damaged.path / "model.safetensors").write_bytes(b"")
    store.prune(keep=2)
    assert {path.name for path in store.path.iterdir()} == {ref.name for ref in refs[1:]}


def test_prune_spares_what_a_disk_did_not_give_for_a_moment(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [publish(store, step) for step in range(4)]
    real = os.open

    def flaky(path: str | Path, *arguments: int, **options: int) -> int:
        if str(path) == str(refs[0].path / "manifest.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", flaky)
        store.prune(keep=2)
    assert store.list() == [refs[0], *refs[2:]]


def test_sweep_spares_what_a_living_reader_downloads(store: PolicyStore) -> None:
    publish(store, 1)
    with download_directory(store.path, StepName(step=1, fence=1)) as room:
        assert store.sweep(fence=9) == []
        assert room.is_dir()
    dead = store.path / f".get-{StepName(step=1, fence=1)}-0123456789abcdef"
    dead.mkdir()
    assert store.sweep(fence=9) == [dead.name]


def test_best_policy_is_the_one_that_was_measured_and_not_another_of_its_step(
    store: PolicyStore, tmp_path: Path
) -> None:
    measured, again = publish(store, 3, fence=1), publish(store, 3, fence=2)
    results = tmp_path / "results.jsonl"
    mean = Estimate(value=0.5, low=0.4, high=0.6)
    result = EvalResult(
        eval="sums",
        policy_step=3,
        policy_fence=1,
        last_policy_step=3,
        prompts=4,
        samples=1,
        mean=mean,
        pass_at={1: mean},
    )
    results.write_text(json.dumps(result.to_dict()) + "\n")
    parser = ArgumentParser()
    add_choice_flags(parser, needs_run=True)
    arguments = parser.parse_args(
        ["--run", "run", "--checkpoint-root", str(tmp_path), "--results", str(results)]
    )
    assert choose("best", arguments).ref == measured
    assert choose("3", arguments).ref == again
    store.prune(keep=1)
    with pytest.raises(errors.BadSetting, match="which sums likes best"):
        choose("best", arguments)
