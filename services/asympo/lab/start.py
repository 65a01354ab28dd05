"""The policy every cell starts from: trained on right answers until some of its samples are right."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from asympo.bench.models import random_model
from asympo.common.errors import AsympoError
from asympo.lab.digits import END, VOCAB_SIZE, DigitAddition
from asympo.lab.fast_sampling import FastSampler
from asympo.lab.presets.plan import TaskSettings, WarmUp
from asympo.learner.model.batching import TrainedGroup, TrainedResponse
from asympo.learner.model.policy import Policy
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.optimizer import make_optimizer
from asympo.learner.step.step import Stepper

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
_CHECK_EVERY = 10
_CHECK_SEED = 7


def tiny_model(settings: TaskSettings) -> PreTrainedModel:
    """A Llama small enough for a step in tens of milliseconds, initialised by the product's own code."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
        # Wide enough that a tiny network breaks its symmetries within the warm-up.
        initializer_range=0.08,
    )
    return random_model(config, device=torch.device("cpu"))


def tiny_sampler(settings: TaskSettings) -> FastSampler:
    """Draws from weights of that shape."""
    return FastSampler(
        tiny_model(settings),
        end_token_ids=frozenset({END}),
        max_tokens=digit_task(settings).max_response_tokens,
    )


def digit_task(settings: TaskSettings) -> DigitAddition:
    return DigitAddition(num_digits=settings.num_digits, num_held_out=settings.num_held_out)


def weights_of(model: PreTrainedModel) -> Weights:
    """A copy that training does not touch."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def sampled_accuracy(
    sampler: FastSampler, task: DigitAddition, *, seed: int, num_samples: int
) -> tuple[float, float]:
    """Held-out accuracy of samples at temperature 1, and the mean response length in tokens."""
    drawn = sampler.draw(
        [problem.prompt_ids for problem in task.held_out],
        num_samples=num_samples,
        generator=torch.Generator().manual_seed(seed),
    )
    right = total = tokens = 0.0
    for problem, responses in zip(task.held_out, drawn, strict=True):
        right += sum(problem.reward(response.token_ids) for response in responses)
        tokens += sum(len(response.token_ids) for response in responses)
        total += len(responses)
    return right / total, tokens / total


def warm_up(settings: TaskSettings, plan: WarmUp, *, say: Callable[[str], None]) -> tuple[Weights, float]:
    """Supervised steps until the sampled accuracy reaches `plan.target`; weights and that accuracy.

    Raises AsympoError when `plan.max_steps` do not get there, or overshoot `plan.ceiling`.
    """
    task, model = digit_task(settings), tiny_model(settings)
    sampler = tiny_sampler(settings)
    stepper = Stepper(
        policy=Policy(model=model, compute_dtype=torch.float32),
        optimizer=make_optimizer(
            model, learning_rate=plan.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        ),
        # With advantage 1 the naive objective is the mean NLL of the right answer.
        objective=OBJECTIVES["naive"],
        options=ObjectiveOptions(),
        learning_rate=lambda step: plan.learning_rate * min(1.0, step / plan.ramp_steps),
        max_grad_norm=1.0,
        token_budget=settings.token_budget,
        share_prefixes=True,
    )
    rng = random.Random(plan.seed)
    scope = StepScope(num_responses=plan.batch, num_groups=plan.batch, num_groups_without_signal=0)
    for step in range(1, plan.max_steps + 1):
        groups = [
            TrainedGroup(
                prompt_ids=problem.prompt_ids,
                responses=(TrainedResponse(token_ids=problem.answer_ids, advantage=1.0),),
            )
            for problem in task.draw(rng, plan.batch)
        ]
        result = stepper.train(groups, scope, step=step)
        if step % _CHECK_EVERY:
            continue
        sampler.load(weights_of(model))
        accuracy, _ = sampled_accuracy(sampler, task, seed=_CHECK_SEED, num_samples=1)
        say(f"warm-up step {step}: loss {result.loss:.3f}, sampled accuracy {accuracy:.3f}")
        if accuracy >= plan.target:
            if accuracy > plan.ceiling:
                raise AsympoError(f"the warm-up jumped to {accuracy:.2f}: lower its learning rate")
            return weights_of(model), accuracy
    raise AsympoError(f"{plan.max_steps} warm-up steps did not reach {plan.target:.2f} sampled accuracy")


def save_weights(path: Path, weights: Weights) -> None:
    """Atomically, as safetensors."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(weights, str(temporary))
    temporary.replace(path)


def load_weights(path: Path) -> Weights:
    from safetensors.torch import load_file

    weights: Weights = load_file(str(path))
    return weights
