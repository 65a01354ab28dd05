"""Policies that are adapters: small on storage, merged bit for bit, and refused wherever something is off."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asympo.common.checkpoints import Manifest, PolicyRef, PolicyStore
from asympo.common.checkpoints.digests import tensor_spans
from asympo.common.checkpoints.merge import merged_entries, write_merged
from asympo.common.checkpoints.names import StepName
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import read_manifest
from asympo.common.errors import CorruptCheckpoint
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import Weights, named_weights
from asympo.learner.publish.adapter_writer import AdapterWriter
from asympo.tasks.tokenizer import load_tokenizer
from asympo.testing.tiny_model import write_tiny_model
from safetensors.torch import load_file, save_file

from tests.unit.learner.adapters.test_lora import adapted

CPU = torch.device("cpu")
ADAPTER, WEIGHTS = "adapter_model.safetensors", "model.safetensors"


def writer_for(policy: Policy, model: Path, root: Path) -> AdapterWriter:
    return AdapterWriter(
        store=open_policies(root, "run"),
        policy=policy,
        model=str(model),
        tokenizer=load_tokenizer(str(model)),
        tolerance=0.05,
        keep=2,
    )


def move(policy: Policy, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in named_weights(policy.model).values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))


def publish(writer: AdapterWriter, policy: Policy, *, step: int) -> PolicyRef:
    return writer.write(writer.prepare(Weights(model=policy.model, ranks=None), step=step, fence=1))


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> tuple[Policy, AdapterWriter, PolicyStore]:
    """The base as step 0, adapters as steps 1 and 2."""
    policy = adapted(tiny_model, noise=0.0)
    writer = writer_for(policy, tiny_model, tmp_path)
    for step in range(3):
        publish(writer, policy, step=step)
        move(policy, seed=step)
    return policy, writer, open_policies(tmp_path, "run")


def merged_by_hand(base: torch.Tensor, adapter: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    module = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = adapter[f"{module}.lora_A.weight"].float(), adapter[f"{module}.lora_B.weight"].float()
    total = b[:, :1] * a[0]
    for k in range(1, len(a)):
        total = total + b[:, k : k + 1] * a[k]
    return (base.float() + total * torch.tensor(5 / 3, dtype=torch.float32)).bfloat16()


def test_reader_has_the_stated_sum_bit_for_bit_from_a_small_directory(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    _, _, store = run
    first, _, last = store.list()
    manifest = store.verify(last)

    assert (manifest.kind, manifest.base and manifest.base.name) == ("adapter", first.name)
    assert {entry.name for entry in manifest.files} == {ADAPTER, "adapter_config.json"}
    base, whole = load_file(first.path / WEIGHTS), load_file(last.path / WEIGHTS)
    adapter = load_file(store.path / last.name / ADAPTER)
    changed = {name for name in base if f"base_model.model.{name[:-7]}.lora_A.weight" in adapter}
    assert len(changed) == 2 * 7
    for name, value in base.items():
        assert torch.equal(whole[name], merged_by_hand(value, adapter, name) if name in changed else value)
        assert (name in changed) != torch.equal(whole[name], value)


def test_merged_policy_answers_as_the_trained_one(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    policy, writer, store = run
    publish(writer, policy, step=3)
    ref = store.list()[-1]
    manifest = store.verify(ref)
    model = load_model(ref.path, dtype=torch.float32, device=CPU)
    texts = [
        (each.token_ids[: each.num_prompt_tokens], each.token_ids[each.num_prompt_tokens :])
        for each in manifest.probe.sequences
    ]
    served = Policy(model=model, compute_dtype=torch.float32).mean_nlls(texts)
    assert served == pytest.approx([each.mean_nll for each in manifest.probe.sequences], abs=1e-4)


def test_adapter_is_recognised_after_a_restart_and_its_base_is_never_pruned(
    run: tuple[Policy, AdapterWriter, PolicyStore], tiny_model: Path, tmp_path: Path
) -> None:
    policy, writer, store = run
    ref = publish(writer, policy, step=3)
    again = writer_for(policy, tiny_model, tmp_path)
    adopted = again.adopt_newest()
    assert adopted is not None
    assert adopted.digest == ref.digest
    weights = Weights(model=policy.model, ranks=None)
    assert again.is_published(weights)
    move(policy, seed=9)
    assert not again.is_published(weights)

    again.prune(is_in_use=lambda ref: False)
    assert [each.step for each in store.list()] == [0, 2, 3]
    following = again.write(again.prepare(weights, step=4, fence=2))
    assert store.load_manifest(following).base == store.load_manifest(ref).base


def test_adapter_of_another_scale_is_not_the_one_that_is_published(
    run: tuple[Policy, AdapterWriter, PolicyStore], tiny_model: Path, tmp_path: Path
) -> None:
    policy, writer, store = run
    ref = publish(writer, policy, step=3)
    stronger = adapted(tiny_model, alpha=6)
    values = named_weights(policy.model)
    with torch.no_grad():
        for name, value in named_weights(stronger.model).items():
            value.copy_(values[name])
    again = writer_for(stronger, tiny_model, tmp_path)
    assert again.adopt_newest() is None
    weights = Weights(model=stronger.model, ranks=None)
    assert not again.is_published(weights)
    following = again.write(again.prepare(weights, step=3, fence=2))
    assert store.load_manifest(following).base == store.load_manifest(ref).base


def lose_the_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()


def add_a_note(base: Path) -> None:
    (base / "README.md").write_text("Merges as before, and is not the policy that was published.")


@pytest.mark.parametrize("damage", [shutil.rmtree, lose_the_tokenizer, add_a_note])
def test_base_that_is_gone_or_another_is_published_again(
    run: tuple[Policy, AdapterWriter, PolicyStore],
    tmp_path: Path,
    tiny_model: Path,
    damage: Callable[[Path], None],
) -> None:
    policy, _, store = run
    damage(store.list()[0].path)
    writer = writer_for(policy, tiny_model, tmp_path)
    assert writer.adopt_newest() is None
    ref = writer.write(writer.prepare(Weights(model=policy.model, ranks=None), step=2, fence=2))
    assert store.verify(ref).base is not None
    assert [(each.step, each.fence) for each in store.list()][-2:] == [(0, 2), (2, 2)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def other_base(base: Path) -> None:
    """Another sealed policy under the name of the base."""
    elsewhere = base.parents[2] / "elsewhere"
    model = write_tiny_model(base.parents[2] / "other", seed=7)
    policy = adapted(model, noise=0.0)
    made = publish(writer_for(policy, model, elsewhere), policy, step=0)
    shutil.rmtree(base)
    shutil.copytree(made.path, base)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated adapter": (lambda base, adapter: os.truncate(adapter / ADAPTER, 100), "has 100 bytes"),
    "missing adapter": (lambda base, adapter: (adapter / ADAPTER).unlink(), "is missing"),
    "flipped adapter": (lambda base, adapter: flip(adapter / ADAPTER), "does not match the digest"),
    "flipped config": (
        lambda base, adapter: flip(adapter / "adapter_config.json"),
        "does not match the digest",
    ),
    "extra file": (lambda base, adapter: shutil.copy(base / WEIGHTS, adapter), "not listed"),
    "base is gone": (lambda base, adapter: shutil.rmtree(base), "the base of .* cannot be had"),
    "base lost its weights": (lambda base, adapter: (base / WEIGHTS).unlink(), "lacks|cannot be read"),
    "flipped base": (lambda base, adapter: flip(base / WEIGHTS), "the base has changed"),
    "truncated base": (lambda base, adapter: os.truncate(base / WEIGHTS, 5000), "has overlapping|holds 5000"),
    "flipped tokenizer": (lambda base, adapter: flip(base / "tokenizer.json"), "does not match the digest"),
    "another base": (lambda base, adapter: other_base(base), "is an adapter for another base"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_a_sentence_and_the_policy_before_is_found(
    run: tuple[Policy, AdapterWriter, PolicyStore], damage: str
) -> None:
    _, _, store = run
    base, before, last = store.list()
    act, said = DAMAGES[damage]
    act(base.path, store.path / last.name)
    with pytest.raises((CorruptCheckpoint, OSError)) as caught:
        store.verify(last)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    if "base" not in damage and "tokenizer" not in damage:
        found = store.newest(with_digests=True)
        assert found is not None
        assert found.step == before.step


def test_adapter_for_a_base_that_changed_since_is_not_published_before_that_is_brought_again(
    run: tuple[Policy, AdapterWriter, PolicyStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers merge what is there, and would find the digests of the damaged base right."""
    policy, writer, store = run
    file = store.list()[0].path / WEIGHTS
    place = next(each.span.offset for each in tensor_spans(file) if each.name.endswith("up_proj.weight"))
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=r"up_proj\.weight in .* is not what the manifest says"):
        publish(writer, policy, step=3)
    assert [ref.step for ref in store.list()] == [0, 1, 2]

    verify = writer._store._steps.verify

    def brought_again(name: StepName) -> Manifest:
        content[place] ^= 0x10
        file.write_bytes(content)
        return verify(name)

    monkeypatch.setattr(writer._store._steps, "verify", brought_again)
    publish(writer, policy, step=3)
    assert [ref.step for ref in store.list()] == [0, 1, 2, 3]


def test_adapter_for_what_its_base_has_not_is_refused(
    run: tuple[Policy, AdapterWriter, PolicyStore], tmp_path: Path
) -> None:
    _, _, store = run
    base, _, last = store.list()
    files = tmp_path / "files"
    shutil.copytree(store.path / last.name, files)
    held = load_file(files / ADAPTER)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    for side in "AB":
        held[name.format(side).replace("up_proj", "other")] = held[name.format(side)].clone()
    save_file(held, files / ADAPTER)
    manifest, said = read_manifest(base.path, POLICIES), r"for model\.layers\.0\.mlp\.other\.weight, which"
    with pytest.raises(CorruptCheckpoint, match=said):
        merged_entries(base.path, manifest, files)
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptCheckpoint, match=said):
        write_merged(base.path, manifest, files, store.load_manifest(last), tmp_path / "out")


def test_adapter_that_says_another_scale_than_its_manifest_is_refused(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    """Whoever can write the manifest as well still cannot make the merge another one unnoticed."""
    _, _, store = run
    base, _, last = store.list()
    manifest = store.load_manifest(last)
    config = store.path / last.name / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 6}))
    out = store.path.parent / "out"
    out.mkdir()
    with pytest.raises(CorruptCheckpoint, match="is not what the manifest says"):
        write_merged(base.path, store.load_manifest(base), store.path / last.name, manifest, out)


def test_policy_that_was_merged_last_stays_when_the_clock_steps_back(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    policy, writer, store = run
    for ref in store.list()[1:]:
        store.verify(ref)
        future = time.time_ns() + 10**12
        os.utime(ref.path, ns=(future, future))
    last = publish(writer, policy, step=3)
    store.verify(last)
    assert store.list()[-1].path.is_dir()


def test_policy_that_is_served_makes_no_room_for_those_that_come(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    policy, writer, store = run
    _, served, skipped = store.list()
    last = publish(writer, policy, step=3)
    store.verify(served)
    for ref in (skipped, last):
        store.verify(ref, served=served)
    last = store.list()[-1]
    assert [ref.path.is_dir() for ref in (served, skipped, last)] == [True, False, True]


def test_room_of_a_process_that_was_killed_is_cleared_by_the_next(
    run: tuple[Policy, AdapterWriter, PolicyStore],
) -> None:
    _, _, store = run
    last = store.list()[-1]
    shared = last.path.parent.parent
    left = shared / "left"
    left.mkdir()
    (left / "file").touch()
    store.verify(last)
    assert open_policies(store.path.parents[1], "run").list()[-1].path.parent.parent == shared
    assert not left.exists()
    assert last.path.exists()
