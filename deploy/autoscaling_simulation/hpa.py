"""The HorizontalPodAutoscaler's own arithmetic for one external metric with an average value of 1."""

import math
from collections import deque
from dataclasses import dataclass, field

TOLERANCE = 0.1
"""Kubernetes' default: a change of up to a tenth is not made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HpaSettings:
    """`spec.minReplicas`, `spec.maxReplicas` and `spec.behavior`; the chart's values."""

    min_replicas: int = 1
    max_replicas: int
    scale_up_percent: int = 100
    scale_up_pods: int = 4
    scale_up_period_seconds: float = 60.0
    scale_down_percent: int = 15
    scale_down_pods: int = 1
    scale_down_period_seconds: float = 300.0
    scale_down_window_seconds: float = 600.0
    """A smaller number counts only once it has been wanted for this long."""


@dataclass(kw_only=True, slots=True)
class Hpa:
    """Remembers recommendations and its own changes, as the controller does."""

    settings: HpaSettings
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def replicas(self, now: float, *, current: int, metric: float | None) -> int:
        """Replicas from now on; the current ones when the metric is missing."""
        if metric is None:
            return current
        wanted = current
        if abs(metric / current - 1.0) > TOLERANCE:
            wanted = math.ceil(metric)
        wanted = max(self.settings.min_replicas, min(self.settings.max_replicas, wanted))
        if not self._recommended:
            self._recommended.append((now, current))
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self.settings.scale_down_window_seconds:
            self._recommended.popleft()
        if wanted < current:
            wanted = min(current, max(value for _, value in self._recommended))
        wanted = self._limit(now, current=current, wanted=wanted)
        if wanted != current:
            self._changes.append((now, wanted - current))
        return wanted

    def _limit(self, now: float, *, current: int, wanted: int) -> int:
        """Within the policies: the larger of the two upwards, the one downwards."""
        settings = self.settings
        if wanted > current:
            added = self._changed(now - settings.scale_up_period_seconds, sign=1)
            before = current - added
            limit = max(
                before + settings.scale_up_pods, math.ceil(before * (1 + settings.scale_up_percent / 100))
            )
            return max(current, min(wanted, limit))
        removed = -self._changed(now - settings.scale_down_period_seconds, sign=-1)
        before = current + removed
        limit = min(before - settings.scale_down_pods, int(before * (1 - settings.scale_down_percent / 100)))
        return min(current, max(wanted, limit))

    def _changed(self, since: float, *, sign: int) -> int:
        return sum(change for time, change in self._changes if time > since and change * sign > 0)
