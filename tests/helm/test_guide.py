"""docs/cluster-data.md: values render; kubectl and helm take its commands, which name what there is."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart import rendering
from tests.helm.conftest import CHART, ROOT
from tests.helm.test_rendering import check_strictly
from tests.helm.test_settings import SERVICES, load, settings_texts

PAGE = (ROOT / "docs/cluster-data.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
VALUES = [text for language, text in BLOCKS if language == "yaml"]
COMMANDS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
]
IN_TEXT = re.findall(r"`(kubectl --[^`]+)`", PAGE)
GIVEN = {"$REGISTRY_PASSWORD": "secret", "$HF_TOKEN": "hf_token", "$REVISION": "0123456789" * 4}
GIVEN |= {"$PLAYER_TOKEN": "player", "$DOOR_TOKEN": "door"}
WALK = next(text for text in VALUES if text.startswith("# gsm8k.yaml"))


def _rendered(text: str, directory: Path, *sets: str) -> list[dict[str, Any]]:
    path = directory / "values.yaml"
    path.write_text(text)
    result = rendering.template(CHART, values=[path], sets=sets, kube_version="1.33.0")
    assert result.returncode == 0, f"{text}\n{result.stderr}"
    return rendering.objects(result.stdout)


def _words(line: str) -> list[str]:
    for name, value in GIVEN.items():
        line = line.replace(name, value)
    assert "$" not in line, line
    return shlex.split(line)


@pytest.mark.parametrize("text", VALUES, ids=range(len(VALUES)))
def test_values_of_the_page_render_to_valid_objects(text: str, tmp_path: Path) -> None:
    sets = []
    # An extract says what it is about.
    if "download" not in text and "path: /data/base" not in text and "path: /checkpoints/models" not in text:
        sets.append("model.path=/checkpoints/models/any")
    if text == WALK:
        sets.append(f"model.download.revision={GIVEN['$REVISION']}")
    objects = _rendered(text, tmp_path, *sets)
    assert check_strictly([("page", each) for each in objects]) == []
    for service in SERVICES:
        for settings in settings_texts(objects, service):
            load(tmp_path, service, settings, {"REDIS_URL": "redis://elsewhere:6379/0"})


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("helm ")])
def test_helm_takes_the_line(line: str, tmp_path: Path) -> None:
    words = _words(line)
    if "install" in words:
        (tmp_path / "gsm8k.yaml").write_text(WALK)
        words = [str(CHART) if word == "helm/asympo" else word for word in words]
        words[words.index("install") : words.index("install") + 1] = ["template"]
        done = _run("helm4", *words[1:], directory=tmp_path)
        assert done.returncode == 0, done.stderr
        return
    # Everything but the cluster is there.
    done = _run("helm4", *words[1:], directory=tmp_path)
    assert "cluster unreachable" in done.stderr, done.stderr


@pytest.mark.parametrize("line", [line for line in [*COMMANDS, *IN_TEXT] if line.startswith("kubectl ")])
def test_kubectl_takes_the_line_and_what_it_makes_is_valid(line: str, tmp_path: Path) -> None:
    words = _words(line)
    if "create" in words:
        (tmp_path / "producers.toml").touch()
        (tmp_path / "rewards.py").write_text("def accuracy(response_text, **columns):\n    return 1.0\n")
        done = _run(*words, "--dry-run=client", "--output=yaml", directory=tmp_path)
        assert done.returncode == 0, done.stderr
        made = yaml.safe_load(done.stdout)
        assert check_strictly([("page", made)]) == []
        return
    done = _run(*words, directory=tmp_path)
    assert "refused" in done.stderr, done.stderr
    _check_names(words, _rendered(WALK, tmp_path, f"model.download.revision={GIVEN['$REVISION']}"))


def _check_names(words: list[str], objects: list[dict[str, Any]]) -> None:
    """Workloads and Secrets' users that a command names are in the rendering."""
    there = {f"{each['kind']}/{each['metadata']['name']}".lower() for each in objects}
    named = {word for word in words if re.fullmatch(r"(statefulset|deployment|service)/[\w-]+", word)}
    assert named <= there
    for word in words:
        if word.startswith("--container="):
            name = word.removeprefix("--container=")
            assert any(f"'name': '{name}'" in str(each) for each in objects), name


def test_secrets_and_config_maps_of_the_walk_are_made_by_its_commands(tmp_path: Path) -> None:
    needed = set(
        re.findall(
            r"secretKeyRef': \{'name': '([\w-]+)'",
            str(_rendered(WALK, tmp_path, f"model.download.revision={GIVEN['$REVISION']}")),
        )
    )
    made = {_words(line)[6] for line in COMMANDS if " create secret " in line}
    assert needed - {"asympo-broker-users"} <= made
    assert "registry-login" in made


def _run(program: str, *arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    nowhere = directory / "nowhere.yaml"
    nowhere.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
                "current-context": "c",
            }
        )
    )
    command = [str(rendering.TOOLS / "bin" / program), *arguments]
    environment = {"KUBECONFIG": str(nowhere), "HOME": str(directory), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
