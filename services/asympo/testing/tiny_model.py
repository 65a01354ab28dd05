"""A tiny random Llama with tied embeddings and a tokenizer of bytes, written in no time and without torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PAD, _, _EOS = _SPECIAL_TOKENS
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MAX_TOKENS = 2048


def write_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    head_size: int = 32,
    num_layers: int = 2,
    vocabulary_size: int = 512,
) -> Path:
    """Writes a Hugging Face directory (bfloat16) and returns it; vLLM has no smaller heads on CPUs."""
    num_heads = hidden_size // head_size
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": (num_heads + 1) // 2,
        "head_dim": head_size,
        "max_position_embeddings": _MAX_TOKENS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": _SPECIAL_TOKENS.index(_EOS),
        "pad_token_id": _SPECIAL_TOKENS.index(_PAD),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    _write_weights(directory / "model.safetensors", config, seed=seed)
    _write_tokenizer(directory)
    return directory


def load_tiny_tokenizer(directory: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of every tiny model, written into the directory and read as any model's is."""
    from transformers import PreTrainedTokenizerFast

    _write_tokenizer(directory)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


def _write_weights(path: Path, config: dict[str, Any], *, seed: int) -> None:
    import numpy

    hidden, inner, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    keys = config["num_key_value_heads"] * config["head_dim"]
    queries = config["num_attention_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()}
    rng = numpy.random.default_rng(seed)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, shape in shapes.items():
        values = numpy.ones(shape) if len(shape) == 1 else rng.normal(0.0, 0.1, shape)
        # The upper half of a float32 is the bfloat16 next to it, towards zero.
        data = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        span = [len(content), len(content) + len(data)]
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": span}
        content += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _EOS,
        "pad_token": _PAD,
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": _MAX_TOKENS,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
