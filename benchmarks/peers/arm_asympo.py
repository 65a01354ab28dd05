"""Our learner: the product's own step with its default settings; `--lora` trains an adapter.

`--base-bits` holds its base in so many bits.
"""

import argparse

from arm import (
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    StepTimes,
    clock,
    parse_arguments,
    quiet_output,
    read_groups,
    run_arm,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    for name in ("--token-budget", "--chunk-rows"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--base-bits", type=int)


def main() -> None:
    arguments = parse_arguments(extra=add_flags)
    import torch
    from asympo.learner.model.batching import TrainedGroup, TrainedResponse
    from asympo.learner.model.policy import Policy, load_model
    from asympo.learner.settings import LoraSettings
    from asympo.learner.step.compute import set_up_torch
    from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
    from asympo.learner.step.optimizer import make_optimizer
    from asympo.learner.step.step import Stepper

    set_up_torch(seed=0, num_threads=None)
    dtype = getattr(torch, arguments.dtype)
    model = load_model(arguments.model, dtype=torch.float32, device=torch.device("cpu")).eval()
    policy = Policy(model=model, compute_dtype=dtype, chunk_rows=arguments.chunk_rows)
    if arguments.lora:
        from asympo.learner.model.lora import add_adapter

        lora = LoraSettings(rank=LORA_RANK, alpha=LORA_ALPHA, base_bits=arguments.base_bits)
        add_adapter(model, lora, compute_dtype=dtype, seed=0)
        policy.path.apply(model)
    stepper = Stepper(
        policy=policy,
        optimizer=make_optimizer(
            model, learning_rate=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        ),
        objective=OBJECTIVES["asympo"],
        options=ObjectiveOptions(),
        learning_rate=lambda step: LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        token_budget=arguments.token_budget,
        share_prefixes=True,
    )
    rollouts = read_groups(arguments.rollouts)
    scope = StepScope(
        num_responses=sum(len(group.responses) for group in rollouts),
        num_groups=len(rollouts),
        num_groups_without_signal=0,
    )

    def step() -> StepTimes:
        start = clock()
        groups = [
            TrainedGroup(
                prompt_ids=tuple(group.prompt_ids),
                responses=tuple(
                    TrainedResponse(token_ids=tuple(ids), advantage=advantage)
                    for ids, advantage in zip(group.responses, group.advantages, strict=True)
                ),
            )
            for group in rollouts
        ]
        result = stepper.train(groups, scope, step=1)
        means = [result.nll_positive or 0.0, result.nll_negative or 0.0]
        counts = [sum(a > 0 for g in rollouts for a in g.advantages)]
        counts.append(scope.num_responses - counts[0])
        return StepTimes(
            seconds=clock() - start,
            optimizer_seconds=result.optimizer_seconds,
            mean_nll=sum(m * c for m, c in zip(means, counts, strict=True)) / scope.num_responses,
        )

    with quiet_output() as say:
        run_arm(step, steps=arguments.steps, say=say)


if __name__ == "__main__":
    main()
