"""verl's actor update: its FSDP2 engine, token batching, PPO loss and AdamW, fed with given rollouts.

verl knows GPUs and NPUs; it takes other devices as plug-ins, and the one here is the CPU. Its packed rows
need flash-attention, so the engine runs with padded ones, in micro-batches that its own balancing cuts. Two
of its defaults are changed in its favour: nothing is computed again for the backward, and the token budget
leaves memory for that. A step is what its trainer does with an engine's rollouts: old log-probs, then the
update.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from arm import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    StepTimes,
    clock,
    parse_arguments,
    quiet_output,
    read_groups,
    run_arm,
)

TOKEN_BUDGET = 4096
"""verl's own is 16384; that many logits of the whole vocabulary take 3 GB, several times over."""


def set_up_cpu() -> None:
    """Makes the CPU a platform of verl, before anything of it asks for a device."""
    import torch
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import set_platform

    @contextlib.contextmanager
    def nothing(self: Any, msg: str = "") -> Iterator[None]:
        yield

    def returning(value: Any) -> Any:
        return lambda self, *args, **named: value

    values = {
        "is_available": True,
        "current_device": "cpu",
        "device_count": 1,
        "get_device_capability": (None, None),
        "communication_backend_name": "gloo",
        "visible_devices_envvar": "CUDA_VISIBLE_DEVICES",
        "ray_resource_name": "CPU",
        "ray_noset_envvars": [],
        "is_ipc_supported": False,
    }
    idle = ("set_device", "synchronize", "manual_seed", "manual_seed_all", "set_allocator_settings")
    idle += ("empty_cache", "profiler_start", "profiler_stop", "cudart")
    body: dict[str, Any] = {name: returning(value) for name, value in values.items()}
    body |= {name: returning(None) for name in idle}
    body |= {"nvtx_range": nothing, "device_name": "cpu", "vendor_name": "cpu"}
    body["device_module"] = SimpleNamespace(
        **{name: getattr(torch.cpu, name) for name in torch.cpu.__all__ if hasattr(torch.cpu, name)},
        empty_cache=lambda: None,
        memory_allocated=lambda: 0,
        memory_reserved=lambda: 0,
        mem_get_info=lambda: (0, 1),
    )
    set_platform(type("PlatformCPU", (PlatformBase,), body)())


def make_engine(model: str, *, dtype: str) -> Any:
    """verl's engine for a causal language model, alone in its process group."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    engine = FSDPEngineWithLMHead(
        model_config=HFModelConfig(
            path=model,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            use_remove_padding=False,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=LEARNING_RATE,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            clip_grad=MAX_GRAD_NORM,
            total_training_steps=100,
        ),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def main() -> None:
    arguments = parse_arguments()
    set_up_cpu()
    import torch
    import torch.distributed
    from tensordict import TensorDict
    from verl.utils import tensordict_utils
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import no_padding_2_padding

    groups = read_groups(arguments.rollouts)
    rows = [(group.prompt_ids, ids) for group in groups for ids in group.responses]
    longest = max(len(response) for _, response in rows)
    mask = torch.arange(longest)[None] < torch.tensor([[len(response)] for _, response in rows])
    advantages = torch.tensor([advantage for group in groups for advantage in group.advantages])

    def nested(values: list[list[int]]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(each) for each in values], layout=torch.jagged)

    def batch() -> Any:
        data = TensorDict(
            {
                "input_ids": nested([prompt + response for prompt, response in rows]),
                "position_ids": nested([list(range(len(p) + len(r))) for p, r in rows]),
                "prompts": nested([prompt for prompt, _ in rows]),
                "responses": nested([response for _, response in rows]),
                "response_mask": nested([[1] * len(response) for _, response in rows]),
                "loss_mask": nested([[1] * len(response) for _, response in rows]),
                "advantages": nested_rows(advantages[:, None].expand(-1, longest)),
            },
            batch_size=[len(rows)],
        )
        tensordict_utils.assign_non_tensor(
            data,
            use_remove_padding=False,
            use_dynamic_bsz=True,
            max_token_len_per_gpu=TOKEN_BUDGET,
            global_batch_size=len(rows),
            temperature=1.0,
            pad_token_id=0,
        )
        return data

    def nested_rows(padded: torch.Tensor) -> torch.Tensor:
        """A padded tensor with a row for each response, as verl carries it."""
        parts = [row[:length] for row, length in zip(padded, mask.sum(1).tolist(), strict=True)]
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

    with quiet_output() as say, tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("WORLD_SIZE", "1")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{directory}/meeting", rank=0, world_size=1
        )
        engine = make_engine(arguments.model, dtype={"float32": "fp32", "bfloat16": "bf16"}[arguments.dtype])
        config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=len(groups[0].responses),
            ppo_mini_batch_size=len(rows),
            use_dynamic_bsz=True,
            entropy_coeff=0.0,
        )
        spent = [0.0]
        their_step = engine.optimizer_step

        def timed_step() -> Any:
            begin = clock()
            norm = their_step()
            spent[0] = clock() - begin
            return norm

        engine.optimizer_step = timed_step

        def loss(model_output: Any, data: Any, dp_group: Any = None) -> Any:
            return ppo_loss(config, model_output, data, dp_group)

        def step() -> StepTimes:
            start = clock()
            data = batch()
            with engine.eval_mode():
                found = engine.infer_batch(data)
            old = no_padding_2_padding(found["model_output"]["log_probs"], data)
            data["old_log_probs"] = nested_rows(old)
            with engine.train_mode():
                engine.train_batch(data, loss)
            end = clock()
            nll = float((-(old * mask).sum(1) / mask.sum(1)).mean())
            return StepTimes(seconds=end - start, optimizer_seconds=spent[0], mean_nll=nll)

        run_arm(step, steps=arguments.steps, say=say)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
