"""Which device the policy is trained on, with a warning where a GPU was probably meant and cannot be used."""

import logging

import torch

from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)


def choose_device(asked: str) -> str:
    """torch's device type; raises BadSetting for a GPU that was asked for and cannot be used."""
    if torch.cuda.is_available():
        return "cuda" if asked == "auto" else asked
    if asked == "cuda" or (asked == "auto" and torch.version.cuda):
        problem = _problem()
        if asked == "cuda":
            raise BadSetting(f"device is cuda, and {problem}: fix that, or set device to cpu")
        log.warning("Training on the CPU, many times slower than on a GPU, since %s", problem)
    return "cpu" if asked == "auto" else asked


def wait_for(device: torch.device) -> None:
    """Returns once a GPU has done all it was asked to; others have by then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _problem() -> str:
    """Why torch can use no GPU, in its own words."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
    else:
        reason = "none is visible"
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is the CPU build"
    return f"torch {torch.__version__} {built} and can use no GPU ({reason})"
