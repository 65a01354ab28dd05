"""The settings file of `asympo run`: one TOML for everything that runs on this machine.

`[run]` holds what the supervisor decides and, in addition, any setting of the learner that describes the run
(model, task, sampling, ...); `[learner]` and `[generator]` hold any setting of these services.
"""

import os
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from asympo.common.errors import BadSetting
from asympo.common.names import RUN_NAME, directory_of_run
from asympo.common.paths import OptionalPath, SettingPath
from asympo.common.settings import merge, nearest, read_toml, validate
from asympo.evaluator.config import EvalConfig, check_names

RUNS_DIRECTORY = Path("runs")
"""Where this machine's runs lie unless told otherwise."""
SECTIONS = ("run", "learner", "generator", "evaluator", "gateway", "broker", "view")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class TargetsSection(_Section):
    """`[run.targets]`: what a run should reach; with this section, a run that broke a promise ends with 1."""

    min_accuracy: float | None = Field(default=None, ge=0, le=1, description="held out, after training")
    min_gain: float | None = Field(default=None, ge=-1, le=1, description="of held-out accuracy")
    max_wall_seconds: float | None = Field(default=None, gt=0, description="said when missed, no failure")
    max_memory_gb: float | None = Field(default=None, gt=0, description="said when missed, no failure")


class RunSection(_Section):
    """`[run]`: what concerns the run as a whole."""

    name: str = Field(default="run", pattern=RUN_NAME, description="name of the run, and of its directory")
    directory: SettingPath = Field(default=RUNS_DIRECTORY, description="holds one directory for each run")
    evaluate: bool = Field(default=True, description="measure held-out accuracy before and after")
    max_evaluation_prompts: int = Field(
        default=200, ge=1, description="largest number of held-out prompts used"
    )
    evals: tuple[EvalConfig, ...] = Field(
        default=(), description="what is measured while the run goes on; none: only first and last policy"
    )
    environment_python: OptionalPath = Field(
        default=None,
        description="Python that has the task's environment; trl-environment: ours if not given",
    )
    environment_groups: int = Field(
        default=4, ge=1, le=1024, description="prompts that the environment plays at the same time"
    )
    use_gpus: bool = Field(default=True, description="use GPUs if there are any")
    gpu_sharing: Literal["split", "sleep"] = Field(
        default="split",
        description="of one GPU. split: learner and generators use it at once, each a part of its memory; "
        "sleep: the generators give theirs back while the learner computes",
    )
    learner_cores: tuple[int, ...] | None = Field(
        default=None, description="cores for the learner; if not given, its share of them"
    )
    learner_drain_seconds: float = Field(
        default=180.0, gt=0, description="the learner's time to stop in order"
    )
    generator_drain_seconds: float = Field(
        default=40.0, gt=0, description="each generator's time to stop in order"
    )
    start_timeout_seconds: float = Field(
        default=1200.0, gt=0, description="time until the first policy is served"
    )
    max_restarts: int = Field(default=6, ge=0, description="restarts of one process within ten minutes")
    failing_seconds: float = Field(
        default=600.0, gt=0, description="a run that has only failures for this long ends as failed"
    )
    stall_seconds: float = Field(
        default=900.0, gt=0, description="a run that stands still for this long is reported as stalled"
    )
    give_up_seconds: float = Field(
        default=7200.0, gt=0, description="a run that stands still for this long ends as failed"
    )
    max_log_mb: float = Field(
        default=2.0, gt=0, description="size of each log in MB; as much again of what came before is kept"
    )
    keep_free_mb: float = Field(
        default=64.0,
        ge=0,
        description="a run whose disk has less free space than this stops in order, as failed",
    )
    max_archive_gb: float = Field(
        default=10.0,
        gt=0,
        description="a run whose archive (learner.retain) grows larger stops in order, as failed",
    )
    notify_command: tuple[str, ...] = Field(
        default=(), description="program that is given a JSON object when the run ends or stalls"
    )
    notify_url: str | None = Field(
        default=None, pattern=r"^https?://", description="address that the same object is posted to"
    )
    targets: TargetsSection | None = Field(default=None, description="what the run should reach")

    @field_validator("evals")
    @classmethod
    def _names_differ(cls, value: tuple[EvalConfig, ...]) -> tuple[EvalConfig, ...]:
        return check_names(value)


class GeneratorSection(_Section):
    """`[generator]`: how many; everything else there is the generator's own."""

    count: int = Field(default=1, ge=1, le=64, description="generators on this machine")
    cores: tuple[int, ...] | None = Field(
        default=None, description="cores for the generators; if not given, their share of them"
    )


class BrokerSection(_Section):
    """`[broker]`: which broker holds the log."""

    url: str | None = Field(
        default=None,
        description="an existing broker; REDIS_URL takes precedence; if neither is given, one is started",
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="loopback port; if not given, a private socket"
    )
    rewrite_mb: float = Field(
        default=16.0,
        ge=1,
        description="our own broker's file is rewritten once it has doubled and is larger than this",
    )


class ViewSection(_Section):
    """`[view]`: what the terminal shows."""

    kind: Literal["auto", "live", "plain", "none"] = Field(
        default="auto", description="auto: live on a terminal"
    )


class RunFile(_Section):
    """A whole file, taken apart; the services check their own parts."""

    run: RunSection = Field(default_factory=RunSection)
    broker: BrokerSection = Field(default_factory=BrokerSection)
    view: ViewSection = Field(default_factory=ViewSection)
    generators: GeneratorSection = Field(default_factory=GeneratorSection)
    learner_values: dict[str, Any] = Field(default_factory=dict)
    """What the learner's settings file will hold."""
    given_in_run: frozenset[str] = frozenset()
    """Keys of the learner's that were written below [run]."""
    generator_values: dict[str, Any] = Field(default_factory=dict)
    """What each generator's settings file will hold."""
    evaluator_values: dict[str, Any] = Field(default_factory=dict)
    """What the evaluator's settings file will hold, where there are evaluations."""
    gateway_values: dict[str, Any] | None = None
    """What the gateway's settings file will hold; None without a section [gateway], which may be empty."""
    source: str = "the settings"
    """Where it came from, for messages."""

    @property
    def directory(self) -> Path:
        """Everything of this run on this machine."""
        return directory_of_run(self.run.directory, self.run.name)

    @property
    def evaluator_without_addresses(self) -> dict[str, Any]:
        """Its values, but for the engine `generators` without addresses, which only a run can complete."""
        values = self.evaluator_values
        if "generators" in values:
            return {"engine": "generators"} | values
        is_open = values.get("engine") == "generators"
        return {key: value for key, value in values.items() if not (is_open and key == "engine")}

    @property
    def external_broker_url(self) -> str | None:
        return os.environ.get("REDIS_URL") or self.broker.url


def read_run_file(path: Path, *, overrides: Mapping[str, Any] | None = None) -> RunFile:
    """The file with overrides on top, taken apart; BadSetting with one sentence."""
    values = merge(_found_beside(read_toml(path), path.absolute().parent), overrides or {})
    return take_apart(values, source=str(path))


def _found_beside(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the files of tasks that are not in the working directory looked for beside the settings file."""
    run = values.get("run")
    evals = run.get("evals") if isinstance(run, Mapping) else None
    tasks = [section.get("task") for section in (run, values.get("learner")) if isinstance(section, Mapping)]
    for each in evals if isinstance(evals, list) else ():
        tasks += [each, each.get("task")] if isinstance(each, dict) else []
    for task in tasks:
        if isinstance(task, dict):
            _find_files(task, folder)
    return values


def _find_files(task: dict[str, Any], folder: Path) -> None:
    for key in ("path", "data", "held_out_data", "environment_rows"):
        if isinstance(task.get(key), str) and not Path(task[key]).exists() and (folder / task[key]).exists():
            task[key] = str(folder / task[key])
    rewards = task.get("rewards")
    for reward in rewards if isinstance(rewards, list) else ():
        if not isinstance(reward, dict):
            continue
        file, colon, name = str(reward.get("function", "")).rpartition(":")
        file = file if file.endswith(".py") or not colon else file.replace(".", "/") + ".py"
        if colon and not Path(file).exists() and (folder / file).is_file():
            reward["function"] = f"{folder / file}:{name}"


def names_python(*tasks: Any) -> bool:
    """Whether a task is scored by functions of the user: the file that names them allows them here."""
    rewards = [each for task in tasks if isinstance(task, Mapping) for each in task.get("rewards") or ()]
    functions = [each.get("function", "") for each in rewards if isinstance(each, Mapping)]
    return any(":" in str(function) for function in functions)


def take_apart(values: Mapping[str, Any], *, source: str) -> RunFile:
    """Sorts a file's sections into what the supervisor and each service want."""
    for name, section in values.items():
        if name not in SECTIONS:
            raise BadSetting(f"{source} has no section [{name}]: {nearest(name, SECTIONS)}")
        if not isinstance(section, Mapping):
            raise BadSetting(f"{source} says {name} = {section!r}: [{name}] is a section")
    own_run, run_for_learner = _split(values.get("run", {}), RunSection)
    own_generator, for_generator = _split(values.get("generator", {}), GeneratorSection)
    learner_values = merge(run_for_learner, values.get("learner", {}))
    run = _section(RunSection, own_run, source, "run")
    task = learner_values.get("task")
    allowed = {"allow_python": True} if names_python(task) else {}
    of_evals = names_python(task, *(each.task for each in run.evals))
    allowed_in_evals = {"allow_python": True} if of_evals else {}
    return RunFile(
        run=run,
        generators=_section(GeneratorSection, own_generator, source, "generator"),
        broker=_section(BrokerSection, values.get("broker", {}), source, "broker"),
        view=_section(ViewSection, values.get("view", {}), source, "view"),
        learner_values=learner_values,
        given_in_run=frozenset(run_for_learner.keys() - values.get("learner", {}).keys()),
        generator_values=allowed | for_generator,
        evaluator_values=allowed_in_evals | dict(values.get("evaluator", {})),
        gateway_values=dict(values["gateway"]) if "gateway" in values else None,
        source=source,
    )


def parse_with_overrides(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """What the parser knows, and what is left for `parse_overrides`: values of overrides are no CONFIG."""
    own, overrides = [], []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        section, dot, _ = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and section in SECTIONS):
            own.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    arguments, unknown = parser.parse_known_args(own)
    return arguments, unknown + overrides


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--learner.total-steps 10` and `--run.model=X` as a nested mapping; values are TOML or else text."""
    values: dict[str, Any] = {}
    set_in_parts: set[tuple[str, ...]] = set()
    rest = list(arguments)
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        section, dot, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not dot or section not in SECTIONS:
            known = ", ".join(f"--{name}.KEY" for name in SECTIONS)
            raise BadSetting(f"there is no flag {flag}: settings are overridden by {known}")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise BadSetting(f"the flag {flag} needs a value: write {flag}=VALUE")
            value = rest.pop(0)
        target = values.setdefault(section, {})
        *path, last = key.replace("-", "_").split(".")
        for part in path:
            above = target
            target = above.setdefault(part, {})
            if not isinstance(target, dict):
                raise BadSetting(
                    f"{flag} sets a part of {part}, and another flag gives {part} as a whole "
                    f"({above[part]!r}): give one of them"
                )
        set_in_parts |= {(section, *path[: 1 + end]) for end in range(len(path))}
        whole = _toml_or_text(value)
        if (section, *path, last) in set_in_parts:
            if not isinstance(whole, dict):
                raise BadSetting(
                    f"{flag} gives {last} as a whole ({whole!r}), and another flag sets a part of it: give "
                    "one of them"
                )
            whole = merge(whole, target[last])
        target[last] = whole
    return values


def _toml_or_text(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _split(values: Mapping[str, Any], model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {key: value for key, value in values.items() if key in model.model_fields}
    return own, {key: value for key, value in values.items() if key not in model.model_fields}


def _section(model: type[Any], values: Mapping[str, Any], source: str, name: str) -> Any:
    places: dict[tuple[str, ...], str] = {(key,): f"in [{name}] of {source}" for key in values}
    return validate(model, values, origin=places)
