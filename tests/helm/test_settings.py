"""What the chart renders is what the services read."""

import re
import tomllib
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from asympo.common.rollout_log.broker.users import acl_line
from asympo.gateway.settings import GatewaySettings

from deploy.chart import rendering
from deploy.chart.service_settings import CHOSEN_BY_CHART, settings_class, settings_schema
from tests.helm.conftest import CHART

SERVICES = ("learner", "generator")


def settings_texts(things: list[dict[str, Any]], service: str) -> list[str]:
    return [each["data"][f"{service}.toml"] for each in things if f"{service}.toml" in each.get("data", {})]


def load(tmp_path: Path, service: str, text: str, environ: dict[str, str] | None = None) -> Any:
    path = tmp_path / f"{service}.toml"
    path.write_text(text)
    return settings_class(service).load(["--config", str(path)], environ=environ or {})


@pytest.mark.parametrize("service", SERVICES)
def test_every_rendered_config_is_read_by_the_service(
    rendered: dict[str, list[dict[str, Any]]], tmp_path: Path, service: str
) -> None:
    texts = {name: settings_texts(things, service) for name, things in rendered.items()}
    assert sum(map(len, texts.values())) >= 5
    for name, text in ((name, text) for name, found in texts.items() for text in found):
        settings = load(tmp_path, service, text, {"REDIS_URL": "redis://elsewhere:6379/0"})
        assert settings.redis_url == "redis://elsewhere:6379/0", name
        assert str(settings.checkpoint_root) == "/checkpoints"


def test_evaluations_reach_the_evaluator(tmp_path: Path) -> None:
    case = CHART.parents[1] / "tests/helm/cases/evaluator/beside-a-run.yaml"
    result = rendering.template(CHART, values=[case], sets=["model.path=/checkpoints/m"])
    [text] = settings_texts(rendering.objects(result.stdout), "evaluator")
    settings = load(tmp_path, "evaluator", text)
    assert settings.vllm.tensor_parallel_size == 2
    first, second = settings.evals
    assert (first.name, first.every) == ("held-out", 10)
    assert (second.name, second.samples) == ("20261128", 8)
    assert second.task["columns"] == {"prompt": "question"}
    assert second.task["rewards"] == [{"function": "/data/reward/r.py:score"}]
    assert settings.http_port == 8083


def test_values_reach_the_settings_unchanged(tmp_path: Path) -> None:
    # Numbers pass through helm as floats, text through TOML's escapes.
    values = tmp_path / "values.yaml"
    values.write_text(
        yaml.safe_dump(
            {
                "model": {"path": "/checkpoints/models/a b"},
                "generator": {"settings": {"allow_python": True}},
                "learner": {
                    "settings": {
                        "learning_rate": 3e-7,
                        "total_steps": 2000000,
                        "overlong_reward": -0.5,
                        "sampling": {"stop": ["</a>", '"\\', "é\n", "\x7f"], "max_tokens": 4096},
                        "task": {
                            "name": "reasoning-gym",
                            "dataset": "x",
                            "dataset_options": {"max": {"digits": 3}, "a key": [{"b": [1]}, {}]},
                            "rewards": [
                                {"function": "a.b:c", "options": {"x": {"y z": ['"', 1e-7]}}, "weight": 0.5},
                                {"function": "length"},
                            ],
                        },
                        "take_over": False,
                    }
                },
            }
        )
    )
    result = rendering.template(CHART, values=[values])
    assert result.returncode == 0, result.stderr
    text = settings_texts(rendering.objects(result.stdout), "learner")[0]
    settings = load(tmp_path, "learner", text)
    assert settings.learning_rate == 3e-7
    assert settings.total_steps == 2_000_000
    assert settings.overlong_reward == -0.5
    assert settings.sampling.stop == ("</a>", '"\\', "é\n", "\x7f")
    assert settings.task.dataset_options == {"max": {"digits": 3}, "a key": [{"b": [1]}, {}]}
    assert [each.function for each in settings.task.rewards] == ["a.b:c", "length"]
    assert settings.task.rewards[0].options == {"x": {"y z": ['"', 1e-7]}}
    assert settings.model == "/checkpoints/models/a b"
    assert type(tomllib.loads(text)["total_steps"]) is int


@pytest.mark.parametrize("service", SERVICES)
def test_schema_of_the_values_has_every_setting_of_the_service(service: str) -> None:
    offered = set(settings_schema(service)["properties"]) | set(CHOSEN_BY_CHART)
    assert set(settings_class(service).model_fields) <= offered


def test_defaults_of_the_settings_are_those_of_the_code_but_for_the_learner_that_stays() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["generator"]["settings"] == {
        "drain_seconds": settings_class("generator").model_fields["drain_seconds"].default
    }
    assert values["learner"]["settings"] == {
        "exit_when_run_ends": False,
        "drain_seconds": settings_class("learner").model_fields["drain_seconds"].default,
    }


def test_learner_stays_when_its_run_ends(rendered: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    for name, things in rendered.items():
        for text in settings_texts(things, "learner"):
            assert load(tmp_path, "learner", text).exit_when_run_ends is False, name


def test_grace_period_covers_the_drain_and_the_engine_closing(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    close_seconds = import_module("asympo.generator.engine_life").ENGINE_CLOSE_SECONDS
    for name, things in rendered.items():
        for thing in (each for each in things if each["kind"] == "Deployment"):
            if thing["metadata"]["labels"]["app.kubernetes.io/component"] != "generator":
                continue
            drain = tomllib.loads(settings_texts(things, "generator")[0])["drain_seconds"]
            grace = thing["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace >= drain + close_seconds + 5, name


def test_grace_period_covers_the_drain_of_the_learner_and_what_torchrun_keeps(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    found = 0
    for name, things in rendered.items():
        for thing in things:
            if "learner" not in thing["metadata"]["name"] or thing["kind"] not in (
                "StatefulSet",
                "LeaderWorkerSet",
            ):
                continue
            text = yaml.safe_dump(thing["spec"])
            drain = tomllib.loads(settings_texts(things, "learner")[0])["drain_seconds"]
            graces = [int(each) for each in re.findall(r"terminationGracePeriodSeconds: (\d+)", text)]
            limits = [int(each) for each in re.findall(r"--shutdown-timeout\n\s*- '(\d+)'", text)]
            assert min(graces) > min([*limits, min(graces) - 1]) > drain, name
            found += 1
    assert found >= 5


def test_probed_paths_and_ports_are_served(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for service, module in (("learner", "learner.servers.http"), ("generator", "generator.api")):
        port = settings_class(service).model_fields["http_port"].default
        served = Path(str(import_module(f"asympo.{module}").__file__)).read_text()
        for things in rendered.values():
            for thing in things:
                pod = thing.get("spec", {}).get("template", {}).get("spec", {})
                for container in pod.get("containers", []):
                    if container["name"] != service:
                        continue
                    text = settings_texts(things, service)[0]
                    assert container["ports"][0]["containerPort"] == tomllib.loads(text)["http_port"] == port
                    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                        asked = container[probe]
                        path = (
                            asked["httpGet"]["path"] if "httpGet" in asked else asked["exec"]["command"][-1]
                        )
                        assert f'"{path}"' in served


def test_changed_settings_restart_the_pods(rendered: dict[str, list[dict[str, Any]]]) -> None:
    values = CHART / "examples/two-gpus/values.yaml"

    def sums(*sets: str) -> set[str]:
        text = rendering.template(CHART, values=[values], sets=sets).stdout
        return set(re.findall(r'checksum/settings: "([0-9a-f]{64})"', text))

    before = sums()
    assert len(before) == 3
    assert len(before & sums("learner.settings.max_staleness=5")) == 2
    assert len(before & sums("logLevel=debug")) == 1


def test_nothing_in_the_environment_is_a_setting_that_does_not_exist(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for container in chain.from_iterable(containers(things) for things in rendered.values()):
        for variable in container.get("env", []):
            assert not variable["name"].startswith("ASYMPO_"), variable


def containers(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [each["spec"].get("template", each).get("spec", {}) for each in things if "spec" in each]
    return [each for pod in pods for each in [*pod.get("containers", []), *pod.get("initContainers", [])]]


def test_learner_that_was_given_gpus_refuses_to_train_without_one(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    [with_gpu] = settings_texts(rendered["examples/two-gpus/values.yaml"], "learner")
    [without] = settings_texts(rendered["examples/laptop-cpu/values.yaml"], "learner")
    assert tomllib.loads(with_gpu)["device"] == "cuda"
    assert tomllib.loads(without).get("device", "auto") != "cuda"


def test_two_services_on_one_gpu_say_what_of_its_memory_each_takes(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    things = rendered["examples/one-gpu/values.yaml"]
    [text] = settings_texts(things, "generator")
    vllm = tomllib.loads(text)["vllm"]
    assert vllm["kv_cache_gib"] < 80 * vllm["gpu_memory_utilization"] < 80 - 41
    gpus = [
        container["resources"]["limits"]["nvidia.com/gpu.shared"]
        for thing in things
        if thing["kind"] in ("StatefulSet", "Deployment")
        for container in thing["spec"]["template"]["spec"]["containers"]
        if container["name"] in ("learner", "generator")
    ]
    assert gpus == ["1", "1"]


GATEWAY = "ci/gateway-values.yaml"


@pytest.fixture
def gateway(rendered: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    found = {each["kind"]: each for each in rendered[GATEWAY] if each["metadata"]["name"] == "asympo-gateway"}
    settings = [each for each in rendered[GATEWAY] if each["metadata"]["name"] == "asympo-gateway-settings"]
    return found | {"ConfigMap": settings[0]}


def test_service_reads_its_settings_and_listens_where_its_service_says(
    gateway: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(gateway["ConfigMap"]["data"]["gateway.toml"])
    settings = GatewaySettings.load(["--config", str(path)], environ={})
    assert settings.session_seconds == 300
    spec = gateway["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
    served = {each["targetPort"]: each["port"] for each in gateway["Service"]["spec"]["ports"]}
    assert served == ports
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert settings.producers is not None
    assert str(settings.producers.parent) == mounts["producers"]
    assert str(settings.doors_token) == f"{mounts['doors-token']}/token"
    secrets = {each["name"]: each["secret"] for each in spec["volumes"] if "secret" in each}
    assert secrets["producers"]["items"] == [{"key": "producers.toml", "path": "producers.toml"}]
    assert spec["terminationGracePeriodSeconds"] > settings.drain_seconds


def test_broker_of_a_release_has_the_gateways_user_only_where_there_is_one(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for name, things in rendered.items():
        rules = [each["data"]["users.acl"] for each in things if "users.acl" in each.get("data", {})]
        for text in rules:
            lines = [line for line in text.splitlines() if line.startswith("user gateway ")]
            assert bool(lines) == (name == GATEWAY), name
            if lines:
                run = tomllib.loads(settings_texts(things, "gateway")[0])["run"]
                wanted = acl_line("gateway", runs=[run], user="gateway").split(" on ")[1]
                # A file makes users anew: there are no selectors to clear.
                assert set(wanted.split()) - {"clearselectors"} <= set(lines[0].split())
