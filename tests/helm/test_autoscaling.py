"""ScaledObject and HPA: their numbers are those of the code and of the simulation."""

import math
from typing import Any

import pytest
from asympo.common.rollout_log import RunConfig
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings

from deploy.autoscaling_simulation.hpa import HpaSettings
from deploy.autoscaling_simulation.simulation import Scenario
from deploy.chart import rendering
from tests.helm.conftest import CHART

MODEL = "model.path=/checkpoints/models/base"
KEDA = (
    MODEL,
    "generator.autoscaling.kind=keda",
    "generator.autoscaling.prometheusUrl=http://prometheus:9090",
)


def _render(*sets: str) -> dict[str, dict[str, Any]]:
    result = rendering.template(CHART, sets=sets)
    assert result.returncode == 0, result.stderr
    return {each["kind"]: each for each in rendering.objects(result.stdout)}


def _capacity(**learner: int) -> int:
    settings = LearnerSettings(**learner, save_every=10 * learner.get("publish_every", 1))
    config = RunConfig(
        run="r",
        group_size=settings.group_size,
        groups_per_step=settings.groups_per_step,
        max_groups_per_step=settings.segment_limit,
        publish_every=settings.publish_every,
        max_staleness=settings.max_staleness,
        num_prompts=1,
        model="m",
    )
    return config.capacity


@pytest.mark.parametrize("learner", [{}, {"max_staleness": 0}, {"groups_per_step": 65, "publish_every": 2}])
def test_most_generators_are_what_capacity_can_lease_to(learner: dict[str, int]) -> None:
    objects = _render(*KEDA, *(f"learner.settings.{name}={value}" for name, value in learner.items()))
    assert objects["ScaledObject"]["spec"]["maxReplicaCount"] == math.ceil(
        _capacity(**learner) / GeneratorSettings().max_groups_in_flight
    )


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_capacity_of_the_simulation_is_the_learners(max_staleness: int) -> None:
    scenario = Scenario(name="simulated", max_staleness=max_staleness, groups_per_step=3)
    assert scenario.capacity == _capacity(max_staleness=max_staleness, groups_per_step=3)


@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_behaviour_is_the_simulated_one_and_the_deployment_leaves_the_number_alone(kind: str) -> None:
    objects = _render(*KEDA, f"generator.autoscaling.kind={kind}")
    simulated = HpaSettings(max_replicas=9)
    if kind == "keda":
        behavior = objects["ScaledObject"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    else:
        behavior = objects["HorizontalPodAutoscaler"]["spec"]["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert {(each["type"], each["value"]) for each in up["policies"]} == {
        ("Percent", simulated.scale_up_percent),
        ("Pods", simulated.scale_up_pods),
    }
    assert {(each["type"], each["value"]) for each in down["policies"]} == {
        ("Percent", simulated.scale_down_percent),
        ("Pods", simulated.scale_down_pods),
    }
    assert {each["periodSeconds"] for each in up["policies"]} == {simulated.scale_up_period_seconds}
    assert {each["periodSeconds"] for each in down["policies"]} == {simulated.scale_down_period_seconds}
    assert down["stabilizationWindowSeconds"] == simulated.scale_down_window_seconds
    assert "replicas" not in objects["Deployment"]["spec"]


def test_trigger_asks_for_the_recorded_number_of_this_run_only() -> None:
    (trigger,) = _render(*KEDA, "run=math")["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        'asympo:pool_wanted{namespace="training",run="math",pool="asympo-generator"}'
    )
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["threshold"] == "1"


@pytest.mark.parametrize(
    ("sets", "api_versions", "sentence"),
    [
        ((MODEL, "generator.autoscaling.kind=keda"), None, "prometheusUrl is empty: set it"),
        (KEDA, (), "install KEDA, or set kind to hpa or none"),
        (
            (*KEDA, "generator.autoscaling.minReplicas=5", "generator.autoscaling.maxReplicas=3"),
            None,
            "set minReplicas to at most maxReplicas",
        ),
        (
            (
                *(
                    *KEDA,
                    "learner.enabled=false",
                    "redis.mode=external",
                    "redis.external.url=redis://b:6379/0",
                ),
                "checkpoints.existingClaim=c",
            ),
            None,
            "the capacity of the run is not known here; set maxReplicas",
        ),
    ],
)
def test_autoscaling_that_cannot_work_is_refused(
    sets: tuple[str, ...], api_versions: tuple[str, ...] | None, sentence: str
) -> None:
    result = rendering.template(CHART, sets=sets, api_versions=api_versions)
    assert result.returncode != 0
    assert sentence in result.stderr
