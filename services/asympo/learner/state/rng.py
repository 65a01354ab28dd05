"""The random number generators of this process as bytes, without pickle."""

import base64
import json
import random
from typing import Any

import torch

from asympo.common.errors import CorruptCheckpoint


def capture_random_state() -> bytes:
    """State of Python's, torch's and every CUDA device's generator."""
    version, numbers, gauss = random.getstate()
    document = {
        "python": [version, list(numbers), gauss],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }
    return json.dumps(document).encode()


def restore_random_state(content: bytes) -> None:
    """Put the generators back; CorruptCheckpoint when `content` is no such state."""
    try:
        document: dict[str, Any] = json.loads(content)
        version, numbers, gauss = document["python"]
        random.setstate((version, tuple(numbers), gauss))
        torch.set_rng_state(_tensor(document["torch"]))
        if torch.cuda.is_available() and len(document["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_tensor(state) for state in document["cuda"]])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptCheckpoint(f"the random state cannot be restored: {error}") from error


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
