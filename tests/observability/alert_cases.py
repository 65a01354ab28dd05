"""For every alert: samples on which it fires, and samples close to those on which it does not.

Each case changes a healthy run of two generators, by promtool's notation for one sample a minute.
"""

from dataclasses import dataclass

MINUTES = 150
"""Length of every case; alerts are asked for at its end."""

Changes = dict[str, str]

LEARNER = '{namespace="n",run="r",instance="learner"}'
PODS = ("generator-0", "generator-1")


def still(value: float) -> str:
    return f"{value}x{MINUTES}"


def grows(per_minute: float) -> str:
    """A counter."""
    return f"0+{per_minute}x{MINUTES}"


def learner(name: str, extra: str = "") -> str:
    return f"asympo_learner_{name}" + LEARNER.replace("}", f",{extra}}}" if extra else "}")


def generator(name: str, pod: str, extra: str = "") -> str:
    return f'asympo_generator_{name}{{namespace="n",run="r",pod="{pod}"{"," + extra if extra else ""}}}'


def healthy() -> Changes:
    """A run in which everything is as it should be. Steps take half a minute."""
    series = {
        learner("slots", 'state="capacity"'): still(128),
        learner("slots", 'state="leased"'): still(16),
        learner("slots", 'state="open"'): still(64),
        learner("waited_seconds_total"): grows(1),
        learner("appended_groups_total"): grows(128),
        learner("backlog_groups"): still(10),
        learner("steps_total"): grows(2),
        learner("empty_segments_total"): still(0),
        learner("empty_segments_in_a_row"): still(0),
        learner("skipped_steps_total"): still(0),
        learner("paused"): still(0),
        learner("finished"): still(0),
        learner("groups_total", 'kind="invalid"'): still(0),
        learner("last_publish_timestamp_seconds"): grows(60),
        learner("last_commit_timestamp_seconds"): grows(60),
        learner("storage_free_bytes"): still(5e11),
        learner("storage_total_bytes"): still(1e12),
        learner("broker_used_bytes"): still(1e9),
        learner("broker_max_bytes"): still(4e9),
        learner("broker_durable"): still(1),
        learner("broker_up"): still(1),
        learner("fence"): still(3),
        "asympo_certificate_expires_timestamp_seconds"
        '{namespace="n",run="r",instance="learner",service="learner",certificate="control"}': still(1e7),
        learner("nll_nats", 'sign="positive"'): still(0.5),
        learner("nll_ratio"): still(1.2),
        learner("reward"): "0.2+0.002x150",
        learner("truncated_ratio"): still(0.05),
        learner("tracker_failures_total", 'tracker="wandb"'): still(0),
        'asympo_build_info{namespace="n",run="r",version="1.0",service="learner"}': still(1),
        'asympo_build_info{namespace="n",run="r",version="1.0",service="generator"}': still(1),
    }
    for name in ("lease_expiries", "wasted_groups", "prompt_failures", "publish_failures", "save_failures"):
        series[learner(f"{name}_total")] = still(0)
    for pod in PODS:
        series |= {
            generator("ready", pod): still(1),
            generator("groups_in_flight", pod): still(8),
            generator("max_groups_in_flight", pod): still(8),
            generator("groups_total", pod, 'outcome="appended"'): grows(64),
            generator("responses_total", pod, 'finish_reason="stop"'): grows(512),
            generator("policy_step", pod): grows(2),
            generator("unproven_alert", pod): still(0),
            generator("probe_error_nats", pod): still(0.004),
            generator("probe_noise_nats", pod): still(0.004),
            generator("reloads_total", pod, 'verdict="failed"'): still(0),
        }
        for name in (
            "broker_errors",
            "corrupt_policies",
            "reward_failures",
            "engine_failures",
            "unexpected_errors",
        ):
            series[generator(f"{name}_total", pod)] = still(0)
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


_ALL_TAKEN = {learner("slots", 'state="leased"'): still(64)}
_WAITS = {learner("waited_seconds_total"): grows(20)}
_ONE_LATE = _counter_from(145, 1)
_ONE_EARLY = "0x30 1x119"
_POD = PODS[0]
_NOTHING_COMES = {
    learner("waited_seconds_total"): grows(60),
    learner("appended_groups_total"): _counter_from(1, 0),
}


def _no_generator(*, from_minute: int) -> Changes:
    return {generator("ready", pod): _from(from_minute, 1, 0) for pod in PODS}


def _fences(*owners: str) -> Changes:
    """Of several learners, each value for four minutes; the last of them at the end."""
    lasting = [" ".join(f"{value} {value} {value} {value}" for value in each.split()) for each in owners]
    return {
        f'asympo_learner_fence{{namespace="n",run="r",pod="learner-{i}"}}': f"_x117 {values}"
        for i, values in enumerate(lasting)
    }


def _certificate(seconds: float) -> Changes:
    name = next(name for name in healthy() if name.startswith("asympo_certificate"))
    return {name: still(seconds)}


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
        | {learner("waited_seconds_total"): still(0)}
        | {generator("groups_in_flight", pod): still(1) for pod in PODS},
        quiet={learner("waited_seconds_total"): still(0)}
        | {generator("groups_in_flight", pod): still(1) for pod in PODS},
    ),
    "AsympoBacklogStuck": Case(
        firing={learner("steps_total"): "200x149"},
        quiet={
            learner("steps_total"): "200x149",
            learner("finished"): _from(145, 1, 0),
            learner("paused"): _from(145, 0, 1),
        },
    ),
    "AsympoLearnerMissing": Case(
        firing={},
        without="asympo_learner_",
        # Of a learner in another namespace.
        quiet={'asympo_learner_finished{namespace="m",run="r"}': still(0)},
        quiet_without="asympo_learner_",
    ),
    "AsympoLearnerGone": Case(
        firing={learner("finished"): "0x120 _x29", generator("ready", _POD): "1x120 _x29"},
        quiet={learner("finished"): "0x110 1x9 _x29"},
    ),
    "AsympoFenceFlaps": Case(
        firing=_fences("3 3 5 5 7 7 9 9", "4 4 6 6 8 8 10 10"),
        # One that fails again and again, and one that was replaced once.
        quiet=_fences("3 4 5 6 7 8 9 10", "2 2 2 _ _ _ _ _"),
    ),
    "AsympoLearnerPaused": Case(
        firing={learner("paused"): _from(80, 0, 1)}, quiet={learner("paused"): _from(110, 0, 1)}
    ),
    "AsympoGeneratorNotReady": Case(
        firing={generator("ready", _POD): _from(105, 1, 0)},
        quiet={generator("ready", _POD): _from(115, 1, 0)},
    ),
    "AsympoGeneratorStalled": Case(
        firing={
            generator("groups_total", _POD, 'outcome="appended"'): "500x149",
            generator("groups_total", _POD, 'outcome="lease_lost"'): grows(1),
        },
        quiet={
            generator("groups_total", _POD, 'outcome="appended"'): "500x149",
            generator("groups_in_flight", _POD): still(0),
        },
    ),
    "AsympoLeaseExpiries": Case(
        firing={learner("lease_expiries_total"): grows(8)},
        quiet={learner("lease_expiries_total"): grows(4)},
    ),
    "AsympoWastedGroups": Case(
        firing={learner("wasted_groups_total"): grows(8)}, quiet={learner("wasted_groups_total"): grows(4)}
    ),
    "AsympoDeadLetters": _counted(learner("groups_total", 'kind="invalid"')),
    "AsympoPromptFailures": Case(
        firing={learner("prompt_failures_total"): grows(0.5)},
        quiet={learner("prompt_failures_total"): grows(0.1)},
    ),
    "AsympoBrokerErrors": Case(
        firing={generator("broker_errors_total", _POD): grows(1)},
        quiet={generator("broker_errors_total", _POD): _ONE_LATE},
    ),
    "AsympoBrokerDown": Case(
        firing={learner("broker_up"): _from(140, 1, 0)}, quiet={learner("broker_up"): _from(148, 1, 0)}
    ),
    "AsympoBrokerMemory": Case(
        firing={learner("broker_used_bytes"): still(3.6e9)},
        quiet={learner("broker_used_bytes"): still(3.6e9), learner("broker_max_bytes"): still(0)},
    ),
    "AsympoBrokerNotDurable": Case(
        firing={learner("broker_durable"): still(0)}, quiet={learner("broker_durable"): _from(148, 1, 0)}
    ),
    "AsympoProbeFailed": _counted(generator("reloads_total", _POD, 'verdict="failed"')),
    "AsympoReloadsUnproven": Case(
        firing={generator("unproven_alert", _POD): _from(146, 0, 1)},
        quiet={generator("unproven_alert", _POD): _from(100, 1, 0)},
    ),
    "AsympoProbeDrift": Case(
        firing={generator("probe_error_nats", _POD): still(0.1)},
        quiet={generator("probe_error_nats", _POD): still(0.02)},
    ),
    "AsympoReloadsStopped": Case(
        firing={generator("policy_step", _POD): still(7)},
        quiet={
            generator("policy_step", _POD): still(7),
            learner("last_publish_timestamp_seconds"): still(600),
        },
    ),
    "AsympoCorruptPolicies": _counted(generator("corrupt_policies_total", _POD)),
    "AsympoPublishFailing": _counted(learner("publish_failures_total")),
    "AsympoPolicyOld": Case(
        firing={learner("last_publish_timestamp_seconds"): still(60)},
        quiet={learner("last_publish_timestamp_seconds"): still(60), learner("steps_total"): still(9)},
    ),
    "AsympoSaveFailing": _counted(learner("save_failures_total")),
    "AsympoStateOld": Case(
        firing={learner("last_commit_timestamp_seconds"): still(60)},
        quiet={learner("last_commit_timestamp_seconds"): still(6000)},
    ),
    "AsympoStorageLow": Case(
        firing={learner("storage_free_bytes"): still(0.9e11)},
        quiet={learner("storage_free_bytes"): still(1.1e11)},
    ),
    "AsympoCollapse": Case(
        firing={learner("reward"): "0.9-0.005x149"},
        # Close to zero, where single steps differ by as much.
        quiet={learner("reward"): ("0.02 -0.02 " * 50 + "0.01 -0.015 " * 25).strip()},
    ),
    "AsympoNllRising": Case(
        firing={learner("nll_nats", 'sign="positive"'): "0.5+0.01x149"},
        quiet={learner("nll_nats", 'sign="positive"'): "0.5+0.001x149"},
    ),
    "AsympoGradientsNotFinite": _counted(learner("skipped_steps_total")),
    "AsympoNoSignal": Case(
        firing={learner("empty_segments_in_a_row"): still(5)},
        quiet={learner("empty_segments_in_a_row"): still(4)},
    ),
    "AsympoRewardsFailing": Case(
        firing={generator("reward_failures_total", _POD): grows(80)},
        quiet={generator("reward_failures_total", _POD): grows(40)},
    ),
    "AsympoTruncated": Case(
        firing={learner("truncated_ratio"): still(0.6)}, quiet={learner("truncated_ratio"): still(0.4)}
    ),
    "AsympoEngineFailures": _counted(generator("engine_failures_total", _POD)),
    "AsympoUnexpectedErrors": _counted(generator("unexpected_errors_total", _POD)),
    "AsympoTrackerFailing": _counted(learner("tracker_failures_total", 'tracker="wandb"')),
    "AsympoCertificateEnds": Case(firing=_certificate(13 * 86400), quiet=_certificate(15 * 86400)),
    "AsympoVersionsDiffer": Case(
        firing={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': still(1)},
        quiet={'asympo_build_info{namespace="n",run="r",version="1.1",service="generator"}': "_x120 1x29"},
    ),
}


def _of_release(name: str, labels: str) -> str:
    return f'{name}{{namespace="NAMESPACE",{labels}}}'


_READY = _of_release("kube_statefulset_status_replicas_ready", 'statefulset="FULLNAME-learner"')
_WANTED = _of_release("kube_statefulset_replicas", 'statefulset="FULLNAME-learner"')
_VOLUME = 'persistentvolumeclaim="data-FULLNAME-redis-0"'
_ROOM = {_of_release("kubelet_volume_stats_capacity_bytes", _VOLUME): still(1e10)}
_RESTARTS = _of_release(
    "kube_pod_container_status_restarts_total", 'pod="FULLNAME-learner-0",container="learner",uid="1"'
)

RELEASE_CASES = {
    "AsympoLearnerNotReady": Case(
        # Of a learner on two nodes only the first pod knows.
        firing={_READY: _from(105, 2, 1), _WANTED: still(2)},
        # Ended on purpose.
        quiet={_READY: _from(105, 1, 0), _WANTED: _from(105, 1, 0)},
    ),
    "AsympoCrashLoop": Case(firing={_RESTARTS: grows(0.2)}, quiet={_RESTARTS: "0x120 1x10 2x18"}),
    "AsympoBrokerVolumeLow": Case(
        firing=_ROOM | {_of_release("kubelet_volume_stats_available_bytes", _VOLUME): "1e10-1e8x149"},
        quiet=_ROOM | {_of_release("kubelet_volume_stats_available_bytes", _VOLUME): still(3e9)},
    ),
}
"""Of the rules about the pods and volumes of one release."""
