"""A fact has one home: what is written down twice must say the same."""

import ast
import dataclasses
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from asympo.common.errors import BadSetting
from asympo.common.rollout_log import RunConfig
from asympo.common.settings import ServiceSettings
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.learner.step.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
PACKAGE, DEPLOY = ROOT / "services" / "asympo", ROOT / "deploy"
PRODUCT = ("common", "engines", "generator", "learner", "rewards", "run", "tasks")
OPTION = re.compile(r"`([a-z_]+)` ([\d.]+)")
ENDINGS = ("Settings", "Options", "Config", "Section", "Policy")

# Options of one name in several classes that mean different things, and why.
DIFFERENT = {
    "name": "of a task, of a run",
    "model": "the run's; where a generator finds that",
    "seed": "of each engine and task; none for a single request",
    "drain_seconds": "a learner saves, a generator hands back",
    "exit_when_run_ends": "a learner ends with its run, generators are kept by who started them",
    "http_port": "two services of one machine",
    "grpc_port": "two services of one machine",
    "pattern": "of the answer; of a response as a whole",
    "timeout_seconds": "of a reward function, none: the generator's; of the end of the trackers",
    "probe_tolerance": "the run's; a generator's own instead of it",
    "start_timeout_seconds": "of an engine; of a whole run",
    "service": "each has its own",
    "prompt_as": "of a server that is asked; of the column that holds prompts",
    "max_retries": "of requests to a server, each of which waits long; of commands of the broker",
}


def defaults() -> dict[str, dict[str, str]]:
    """Option -> class -> default as written, of every class of settings in the product; numbers that are the
    default of a function's parameter of that name as well."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    parameters: list[tuple[str, str, str]] = []
    for path in (path for room in PRODUCT for path in sorted((PACKAGE / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(ENDINGS):
                for item in (each for each in node.body if isinstance(each, ast.AnnAssign)):
                    if (default := written_default(item.value)) is not None:
                        found[ast.unparse(item.target)][node.name] = default
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for parameter, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                    if type(getattr(value, "value", None)) in (int, float):
                        where = f"{path.stem}.{node.name}"
                        parameters.append((parameter.arg, where, written_default(value) or ""))
    for name, where, default in parameters:
        if name in found:
            found[name][where] = default
    return found


def written_default(value: ast.expr | None) -> str | None:
    """A literal, alone or within pydantic's Field; None for what is made by code."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        given = [each.value for each in value.keywords if each.arg == "default"] + value.args
        value = given[0] if given else None
    try:
        return None if value is None else repr(ast.literal_eval(value))
    except ValueError:
        return None


def test_options_of_one_name_have_one_default() -> None:
    found = {name: classes for name, classes in defaults().items() if len(set(classes.values())) > 1}
    differing = {name: classes for name, classes in found.items() if name not in DIFFERENT}
    assert not differing, "give them one default, or say in DIFFERENT why they mean different things"
    assert set(found) == set(DIFFERENT), "DIFFERENT names options that do not differ"


def test_run_config_refuses_what_the_learners_settings_refuse() -> None:
    config = RunConfig(
        run="r", group_size=8, groups_per_step=1, max_groups_per_step=1, num_prompts=9, model="m"
    )
    checked = 0
    for field in dataclasses.fields(RunConfig):
        option = LearnerSettings.model_fields.get(field.name)
        for limit in option.metadata if option and field.name != "seed" else ():
            if isinstance(limit, annotated_types.Ge):
                least: Any = limit.ge
                assert getattr(dataclasses.replace(config, **{field.name: least}), field.name) == least
                with pytest.raises(BadSetting):
                    dataclasses.replace(config, **{field.name: least - 1})
                checked += 1
    assert checked >= 7


@pytest.mark.parametrize("settings", [LearnerSettings, GeneratorSettings])
def test_image_and_prometheus_look_at_the_port_of_the_settings(settings: type[ServiceSettings]) -> None:
    port = str(settings.model_fields["http_port"].default)
    image = (DEPLOY / "docker" / f"{settings.service}.Dockerfile").read_text()
    assert re.findall(r"^EXPOSE (.+)$", image, re.MULTILINE) == re.findall(r":(\d+)/livez", image) == [port]
    scraped = (DEPLOY / "prometheus/targets.py").read_text()
    assert re.findall(rf'"{settings.service}": (\d+)', scraped) == [port]


def test_docs_name_the_defaults_there_are() -> None:
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    said = [
        pair
        for text in texts
        for listed in re.findall(r"[Dd]efaults? \((.*?)\)", text)
        for pair in OPTION.findall(listed)
    ]
    assert said
    for name, value in said:
        homes = [model for model in (LearnerSettings, GeneratorSettings) if name in model.model_fields]
        assert [str(model.model_fields[name].default) for model in homes] == [value], name


def test_objectives_of_the_settings_are_those_there_are() -> None:
    assert set(get_args(LearnerSettings.model_fields["objective"].annotation)) == set(OBJECTIVES)
