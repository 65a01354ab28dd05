"""What all parts of one generator share once it has joined its run."""

from dataclasses import dataclass

from asympo.common.clock import Clock
from asympo.common.rollout_log import RunConfig, RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.tracing import Tracing
from asympo.engines.base import Engine
from asympo.generator.gpu_share import GpuShare
from asympo.generator.metrics import GeneratorMetrics
from asympo.generator.settings import GeneratorSettings


@dataclass(frozen=True, kw_only=True)
class GeneratorContext:
    """Made once; a part takes what it needs from it."""

    settings: GeneratorSettings
    """What this generator was told."""
    config: RunConfig
    """What the run says to all."""
    run_id: str
    """Of the run that it has joined; empty where that has none."""
    run_log: RunLog
    """The run's log."""
    engine: Engine
    """What samples."""
    gpu: GpuShare
    """Whether it may sample now, on a GPU that it shares with the learner."""
    calls: Calls
    """Threads for whatever blocks."""
    metrics: GeneratorMetrics
    """Its counters."""
    tracing: Tracing
    """Spans of groups; off unless asked for."""
    clock: Clock
    """Time."""
    holder: str
    """Its name in leases and reports."""
