"""A plain transformers loop, as a careful person writes it.

A padded micro-batch a group, logits of the response tokens only, the same objective, clipping, torch's AdamW.
"""

from arm import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    Group,
    StepTimes,
    clock,
    parse_arguments,
    quiet_output,
    read_groups,
    run_arm,
)


def main() -> None:
    arguments = parse_arguments()
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rollouts = read_groups(arguments.rollouts)
    num_responses = sum(len(group.responses) for group in rollouts)

    def mean_nlls(group: Group) -> torch.Tensor:
        longest = max(map(len, group.responses))
        padding = [longest - len(ids) for ids in group.responses]
        responses = torch.tensor([ids + [0] * pad for ids, pad in zip(group.responses, padding, strict=True)])
        prompts = torch.tensor([group.prompt_ids]).expand(len(responses), -1)
        mask = torch.arange(longest)[None] < torch.tensor([[len(ids)] for ids in group.responses])
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            logits = model(
                input_ids=torch.cat([prompts, responses], dim=1),
                attention_mask=torch.cat([torch.ones_like(prompts), mask.long()], dim=1),
                use_cache=False,
                logits_to_keep=longest + 1,
            ).logits[:, :-1]
        nll = cross_entropy(logits.float().transpose(1, 2), responses, reduction="none")
        return (nll * mask).sum(1) / mask.sum(1)

    def step() -> StepTimes:
        start = clock()
        total = 0.0
        for group in rollouts:
            means = mean_nlls(group)
            advantages = torch.tensor(group.advantages)
            loss = (advantages * means / means.detach().clamp(min=1e-4)).sum() / num_responses
            loss.backward()
            total += float(means.detach().sum())
        backward_end = clock()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        end = clock()
        return StepTimes(
            seconds=end - start, optimizer_seconds=end - backward_end, mean_nll=total / num_responses
        )

    with quiet_output() as say:
        run_arm(step, steps=arguments.steps, say=say)


if __name__ == "__main__":
    main()
