"""The weights of a cell's last policies, from which it samples: in memory, or on disk where large."""

import shutil
import tempfile
import weakref
from collections import deque
from pathlib import Path

from safetensors.torch import load_file, save_file

from asympo.lab.start import Weights

_MAX_BYTES = 1 << 30
"""Of all that are kept, in memory."""


class OldWeights:
    """Those of the start and of each step since, as many of the newest as are asked for."""

    def __init__(self, start: Weights, *, count: int) -> None:
        size = sum(value.nbytes for value in start.values())
        self._directory: Path | None = None
        if size * count > _MAX_BYTES:
            self._directory = Path(tempfile.mkdtemp(prefix="asympo-lab-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._held: deque[Weights | Path] = deque(maxlen=count)
        self._num_added = 0
        self.add(start)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, weights: Weights) -> None:
        """The newest from now on; the oldest goes when there is one too many. Raises OSError."""
        if self._directory is None:
            self._held.append(weights)
            return
        path = self._directory / f"{self._num_added}.safetensors"
        self._num_added += 1
        save_file(weights, path)
        if len(self._held) == self._held.maxlen and isinstance(oldest := self._held[0], Path):
            oldest.unlink()
        self._held.append(path)

    def of_age(self, age: int) -> Weights:
        """0 is the newest. Raises IndexError."""
        held = self._held[-1 - age]
        return load_file(held) if isinstance(held, Path) else held
