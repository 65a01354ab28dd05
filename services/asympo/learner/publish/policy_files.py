"""What a policy is made of: files beside its weights, and weights under the model's own names."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from asympo.common.checkpoints.names import POLICY_FILES
from asympo.common.errors import AsympoError, BadModel, CorruptCheckpoint, PublishFailed
from asympo.learner.model.weights import PUBLISHED_DTYPE, named_weights

log = logging.getLogger(__name__)

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def files_beside_weights(model: PreTrainedModel, tokenizer: Any) -> dict[str, bytes]:
    """By name; made once, so that what a policy cannot hold shows before anything is trained.

    Mends the model's generation config where transformers would refuse to write it. Raises BadModel.
    """
    model.generation_config = _writable(model.generation_config)
    with TemporaryDirectory() as directory:
        try:
            model.config.save_pretrained(directory)
            # Several chat templates go into the tokenizer's config: in a folder, policies would have depth.
            is_one = not isinstance(getattr(tokenizer, "chat_template", None), dict)
            tokenizer.save_pretrained(directory, **({} if is_one else {"save_jinja_files": False}))
            if model.can_generate():
                model.generation_config.save_pretrained(directory)
        except Exception as error:
            raise _unpublishable(model, error) from error
        paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
        names = [path.relative_to(directory).as_posix() for path in paths]
        if odd := next((name for name in names if not POLICY_FILES.fullmatch(name)), None):
            raise BadModel(
                f"the tokenizer {type(tokenizer).__name__} writes {odd}, which a policy may not hold: give a "
                "model with a tokenizer.json"
            )
        return {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}


def write_weights(model: PreTrainedModel, directory: Path) -> None:
    """In the layout that the model was read from. Raises OSError and PublishFailed, BadModel."""
    try:
        model.save_pretrained(directory)
    except SafetensorError as error:
        # The writer wraps what the operating system said, a full disk included.
        raise PublishFailed(f"the policy could not be written to {directory}: {error}") from error
    except (OSError, MemoryError, AsympoError):
        raise
    except Exception as error:
        raise _unpublishable(model, error) from error


def read_weights(model: PreTrainedModel, path: Path) -> dict[str, Tensor]:
    """The weights of the published policy of a model, named and laid out as in the model itself.

    Files name some otherwise and hold experts one by one: only loading them undoes that.
    Raises CorruptCheckpoint where the policy is not one of this model.
    """
    loaded: Any = type(model).from_pretrained(path, dtype=PUBLISHED_DTYPE, output_loading_info=True)
    model_there, report = loaded
    stored, ours = named_weights(model_there), named_weights(model)
    odd = {str(name) for names in report.values() for name in names} | (stored.keys() ^ ours.keys())
    odd |= {name for name in stored.keys() & ours.keys() if stored[name].shape != ours[name].shape}
    if odd:
        raise CorruptCheckpoint(f"{path} holds another model: {min(odd)} differs")
    return stored


def _writable(config: GenerationConfig) -> GenerationConfig:
    """The config, saying that it samples where that alone makes it valid, else no more than its token ids."""
    sampling = GenerationConfig.from_dict(config.to_dict())
    sampling.do_sample = True
    for each in (config, sampling):
        try:
            each.validate(strict=True)
        except (ValueError, TypeError) as error:
            problem = str(error).strip()
        else:
            return each
    log.warning("The generation config is published without all but its token ids: %s", problem)
    ids = {name: getattr(config, name) for name in _TOKEN_IDS}
    return GenerationConfig(**{name: value for name, value in ids.items() if value not in (None, -1)})


def _unpublishable(model: PreTrainedModel, error: Exception) -> BadModel:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return BadModel(f"{type(model).__name__} cannot be written as a policy: {reason}")
