"""Both samplers draw what the product's own forward pass says, and keep the right log-probs."""

import copy
import random
from typing import Any

import pytest
import torch
from asympo.lab.digits import END, DigitAddition
from asympo.lab.fast_sampling import FastSampler
from asympo.lab.sampling import AncestralSampler, Drawn
from asympo.lab.start import tiny_model, weights_of
from asympo.lab.variants import TokenLosses
from asympo.lab.worlds import sequence_logprobs
from asympo.learner.model.batching import TrainedGroup, TrainedResponse, pack
from asympo.learner.model.policy import Policy
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope

from tests.unit.lab.tiny import TASK

PROMPTS: list[tuple[int, ...]] = [(1, 2, 10, 3, 4, 11), (9, 9, 10, 9, 9, 11)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(model=tiny_model(TASK), compute_dtype=torch.float32)


def general_sampler(policy: Policy) -> AncestralSampler:
    model = copy.deepcopy(policy.model)
    model.set_attn_implementation("sdpa")
    return AncestralSampler(model, end_token_ids=frozenset({END}), max_tokens=5)


def draw(sampler: AncestralSampler | FastSampler, prompts: list[tuple[int, ...]]) -> list[list[Drawn]]:
    return sampler.draw(prompts, num_samples=6, generator=torch.Generator().manual_seed(3))


def test_fast_sampler_draws_the_same_tokens_as_the_general_one(policy: Policy) -> None:
    fast = FastSampler(policy.model, end_token_ids=frozenset({END}), max_tokens=5)
    fast.load(weights_of(policy.model))
    ours, theirs = draw(fast, PROMPTS), draw(general_sampler(policy), PROMPTS)
    for left, right in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        assert left.token_ids == right.token_ids
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)


def test_general_sampler_keeps_the_policys_own_logprobs_for_prompts_of_any_length(policy: Policy) -> None:
    prompts = [PROMPTS[0], (5, 11), (1, 10, 11)]
    pairs = [
        (prompt, each) for prompt, drawn in zip(prompts, draw(general_sampler(policy), prompts), strict=True)
        for each in drawn
    ]  # fmt: skip
    own = sequence_logprobs(policy, [(p, each.token_ids) for p, each in pairs], token_budget=64)
    assert [sum(each.logprobs) for _, each in pairs] == pytest.approx(own, abs=1e-3)
    assert all(END not in each.token_ids[:-1] for _, each in pairs)


def behaviour_corrected(
    policy: Policy, drawn: list[list[Drawn]]
) -> tuple[TokenLosses, list[Any], torch.Tensor]:
    tokens = TokenLosses(model=policy.model, compute_dtype=torch.float32)
    groups = [
        TrainedGroup(
            prompt_ids=prompt,
            responses=tuple(
                TrainedResponse(token_ids=each.token_ids, advantage=(-1.0) ** index)
                for index, each in enumerate(responses)
            ),
        )
        for prompt, responses in zip(PROMPTS, drawn, strict=True)
    ]
    tokens.behaviour = {
        (prompt, each.token_ids): each.logprobs
        for prompt, responses in zip(PROMPTS, drawn, strict=True)
        for each in responses
    }
    (batch,) = pack(groups, token_budget=4096, share_prefixes=True)
    return tokens, [batch], torch.tensor(batch.advantage_R)


SCOPE = StepScope(num_responses=12, num_groups=2, num_groups_without_signal=0)


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def test_ratios_are_one_on_fresh_data_whatever_the_packing(policy: Policy) -> None:
    """Holds only if every token meets its own log-prob; then both corrected arms are `naive`."""
    tokens, (batch,), advantage_R = behaviour_corrected(policy, draw(general_sampler(policy), PROMPTS))
    found = {}
    for name, objective in {
        "grpo": tokens.clipped_ratio(0.2),
        "tis": tokens.truncated_weights(2.0),
        "naive": OBJECTIVES["naive"],
    }.items():
        nll = tokens.response_nll(batch)
        found[name] = gradient(policy, objective(nll.mean_nll_R, advantage_R, SCOPE, ObjectiveOptions())[0])
    for name in ("grpo", "tis"):
        torch.testing.assert_close(found[name], found["naive"], rtol=1e-3, atol=1e-5)


def test_mean_nll_through_token_losses_is_the_policys(policy: Policy) -> None:
    tokens, (batch,), _ = behaviour_corrected(policy, draw(general_sampler(policy), PROMPTS))
    torch.testing.assert_close(tokens.response_nll(batch).mean_nll_R, policy.response_nll(batch).mean_nll_R)


def test_clipped_ratio_stops_pushing_what_has_moved_far_and_weights_are_capped(policy: Policy) -> None:
    drawn = draw(general_sampler(policy), PROMPTS)
    tokens, (batch,), _ = behaviour_corrected(policy, drawn)
    # As if every token had been ten times less likely when it was drawn.
    tokens.behaviour = {
        key: tuple(logprob - 2.3 for logprob in logprobs) for key, logprobs in tokens.behaviour.items()
    }
    positive_R = torch.ones(batch.num_trained_R.__len__())
    nll = tokens.response_nll(batch)
    loss, _ = tokens.clipped_ratio(0.2)(nll.mean_nll_R, positive_R, SCOPE, ObjectiveOptions())
    assert gradient(policy, loss).abs().max() == 0.0
    nll = tokens.response_nll(batch)
    capped = gradient(
        policy, tokens.truncated_weights(2.0)(nll.mean_nll_R, positive_R, SCOPE, ObjectiveOptions())[0]
    )
    nll = tokens.response_nll(batch)
    plain = gradient(policy, OBJECTIVES["naive"](nll.mean_nll_R, positive_R, SCOPE, ObjectiveOptions())[0])
    torch.testing.assert_close(capped, 2.0 * plain, rtol=1e-3, atol=1e-5)


def test_held_out_problems_are_never_drawn_and_only_whole_answers_count() -> None:
    task = DigitAddition(num_digits=2, num_held_out=100)
    held_out = {problem.prompt_ids for problem in task.held_out}
    drawn = task.draw(random.Random(0), 3000)
    assert not held_out & {problem.prompt_ids for problem in drawn}
    problem = task.problem(57, 68)
    assert problem.prompt_ids == (7, 5, 10, 8, 6, 11)
    assert problem.reward((5, 2, 1, END)) == 1.0
    for wrong in ((5, 2, 1), (5, 2, 1, END, END), (1, 2, 5, END), ()):
        assert problem.reward(wrong) == 0.0
