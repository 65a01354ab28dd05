"""Where the run's model lies on this machine."""

import logging
from pathlib import Path

from asympo.common.errors import BadModel
from asympo.common.foreign.text import reason_of

log = logging.getLogger(__name__)

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")


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
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except (OSError, HFValidationError, ValueError) as error:
        raise BadModel(
            f"the run's model {model!r} is not a directory here and cannot be downloaded "
            f"({reason_of(error)}): name its directory on this machine with --model"
        ) from error
