"""TRL's GRPO trainer: its own model wrapping, log-probs, loss and optimizer, fed with given rollouts.

Generation is left out by handing the trainer what its `_generate_and_score_completions` would return. The
pass for the old log-probs is part of the step, as in every run of TRL whose rollouts come from vLLM or are
not trained on at once (`--without-old-logprobs` leaves it out). `--micro-batch` is TRL's
`per_device_train_batch_size`; 0 trains all responses at once. `--lora` trains an adapter, through PEFT.
"""

import argparse
import tempfile
from typing import Any

from arm import (
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    StepTimes,
    clock,
    parse_arguments,
    quiet_output,
    read_groups,
    run_arm,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--without-old-logprobs", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--lora", action="store_true")


def make_trainer(arguments: argparse.Namespace, *, num_responses: int, group_size: int, output: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    batch = arguments.micro_batch or num_responses
    config = GRPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=arguments.dtype == "bfloat16",
        gradient_checkpointing=arguments.gradient_checkpointing,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=num_responses // batch,
        num_generations=group_size,
        learning_rate=LEARNING_RATE,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    adapter = None
    if arguments.lora:
        from peft import LoraConfig

        adapter = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "unused"}] * num_responses),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        peft_config=adapter,
    )
    trainer.create_optimizer()
    trainer.model.train()
    # What the training loop sets before its first step.
    trainer.current_gradient_accumulation_steps = num_responses // batch
    trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    return trainer


def main() -> None:
    arguments = parse_arguments(extra=add_flags)
    import torch

    groups = read_groups(arguments.rollouts)
    responses = [ids for group in groups for ids in group.responses]
    longest = max(map(len, responses))
    prompt_ids = torch.tensor([group.prompt_ids for group in groups for _ in group.responses])
    completion_ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in responses])
    mask = (torch.arange(longest)[None] < torch.tensor([[len(ids)] for ids in responses])).long()
    advantages = torch.tensor([advantage for group in groups for advantage in group.advantages])

    with quiet_output() as say, tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(
            arguments, num_responses=len(responses), group_size=len(groups[0].responses), output=output
        )
        batch = arguments.micro_batch or len(responses)

        def inputs(part: slice) -> dict[str, Any]:
            return {
                "prompt_ids": prompt_ids[part],
                "prompt_mask": torch.ones_like(prompt_ids[part]),
                "completion_ids": completion_ids[part],
                "completion_mask": mask[part],
                "advantages": advantages[part],
                "num_items_in_batch": mask.sum(),
            }

        def log_probs(given: dict[str, Any]) -> torch.Tensor:
            """As `_generate_and_score_completions` computes them: in micro-batches, without gradient."""
            with torch.no_grad():
                return trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1),
                    torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1),
                    longest,
                    batch_size=batch,
                )[0]

        def step() -> StepTimes:
            start = clock()
            everything = inputs(slice(None))
            old = None if arguments.without_old_logprobs else log_probs(everything)
            for begin in range(0, len(responses), batch):
                part = slice(begin, begin + batch)
                given = inputs(part)
                if old is not None:
                    given["old_per_token_logps"] = old[part]
                loss = trainer.compute_loss(trainer.model, given, num_items_in_batch=mask.sum())
                trainer.accelerator.backward(loss)
            backward_end = clock()
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
            trainer.optimizer.step()
            trainer.model.zero_grad()
            end = clock()
            nll = None if old is None else float((-(old * mask).sum(1) / mask.sum(1)).mean())
            return StepTimes(seconds=end - start, optimizer_seconds=end - backward_end, mean_nll=nll)

        run_arm(step, steps=arguments.steps, say=say)


if __name__ == "__main__":
    main()
