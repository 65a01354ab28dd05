"""A small random Llama with a byte tokenizer on disk: a policy that real services train and publish."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from asympo.bench.models import random_model

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")


def make_checkpoint(directory: Path, *, hidden_size: int, num_layers: int) -> Path:
    """Writes config, weights and tokenizer; the sizes decide how long a step takes."""
    import torch

    tokenizer = _tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = random_model(config, device=torch.device("cpu")).bfloat16()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(_SPECIAL[1:]),
        eos_token=_SPECIAL[0],
        chat_template=_CHAT_TEMPLATE,
    )
