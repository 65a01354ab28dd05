"""A model so small that a learner trains it in no time, written without any library that has to be loaded."""

import json
import random
import struct
from math import prod
from pathlib import Path

_HIDDEN, _MLP, _LAYERS, _HEADS, _HEAD_SIZE, _VOCABULARY = 64, 128, 2, 2, 32, 320
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_model(directory: Path, *, seed: int) -> Path:
    """A Llama with random bfloat16 weights and a tokenizer of bytes, as a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_weights(directory / "model.safetensors", seed=seed)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "head_dim": _HEAD_SIZE,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    (directory / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    return directory


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {
            name + "input_layernorm.weight": (_HIDDEN,),
            name + "post_attention_layernorm.weight": (_HIDDEN,),
            name + "self_attn.q_proj.weight": (_HEADS * _HEAD_SIZE, _HIDDEN),
            name + "self_attn.k_proj.weight": (_HEAD_SIZE, _HIDDEN),
            name + "self_attn.v_proj.weight": (_HEAD_SIZE, _HIDDEN),
            name + "self_attn.o_proj.weight": (_HIDDEN, _HEADS * _HEAD_SIZE),
            name + "mlp.gate_proj.weight": (_MLP, _HIDDEN),
            name + "mlp.up_proj.weight": (_MLP, _HIDDEN),
            name + "mlp.down_proj.weight": (_HIDDEN, _MLP),
        }
    return shapes


def _write_weights(path: Path, *, seed: int) -> None:
    rng, header, blocks, offset = random.Random(seed), {}, [], 0
    for name, shape in _shapes().items():
        values = [1.0] * shape[0] if len(shape) == 1 else [rng.gauss(0.0, 0.1) for _ in range(prod(shape))]
        # The upper half of a float32 is the bfloat16 next to it.
        floats = struct.pack(f"<{len(values)}f", *values)
        block = b"".join(floats[start + 2 : start + 4] for start in range(0, len(floats), 4))
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + len(block)],
        }
        offset += len(block)
        blocks.append(block)
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blocks))


def _tokenizer() -> dict[str, object]:
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL_TOKENS, *_byte_letters()])}
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in enumerate(_SPECIAL_TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _byte_letters() -> list[str]:
    """One printable letter for each byte, as byte-level tokenizers write them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
