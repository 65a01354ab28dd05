"""Packed, shared, chunked: same numbers and gradients as one sequence at a time through the whole model."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.records import ResponseSegment
from asympo.learner.model.batching import TrainedGroup, TrainedResponse, collate, num_input_tokens, pack
from asympo.learner.model.check import check_weights
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.fused import fuse, is_fused, unfused
from asympo.learner.model.nll import HeadOptions, chunk_bounds, token_nll
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.step.objectives import ObjectiveOptions, StepScope, asympo

CPU = torch.device("cpu")


def make_groups(
    num_groups: int, *, seed: int = 0, max_response: int = 9, vocabulary: int = 40
) -> list[TrainedGroup]:
    rng = random.Random(seed)
    system = [rng.randrange(vocabulary) for _ in range(5)]
    groups = []
    for _ in range(num_groups):
        prompt = [*system, *(rng.randrange(vocabulary) for _ in range(rng.randint(1, 6)))]
        answers = [[rng.randrange(3) for _ in range(rng.randint(1, max_response))] for _ in range(3)]
        answers.append(answers[0])
        responses = [TrainedResponse(token_ids=tuple(a), advantage=rng.uniform(-1, 1)) for a in answers]
        responses.append(
            TrainedResponse(token_ids=(1, 2, 3), advantage=0.5, trained_token_mask=(False, True, False))
        )
        groups.append(TrainedGroup(prompt_ids=tuple(prompt), responses=tuple(responses)))
    return groups


def widen_norms(model: torch.nn.Module) -> None:
    """Float64 throughout: transformers' own norm rounds to float32, which would hide small errors."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            norm.variance_epsilon = module.variance_epsilon
            model.set_submodule(name, norm)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from more, and threads that spin for each other stall on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    model = load_model(tiny_model, dtype=torch.float64, device=CPU)
    widen_norms(model)
    fuse(model)
    assert sum(is_fused(module) for module in model.modules()) == 2 * 3 + 1
    return Policy(model=model, compute_dtype=torch.float64, chunk_rows=7)


def gradients(
    policy: Policy, groups: list[TrainedGroup], *, budget: int, share: bool
) -> tuple[float, list[torch.Tensor]]:
    policy.model.zero_grad()
    total = 0.0
    count = sum(len(group.responses) for group in groups)
    scope = StepScope(num_responses=count, num_groups=len(groups), num_groups_without_signal=0)
    for batch in pack(groups, token_budget=budget, share_prefixes=share):
        mean_nll = policy.response_nll(batch).mean_nll_R
        advantage = torch.tensor(batch.advantage_R, dtype=torch.float64)
        loss, _ = asympo(mean_nll, advantage, scope, ObjectiveOptions())
        loss.backward()
        total += float(mean_nll.detach().sum())
    return total, [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


def reference(policy: Policy, groups: list[TrainedGroup]) -> tuple[float, list[torch.Tensor]]:
    """One sequence at a time through the model's own forward and full logits."""
    policy.model.zero_grad()
    policy.model.set_attn_implementation("sdpa")
    with unfused(policy.model):
        total, loss = _reference_loss(policy, groups)
        loss.backward()
    policy.model.set_attn_implementation("asympo_packed")
    return total, [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


def _reference_loss(policy: Policy, groups: list[TrainedGroup]) -> tuple[float, torch.Tensor]:
    total, losses = 0.0, []
    count = sum(len(group.responses) for group in groups)
    for group in groups:
        for response in group.responses:
            parts = [_trained_nll(policy, group.prompt_ids, response)]
            parts += [_trained_nll(policy, each.context_ids, each) for each in response.segments]
            mean = torch.cat(parts).mean()
            losses.append(response.advantage * mean / mean.detach() / count)
            total += float(mean.detach())
    return total, torch.stack(losses).sum()


def _trained_nll(
    policy: Policy, context: tuple[int, ...], sequence: TrainedResponse | ResponseSegment
) -> torch.Tensor:
    ids = torch.tensor([context + sequence.token_ids])
    logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(sequence.token_ids), reduction="none")
    return nll[torch.tensor(sequence.trained_token_mask or (True,) * len(nll))]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_packed_gradients_equal_those_of_separate_sequences(policy: Policy, share: bool, budget: int) -> None:
    groups = make_groups(4)
    total, ours = gradients(policy, groups, budget=budget, share=share)
    expected_total, expected = reference(policy, groups)
    assert total == pytest.approx(expected_total, rel=1e-12)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def segmented_groups(num_groups: int) -> list[TrainedGroup]:
    """An agent that summarises, one that forks, and one that does neither, in each group."""
    groups = []
    for group in make_groups(num_groups, seed=3):
        one, two, three, *_ = group.responses
        summary = ResponseSegment(
            context_ids=(*group.prompt_ids[:4], 30, 31, 32),
            token_ids=(5, 6, 7, 8),
            trained_token_mask=(True, False, False, True),
        )
        forks = [
            ResponseSegment(context_ids=group.prompt_ids + two.token_ids[:1], token_ids=(n, 9))
            for n in (1, 2)
        ]
        responses = (
            replace(one, segments=(summary, replace(summary, token_ids=(8, 7, 6, 5)))),
            replace(two, segments=tuple(forks)),
            three,
        )
        groups.append(replace(group, responses=responses))
    return groups


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_segments_of_a_response_share_one_mean_nll_and_its_gradient(
    policy: Policy, share: bool, budget: int
) -> None:
    groups = segmented_groups(3)
    total, ours = gradients(policy, groups, budget=budget, share=share)
    expected_total, expected = reference(policy, groups)
    assert total == pytest.approx(expected_total, rel=1e-12)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_loss_of_a_group_with_segments_sums_to_zero(policy: Policy) -> None:
    (group,) = segmented_groups(1)
    advantages = (0.75, -0.25, -0.5)
    responses = tuple(replace(r, advantage=a) for r, a in zip(group.responses, advantages, strict=True))
    scope = StepScope(num_responses=3, num_groups=1, num_groups_without_signal=0)
    batch = collate([replace(group, responses=responses)], share_prefixes=True)
    mean_nll = policy.response_nll(batch).mean_nll_R
    assert mean_nll.shape == (3,)
    loss, _ = asympo(mean_nll, torch.tensor(batch.advantage_R), scope, ObjectiveOptions())
    assert float(loss.detach()) == 0.0
    assert batch.num_sequences == 7


def test_response_is_never_apart_from_its_segments() -> None:
    groups = segmented_groups(4)
    for share in (True, False):
        batches = pack(groups, token_budget=1, share_prefixes=share)
        assert sorted(batch.num_sequences for batch in batches) == sorted(
            1 + len(response.segments) for group in groups for response in group.responses
        )
    limit = max(r.longest_input(len(g.prompt_ids)) for g in groups for r in g.responses)
    (row,) = pack(groups, token_budget=10_000, share_prefixes=True, alone_above=limit)
    assert len(row.advantage_R) == 12
    with pytest.raises(ValueError, match="several segments cannot be computed one sequence at a time"):
        pack(groups, token_budget=10_000, share_prefixes=True, alone_above=0)


def test_model_as_it_is_never_computes_segments_as_one_sequence(tiny_model: Path) -> None:
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    plain = Policy(
        model=model, compute_dtype=torch.float32, path=ForwardPath(attention="sdpa", alone_above=0)
    )
    group = segmented_groups(1)[0]
    only = replace(group, responses=group.responses[:1])
    with pytest.raises(ValueError, match="3 sequences in a row"):
        plain.response_nll(collate([only], share_prefixes=True))


def test_long_responses_use_small_attention_blocks_and_stay_exact(policy: Policy) -> None:
    groups = make_groups(2, seed=5, max_response=200)
    _, shared = gradients(policy, groups, budget=10_000, share=True)
    _, unshared = gradients(policy, groups, budget=10_000, share=False)
    for mine, theirs in zip(shared, unshared, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_pack_respects_the_budget_and_keeps_every_response() -> None:
    groups = make_groups(20, seed=7)
    for share in (True, False):
        batches = pack(groups, token_budget=64, share_prefixes=share)
        assert all(batch.num_tokens <= 64 for batch in batches)
        assert sum(len(batch.advantage_R) for batch in batches) == sum(len(g.responses) for g in groups)


def test_pack_makes_rows_of_like_size() -> None:
    responses = tuple(TrainedResponse(token_ids=(i, *range(60)), advantage=1.0) for i in range(8))
    groups = [TrainedGroup(prompt_ids=(100 + n,) * 20, responses=responses) for n in range(3)]
    rows = [batch.num_tokens for batch in pack(groups, token_budget=400, share_prefixes=True)]
    assert len(rows) == 6
    assert max(rows) == min(rows) == 20 + 4 * 60


def test_pack_does_not_compute_a_long_prompt_for_each_response() -> None:
    responses = tuple(TrainedResponse(token_ids=(i, 2, 3, 4, 5), advantage=1.0) for i in range(8))
    group = TrainedGroup(prompt_ids=tuple(range(60)), responses=responses)
    (batch,) = pack([group], token_budget=64, share_prefixes=True)
    assert batch.num_tokens == 60 + 8 * 4
    assert len(pack([group], token_budget=64, share_prefixes=False)) == 8


def test_pack_shares_what_groups_have_in_common() -> None:
    groups = make_groups(6)
    (batch,) = pack(groups, token_budget=10_000, share_prefixes=True)
    assert batch.num_tokens < sum(num_input_tokens(group, share_prefixes=True) for group in groups)


def test_pack_gives_an_enormous_response_a_row_of_its_own() -> None:
    long = TrainedGroup(
        prompt_ids=(1,), responses=(TrainedResponse(token_ids=tuple(range(500)), advantage=1.0),)
    )
    batches = pack([*make_groups(2), long], token_budget=64, share_prefixes=True)
    assert sum(batch.num_tokens > 64 for batch in batches) == 1


def test_collate_refuses_what_has_no_mean_nll() -> None:
    empty = TrainedGroup(prompt_ids=(1,), responses=(TrainedResponse(token_ids=(), advantage=1.0),))
    with pytest.raises(ValueError, match="trained token"):
        collate([empty], share_prefixes=True)
    answer = TrainedResponse(token_ids=(1,), advantage=1.0, segments=(ResponseSegment(token_ids=(2,)),))
    with pytest.raises(ValueError, match="without tokens predicts nothing"):
        collate([TrainedGroup(prompt_ids=(1,), responses=(answer,))], share_prefixes=True)
    no_prompt = TrainedGroup(prompt_ids=(), responses=(TrainedResponse(token_ids=(1,), advantage=1.0),))
    with pytest.raises(ValueError, match="prompt"):
        collate([no_prompt], share_prefixes=True)


def test_entropy_is_that_of_the_models_distribution(policy: Policy) -> None:
    group = TrainedGroup(prompt_ids=(1, 2, 3), responses=(TrainedResponse(token_ids=(4,), advantage=1.0),))
    entropy = policy.response_nll(collate([group], share_prefixes=True)).entropy_sum
    policy.model.set_attn_implementation("sdpa")
    logits = policy.model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits[0, -1]
    policy.model.set_attn_implementation("asympo_packed")
    assert float(entropy.detach()) == pytest.approx(
        float(torch.distributions.Categorical(logits=logits.detach()).entropy())
    )


def test_weights_pass_the_check_where_the_policy_computes_rightly(policy: Policy) -> None:
    check_weights(policy)


def test_mean_nlls_score_the_tokens_after_the_prompt(policy: Policy) -> None:
    (nll,) = policy.mean_nlls([((1, 2, 3), (4, 5))])
    total, _ = reference(
        policy,
        [TrainedGroup(prompt_ids=(1, 2, 3), responses=(TrainedResponse(token_ids=(4, 5), advantage=1.0),))],
    )
    assert nll == pytest.approx(total)


@pytest.mark.parametrize("num_kept_rows", [0, 4, 10])
def test_head_is_the_same_however_many_probabilities_are_kept(num_kept_rows: int) -> None:
    torch.manual_seed(0)
    num_rows, vocab_size, chunk_rows = 10, 50, 4
    hidden = torch.randn(num_rows, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab_size, 8, dtype=torch.float64, requires_grad=True)
    row, target = torch.arange(num_rows), torch.randint(vocab_size, (num_rows,))
    coefficient = torch.randn(num_rows, dtype=torch.float64)
    options = HeadOptions(
        chunk_rows=chunk_rows,
        max_kept_bytes=num_kept_rows * vocab_size * weight.itemsize,
        compute_dtype=torch.float64,
    )
    bounds = chunk_bounds(range(num_rows), num_rows=num_rows, chunk_rows=chunk_rows)
    nll, _ = token_nll(hidden, weight, None, row_N=row, target_N=target, token_bounds=bounds, options=options)
    whole = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="none")
    torch.testing.assert_close(nll, whole)
    ours = torch.autograd.grad((coefficient * nll).sum(), (hidden, weight))
    theirs = torch.autograd.grad((coefficient * whole).sum(), (hidden, weight))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("is_watched", [False, True])
def test_head_adds_to_the_gradient_of_earlier_rows_in_place_unless_somebody_watches_it(
    is_watched: bool,
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8, requires_grad=True)
    watched, added = list[torch.Tensor](), list[torch.Tensor]()
    if is_watched:
        weight.register_hook(watched.append)
    adds: Any = weight.view_as(weight).grad_fn
    adds.next_functions[0][0].register_prehook(lambda given: added.extend(filter(torch.is_tensor, given)))
    hidden, row, target = torch.randn(6, 8, requires_grad=True), torch.arange(6), torch.randint(50, (6,))
    bounds = chunk_bounds(range(6), num_rows=6, chunk_rows=4)
    for is_embedding_too in (False, False, True):
        nll, _ = token_nll(
            *(hidden, weight, None),
            row_N=row,
            target_N=target,
            token_bounds=bounds,
            options=HeadOptions(chunk_rows=4),
        )
        (nll.sum() + (weight[target].sum() if is_embedding_too else 0.0)).backward()
    assert (len(watched), len(added)) == ((3, 3) if is_watched else (0, 2))
    weight._backward_hooks = None
    whole = 3 * torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    (expected,) = torch.autograd.grad(whole + weight[target].sum(), weight)
    torch.testing.assert_close(weight.grad, expected)
