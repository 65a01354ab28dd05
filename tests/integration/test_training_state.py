import os
import sys
from pathlib import Path

import pytest
import torch
from asympo.common import errors
from asympo.common.rollout_log import CommitRecord, KnownRun
from asympo.learner.state import tensors as state_tensors
from asympo.learner.state.open import open_states
from asympo.learner.state.saver import find_state
from asympo.learner.state.store import StateStore, TrainingState
from asympo.learner.step.optimizer import OptimizerName, make_optimizer
from torch import nn

from tests.forked import ForkedPython
from tests.integration.test_checkpoint_faults import max_file_bytes


class Tied(nn.Module):
    """A tiny language model with dropout, a buffer and tied weights."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.hidden = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.head(self.norm(self.hidden(nn.functional.dropout(self.embedding(ids), 0.2))))


def build(seed: int = 0, *, name: OptimizerName = "adamw") -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    return model, optimizer_of(model, name)


def optimizer_of(model: Tied, name: OptimizerName = "adamw") -> torch.optim.Optimizer:
    return make_optimizer(model, learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, name=name)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for _ in range(num_steps):
        ids = torch.randint(0, 32, (4, 6))
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def state(step: int = 3, fence: int = 1, sequence: int = 30) -> TrainingState:
    return TrainingState(
        step=step,
        fence=fence,
        sequence=sequence,
        trained_ids=b"\x00bitmap",
        decisions={"attention": "sdpa", "pack_tokens": 1024},
        settings={"schedule": "cosine", "total_steps": 7, "learning_rate": 1e-5, "max_row_tokens": None},
        counters={"tokens_trained": 12345, "seconds": 0.1},
        run=KnownRun(run_id=f"of {step}", server_id="s", config_digest="c"),
    )


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return open_states(tmp_path, "run")


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("num_steps_before", [0, 5])
def test_training_continues_bit_for_bit_when_loaded(
    store: StateStore, num_steps_before: int, name: OptimizerName
) -> None:
    model, optimizer = build(name=name)
    train(model, optimizer, num_steps_before)
    saved = store.save(state(), model=model, optimizer=optimizer)
    train(model, optimizer, 7)

    other, other_optimizer = build(seed=1, name=name)
    train(other, other_optimizer, 2)
    loaded = store.load(saved, model=other, optimizer=other_optimizer)
    assert loaded == state() == store.read(saved)
    assert other.head.weight is other.embedding.weight
    train(other, other_optimizer, 7)
    assert_same(model.state_dict(), other.state_dict())
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert_same(optimizer.state[left], other_optimizer.state[right])


def test_saving_changes_nothing_in_training(store: StateStore) -> None:
    saved, saved_optimizer = build()
    for step in range(3):
        train(saved, saved_optimizer, 1)
        store.save(state(step=step), model=saved, optimizer=saved_optimizer)
    alone, alone_optimizer = build()
    train(alone, alone_optimizer, 3)
    assert_same(saved.state_dict(), alone.state_dict())


def test_state_holds_tied_weights_once_and_no_pickle(store: StateStore) -> None:
    from safetensors import safe_open

    model, optimizer = build()
    train(model, optimizer, 1)
    path = store.path / store.save(state(), model=model, optimizer=optimizer)
    assert {file.name for file in path.iterdir()} == {
        "manifest.json",
        "rank-00000.safetensors",
        "trained_ids.bin",
    }
    with safe_open(path / "rank-00000.safetensors", framework="pt") as file:
        assert "model.embedding.weight" in file.keys()  # noqa: SIM118 (the file is no mapping)
        assert "model.head.weight" not in file.keys()  # noqa: SIM118
        assert torch.equal(file.get_tensor("model.embedding.weight"), model.embedding.weight)


def test_newest_goes_by_fence_then_step_then_cursor(store: StateStore) -> None:
    model, optimizer = build()
    store.save(state(step=9, fence=1), model=model, optimizer=optimizer)
    store.save(state(step=4, fence=2, sequence=40), model=model, optimizer=optimizer)
    assert store.newest_run() == state(step=4).run
    newest = store.save(state(step=4, fence=2, sequence=44), model=model, optimizer=optimizer)
    assert store.newest() == newest
    assert store.save(state(step=4, fence=2, sequence=44), model=model, optimizer=optimizer) == newest
    with pytest.raises(errors.Fenced, match="fence 2"):
        store.save(state(step=10, fence=1), model=model, optimizer=optimizer)


def test_prune_spares_the_committed_state(store: StateStore) -> None:
    model, optimizer = build()
    names = [store.save(state(step=step), model=model, optimizer=optimizer) for step in range(5)]
    assert store.prune(keep=2, needed={names[1]}) == [names[0], names[2]]
    assert store.names() == [names[1], names[3], names[4]]


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "trained_ids.bin", "manifest.json"])
def test_load_changes_nothing_when_a_byte_is_flipped(store: StateStore, file: str) -> None:
    model, optimizer = build()
    train(model, optimizer, 1)
    name = store.save(state(), model=model, optimizer=optimizer)
    content = bytearray((store.path / name / file).read_bytes())
    content[len(content) // 2] ^= 0x01
    (store.path / name / file).write_bytes(content)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(errors.CorruptCheckpoint):
        store.load(name, model=model, optimizer=optimizer)
    assert_same(before, model.state_dict())


def test_torn_state_is_passed_over(store: StateStore) -> None:
    model, optimizer = build()
    good = store.save(state(step=1), model=model, optimizer=optimizer)
    torn = store.save(state(step=2), model=model, optimizer=optimizer)
    os.truncate(store.path / torn / "rank-00000.safetensors", 50)
    assert store.newest() == good
    assert store.save(state(step=2), model=model, optimizer=optimizer) == torn, "a damaged one is replaced"
    assert store.newest() == torn


def test_save_fails_in_one_sentence_and_cleans_up_when_the_disk_is_full(store: StateStore) -> None:
    model, optimizer = build()
    name = store.save(state(step=1), model=model, optimizer=optimizer)
    with (
        max_file_bytes(4096),
        pytest.raises(errors.PublishFailed, match=r"training state of step 2 does not fit"),
    ):
        store.save(state(step=2), model=model, optimizer=optimizer)
    assert [path.name for path in store.path.iterdir()] == [name]


def test_load_refuses_the_state_of_another_model(store: StateStore) -> None:
    model, optimizer = build()
    name = store.save(state(), model=model, optimizer=optimizer)
    other = Tied()
    other.norm = nn.LayerNorm(8, elementwise_affine=False)
    with pytest.raises(errors.BadSetting, match="of other parameters than are trained here"):
        store.load(name, model=other, optimizer=torch.optim.AdamW(other.parameters()))


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_load_refuses_the_state_of_another_optimizer_by_name(
    store: StateStore, before: OptimizerName, now: OptimizerName
) -> None:
    model, optimizer = build(name=before)
    train(model, optimizer, 1)
    saved = store.save(state(), model=model, optimizer=optimizer)
    model, optimizer = build(name=now)
    with pytest.raises(errors.BadSetting, match=f"of the optimizer {before}, and the settings say {now}"):
        store.load(saved, model=model, optimizer=optimizer)


def test_load_accepts_groups_without_the_name_of_an_optimizer(store: StateStore) -> None:
    model, optimizer = build()
    for group in optimizer.param_groups:
        del group["optimizer"]  # as saved when there was AdamW alone
    train(model, optimizer, 2)
    saved = store.save(state(), model=model, optimizer=optimizer)
    other, other_optimizer = build(seed=1)
    store.load(saved, model=other, optimizer=other_optimizer)
    train(model, optimizer, 2)
    store.load(saved, model=other, optimizer=other_optimizer)
    train(other, other_optimizer, 2)
    assert_same(model.state_dict(), other.state_dict())


def test_load_says_it_when_memory_has_no_room_for_the_optimizer(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = build()
    train(model, optimizer, 1)
    saved = store.save(state(), model=model, optimizer=optimizer)
    monkeypatch.setattr(
        state_tensors, "_allocate", lambda *_: torch.empty(1 << 58, dtype=torch.uint8, device="cpu")
    )
    with pytest.raises(errors.StepTooLarge, match="the optimizer does not fit into memory"):
        store.load(saved, model=model, optimizer=optimizer_of(model))


def test_load_keeps_the_given_hyperparameters(store: StateStore) -> None:
    model, optimizer = build()
    train(model, optimizer, 1)
    saved = store.save(state(), model=model, optimizer=optimizer)
    other = make_optimizer(model, learning_rate=1e-2, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.3)
    store.load(saved, model=model, optimizer=other)
    assert [group["weight_decay"] for group in other.param_groups] == [0.3, 0.0]
    assert [group["betas"] for group in other.param_groups] == [(0.8, 0.95)] * 2


SHARDED = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import torch.distributed.tensor
from tests.integration.test_training_state import open_states, build, optimizer_of, state, train

meeting = f"file://{sys.argv[1]}/meeting"
dist.init_process_group("gloo", init_method=meeting, rank=int(sys.argv[2]), world_size=2)

# Muon on sharded matrices is Muon on whole ones; its iteration rounds to bfloat16 in another order.
whole, whole_optimizer = build(name="muon")
gradients = [torch.randn(parameter.shape) for parameter in whole.parameters()]
cut, _ = build(name="muon")
fully_shard(cut)
cut_optimizer = optimizer_of(cut, "muon")
for one, other, gradient in zip(whole.parameters(), cut.parameters(), gradients, strict=True):
    one.grad = gradient
    other.grad = torch.distributed.tensor.distribute_tensor(gradient, other.device_mesh, other.placements)
whole_optimizer.step()
cut_optimizer.step()
for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
    torch.testing.assert_close(other.data.full_tensor(), one.data, rtol=0, atol=5e-4)

for name in ("adamw", "muon"):
    model, _ = build()
    fully_shard(model)
    optimizer = optimizer_of(model, name)
    train(model, optimizer, 2)
    store = open_states(Path(sys.argv[1]), name)
    saved = store.save(state(), model=model, optimizer=optimizer)
    train(model, optimizer, 2)
    other, _ = build(seed=5)
    fully_shard(other)
    other_optimizer = optimizer_of(other, name)
    store.load(saved, model=other, optimizer=other_optimizer)
    train(other, other_optimizer, 2)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left.to_local(), right.to_local()), name
dist.destroy_process_group()
"""


def test_sharded_state_continues_bit_for_bit_and_loads_in_one_process(tmp_path: Path) -> None:
    command, log = [sys.executable, "-c", SHARDED, str(tmp_path)], tmp_path / "ranks.log"
    ranks = [ForkedPython([*command, str(rank)], output=log, errors=log, environment={}) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0], log.read_text()
    for name in ("adamw", "muon"):
        store = open_states(tmp_path, name)
        path = store.path / (store.newest() or "")
        assert len(list(path.glob("rank-*.safetensors"))) == 2
        model, optimizer = build(seed=9, name=name)
        assert store.load(path.name, model=model, optimizer=optimizer) == state()
        train(model, optimizer, 1)


def flip_a_bit(path: Path) -> None:
    """Damage that no size shows."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def committed(name: str, *, step: int = 3, fence: int = 1, sequence: int = 30) -> CommitRecord:
    return CommitRecord(sequence=sequence, state_name=name, step=step, fence=fence)


def test_state_that_covers_more_than_the_commit_is_resumed_from(store: StateStore) -> None:
    model, optimizer = build()
    first, second = (
        store.save(state(step, 1, 10 * step), model=model, optimizer=optimizer) for step in (3, 4)
    )
    found = find_state(store, commit=committed(first))
    assert found is not None
    assert found[0] == second
    newest = find_state(store, commit=None)
    assert newest is not None
    assert newest[0] == second


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "trained_ids.bin", "manifest.json"])
def test_damaged_state_that_nobody_committed_is_passed_over(store: StateStore, file: str) -> None:
    model, optimizer = build()
    first, second = (
        store.save(state(step, 1, 10 * step), model=model, optimizer=optimizer) for step in (3, 4)
    )
    flip_a_bit(store.path / second / file)
    for commit in (committed(first), None):
        found = find_state(store, commit=commit)
        assert found is not None
        assert found[0] == first


def test_state_of_a_superseded_learner_does_not_replace_the_committed_one(store: StateStore) -> None:
    model, optimizer = build()
    store.save(state(5, 1, 50), model=model, optimizer=optimizer)
    first = store.save(state(3, 2, 30), model=model, optimizer=optimizer)
    second = store.save(state(4, 2, 40), model=model, optimizer=optimizer)
    flip_a_bit(store.path / second / "rank-00000.safetensors")
    found = find_state(store, commit=committed(first, fence=2))
    assert found is not None
    assert found[0] == first
