"""The objectives are the formulas of the design, exactly."""

from typing import get_args

import pytest
import torch
from asympo.common.records import group_advantages, has_signal
from asympo.learner.settings import ObjectiveName
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope, asympo, gpg, naive, spo
from hypothesis import given, settings
from hypothesis import strategies as st

OPTIONS = ObjectiveOptions()


def scope(num_responses: int = 4, num_groups: int = 1, without_signal: int = 0) -> StepScope:
    return StepScope(
        num_responses=num_responses, num_groups=num_groups, num_groups_without_signal=without_signal
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(2**-10, 60, width=32)), min_size=2, max_size=16)
)
def test_asympo_term_has_exactly_the_value_of_its_advantage(items: list[tuple[float, float]]) -> None:
    for reward, mean_nll in items:
        advantage = torch.tensor([reward])
        loss, _ = asympo(torch.tensor([mean_nll]), advantage, scope(1), OPTIONS)
        assert loss.item() == advantage.item()


def test_asympo_values_of_a_group_sum_to_zero() -> None:
    advantages = torch.tensor(group_advantages([1.0, 0.0, 0.0, 1.0]))
    loss, _ = asympo(torch.tensor([0.3, 7.0, 2.0, 0.01]), advantages, scope(), OPTIONS)
    assert loss.item() == 0.0


def test_asympo_gradient_is_advantage_times_gradient_of_log_mean_nll() -> None:
    mean_nll = torch.tensor([0.5, 3.0, 11.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([0.7, -0.2, -0.5], dtype=torch.float64)
    loss, _ = asympo(mean_nll, advantages, scope(3), OPTIONS)
    (ours,) = torch.autograd.grad(loss, mean_nll)
    (expected,) = torch.autograd.grad((advantages * mean_nll.log()).sum() / 3, mean_nll)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_asympo_gradient_at_the_logits_never_exceeds_twice_the_advantage(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (spread * torch.randn(12, 50, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, 50, (12,), generator=generator)
    mean_nll = torch.nn.functional.cross_entropy(logits, targets)[None]
    loss, _ = asympo(mean_nll, torch.tensor([-0.75], dtype=torch.float64), scope(1), OPTIONS)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() <= 2 * 0.75 + 1e-12


def test_asympo_stays_finite_when_the_policy_is_certain() -> None:
    mean_nll = torch.zeros(1, requires_grad=True)
    loss, metrics = asympo(mean_nll, torch.ones(1), scope(1), OPTIONS)
    loss.backward()
    assert loss.item() == 0.0
    assert mean_nll.grad is not None
    assert torch.isfinite(mean_nll.grad).all()
    assert metrics["num_floored"] == 1


def test_spo_scales_negative_responses_only() -> None:
    options = ObjectiveOptions(negative_scale=0.5)
    loss, _ = spo(torch.tensor([2.0, 2.0]), torch.tensor([1.0, -1.0]), scope(2), options)
    assert loss.item() == pytest.approx((2.0 - 1.0) / 2)


def test_naive_is_the_plain_product() -> None:
    loss, _ = naive(torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5]), scope(2), OPTIONS)
    assert loss.item() == pytest.approx((1.0 - 1.5) / 2)


def test_gpg_corrects_for_groups_without_signal() -> None:
    mean_nll, advantages = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5])
    plain, _ = naive(mean_nll, advantages, scope(8), OPTIONS)
    loss, _ = gpg(mean_nll, advantages, scope(8, num_groups=4, without_signal=3), OPTIONS)
    assert loss.item() == pytest.approx(4 * plain.item())


def test_gpg_is_zero_when_no_group_has_signal() -> None:
    loss, _ = gpg(torch.zeros(0), torch.zeros(0), scope(8, num_groups=4, without_signal=4), OPTIONS)
    assert loss.item() == 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_of_micro_batches_adds_up_to_that_of_the_step(name: str) -> None:
    mean_nll, advantages = torch.rand(8, dtype=torch.float64) + 0.1, torch.linspace(-1, 1, 8).double()
    whole, _ = OBJECTIVES[name](mean_nll, advantages, scope(8), OPTIONS)
    halves = sum(
        OBJECTIVES[name](mean_nll[s], advantages[s], scope(8), OPTIONS)[0] for s in (slice(3), slice(3, 8))
    )
    torch.testing.assert_close(whole, halves)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_raises_bfloat16_to_float32(name: str) -> None:
    loss, _ = OBJECTIVES[name](torch.ones(2, dtype=torch.bfloat16), torch.ones(2), scope(2), OPTIONS)
    assert loss.dtype == torch.float32


def test_settings_offer_every_objective() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)


def test_objective_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="differ"):
        naive(torch.ones(2), torch.ones(3), scope(), OPTIONS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_advantages_sum_to_zero(rewards: list[float]) -> None:
    assert abs(sum(group_advantages(rewards))) <= 1e-9 * max(1.0, *map(abs, rewards)) * len(rewards)


def test_equal_rewards_give_exact_zeros() -> None:
    assert group_advantages([0.1, 0.1, 0.1]) == (0.0, 0.0, 0.0)
    assert not has_signal([0.1, 0.1, 0.1])


def test_a_group_of_one_has_no_signal() -> None:
    assert not has_signal([1.0])
    assert group_advantages([1.0]) == (0.0,)
