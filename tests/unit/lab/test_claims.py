"""What docs/stability.md says about the arithmetic, one test a claim."""

import math

import pytest
import torch
from asympo.common.records import group_advantages
from asympo.lab.variants import normalised, plain, two_sided
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope, asympo
from asympo.learner.step.optimizer import guarded_step
from torch import Tensor

SCOPE = StepScope(num_responses=1, num_groups=1, num_groups_without_signal=0)


def logit_gradient(name: str, logits_TV: Tensor, advantage: float = 1.0) -> Tensor:
    """Of one response whose every token is the first of the vocabulary, with respect to its logits."""
    logits_TV = logits_TV.clone().requires_grad_()
    mean_nll = -torch.log_softmax(logits_TV, dim=-1)[:, 0].mean()
    loss, _ = OBJECTIVES[name](mean_nll[None], torch.tensor([advantage]).double(), SCOPE, ObjectiveOptions())
    loss.backward()
    assert logits_TV.grad is not None
    return logits_TV.grad


def with_probability(probability: float, *, num_tokens: int, size: int = 8) -> Tensor:
    """Logits under which each token has that probability, the rest spread evenly."""
    rest = math.log((1 - probability) / (size - 1))
    return torch.tensor([math.log(probability)] + [rest] * (size - 1)).double().repeat(num_tokens, 1)


@pytest.mark.parametrize("probability", [0.999, 0.7, 0.1, 1e-3, 1e-9])
@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_asympo_gradient_is_the_sum_normalised_one_and_never_above_two(
    probability: float, num_tokens: int
) -> None:
    logits_TV = with_probability(probability, num_tokens=num_tokens)
    gradient_TV = logit_gradient("asympo", logits_TV, advantage=-0.75)
    summed_nll = -num_tokens * math.log(probability)
    one_hot = torch.zeros_like(logits_TV)
    one_hot[:, 0] = 1
    expected = -0.75 / summed_nll * (torch.softmax(logits_TV, -1) - one_hot)
    torch.testing.assert_close(gradient_TV, expected, rtol=1e-6, atol=1e-9)
    assert gradient_TV.abs().sum() <= 2 * 0.75 * (1 + 1e-9)


def test_asympo_gradient_tends_to_two_as_nll_vanishes_and_decays_like_one_over_it() -> None:
    def norm(name: str, probability: float) -> float:
        return float(logit_gradient(name, with_probability(probability, num_tokens=5)).abs().sum())

    assert norm("asympo", 0.9996) == pytest.approx(2.0, rel=1e-3)
    assert norm("naive", 0.9996) == pytest.approx(0.0, abs=1e-3)
    improbable = [norm("asympo", math.exp(-nll)) * nll for nll in (20.0, 200.0)]
    assert improbable == pytest.approx([2.0, 2.0], rel=1e-6)
    assert norm("naive", math.exp(-200.0)) == pytest.approx(2.0), "naive never lets go of a stale negative"


def test_float32_quotient_is_one_down_to_the_smallest_normal_number_and_zero_needs_the_floor() -> None:
    """In float32 the floor guards 0/0 only: m/m is exactly 1 wherever m is not zero."""
    mean_nll_R = torch.tensor([1e-7, 1e-30, 0.0])
    advantage_R = torch.ones(3)
    loss, _ = asympo(mean_nll_R[:2], advantage_R[:2], SCOPE, ObjectiveOptions(mean_nll_floor=1e-38))
    assert loss == 2.0
    loss, metrics = asympo(mean_nll_R[2:], advantage_R[2:], SCOPE, ObjectiveOptions())
    assert loss == 0.0
    assert metrics["num_floored"] == 1


def test_bfloat16_probabilities_lose_every_nll_below_two_thousandths() -> None:
    """Hence float32 before the softmax: a floor for bf16 would have to be about 0.004, not 1e-4."""
    logits = torch.tensor([8.0, 1.0, 0.0, -1.0])
    exact = -torch.log_softmax(logits, -1)[0]
    assert 1e-3 < exact < 2e-3
    coarse = -torch.log(torch.softmax(logits.bfloat16(), -1)[0])
    assert coarse == 0.0, "the bf16 numbers next to 1 are 0.004 below it"
    below_one = torch.nextafter(torch.tensor(1.0).bfloat16(), torch.tensor(0.0).bfloat16())
    assert -torch.log(below_one.float()) == pytest.approx(0.004, rel=0.05)


def test_only_the_response_mean_keeps_a_groups_values_at_zero() -> None:
    advantages = torch.tensor(group_advantages([1.0, 0.0, 0.0, 0.0])).double()
    mean_nll_R = torch.tensor([0.3, 2.0, 0.01, 5.0]).double()
    lengths = torch.tensor([5.0, 40.0, 3.0, 11.0]).double()
    loss, _ = asympo(mean_nll_R, advantages, SCOPE, ObjectiveOptions())
    assert loss == 0.0
    token_sum = (advantages * lengths * mean_nll_R / mean_nll_R.detach()).sum()
    assert abs(token_sum) > 1.0, "long responses would decide, whatever their reward"


@pytest.mark.parametrize("num_right", [1, 4, 7])
def test_dividing_by_the_deviation_only_weighs_groups_by_how_one_sided_they_are(num_right: int) -> None:
    advantages = group_advantages([1.0] * num_right + [0.0] * (8 - num_right))
    deviation = math.sqrt(sum(a * a for a in advantages) / 8)
    share = num_right / 8
    assert 1 / deviation == pytest.approx(1 / math.sqrt(share * (1 - share)))


def test_dropping_groups_without_signal_scales_the_gradient_and_nothing_else() -> None:
    mean_nll_R = torch.tensor([0.5, 1.5]).requires_grad_()
    advantage_R = torch.tensor([0.5, -0.5])
    kept = StepScope(num_responses=8, num_groups=4, num_groups_without_signal=3)
    dropped = StepScope(num_responses=2, num_groups=4, num_groups_without_signal=3)
    (all_groups,) = torch.autograd.grad(
        asympo(mean_nll_R, advantage_R, kept, ObjectiveOptions())[0], mean_nll_R
    )
    (signal,) = torch.autograd.grad(
        asympo(mean_nll_R, advantage_R, dropped, ObjectiveOptions())[0], mean_nll_R
    )
    torch.testing.assert_close(signal, 4 * all_groups)


def test_above_the_clip_norm_a_scale_of_the_loss_changes_nothing() -> None:
    """So where every step is clipped, dropped groups and deviations of equal groups change nothing either."""
    moved = []
    for scale in (1.0, 7.0):
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        (scale * (weight * torch.tensor([3.0, 4.0])).sum()).backward()
        guarded_step(torch.optim.SGD([weight], lr=0.1), learning_rate=0.1, max_norm=1.0)
        moved.append(weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


def test_two_sided_variants_contain_the_products_objectives() -> None:
    mean_nll_R = torch.tensor([0.2, 3.0, 1.0]).requires_grad_()
    advantage_R = torch.tensor([0.5, -0.25, -0.25])
    for name, positive, negative in (
        ("asympo", normalised(), normalised()),
        ("naive", plain, plain),
    ):
        ours = two_sided(positive=positive, negative=negative)
        (left,) = torch.autograd.grad(ours(mean_nll_R, advantage_R, SCOPE, ObjectiveOptions())[0], mean_nll_R)
        (right,) = torch.autograd.grad(
            OBJECTIVES[name](mean_nll_R, advantage_R, SCOPE, ObjectiveOptions())[0], mean_nll_R
        )
        torch.testing.assert_close(left, right)


def test_effective_negative_scale_of_asympo_is_the_ratio_of_mean_nlls() -> None:
    """What SPO would have to use: positive over negative mean NLL, small when negatives are stale."""
    mean_nll_R = torch.tensor([0.4, 2.0]).requires_grad_()
    advantage_R = torch.tensor([1.0, -1.0])
    (gradient,) = torch.autograd.grad(
        asympo(mean_nll_R, advantage_R, SCOPE, ObjectiveOptions())[0], mean_nll_R
    )
    assert float(-gradient[1] / gradient[0]) == pytest.approx(0.4 / 2.0)
