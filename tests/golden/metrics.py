"""`python -m tests.golden.metrics` writes metrics.txt anew from the services' own metrics classes."""

import sys
from pathlib import Path

from asympo.common.telemetry import LateGauge, add_certificate_ends, new_registry
from asympo.evaluator.metrics import EvaluatorMetrics
from asympo.gateway.metrics import GatewayMetrics
from asympo.generator.metrics import GeneratorMetrics
from asympo.learner.metrics import LearnerMetrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PATH = Path(__file__).with_name("metrics.txt")
_SAMPLES = {
    Counter: ("_total",),
    Gauge: ("",),
    LateGauge: ("",),
    Histogram: ("_bucket", "_count", "_sum"),
}


def lines() -> list[str]:
    """One line for each series that a scrape brings: name, type, labels."""
    registry = new_registry(service="any", version="0")
    add_certificate_ends(registry, service="any", ends={})
    LearnerMetrics(registry)
    GeneratorMetrics(registry)
    GatewayMetrics(registry)
    EvaluatorMetrics(registry)
    found = []
    for collector in _collectors(registry):
        labels = sorted(collector._labelnames)
        for suffix in _SAMPLES[type(collector)]:
            name = collector._name + suffix
            own = [*labels, "le"] if suffix == "_bucket" else labels
            found.append(f"{name} {collector._type}{{{','.join(own)}}}")
    return sorted(found)


def _collectors(registry: CollectorRegistry) -> list[Counter | Gauge | Histogram]:
    # Metrics with labels that were not used yet give no samples: the declared ones are asked, not a scrape.
    declared = {id(each): each for each in registry._names_to_collectors.values()}
    return [each for each in declared.values() if isinstance(each, (Counter, Gauge, Histogram))]


def render() -> str:
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    PATH.write_text(render())
    sys.stdout.write(f"{PATH}\n")
