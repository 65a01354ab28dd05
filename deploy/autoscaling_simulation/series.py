"""Samples of simulated scrapes, found as Prometheus finds them."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LOOKBACK_SECONDS = 300.0
"""An instant query sees the newest sample up to this old."""

Labels = frozenset[tuple[str, str]]
"""Label names and values, without the metric's name."""


@dataclass(slots=True)
class _Samples:
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """NaN marks the end of a series: its target or its rule stopped giving it."""


class SeriesStore:
    """Series by name and labels. Times in seconds, appended in order."""

    def __init__(self, *, retention_seconds: float = 7200.0) -> None:
        self._series: dict[str, dict[Labels, _Samples]] = {}
        self._retention_seconds = retention_seconds

    def append(self, name: str, labels: Labels, time: float, value: float) -> None:
        """One sample; NaN ends the series."""
        samples = self._series.setdefault(name, {}).setdefault(labels, _Samples())
        samples.times.append(time)
        samples.values.append(value)
        if len(samples.times) % 512 == 0:
            old = bisect_left(samples.times, time - self._retention_seconds)
            del samples.times[:old], samples.values[:old]

    def record(self, name: str, time: float, vector: Mapping[Labels, float]) -> None:
        """All series of a name at one time; those that gave a sample before and no longer do are ended."""
        for labels, samples in self._series.get(name, {}).items():
            if labels not in vector and samples.values and not math.isnan(samples.values[-1]):
                self.append(name, labels, time, math.nan)
        for labels, value in vector.items():
            self.append(name, labels, time, value)

    def instant(self, name: str, time: float) -> Iterator[tuple[Labels, float]]:
        """The newest sample of each series that has not ended."""
        for labels, samples in self._series.get(name, {}).items():
            at = bisect_right(samples.times, time) - 1
            if at < 0 or samples.times[at] <= time - LOOKBACK_SECONDS or math.isnan(samples.values[at]):
                continue
            yield labels, samples.values[at]

    def window(
        self, name: str, time: float, seconds: float
    ) -> Iterator[tuple[Labels, list[float], list[float]]]:
        """Times and values of each series within [time - seconds, time], as Prometheus 2 counts them."""
        for labels, samples in self._series.get(name, {}).items():
            first = bisect_left(samples.times, time - seconds)
            last = bisect_right(samples.times, time)
            kept = [i for i in range(first, last) if not math.isnan(samples.values[i])]
            if kept:
                yield labels, [samples.times[i] for i in kept], [samples.values[i] for i in kept]

    def dump(self) -> Iterator[tuple[str, Labels, list[float], list[float]]]:
        """Everything: name, labels, times, values."""
        for name, series in self._series.items():
            for labels, samples in series.items():
                yield name, labels, samples.times, samples.values
