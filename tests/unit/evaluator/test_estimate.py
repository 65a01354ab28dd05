"""Numbers of an evaluation against brute force and against what is known."""

import itertools
import random
from fractions import Fraction

import pytest
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.estimate import mean_over_prompts, pass_at_k, pass_ks, wilson_interval
from asympo.evaluator.measure import Answered, _sample, count
from asympo.rewards.scorer import Scored
from asympo.tasks.base import TaskPrompt


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        responses = [number < num_right for number in range(num_samples)]
        for k in range(1, num_samples + 1):
            choices = [any(each) for each in itertools.combinations(responses, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(
                float(Fraction(sum(choices), len(choices)))
            )


def test_pass_at_k_is_unbiased() -> None:
    rng, chance = random.Random(1), 0.3
    estimates = [pass_at_k(8, sum(rng.random() < chance for _ in range(8)), 4) for _ in range(20_000)]
    assert sum(estimates) / len(estimates) == pytest.approx(1 - (1 - chance) ** 4, abs=0.01)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_pass_at_k_refuses_a_k_that_was_not_sampled(k: int) -> None:
    with pytest.raises(ValueError, match="needs 1 to 3"):
        pass_at_k(3, 1, k)


def test_pass_ks_are_powers_of_two_and_the_number_itself() -> None:
    assert [pass_ks(number) for number in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_response_is_right_though_its_reward_was_rounded_and_is_shown_from_its_beginning() -> None:
    groups = [[Scored(reward=0.7 + 0.2 + 0.1)], [Scored(reward=0.99)]]
    assert groups[0][0].reward < 1.0
    result = count(
        EvalConfig(), groups, policy_step=1, last_policy_step=1, policy_fence=None, seconds=1.0
    )  # fmt: skip
    assert result.pass_at[1].value == 0.5
    messages = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It "})
    prompt = TaskPrompt(index=0, messages=messages, answer="4", is_prefilled=True)
    shown = _sample(
        prompt, Answered(texts=["is 4"], token_ids=[(1,)], policy_steps=(1, 1)), groups[0], result
    )
    assert (shown.prompt, shown.responses[0].text) == ("2 + 2?", "It is 4")


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng, num_covered = random.Random(2), 0
    for _ in range(1000):
        chances = [rng.choice((0.05, 0.5, 0.95)) for _ in range(60)]
        found = mean_over_prompts([sum(rng.random() < c for _ in range(4)) / 4 for c in chances])
        num_covered += found.low <= 0.5 <= found.high
    # Too wide rather than too narrow: prompts that are all alike inside leave less to chance.
    assert num_covered >= 940


def test_interval_of_rewards_outside_zero_to_one_is_around_the_mean() -> None:
    found = mean_over_prompts([-1.0, 1.0] * 50)
    assert found.value == 0
    assert found.high == -found.low == pytest.approx(0.197, abs=0.002)
    assert mean_over_prompts([]).value == 0


def test_wilson_interval_matches_published_values() -> None:
    # Wilson 1927 / Brown, Cai and DasGupta 2001: 7 of 10 gives 0.397 to 0.892.
    assert wilson_interval(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
