"""What the rule is tried on, and what is measured of each run."""

import itertools
from dataclasses import dataclass

from deploy.autoscaling_simulation.rules import RecordingRules
from deploy.autoscaling_simulation.simulation import Load, Pool, Scenario, Simulation, Trace

SETTLED_AFTER_SECONDS = 3600.0
"""The first hour, in which a fleet grows from one generator, is reported apart."""

_QUICK = (Load(group_seconds=5.0),)
_CHANGING = (
    Load(group_seconds=16.0),
    Load(from_seconds=3 * 3600, group_seconds=30.0),
    Load(from_seconds=6 * 3600, group_seconds=8.0),
)

SCENARIOS = (
    Scenario(name="grow from 1, max_staleness 1", max_staleness=1, loads=_QUICK, without_signal_ratio=0.0),
    Scenario(name="grow from 1, max_staleness 2", max_staleness=2),
    Scenario(name="grow from 1, max_staleness 4", max_staleness=4),
    Scenario(
        name="spot generators, one in two lost each hour", hours=8.0, pools=(Pool(preemptions_per_hour=0.5),)
    ),
    Scenario(name="responses grow at 3 h, shrink at 6 h", hours=9.0, max_staleness=4, loads=_CHANGING),
    Scenario(
        name="the learner is the bottleneck",
        pools=(Pool(first_replicas=24),),
        max_staleness=4,
        loads=(Load(step_seconds=240.0, group_seconds=4.0),),
    ),
)
POOLS = (
    Scenario(
        name="two pools, spot nodes for all, for 4, for all",
        hours=9.0,
        max_staleness=4,
        pools=(
            Pool(name="on-demand", first_replicas=2),
            Pool(
                name="spot",
                weight=2.0,
                first_replicas=2,
                preemptions_per_hour=0.5,
                room=((0.0, 40), (3 * 3600.0, 4), (6 * 3600.0, 40)),
            ),
        ),
    ),
    Scenario(
        name="an autoscaled pool beside one of 6",
        hours=6.0,
        max_staleness=4,
        pools=(Pool(name="fixed", weight=None, first_replicas=6), Pool(name="autoscaled")),
    ),
)
SLOTS_SHORT = Scenario(name="slots run out, max_staleness 1", hours=3.0, max_staleness=1)
"""A group takes as long as a step and a tenth carry no signal: no number of generators can help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One run in numbers, the first hour left out."""

    scenario: str
    seed: int
    waiting_ratio: float
    """Share of time in which the learner waited."""
    min_replicas: int
    max_replicas: int
    last_replicas: int
    limit: int
    """Most that capacity could lease to."""
    changes_per_hour: float
    steps: int
    """Of the whole run."""


def measure(scenario: Scenario, trace: Trace, *, seed: int) -> Measured:
    """Numbers of one trace."""
    first = next(i for i, time in enumerate(trace.times) if time >= SETTLED_AFTER_SECONDS)
    hours = (trace.times[-1] - trace.times[first]) / 3600
    settled = trace.replicas[first:]
    changes = sum(a != b for a, b in itertools.pairwise(settled))
    return Measured(
        scenario=scenario.name,
        seed=seed,
        waiting_ratio=(trace.waited_seconds[-1] - trace.waited_seconds[first]) / (hours * 3600),
        min_replicas=min(settled),
        max_replicas=max(settled),
        last_replicas=settled[-1],
        limit=scenario.max_replicas,
        changes_per_hour=changes / hours,
        steps=trace.steps[-1],
    )


def simulate(scenario: Scenario, *, seed: int, rules: RecordingRules) -> tuple[Measured, Trace]:
    """One run to its end."""
    trace = Simulation(scenario, seed=seed, rules=rules).run()
    return measure(scenario, trace, seed=seed), trace
