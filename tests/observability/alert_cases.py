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
        _learner("broker_up"): _still(1),
        _learner("fence"): _still(3),
        "asympo_certificate_expires_timestamp_seconds"
        '{namespace="n",run="r",instance="learner",service="learner",certificate="control"}': _still(1e7),
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
    """Series whose names start like this are absent while it fires, unless they are changed."""
    quiet_without: str = ""
    """The same while it does not."""


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
_NOTHING_COMES = {
    _learner("waited_seconds_total"): grows(60),
    _learner("appended_groups_total"): _counter_from(1, 0),
}


def _no_generator(*, from_minute: int) -> Changes:
    return {_generator("ready", pod): _from(from_minute, 1, 0) for pod in PODS}


def _fences(*owners: str) -> Changes:
    """Of several learners, each value for four minutes; the last of them at the end."""
    lasting = [" ".join(f"{value} {value} {value} {value}" for value in each.split()) for each in owners]
    return {
        f'asympo_learner_fence{{namespace="n",run="r",pod="learner-{i}"}}': f"_x117 {values}"
        for i, values in enumerate(lasting)
    }


def _certificate(seconds: float) -> Changes:
    name = next(name for name in healthy() if name.startswith("asympo_certificate"))
    return {name: _still(seconds)}


def _counted(series: str) -> Case:
    """An alert on any increase: fires on a fresh one, not on an old one."""
    return Case(firing={series: _ONE_LATE}, quiet={series: _ONE_EARLY})


CASES = {
    "AsympoLearnerStarved": Case(firing=_WAITS, quiet=_WAITS | _ALL_TAKEN),
    "AsympoSlotsExhausted": Case(firing=_WAITS | _ALL_TAKEN, quiet=_WAITS),
    "AsympoNoGroups": Case(firing=_NOTHING_COMES, quiet=_NOTHING_COMES | _no_generator(from_minute=1)),
    "AsympoNoGenerators": Case(
        firing=_NOTHING_COMES | _no_generator(from_minute=90),
        quiet=_NOTHING_COMES | _no_generator(from_minute=115),
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
        firing={},
        without="asympo_learner_",
        # Of a learner in another namespace.
        quiet={'asympo_learner_finished{namespace="m",run="r"}': _still(0)},
        quiet_without="asympo_learner_",
    ),
    "AsympoLearnerGone": Case(
        firing={_learner("finished"): "0x120 _x29", _generator("ready", _POD): "1x120 _x29"},
        quiet={_learner("finished"): "0x110 1x9 _x29"},
    ),
    "AsympoFenceFlaps": Case(
        firing=_fences("3 3 5 5 7 7 9 9", "4 4 6 6 8 8 10 10"),
        # One that fails again and again, and one that was replaced once.
        quiet=_fences("3 4 5 6 7 8 9 10", "2 2 2 _ _ _ _ _"),
    ),
    "AsympoLearnerPaused": Case(
        firing={_learner("paused"): _from(80, 0, 1)}, quiet={_learner("paused"): _from(110, 0, 1)}
    ),
    "AsympoGeneratorNotReady": Case(
        firing={_generator("ready", _POD): _from(105, 1, 0)},
        quiet={_generator("ready", _POD): _from(115, 1, 0)},
    ),
    "AsympoGeneratorStalled": Case(
        firing={
            _generator("groups_total", _POD, 'outcome="appended"'): "500x149",
            _generator("groups_total", _POD, 'outcome="lease_lost"'): grows(1),
        },
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
    "AsympoBrokerDown": Case(
        firing={_learner("broker_up"): _from(140, 1, 0)}, quiet={_learner("broker_up"): _from(148, 1, 0)}
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
    "AsympoCollapse": Case(
        firing={_learner("reward"): "0.9-0.005x149"},
        # Close to zero, where single steps differ by as much.
        quiet={_learner("reward"): ("0.02 -0.02 " * 50 + "0.01 -0.015 " * 25).strip()},
    ),
    "AsympoNllRising": Case(
        firing={_learner("nll_nats", 'sign="positive"'): "0.5+0.01x149"},
        quiet={_learner("nll_nats", 'sign="positive"'): "0.5+0.001x149"},
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
    "AsympoCertificateEnds": Case(firing=_certificate(13 * 86400), quiet=_certificate(15 * 86400)),
    "AsympoVersionsDiffer": Case(
        firing={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': _still(1)},
        quiet={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': "_x120 1x29"},
    ),
}


def _of_release(name: str, labels: str) -> str:
    return f'{name}{{namespace="NAMESPACE",{labels}}}'


_READY = _of_release("kube_statefulset_status_replicas_ready", 'statefulset="FULLNAME-learner"')
_WANTED = _of_release("kube_statefulset_replicas", 'statefulset="FULLNAME-learner"')
_VOLUME = 'persistentvolumeclaim="data-FULLNAME-redis-0"'
_ROOM = {_of_release("kubelet_volume_stats_capacity_bytes", _VOLUME): _still(1e10)}
_RESTARTS = _of_release(
    "kube_pod_container_status_restarts_total", 'pod="FULLNAME-learner-0",container="learner",uid="1"'
)

RELEASE_CASES = {
    "AsympoLearnerNotReady": Case(
        # Of a learner on two nodes only the first pod knows.
        firing={_READY: _from(105, 2, 1), _WANTED: _still(2)},
        # Ended on purpose.
        quiet={_READY: _from(105, 1, 0), _WANTED: _from(105, 1, 0)},
    ),
    "AsympoCrashLoop": Case(firing={_RESTARTS: grows(0.2)}, quiet={_RESTARTS: "0x120 1x10 2x18"}),
    "AsympoBrokerVolumeLow": Case(
        firing=_ROOM | {_of_release("kubelet_volume_stats_available_bytes", _VOLUME): "1e10-1e8x149"},
        quiet=_ROOM | {_of_release("kubelet_volume_stats_available_bytes", _VOLUME): _still(3e9)},
    ),
}
"""Of the rules about the pods and volumes of one release."""

_START = 29
_GROUPS = 'outcome="appended"'


def cold_start() -> Changes:
    """Engines are up after half an hour, and the run is healthy; generators in another namespace."""
    late = {
        _learner("waited_seconds_total"): f"0+60x{_START} {60 * _START}+1x{MINUTES - _START}",
        _learner("appended_groups_total"): f"0x{_START} 0+128x{MINUTES - _START}",
        _learner("backlog_groups"): f"0x{_START} 10x{MINUTES - _START}",
        _learner("steps_total"): f"0x{_START} 0+2x{MINUTES - _START}",
        _learner("last_publish_timestamp_seconds"): f"60x{_START} {60 * _START}+60x{MINUTES - _START}",
        _learner("last_commit_timestamp_seconds"): f"60x{_START} {60 * _START}+60x{MINUTES - _START}",
        _learner("slots", 'state="leased"'): f"0x{_START} 16x{MINUTES - _START}",
        _learner("slots", 'state="open"'): f"0x{_START} 64x{MINUTES - _START}",
    }
    for pod in PODS:
        late |= {
            _generator("ready", pod): f"0x{_START} 1x{MINUTES - _START}",
            _generator("groups_in_flight", pod): f"0x{_START} 8x{MINUTES - _START}",
            _generator("groups_total", pod, _GROUPS): f"0x{_START} 0+64x{MINUTES - _START}",
            _generator("policy_step", pod): f"0x{_START} 0+2x{MINUTES - _START}",
            _generator(
                "responses_total", pod, 'finish_reason="stop"'
            ): f"0x{_START} 0+512x{MINUTES - _START}",
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
        _learner(state): f"0x{before - 1} 1x{still - 1} 0x{after}",
        _learner("slots", 'state="leased"'): f"16x{before - 1} 0x{still - 1} 16x{after}",
        _learner("slots", 'state="open"'): f"64x{before - 1} 128x{still - 1} 64x{after}",
    }
    for name, rate in (("waited_seconds", 1), ("appended_groups", 128), ("steps", 2)):
        reached = rate * (before - 1)
        resting[_learner(f"{name}_total")] = (
            f"0+{rate}x{before - 1} {reached}x{still - 1} {reached}+{rate}x{after}"
        )
    for name in ("last_publish", "last_commit"):
        resting[_learner(f"{name}_timestamp_seconds")] = (
            f"0+60x{before - 1} {60 * before}x{still + 2} {60 * (until + 3)}+60x{after}"
        )
    for pod in PODS:
        reached = 64 * (before - 1)
        resting |= {
            _generator("groups_in_flight", pod): f"8x{before - 1} 0x{still - 1} 8x{after}",
            _generator("groups_total", pod, _GROUPS): (
                f"0+64x{before - 1} {reached}x{still - 1} {reached}+64x{after}"
            ),
            _generator(
                "policy_step", pod
            ): f"0+2x{before - 1} {2 * before}x{still + 2} {2 * before}+2x{after}",
        }
    return healthy() | resting


QUIET_RUNS = {
    "cold start": cold_start(),
    "paused": rest("paused", until=105),
    "finished": rest("finished"),
    "healthy": healthy(),
}
"""In which nothing may ever fire."""
