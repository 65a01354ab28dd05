"""Groups of the steps made, for people: the page shows those that somebody wants to see."""

import json
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from asympo.common.archive.choice import Choice

MAX_GROUPS = 2048
MAX_CHARS = 32 * 2**20
"""Of all that is kept, as JSON: the oldest go first."""
_ALL = Choice()


class SampleStore:
    """Thread-safe: the training thread adds, the doors look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: deque[tuple[dict[str, Any], int]] = deque()
        self._num_chars = 0

    def add(self, groups: Sequence[dict[str, Any]]) -> None:
        """Groups of the newest step."""
        sized = [(group, len(json.dumps(group))) for group in groups]
        with self._lock:
            self._groups.extend(sized)
            self._num_chars += sum(size for _, size in sized)
            while len(self._groups) > MAX_GROUPS or self._num_chars > MAX_CHARS:
                self._num_chars -= self._groups.popleft()[1]

    def newest(
        self, *, limit: int, choice: Choice = _ALL, asks: str = "", evaluation: str = ""
    ) -> list[dict[str, Any]]:
        """Those wanted, newest first; `asks`: only those whose prompt is that of a group that says so."""
        with self._lock:
            groups = [group for group, _ in reversed(self._groups)]
        found: list[dict[str, Any]] = []
        for group in groups:
            if len(found) == limit:
                break
            is_asked = asks in ("", group["asks"]) and group.get("eval", "") == evaluation
            if is_asked and choice.takes(
                step=group["step"], prompt=group["prompt"], responses=group["responses"]
            ):
                found.append(group)
        return found
