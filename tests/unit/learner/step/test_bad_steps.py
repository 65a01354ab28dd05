"""Steps that cannot go as planned: what memory or producers do to them, and what is left afterwards."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.errors import StepTooLarge
from asympo.common.rollout_log import LogEntry
from asympo.learner.log.segment import SegmentReader
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse
from asympo.learner.model.policy import Policy, ResponseNll, load_model
from asympo.learner.step import memory
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.step import RowLimits, Stepper
from asympo.v1 import rollout_pb2
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

from tests.unit.learner.test_segment import SIGNAL, ListLog, group_reader, make_entry

CPU = torch.device("cpu")


class SmallMemory(Policy):
    """Fails as torch does where a row or a chunk of logits is larger than there is memory for."""

    max_tokens = 10_000
    max_chunk_rows = 10_000

    def response_nll(self, batch: PackedBatch) -> ResponseNll:
        nll = super().response_nll(batch)
        if batch.num_tokens > self.max_tokens or self.chunk_rows > self.max_chunk_rows:
            torch.empty(1 << 58, dtype=torch.uint8)
        return nll


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    return load_model(tiny_model, dtype=torch.float32, device=CPU)


@pytest.fixture
def make(loaded: Any) -> Callable[..., tuple[Stepper, SmallMemory]]:
    def made(
        *, token_budget: int = 1000, chunk_rows: int = 64, rows: RowLimits | None = None
    ) -> tuple[Stepper, SmallMemory]:
        model = copy.deepcopy(loaded).eval()
        policy = SmallMemory(model=model, compute_dtype=torch.float32, chunk_rows=chunk_rows)
        stepper = Stepper(
            policy=policy,
            optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
            objective=OBJECTIVES["asympo"],
            options=ObjectiveOptions(),
            learning_rate=lambda step: 1e-3,
            max_grad_norm=1.0,
            token_budget=token_budget,
            share_prefixes=True,
            rows=rows,
        )
        return stepper, policy

    return made


def groups(*lengths: int) -> list[TrainedGroup]:
    """Two responses each, of the lengths given."""
    return [
        TrainedGroup(
            prompt_ids=(1, 2, 3 + n),
            responses=tuple(
                TrainedResponse(token_ids=tuple((n + i * k) % 500 for i in range(length)), advantage=0.5 * k)
                for k in (-1, 1)
            ),
        )
        for n, length in enumerate(lengths)
    ]


def train(stepper: Stepper, given: list[TrainedGroup], *, step: int = 1) -> Any:
    scope = StepScope(num_responses=2 * len(given), num_groups=len(given), num_groups_without_signal=0)
    return stepper.train(given, scope, step=step)


def weights(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in policy.model.parameters()]


def test_step_that_runs_out_of_memory_is_done_again_in_smaller_rows(make: Any) -> None:
    given = groups(20, 20, 20, 20)
    stepper, policy = make()
    policy.max_tokens = 60
    assert train(stepper, given).is_applied
    used = stepper.row_limits
    assert used[0] < 100
    other, expected = make(token_budget=used[0])
    train(other, given)
    assert all(map(torch.equal, weights(policy), weights(expected)))


def test_rows_of_a_long_shared_prompt_shrink_to_single_responses(make: Any) -> None:
    tokens = range(1, 31)
    responses = [TrainedResponse(token_ids=(k, *range(100, 109)), advantage=k - 1.5) for k in range(4)]
    given = [TrainedGroup(prompt_ids=tuple(tokens), responses=tuple(responses))]
    stepper, policy = make(token_budget=50)
    policy.max_tokens = 39
    assert train(stepper, given).is_applied
    assert stepper.row_limits == (1, 64)


class Reads(TorchDispatchMode):
    """Notes when a number is read from a tensor, which on a GPU waits for all that was queued."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.events.append("read")
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_before_the_last_row(make: Any) -> None:
    stepper, policy = make(token_budget=25)
    response_nll, reads = policy.response_nll, Reads()

    def noted(batch: PackedBatch) -> ResponseNll:
        reads.events.append("row")
        return response_nll(batch)

    policy.response_nll = noted
    with reads:
        train(stepper, groups(20, 20, 20))
    first_read = reads.events.index("read")
    assert reads.events[:first_read].count("row") == reads.events.count("row") == 6


def test_logits_come_in_smaller_chunks_when_rows_cannot_shrink(make: Any) -> None:
    stepper, policy = make(token_budget=1)
    policy.max_chunk_rows = 16
    assert train(stepper, groups(20)).is_applied
    assert stepper.row_limits == (1, 16)


class NotedLimits:
    """Row limits of a run of which memory ran out before in step 3."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, tuple[int, int]]] = []

    def row_limits(self, step: int) -> tuple[int, int]:
        return (1000, 64) if step < 3 else (70, 64)

    def rows_made_smaller(self, limits: tuple[int, int], *, step: int) -> None:
        self.noted.append((step, limits))


def test_every_step_has_the_limits_that_are_known_for_it(make: Any) -> None:
    rows = NotedLimits()
    stepper, policy = make(rows=rows)
    given = groups(20, 20, 20, 20)
    for step, expected in ((3, 70), (2, 1000), (4, 70)):
        train(stepper, given, step=step)
        assert stepper.row_limits == (expected, 64)
    assert rows.noted == []
    policy.max_tokens = 25
    train(stepper, given, step=5)
    assert rows.noted == [(5, stepper.row_limits)]
    assert stepper.row_limits[0] < 70


def test_step_that_never_fits_is_refused_by_name_and_leaves_no_trace(make: Any) -> None:
    stepper, policy = make()
    before = weights(policy)
    policy.max_tokens = 10
    with pytest.raises(StepTooLarge, match="a smaller max_row_tokens, which sets groups"):
        train(stepper, groups(20, 30))
    assert all(map(torch.equal, weights(policy), before))
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    policy.max_tokens = 10_000
    assert train(stepper, groups(20, 30)).is_applied


def test_optimizer_that_does_not_fit_says_how_much_it_takes(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper, policy = make()
    num_bytes = sum(4 * parameter.nbytes for parameter in policy.model.parameters())
    monkeypatch.setattr(memory, "_GIB", num_bytes)
    monkeypatch.setattr(stepper._optimizer, "step", lambda: torch.empty(1 << 58, dtype=torch.uint8))
    with pytest.raises(StepTooLarge, match=r"can't allocate .* gradients and momenta take 1\.0 GiB over all"):
        train(stepper, groups(5))


def test_other_runtime_errors_pass_through(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, policy = make()

    def broken(batch: PackedBatch) -> ResponseNll:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(policy, "response_nll", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train(stepper, groups(5))


def test_group_larger_than_the_budget_is_trained_in_parts(make: Any) -> None:
    stepper, policy = make(token_budget=40)
    other, expected = make(token_budget=10_000)
    results = [train(each, groups(60, 5)) for each in (stepper, other)]
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)
    for ours, theirs in zip(weights(policy), weights(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)


def _entry(sequence: int, spoil: Callable[[Any], None] = lambda response: None) -> LogEntry:
    """A group whose second response is not as it should be; written past the checks of our own encoder."""
    entry = make_entry(sequence, SIGNAL)
    message = rollout_pb2.RolloutGroup.FromString(entry.payload)
    spoil(message.responses[1])
    return replace(entry, payload=message.SerializeToString())


def _has_nan(response: Any) -> None:
    response.reward = float("nan")


def _has_ids(*token_ids: int) -> Callable[[Any], None]:
    def spoil(response: Any) -> None:
        del response.token_ids[:]
        response.token_ids.extend(token_ids)

    return spoil


def test_step_goes_on_past_every_kind_of_bad_group(tiny_model: Path, make: Any) -> None:
    """Bad entries between two good ones: each is named, and the step is that of the good ones alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    entries = [
        _entry(1),
        _entry(2, _has_ids(7, 512)),
        _entry(3, _has_nan),
        _entry(4, _has_ids()),
        make_entry(5, (1.0, 1.0)),
        _entry(6, _has_ids(*range(120))),
        _entry(7, _has_ids(*range(60))),
    ]
    log = ListLog(entries)
    reader = SegmentReader(
        log=log, group_reader=group_reader(tokenizer), groups_per_step=2, max_groups_per_step=20
    )
    segment = reader.poll(block_seconds=0.0)
    assert segment is not None
    reasons = dict(log.dead)
    assert sorted(reasons) == [2, 3, 4, 6]
    assert "512" in reasons[2]
    assert "reward" in reasons[3]
    assert "token" in reasons[4]
    assert "the model takes 64" in reasons[6]
    assert [group.sequence for group in segment.groups] == [1, 5, 7]
    stepper, policy = make(token_budget=32)
    result = stepper.step(segment, step=1)
    assert result.is_applied
    assert result.num_trained_tokens == 2 + 2 + 2 + 60
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(policy))
