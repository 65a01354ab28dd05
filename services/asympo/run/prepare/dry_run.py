"""Looks at model and task without training, in a process of its own.

`python -m asympo.run.prepare.dry_run LEARNER_SETTINGS` prints one JSON object.
"""

import dataclasses
import json
import math
import sys
from typing import Any

from asympo.common.context_length import what_does_not_fit
from asympo.common.errors import AsympoError, BadModel
from asympo.common.foreign.text import reason_of
from asympo.local.heap import large_imports


def main(argv: list[str]) -> int:
    from asympo.learner.log.create_run import read_config
    from asympo.learner.settings import LearnerSettings
    from asympo.tasks.registry import load_task
    from asympo.tasks.render import render_prompt
    from asympo.tasks.tokenizer import load_tokenizer

    try:
        settings = LearnerSettings.load(["--config", argv[0]])
        task = load_task(settings.task)
        tokenizer = load_tokenizer(settings.model)
        prompt = task.prompt(0)
        token_ids = list(render_prompt(prompt, tokenizer))
        config = read_config(settings.model)
        shape = model_shape(settings.model, config)
    except AsympoError as error:
        sys.stderr.write(f"asympo: {error}\n")
        return error.exit_code
    values = {
        **shape,
        "num_prompts": len(task),
        "num_held_out": len(task.held_out()),
        "prompt_text": tokenizer.decode(token_ids),
        "num_prompt_tokens": len(token_ids),
        "does_not_fit": what_does_not_fit(
            config, num_prompt_tokens=len(token_ids), max_tokens=settings.sampling.max_tokens
        ),
        "prompt": dataclasses.asdict(prompt),
        "answer": prompt.answer,
        "num_answer_tokens": len(tokenizer.encode(prompt.answer, add_special_tokens=False)) + 1,
    }
    sys.stdout.write(json.dumps(values) + "\n")
    return 0


def model_shape(model: str, config: Any) -> dict[str, int]:
    """Sizes of the model from its config; no weights are read. BadModel in one sentence."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights():
            empty = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"the model {model} cannot be loaded: {reason_of(error)}") from None
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    num_parameters = sum(parameter.numel() for parameter in empty.parameters())
    if config.tie_word_embeddings:
        # Empty weights are never tied: the head was counted beside the embedding.
        num_parameters -= text.vocab_size * text.hidden_size
    tables = {id(empty.get_input_embeddings()), id(empty.get_output_embeddings())}
    matrices = [
        parameter.shape
        for module in empty.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1 and id(module) not in tables
    ]
    return {
        "num_parameters": num_parameters,
        # Experts are stacked: [E, F, D].
        "matrix_sides": sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in matrices),
        "largest_matrix": max(map(math.prod, matrices), default=0),
        "stacked": sum(math.prod(shape) for shape in matrices if len(shape) > 2),
        "is_tied": bool(config.tie_word_embeddings),
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "attention_width": head_size * (text.num_attention_heads + heads),
        "is_gated_silu": getattr(text, "hidden_act", "") in ("silu", "swish")
        and not getattr(text, "mlp_bias", False),
        "intermediate_size": getattr(text, "intermediate_size", 4 * text.hidden_size),
        "vocab_size": text.vocab_size,
        "kv_bytes_per_token": 2 * text.num_hidden_layers * heads * head_size * 2,
    }


if __name__ == "__main__":
    with large_imports():
        sys.exit(main(sys.argv[1:]))
