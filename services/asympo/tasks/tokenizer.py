"""The tokenizer of a model."""

import json
from pathlib import Path
from typing import Any

from asympo.common.errors import BadModel
from asympo.common.foreign.text import reason_of
from asympo.local.heap import large_imports
from asympo.tasks.quick_tokenizer import QuickTokenizer, compile_chat_template


def load_tokenizer(model: str) -> Any:
    """As transformers loads it, which imports torch; raises BadModel with one sentence."""
    try:
        with large_imports():
            from transformers import AutoTokenizer
    except ImportError as error:
        raise BadModel(
            f"the tokenizer of the model {model} needs transformers, and importing it failed ({error})"
        ) from error
    try:
        # What a tekken.json makes has no chat template and cannot be published.
        return AutoTokenizer.from_pretrained(model, mistral_format=False)
    except Exception as error:
        raise BadModel(f"the tokenizer of the model {model} cannot be loaded: {reason_of(error)}") from error


def open_tokenizer(model: str) -> Any:
    """The model's tokenizer from files on this machine, the quick one where they allow. Raises BadModel."""
    folder = files_of(model)
    if not folder.is_dir():
        raise BadModel(f"the model {model} is not on this machine: give its directory, or download it first")
    try:
        import tokenizers

        config = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if template := _template(folder, config):
            compile_chat_template(template)
    except Exception:  # noqa: BLE001  the library raises Exception itself; transformers has the last word
        return load_tokenizer(str(folder))
    return QuickTokenizer(tokenizer=tokenizer, config=config, chat_template=template)


def files_of(model: str) -> Path:
    """The model's directory, or where the hub's cache keeps it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return folder
    return Path(found).parent if isinstance(found, str) else folder


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((each["template"] for each in template if each["name"] == "default"), None)
    return template
