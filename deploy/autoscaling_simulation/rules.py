"""The chart's recording rules, evaluated on simulated samples."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.autoscaling_simulation.promql import Expression, Vector
from deploy.autoscaling_simulation.series import SeriesStore

RULES_PATH = Path(__file__).parents[2] / "helm/asympo/rules/autoscaling.yaml"
WANTED = "asympo:pool_wanted"
"""What the KEDA trigger and the HPA read."""


@dataclass(frozen=True, kw_only=True)
class RecordingRules:
    """The rules of one group in the order in which Prometheus evaluates them."""

    interval_seconds: float
    rules: tuple[tuple[str, Expression], ...]

    @classmethod
    def load(cls, path: Path = RULES_PATH) -> "RecordingRules":
        """The one group of recording rules in `path`."""
        (group,) = yaml.safe_load(path.read_text())["groups"]
        return cls(
            interval_seconds=float(group["interval"].removesuffix("s")),
            rules=tuple((rule["record"], Expression(rule["expr"])) for rule in group["rules"]),
        )

    def evaluate(self, store: SeriesStore, time: float) -> Vector:
        """Records every rule at `time`; the replicas wanted of each pool."""
        found: Vector = {}
        for name, expression in self.rules:
            found = expression.at(store, time)
            store.record(name, time, found)
        return found
