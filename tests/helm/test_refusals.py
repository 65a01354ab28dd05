"""Values that cannot work are refused with a sentence that says what to set."""

from pathlib import Path
from typing import Any

import pytest

from deploy.chart import rendering
from tests.helm.conftest import CHART, chart_on_cluster

MODEL = "model.path=/checkpoints/models/base"
STORE = "checkpoints.objectStore.url=s3://bucket/prefix"
EXTERNAL = ("redis.mode=external", "redis.external.url=redis://broker:6379/0")
SENTINEL = ("redis.mode=external", "redis.external.url=redis+sentinel://s:26379/main")

REFUSED = {
    "no model": ([], "set model.download.repository and .revision"),
    "two models": (
        [MODEL, "model.download.repository=a/b", "model.download.revision=" + "0" * 40],
        "set one of them",
    ),
    "no revision": (
        ["model.download.repository=a/b"],
        "model.download.revision is empty: set it to the commit",
    ),
    "nothing enabled": (
        [MODEL, "learner.enabled=false", "generator.enabled=false"],
        "set one of them to true",
    ),
    "external without url": ([MODEL, "redis.mode=external"], "set redis.external.url to redis://HOST:6379/0"),
    "external twice": (
        [MODEL, *EXTERNAL, "redis.external.urlFrom.secret=s", "redis.external.urlFrom.key=k"],
        "both name the broker",
    ),
    "embedded with url": ([MODEL, EXTERNAL[1]], "set redis.mode=external"),
    "ca without tls": (
        [MODEL, *EXTERNAL, "redis.external.caFrom.secret=s", "redis.external.caFrom.key=k"],
        "set it to rediss://",
    ),
    "client certificate without tls": (
        [MODEL, *EXTERNAL, "redis.external.clientCertificate.secret=s"],
        "clientCertificate is for TLS",
    ),
    "sentinel password without sentinel": (
        [MODEL, *EXTERNAL, *(f"redis.external.sentinel.passwordFrom.{key}=s" for key in ("secret", "key"))],
        "set it to redis+sentinel://",
    ),
    "sentinel user without password": (
        [MODEL, *SENTINEL, "redis.external.sentinel.user=u"],
        "set redis.external.sentinel.passwordFrom.secret",
    ),
    "sentinel ca without tls": (
        [MODEL, *SENTINEL, *(f"redis.external.sentinel.caFrom.{key}=s" for key in ("secret", "key"))],
        "set redis.external.sentinel.tls=true",
    ),
    "secret without key": ([MODEL, "model.download.token.secret=s"], "set key beside"),
    "generators alone with embedded": ([MODEL, "learner.enabled=false"], "set redis.mode=external"),
    "generators alone without claim": (
        [MODEL, *EXTERNAL, "learner.enabled=false"],
        "set checkpoints.existingClaim to the learner's claim",
    ),
    "rwo": (
        [MODEL, "checkpoints.accessMode=ReadWriteOnce", "generator.replicas=4"],
        "set checkpoints.accessMode=ReadWriteMany",
    ),
    "store described without bucket": (
        [MODEL, "checkpoints.objectStore.endpoint=https://store"],
        "set checkpoints.objectStore.url to s3://BUCKET/PREFIX",
    ),
    "store without place": ([MODEL, STORE], "set checkpoints.objectStore.region for AWS S3"),
    "store on one node": (
        [MODEL, STORE, "checkpoints.objectStore.region=eu-west-1", "checkpoints.sameNode=true"],
        "set checkpoints.sameNode=false",
    ),
    "store and several nodes": (
        [MODEL, STORE, "checkpoints.objectStore.region=eu-west-1", "learner.nodes=2"],
        "set learner.nodes=1",
    ),
    "store's ca without tls": (
        [
            *(MODEL, STORE, "checkpoints.objectStore.endpoint=http://store"),
            *("checkpoints.objectStore.caFrom.secret=s", "checkpoints.objectStore.caFrom.key=k"),
        ],
        "set checkpoints.objectStore.endpoint to https://HOST",
    ),
    "two identities": (
        [
            *(MODEL, STORE, "checkpoints.objectStore.region=eu-west-1"),
            "checkpoints.objectStore.credentials.secret=s",
            r"learner.serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/x",
        ],
        "set one of them",
    ),
    "same node without learner": (
        [
            *(MODEL, *EXTERNAL, "learner.enabled=false"),
            *("checkpoints.existingClaim=c", "checkpoints.sameNode=true"),
        ],
        "set checkpoints.sameNode=false",
    ),
    "no memory limit": (
        [MODEL, "generator.resources.limits.memory=null"],
        "generator.resources.limits.memory is missing: set it",
    ),
    "gpu among limits": (
        [MODEL, r"generator.resources.limits.nvidia\.com/gpu=2"],
        "set generator.gpus instead",
    ),
    "tensor parallel": ([MODEL, "generator.settings.vllm.tensor_parallel_size=4"], "set generator.gpus to 4"),
    "simulated on gpu": ([MODEL, "generator.settings.engine=simulated"], "set generator.gpus=0"),
    "cuda without gpu": ([MODEL, "learner.gpus=0", "learner.settings.device=cuda"], "set learner.gpus=1"),
    "ranks without a GPU each": (
        [MODEL, "learner.gpus=4", "learner.ranks=8"],
        "learner.ranks is 8 and learner.gpus is 4: every rank has a GPU of its own; set learner.ranks=null",
    ),
    "several nodes on storage of one": (
        [MODEL, "learner.nodes=2", "checkpoints.accessMode=ReadWriteOnce", "generator.enabled=false"],
        "set checkpoints.accessMode=ReadWriteMany and checkpoints.sameNode=false",
    ),
    "group of one": (
        [MODEL, "learner.kind=LeaderWorkerSet"],
        "set learner.nodes, or learner.kind=StatefulSet",
    ),
    "grace too short": (
        [MODEL, "generator.terminationGracePeriodSeconds=30"],
        "is 30 and a drain takes up to 65",
    ),
    "traces that no policy lets out": (
        [MODEL, "tracing.endpoint=http://collector:4318"],
        "set tracing.to to where the collector runs",
    ),
    "a way to a collector without its address": (
        [MODEL, "tracing.to[0].podSelector.matchLabels.app=collector"],
        "no traces are made; set tracing.endpoint",
    ),
    "control opened without certificates": (
        [MODEL, "control.allowFrom[0].podSelector.matchLabels.team=a"],
        "without certificates they listen inside each pod only; set control.tls.secret",
    ),
    "certificates and nobody let in": (
        [MODEL, "control.tls.secret=control"],
        "control.tls.secret is control and control.allowFrom is empty",
    ),
    "peers without policies": (
        [
            *(MODEL, "control.tls.secret=control", "networkPolicy.enabled=false"),
            "control.allowFrom[0].podSelector.matchLabels.team=a",
        ],
        "set it to true, or leave control.allowFrom empty",
    ),
    "grace of the learner too short": (
        [MODEL, "learner.terminationGracePeriodSeconds=250"],
        "is 250 and a drain takes up to 300: set it to null",
    ),
    "no roll-out": (
        [MODEL, "generator.strategy.maxUnavailable=0"],
        "no generator could ever be replaced",
    ),
}

SCHEMA_REFUSED = {
    "unknown value": [MODEL, "generator.replica=2"],
    "mistyped": [MODEL, "generator.replicas=many"],
    "fewer generators than none": [MODEL, "generator.replicas=-1"],
    "no ranks": [MODEL, "learner.ranks=0"],
    "unknown kind of learner": [MODEL, "learner.kind=Deployment"],
    "latest": [MODEL, "learner.image.tag=latest"],
    "unknown setting": [MODEL, "learner.settings.grop_size=4"],
    "setting of the wrong type": [MODEL, "learner.settings.groups_per_step=lots"],
    "setting out of range": [MODEL, "learner.settings.group_size=1"],
    "certificates among the settings": [MODEL, "learner.settings.grpc_tls.key=/x"],
    "setting that the chart decides": [MODEL, "learner.settings.redis_url=redis://x"],
    "password in the url": [MODEL, "redis.mode=external", "redis.external.url=redis://user:pw@broker:6379/0"],
    "run name with braces": [MODEL, "run=a{b"],
    "root": [MODEL, "podSecurity.userId=0"],
    "bad quantity": [MODEL, "checkpoints.size=12XB"],
    "unknown access mode": [MODEL, "checkpoints.accessMode=ReadWriteOncePod"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_values_are_refused_with_what_to_set(case: Any) -> None:
    sets, sentence = REFUSED[case]
    result = rendering.template(CHART, sets=sets)
    assert result.returncode != 0
    assert sentence in result.stderr


@pytest.mark.parametrize("case", SCHEMA_REFUSED)
@pytest.mark.parametrize("helm", ["helm4", "helm3"])
def test_values_outside_the_schema_are_refused(case: Any, helm: str) -> None:
    result = rendering.template(CHART, sets=SCHEMA_REFUSED[case], helm=helm)
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr


@pytest.mark.parametrize("value", ["serviceMonitor", "podMonitor", "prometheusRule"])
def test_kind_that_the_cluster_lacks_is_refused(value: Any) -> None:
    result = rendering.template(CHART, sets=[MODEL, f"monitoring.{value}.enabled=true"], api_versions=[])
    assert result.returncode != 0
    assert "install the Prometheus operator, or set it to false" in result.stderr


def test_leader_worker_set_that_the_cluster_lacks_is_refused() -> None:
    sets = [MODEL, "learner.kind=LeaderWorkerSet", "learner.nodes=2"]
    result = rendering.template(CHART, sets=sets, api_versions=[])
    assert result.returncode != 0
    assert "install LeaderWorkerSet, or set learner.kind=StatefulSet" in result.stderr


def test_second_copy_of_the_rules_is_refused_and_a_releases_own_are_not(tmp_path: Path) -> None:
    labels = {"part-of": "asympo", "component": "monitoring", "instance": "first"}
    labels = {f"app.kubernetes.io/{key}": value for key, value in labels.items()}
    there = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"labels": labels},
    }
    chart = chart_on_cluster(tmp_path, {**there, "items": [there]})
    assert rendering.template(chart, sets=[MODEL]).returncode == 0
    result = rendering.template(chart, sets=[MODEL, "monitoring.prometheusRule.enabled=true"])
    assert result.returncode != 0
    assert "release first brings the same rules" in result.stderr
    own = ["monitoring.prometheusRule.enabled=true", "monitoring.prometheusRule.scope=release"]
    assert rendering.template(chart, sets=[MODEL, *own]).returncode == 0
