"""For every alert: samples on which it fires, and samples close to those on which it does not.

Each case changes a healthy run of two generators, by promtool's notation for one sample a minute.
"""

from dataclasses import dataclass

MINUTES = 150
"""Length of every case; alerts are asked for at its end."""

Changes = dict[str, str]

LEARNER = '{namespace="n",run="r",instance="learner"}'
PODS = ("generator-0", "generator-1")


def _still(value: float) -> str:
    return f"{value}x{MINUTES}"


def grows(per_minute: float) -> str:
    """A counter."""
    return f"0+{per_minute}x{MINUTES}"


def _learner(name: str, extra: str = "") -> str:
    return f"asympo_learner_{name}" + LEARNER.replace("}", f",{extra}}}" if extra else "}")


def _generator(name: str, pod: str, extra: str = "") -> str:
    return f'asympo_generator_{name}{{namespace="n",run="r",pod="{pod}"{"," + extra if extra else ""}}}'


def healthy() -> Changes:
    """A run in which everything is as it should be. Steps take half a minute."""
    series = {
        _learner("slots", 'state="capacity"'): _still(128),
        _learner("slots", 'state="leased"'): _still(16),
        _learner("slots", 'state="open"'): _still(64),
        _learner("waited_seconds_total"): grows(1),
        _learner("appended_groups_total"): grows(128),
        _learner("backlog_groups"): _still(10),
        _learner("steps_total"): grows(2),
        _learner("empty_segments_total"): _still(0),
        _learner("empty_segments_in_a_row"): _still(0),
        _learner("skipped_steps_total"): _still(0),
        _learner("paused"): _still(0),
        _learner("finished"): _still(0),
        _learner("groups_total", 'kind="invalid"'): _still(0),
        _learner("last_publish_timestamp_seconds"): grows(60),
        _learner("last_commit_timestamp_seconds"): grows(60),
        _learner("storage_free_bytes"): _still(5e11),
        _learner("storage_total_bytes"): _still(1e12),
        _learner("broker_used_bytes"): _still(1e9),
        _learner("broker_max_bytes"): _still(4e9),
        _learner("broker_durable"): _still(1),
        _learner("nll_nats", 'sign="positive"'): _still(0.5),
        _learner("nll_ratio"): _still(1.2),
        _learner("reward"): "0.2+0.002x150",
        _learner("truncated_ratio"): _still(0.05),
        _learner("tracker_failures_total", 'tracker="wandb"'): _still(0),
        'asympo_build_info{namespace="n",run="r",version="1.0",service="learner"}': _still(1),
        'asympo_build_info{namespace="n",run="r",version="1.0",service="generator"}': _still(1),
    }
    for name in ("lease_expiries", "wasted_groups", "prompt_failures", "publish_failures", "save_failures"):
        series[_learner(f"{name}_total")] = _still(0)
    for pod in PODS:
        series |= {
            _generator("ready", pod): _still(1),
            _generator("groups_in_flight", pod): _still(8),
            _generator("max_groups_in_flight", pod): _still(8),
            _generator("groups_total", pod, 'outcome="appended"'): grows(64),
            _generator("responses_total", pod, 'finish_reason="stop"'): grows(512),
            _generator("policy_step", pod): grows(2),
            _generator("unproven_alert", pod): _still(0),
            _generator("probe_error_nats", pod): _still(0.004),
            _generator("probe_noise_nats", pod): _still(0.004),
            _generator("reloads_total", pod, 'verdict="failed"'): _still(0),
        }
        for name in (
            "broker_errors",
            "corrupt_policies",
            "reward_failures",
            "engine_failures",
            "unexpected_errors",
        ):
            series[_generator(f"{name}_total", pod)] = _still(0)
    return series


@dataclass(frozen=True, kw_only=True)
class Case:
    """One alert."""

    firing: Changes
    """What makes it fire at the end."""
    quiet: Changes
    """What almost does."""
    without: str = ""
    """Series whose names start like this are absent while it fires."""


def _from(minute: int, before: float, after: float) -> str:
    return f"{before}x{minute - 1} {after}x{MINUTES - minute}"


def _counter_from(minute: int, per_minute: float) -> str:
    """A counter that starts to grow late."""
    return f"0x{minute - 1} {per_minute}+{per_minute}x{MINUTES - minute}"


_ALL_TAKEN = {_learner("slots", 'state="leased"'): _still(64)}
_WAITS = {_learner("waited_seconds_total"): grows(20)}
_ONE_LATE = _counter_from(145, 1)
_ONE_EARLY = "0x30 1x119"
_POD = PODS[0]


def _counted(series: str) -> Case:
    """An alert on any increase: fires on a fresh one, not on an old one."""
    return Case(firing={series: _ONE_LATE}, quiet={series: _ONE_EARLY})


CASES = {
    "AsympoLearnerStarved": Case(firing=_WAITS, quiet=_WAITS | _ALL_TAKEN),
    "AsympoSlotsExhausted": Case(firing=_WAITS | _ALL_TAKEN, quiet=_WAITS),
    "AsympoNoGroups": Case(
        firing={
            _learner("waited_seconds_total"): grows(60),
            _learner("appended_groups_total"): _counter_from(1, 0),
        },
        quiet={_learner("waited_seconds_total"): grows(60), _learner("appended_groups_total"): grows(1)},
    ),
    "AsympoGeneratorsIdle": Case(
        firing=_ALL_TAKEN
        | {_learner("waited_seconds_total"): _still(0)}
        | {_generator("groups_in_flight", pod): _still(1) for pod in PODS},
        quiet={_learner("waited_seconds_total"): _still(0)}
        | {_generator("groups_in_flight", pod): _still(1) for pod in PODS},
    ),
    "AsympoBacklogStuck": Case(
        firing={_learner("steps_total"): "200x149"},
        quiet={
            _learner("steps_total"): "200x149",
            _learner("finished"): _from(145, 1, 0),
            _learner("paused"): _from(145, 0, 1),
        },
    ),
    "AsympoLearnerMissing": Case(
        firing={}, without="asympo_learner_", quiet={_learner("slots", 'state="capacity"'): "128x145 _x4"}
    ),
    "AsympoLearnerPaused": Case(
        firing={_learner("paused"): _from(80, 0, 1)}, quiet={_learner("paused"): _from(110, 0, 1)}
    ),
    "AsympoGeneratorNotReady": Case(
        firing={_generator("ready", _POD): _from(110, 1, 0)},
        quiet={_generator("ready", _POD): _from(130, 1, 0)},
    ),
    "AsympoGeneratorStalled": Case(
        firing={_generator("groups_total", _POD, 'outcome="appended"'): "500x149"},
        quiet={
            _generator("groups_total", _POD, 'outcome="appended"'): "500x149",
            _generator("groups_in_flight", _POD): _still(0),
        },
    ),
    "AsympoLeaseExpiries": Case(
        firing={_learner("lease_expiries_total"): grows(8)},
        quiet={_learner("lease_expiries_total"): grows(4)},
    ),
    "AsympoWastedGroups": Case(
        firing={_learner("wasted_groups_total"): grows(8)}, quiet={_learner("wasted_groups_total"): grows(4)}
    ),
    "AsympoDeadLetters": _counted(_learner("groups_total", 'kind="invalid"')),
    "AsympoPromptFailures": Case(
        firing={_learner("prompt_failures_total"): grows(0.5)},
        quiet={_learner("prompt_failures_total"): grows(0.1)},
    ),
    "AsympoBrokerErrors": Case(
        firing={_generator("broker_errors_total", _POD): grows(1)},
        quiet={_generator("broker_errors_total", _POD): _ONE_LATE},
    ),
    "AsympoBrokerMemory": Case(
        firing={_learner("broker_used_bytes"): _still(3.6e9)},
        quiet={_learner("broker_used_bytes"): _still(3.6e9), _learner("broker_max_bytes"): _still(0)},
    ),
    "AsympoBrokerNotDurable": Case(
        firing={_learner("broker_durable"): _still(0)}, quiet={_learner("broker_durable"): _from(148, 1, 0)}
    ),
    "AsympoProbeFailed": _counted(_generator("reloads_total", _POD, 'verdict="failed"')),
    "AsympoReloadsUnproven": Case(
        firing={_generator("unproven_alert", _POD): _from(146, 0, 1)},
        quiet={_generator("unproven_alert", _POD): _from(100, 1, 0)},
    ),
    "AsympoProbeDrift": Case(
        firing={_generator("probe_error_nats", _POD): _still(0.1)},
        quiet={_generator("probe_error_nats", _POD): _still(0.02)},
    ),
    "AsympoReloadsStopped": Case(
        firing={_generator("policy_step", _POD): _still(7)},
        quiet={
            _generator("policy_step", _POD): _still(7),
            _learner("last_publish_timestamp_seconds"): _still(600),
        },
    ),
    "AsympoCorruptPolicies": _counted(_generator("corrupt_policies_total", _POD)),
    "AsympoPublishFailing": _counted(_learner("publish_failures_total")),
    "AsympoPolicyOld": Case(
        firing={_learner("last_publish_timestamp_seconds"): _still(60)},
        quiet={_learner("last_publish_timestamp_seconds"): _still(60), _learner("steps_total"): _still(9)},
    ),
    "AsympoSaveFailing": _counted(_learner("save_failures_total")),
    "AsympoStateOld": Case(
        firing={_learner("last_commit_timestamp_seconds"): _still(60)},
        quiet={_learner("last_commit_timestamp_seconds"): _still(6000)},
    ),
    "AsympoStorageLow": Case(
        firing={_learner("storage_free_bytes"): _still(0.9e11)},
        quiet={_learner("storage_free_bytes"): _still(1.1e11)},
    ),
    "AsympoCollapseWarning": Case(
        firing={
            _learner("nll_nats", 'sign="positive"'): "0.5+0.01x149",
            _learner("reward"): "0.9-0.004x149",
        },
        quiet={_learner("nll_nats", 'sign="positive"'): "0.5+0.01x149"},
    ),
    "AsympoNllImbalance": Case(
        firing={_learner("nll_ratio"): _still(4)}, quiet={_learner("nll_ratio"): _from(140, 1, 6)}
    ),
    "AsympoGradientsNotFinite": _counted(_learner("skipped_steps_total")),
    "AsympoNoSignal": Case(
        firing={_learner("empty_segments_in_a_row"): _still(5)},
        quiet={_learner("empty_segments_in_a_row"): _still(4)},
    ),
    "AsympoRewardsFailing": Case(
        firing={_generator("reward_failures_total", _POD): grows(80)},
        quiet={_generator("reward_failures_total", _POD): grows(40)},
    ),
    "AsympoTruncated": Case(
        firing={_learner("truncated_ratio"): _still(0.6)}, quiet={_learner("truncated_ratio"): _still(0.4)}
    ),
    "AsympoEngineFailures": _counted(_generator("engine_failures_total", _POD)),
    "AsympoUnexpectedErrors": _counted(_generator("unexpected_errors_total", _POD)),
    "AsympoTrackerFailing": _counted(_learner("tracker_failures_total", 'tracker="wandb"')),
    "AsympoVersionsDiffer": Case(
        firing={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': _still(1)},
        quiet={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': "_x120 1x29"},
    ),
}
