"""Runs in which no alert may fire at any time, in the notation of `alert_cases`."""

from tests.observability.alert_cases import MINUTES, PODS, Changes, generator, healthy, learner, still

_START = 29
_GROUPS = 'outcome="appended"'


def cold_start() -> Changes:
    """Engines are up after half an hour, and the run is healthy; generators in another namespace."""
    late = {
        learner("waited_seconds_total"): f"0+60x{_START} {60 * _START}+1x{MINUTES - _START}",
        learner("appended_groups_total"): f"0x{_START} 0+128x{MINUTES - _START}",
        learner("backlog_groups"): f"0x{_START} 10x{MINUTES - _START}",
        learner("steps_total"): f"0x{_START} 0+2x{MINUTES - _START}",
        learner("last_publish_timestamp_seconds"): f"60x{_START} {60 * _START}+60x{MINUTES - _START}",
        learner("last_commit_timestamp_seconds"): f"60x{_START} {60 * _START}+60x{MINUTES - _START}",
        learner("slots", 'state="leased"'): f"0x{_START} 16x{MINUTES - _START}",
        learner("slots", 'state="open"'): f"0x{_START} 64x{MINUTES - _START}",
    }
    for pod in PODS:
        late |= {
            generator("ready", pod): f"0x{_START} 1x{MINUTES - _START}",
            generator("groups_in_flight", pod): f"0x{_START} 8x{MINUTES - _START}",
            generator("groups_total", pod, _GROUPS): f"0x{_START} 0+64x{MINUTES - _START}",
            generator("policy_step", pod): f"0x{_START} 0+2x{MINUTES - _START}",
            generator("responses_total", pod, 'finish_reason="stop"'): f"0x{_START} 0+512x{MINUTES - _START}",
        }
    both = healthy() | late
    return {
        name.replace('namespace="n"', 'namespace="m"') if "generator" in name else name: values
        for name, values in both.items()
    }


def rest(state: str, *, until: int = MINUTES) -> Changes:
    """From minute 50 on paused or finished, and the generators idle; steps again where it ends before."""
    before, still, after = 50, until - 50, MINUTES - until
    resting = {
        learner(state): f"0x{before - 1} 1x{still - 1} 0x{after}",
        learner("slots", 'state="leased"'): f"16x{before - 1} 0x{still - 1} 16x{after}",
        learner("slots", 'state="open"'): f"64x{before - 1} 128x{still - 1} 64x{after}",
    }
    for name, rate in (("waited_seconds", 1), ("appended_groups", 128), ("steps", 2)):
        reached = rate * (before - 1)
        resting[learner(f"{name}_total")] = (
            f"0+{rate}x{before - 1} {reached}x{still - 1} {reached}+{rate}x{after}"
        )
    for name in ("last_publish", "last_commit"):
        resting[learner(f"{name}_timestamp_seconds")] = (
            f"0+60x{before - 1} {60 * before}x{still + 2} {60 * (until + 3)}+60x{after}"
        )
    for pod in PODS:
        reached = 64 * (before - 1)
        resting |= {
            generator("groups_in_flight", pod): f"8x{before - 1} 0x{still - 1} 8x{after}",
            generator("groups_total", pod, _GROUPS): (
                f"0+64x{before - 1} {reached}x{still - 1} {reached}+64x{after}"
            ),
            generator(
                "policy_step", pod
            ): f"0+2x{before - 1} {2 * before}x{still + 2} {2 * before}+2x{after}",
        }
    return healthy() | resting


_POOR_LAST_STEP = {
    learner("reward"): "0.3x53 0.01x95",
    learner("nll_nats", 'sign="positive"'): "0.5x53 2x95",
    learner("truncated_ratio"): "0.05x53 0.9x95",
    learner("empty_segments_in_a_row"): "0x53 5x95",
}
"""What the page of a run that has ended goes on showing, its pod replaced or not."""

QUIET_RUNS = {
    "cold start": cold_start(),
    "paused": rest("paused", until=105),
    "finished": rest("finished"),
    "finished on a poor step": rest("finished") | _POOR_LAST_STEP,
    "an environment is played": healthy()
    | {learner("slots", 'state="leased"'): still(64), learner("waited_seconds_total"): still(0)}
    | {generator(f"{name}groups_in_flight", pod): still(0) for name in ("", "max_") for pod in PODS},
    "weights are kept": healthy() | {generator("policy_step", pod): still(-1) for pod in PODS},
    "healthy": healthy(),
}
