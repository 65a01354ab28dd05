"""Peak memory of the learner's own steps on tensors without data: a GPU's arithmetic, no GPU.

FlexAttention is replaced by what it keeps for its backward: queries, keys, values, output, one sum a query.
"""

import weakref
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from asympo.learner.model import fused, nll
from asympo.learner.model.adaptable import WeightPart
from asympo.learner.model.attention import PACKED_ATTENTION
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, pack
from asympo.learner.model.lora import add_adapter
from asympo.learner.model.policy import Policy
from asympo.learner.settings import LoraSettings
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.optimizer import make_optimizer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that exist, in blocks of 512 as CUDA's allocator rounds them, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = WeakIdKeyDictionary()
        self.now = self.peak = 0

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // 512) * 512
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    query, key = query.to(value.dtype), key.to(value.dtype)
    output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def row_of(num_tokens: int) -> PackedBatch:
    """One prompt and four responses that together have about so many tokens."""
    prompt, response = num_tokens // 16, (num_tokens - num_tokens // 16) // 4
    group = TrainedGroup(
        prompt_ids=tuple(index % 97 for index in range(prompt)),
        responses=tuple(
            TrainedResponse(
                token_ids=(3 + number, *(index % 89 for index in range(response - 1))), advantage=1.0
            )
            for number in range(4)
        ),
    )
    (batch,) = pack([group], token_budget=num_tokens, share_prefixes=True)
    return batch


def peak_bytes(
    config: PretrainedConfig,
    *,
    num_tokens: int,
    is_checkpointed: bool,
    chunk_rows: int,
    num_rows: int = 2,
    lora: LoraSettings | None = None,
) -> int:
    """Of two steps of `num_rows` rows in bfloat16, beside the copy that the publisher keeps."""
    with (
        patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, {PACKED_ATTENTION: _attend}),
        # A GPU takes a chunk of logits as a whole, and norms and plain MLPs as transformers has them.
        patch.object(nll, "_CACHE_BYTES", 1 << 60),
        patch.object(fused, "_does_the_same", lambda _, forward: isinstance(forward, fused._FusedAdaptedMlp)),
        patch("asympo.learner.model.lora.base_digest", lambda model: torch.zeros(32, dtype=torch.uint8)),
        patch("asympo.learner.model.lora.parts_in_files", _parts),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        return _steps(config, row_of(num_tokens), is_checkpointed, chunk_rows, num_rows, lora)


def _parts(model: torch.nn.Module) -> dict[str, WeightPart]:
    """Of files that hold every matrix as the model does."""
    return {
        name: WeightPart(parameter=name, rows=slice(0, len(each)))
        for name, each in model.named_parameters()
        if each.dim() == 2
    }


def _steps(
    config: PretrainedConfig,
    batch: PackedBatch,
    is_checkpointed: bool,
    chunk_rows: int,
    num_rows: int,
    lora: LoraSettings | None,
) -> int:
    attention = {"attn_implementation": PACKED_ATTENTION}
    shadow = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **attention)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention)
    if is_checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(is_checkpointed)
    policy = Policy(model=model, compute_dtype=torch.bfloat16, chunk_rows=chunk_rows)
    policy._plan = lambda batch, device: None  # type: ignore[assignment]
    if lora is not None:
        # PEFT moves its matrices to where the base is, and tensors without data cannot be moved.
        with patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
            add_adapter(model, lora, compute_dtype=torch.bfloat16, seed=0)
        policy.path.apply(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(model, learning_rate=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    # An adapter is published from a copy of its own, and nothing of the base is copied.
    copied = shadow.parameters() if lora is None else [p.detach().bfloat16() for p in trained]
    scope = StepScope(num_responses=4, num_groups=1, num_groups_without_signal=0)
    with LiveBytes() as live:
        for tensor in (*model.parameters(), *copied):
            live.note(tensor)
        for _ in range(2):
            for _ in range(num_rows):
                mean_nll_R = policy.compute_nll(batch).mean_nll_R
                advantage_R = torch.from_numpy(np.array(batch.advantage_R, dtype=np.float32))
                loss, _ = OBJECTIVES["asympo"](mean_nll_R, advantage_R, scope, ObjectiveOptions())
                loss.backward()
                del loss, mean_nll_R
            gradients = [parameter.grad for parameter in trained]
            torch.nn.utils.get_total_norm(gradients, foreach=True)
            del gradients
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return live.peak
