"""Where the run's model lies on this machine."""

import json
import logging
from pathlib import Path

from asympo.common.errors import BadModel
from asympo.common.foreign.text import reason_of

log = logging.getLogger(__name__)

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")
_SECOND_FORM = "consolidated*"
"""The same weights in Mistral's own form, which some models bring beside Hugging Face's."""


def local_model(model: str) -> Path:
    """The directory of a model given as a path or as a Hugging Face id, downloaded if need be. Blocks.

    Raises BadModel in one sentence.
    """
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    log.info("Looking for the model %s in the Hugging Face cache and hub", model)
    try:
        found = snapshot_download(model, allow_patterns=list(_FILES), ignore_patterns=[_SECOND_FORM])
    except (OSError, HFValidationError, ValueError) as error:
        raise BadModel(
            f"the run's model {model!r} is not a directory here and cannot be downloaded "
            f"({reason_of(error)}): name its directory on this machine with --model"
        ) from error
    return Path(found)


def weight_files(model: Path) -> list[Path]:
    """Those that Transformers loads: each tensor is in one of them, whatever else lies beside them."""
    if (single := model / "model.safetensors").is_file():
        return [single]
    named = named_weight_files(model)
    if not named:
        return sorted(model.glob("*.safetensors"))
    return [model / name for name in named if (model / name).is_file()]


def named_weight_files(model: Path) -> list[str]:
    """Files that its index says the weights are in; none without one or beside a single file."""
    index = model / "model.safetensors.index.json"
    if (model / "model.safetensors").is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{index} cannot be read: {error!r}") from error
