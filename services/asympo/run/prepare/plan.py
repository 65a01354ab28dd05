"""From one run file to what is started: settings files, addresses, shares of the machine."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import BadModel, BadSetting
from asympo.common.paths import anchored, is_path
from asympo.common.settings import dump_toml, iter_options, merge, validate
from asympo.engines.base import SamplingSettings
from asympo.evaluator.prepare import choose
from asympo.evaluator.settings import EvaluatorSettings
from asympo.gateway.settings import GatewaySettings
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.local.broker import broker_url
from asympo.local.ports import PagePort, free_port, page_port, require_free
from asympo.rewards.progress import RunProgress
from asympo.run.directory import RunDirectory
from asympo.run.prepare.environment import evaluation_of_episodes, play_command, with_environment
from asympo.run.prepare.gateway import check_producers, gateway_defaults, gateway_note
from asympo.run.prepare.machine import CoreShare, Machine, split_machine
from asympo.run.prepare.server import check_server
from asympo.run.prepare.sharing import engine_defaults, gpu_notes, turn_defaults
from asympo.run.settings import RunFile
from asympo.tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """One service to start."""

    settings_path: Path
    settings: Any
    """Resolved: what the process will see."""
    share: CoreShare


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on this machine, ready to start."""

    file: RunFile
    directory: Path
    broker_url: str
    is_broker_embedded: bool
    learner: ServicePlan
    generators: tuple[ServicePlan, ...]
    evaluator: ServicePlan | None
    """None without evaluations."""
    gateway: ServicePlan | None
    """None when the file does not ask for one."""
    player: tuple[str, ...]
    """Command that plays the environment of a verifiers task; empty without one."""
    notes: tuple[str, ...]
    """Sentences a person should see before the start."""
    page: PagePort
    """Held for as long as the plan is."""

    @property
    def page_url(self) -> str:
        return f"http://127.0.0.1:{self.learner.settings.http_port}/"

    @property
    def broker_directory(self) -> Path:
        return self.directory / "broker"


def make_plan(file: RunFile, machine: Machine) -> Plan:
    """Chooses ports and cores and writes the services' settings files; BadSetting with one sentence."""
    file = with_environment(file)
    check_learner_values(file)
    check_inputs(file)
    check_devices(file, machine)
    if file.broker.port and not file.external_broker_url:
        require_free(file.broker.port, setting="broker.port")
    directory = file.directory.absolute()
    url = file.external_broker_url or broker_url(directory / "broker", port=file.broker.port)
    learner_share, generator_shares = split_machine(
        machine,
        num_generators=file.generators.count,
        learner_cores=file.run.learner_cores,
        generator_cores=file.generators.cores,
        use_gpus=file.run.use_gpus,
    )
    common = {
        "run": file.run.name,
        "checkpoint_root": str(file.run.directory.absolute()),
        "log_format": "text",
        # On the run's own disk, which is looked at before it starts.
        "deltas": {"cache": str(directory / "copies")},
    }
    if not file.external_broker_url:
        # A given URL may hold a password: it travels in the environment only.
        common["redis_url"] = url
    page, ports = _learner_ports(file)
    # It ends by itself, with words, before the supervisor kills it.
    drain = {"drain_seconds": round(0.9 * file.run.learner_drain_seconds, 1)}
    device = {"device": "cuda"} if learner_share.gpu else {}
    values = merge(common, drain, ports, device, turn_defaults(file, machine), file.learner_values)
    learner = _plan_service(LearnerSettings, values, directory, "learner", learner_share, file)
    taken = {learner.settings.http_port, learner.settings.grpc_port}
    generators = []
    for number, share in enumerate(generator_shares):
        values = merge(common, _generator_defaults(machine, share, file, taken), file.generator_values)
        name = f"generator-{number}"
        generators.append(_plan_service(GeneratorSettings, values, directory, name, share, file))
        taken |= {generators[-1].settings.http_port, generators[-1].settings.grpc_port}
    gateway = _plan_gateway(file, common, generators, taken, learner.settings.task.is_environment)
    evaluator = _plan_evaluator(file, common, generators, gateway, taken)
    return Plan(
        file=file,
        directory=directory,
        broker_url=url,
        is_broker_embedded=not file.external_broker_url,
        learner=learner,
        generators=tuple(generators),
        page=page,
        evaluator=evaluator,
        gateway=gateway,
        player=() if gateway is None else play_command(file, learner.settings, gateway.settings),
        notes=(
            *([gateway_note(gateway.settings)] if gateway else ()),
            *([page.note] if page.note else ()),
            *gpu_notes(file, machine),
            *odd_sampling(learner.settings),
        ),
    )


def anchored_file(file: RunFile) -> RunFile:
    """A run that is resumed from elsewhere finds its relative paths where it was begun."""
    directory = RunDirectory(file.directory)
    begun_in = directory.read_mark().get("started_in")
    if not begun_in:
        return file
    found = {}
    for name, model in (
        ("learner_values", LearnerSettings),
        ("generator_values", GeneratorSettings),
        ("gateway_values", GatewaySettings),
    ):
        paths = [option.path for option in iter_options(model) if is_path(option.field.metadata)]
        values = getattr(file, name)
        found[name] = None if values is None else anchored(values, paths, Path(begun_in))
    return file.model_copy(update=found)


def check_learner_values(file: RunFile) -> None:
    """The services' own sections, checked before anything is written or started."""
    for model, values, section in (
        (LearnerSettings, file.learner_values, "learner"),
        (GeneratorSettings, file.generator_values, "generator"),
        (GatewaySettings, file.gateway_values or {}, "gateway"),
        (EvaluatorSettings, file.evaluator_without_addresses, "evaluator"),
    ):
        places: dict[tuple[str, ...], str] = {}
        for key in values:
            in_run = section == "learner" and key in file.given_in_run
            places[(key,)] = f"in [{'run' if in_run else section}] of {file.source}"
            if key in ("run", "redis_url", "checkpoint_root"):
                raise BadSetting(f"{key} {places[(key,)]} is decided by [run] and [broker]: leave it out")
        settings = validate(model, values, origin=places)
        if isinstance(settings, LearnerSettings | GeneratorSettings) and settings.grpc_tls.is_given:
            raise BadSetting(
                f"grpc_tls {places[('grpc_tls',)]} is for services of several machines: leave it out, "
                "`asympo run` calls its services on loopback"
            )


def check_inputs(file: RunFile) -> None:
    """What can be seen at once of model and task: a wrong path must not cost the start of an engine."""
    settings = validate(LearnerSettings, file.learner_values)
    if settings.model.startswith(("/", "./", "../")):
        config = Path(settings.model) / "config.json"
        if not config.is_file():
            raise BadModel(
                f"the model {settings.model} is not a directory with a config.json: give a path or an id"
            )
        if not os.access(config, os.R_OK):
            raise BadModel(f"the model {settings.model} cannot be read: check the permissions of {config}")
    generator = validate(GeneratorSettings, file.generator_values)
    check_server(file, generator)
    if settings.task.rewards or settings.task.name in ("addition", "jsonl", "data"):
        check_task(settings.task, generator)
    check_evals(file, settings)


def check_evals(file: RunFile, learner: LearnerSettings) -> None:
    """Data and reward functions of the evaluations, as for the task itself."""
    names = [each.name for each in file.run.evals]
    if learner.keep_best is not None and learner.keep_best not in names:
        raise BadSetting(
            f"learner.keep_best is {learner.keep_best}: run.evals has {', '.join(names) or 'none'}"
        )
    allow_python = bool(file.evaluator_values.get("allow_python"))
    for each in file.run.evals:
        choose(
            each,
            task_of_run=learner.task,
            sampling_of_run=SamplingSettings(**learner.sampling.model_dump()),
            timeout_seconds=10.0,
            num_workers=1,
            allow_python=allow_python,
            progress=RunProgress(),
        ).scorer.close()


def check_task(config: TaskConfig, generator: GeneratorSettings) -> None:
    """The data and the reward functions: what they are missing is said before anything heavy starts."""
    from asympo.rewards.scorer import Scorer
    from asympo.tasks.base import columns_of
    from asympo.tasks.registry import load_task

    task = load_task(config)
    if config.name == "data" and config.held_out_fraction > 0 and not task.held_out():
        raise BadSetting(
            f"task.data {config.data} asks only one question, so none can be held out: give more rows, "
            "or set task.held_out_fraction to 0"
        )
    if config.rewards:
        Scorer(
            task=config,
            timeout_seconds=generator.reward_timeout_seconds,
            allow_python=generator.allow_python,
            columns=columns_of(task),
        ).close()


def check_devices(file: RunFile, machine: Machine) -> None:
    """Refuses at once what would only fail, or crawl, once its processes have loaded their libraries."""
    use_gpus = file.run.use_gpus
    problem = machine.gpu_problem or "this machine has no GPU that torch can use"
    samples = file.generator_values.get("engine", "vllm") == "vllm"
    if machine.cuda_version and samples and not (machine.gpus and use_gpus):
        raise BadSetting(
            "run.use_gpus is false, and the installed vLLM samples on GPUs only: "
            "`ASYMPO_DEVICE=cpu make setup` installs the CPU build"
            if machine.gpus
            else problem
        )
    if file.learner_values.get("device") == "cuda" and not (machine.gpus and use_gpus):
        raise BadSetting(f"learner.device is cuda, and {problem if use_gpus else 'run.use_gpus is false'}")


def odd_sampling(settings: Any) -> list[str]:
    """Sentences about sampling settings that are allowed and rarely meant."""
    sampling, found = settings.sampling, []
    if sampling.temperature == 0:
        found.append("sampling.temperature is 0: all responses of a group are equal and nothing is learned")
    elif not 0.5 <= sampling.temperature <= 1.5:
        found.append(f"sampling.temperature is {sampling.temperature:g}: training usually samples near 1.0")
    if sampling.top_p < 1.0:
        found.append(
            f"sampling.top_p is {sampling.top_p:g}: cut-off tokens are never sampled, yet the policy is "
            "trained as if they could be"
        )
    if sampling.max_tokens < 4:
        found.append(f"sampling.max_tokens is {sampling.max_tokens}: few answers fit into so few tokens")
    return found


@contextmanager
def _broker_in_environment(url: str) -> Iterator[None]:
    before = os.environ.get("REDIS_URL")
    os.environ["REDIS_URL"] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ["REDIS_URL"]
        else:
            os.environ["REDIS_URL"] = before


def _plan_service(
    model: type[Any], values: Mapping[str, Any], directory: Path, name: str, share: CoreShare, file: RunFile
) -> ServicePlan:
    path = directory / "config" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_toml(values, comment=f"Written by `asympo run` from {file.source}."))
    if not file.external_broker_url:
        return ServicePlan(settings_path=path, settings=model.load(["--config", str(path)]), share=share)
    with _broker_in_environment(file.external_broker_url):
        return ServicePlan(settings_path=path, settings=model.load(["--config", str(path)]), share=share)


def _learner_ports(file: RunFile) -> tuple[PagePort, dict[str, int]]:
    chosen = file.learner_values.get("http_port")
    wanted = LearnerSettings.model_fields["http_port"].default if chosen is None else chosen
    page = page_port(wanted, is_chosen=chosen is not None)
    ports = {"http_port": page.number}
    if "grpc_port" in file.learner_values:
        require_free(file.learner_values["grpc_port"], setting="learner.grpc_port")
    else:
        ports["grpc_port"] = free_port(avoid=frozenset({page.number}))
    return page, ports


def _generator_defaults(machine: Machine, share: CoreShare, file: RunFile, taken: set[int]) -> dict[str, Any]:
    own = file.generator_values
    values: dict[str, Any] = {}
    for name in ("http_port", "grpc_port"):
        if name in own:
            if file.generators.count > 1:
                raise BadSetting(
                    f"generator.{name} is given for {file.generators.count} generators: leave it out"
                )
            require_free(own[name], setting=f"generator.{name}")
        else:
            values[name] = free_port(avoid=frozenset(taken | set(values.values())))
    if "port" in own.get("door", {}):
        if file.generators.count > 1:
            raise BadSetting(
                f"generator.door.port is given for {file.generators.count} generators: leave it out"
            )
    elif file.gateway_values is not None and own.get("engine", "vllm") == "vllm":
        # Sessions of the gateway ask the policy there.
        values["door"] = {"port": free_port(avoid=frozenset(taken | set(values.values())))}
        taken.add(values["door"]["port"])
    if share.cores:
        values["vllm"] = {"cpu_ids": list(share.cores)}
    elif share.gpu:
        values["vllm"] = engine_defaults(machine, file)
    else:
        num_workers = validate(GeneratorSettings, own).vllm.tensor_parallel_size
        values["vllm"] = {"num_threads": max(1, share.num_threads // num_workers)}
    if turns := turn_defaults(file, machine):
        values = merge(values, turns, {"vllm": {"enable_sleep_mode": True}})
    return values


def _plan_evaluator(
    file: RunFile,
    common: Mapping[str, Any],
    generators: Sequence[ServicePlan],
    gateway: ServicePlan | None,
    taken: set[int],
) -> ServicePlan | None:
    if not file.run.evals:
        return None
    of_episodes = {} if gateway is None else evaluation_of_episodes(file, gateway.settings)
    defaults = merge(_evaluator_defaults(file, generators, taken), of_episodes)
    values = merge(common, defaults, file.evaluator_values)
    # Its threads wait for generators; an engine of its own is told what it may use.
    share = CoreShare(cores=(), num_threads=1, environment={})
    planned = _plan_service(EvaluatorSettings, values, file.directory.absolute(), "evaluator", share, file)
    taken.add(planned.settings.http_port)
    return planned


def _plan_gateway(
    file: RunFile,
    common: Mapping[str, Any],
    generators: Sequence[ServicePlan],
    taken: set[int],
    is_played: bool,
) -> ServicePlan | None:
    own = file.gateway_values
    if own is None:
        return None
    doors = [each.settings.door for each in generators]
    values = merge(
        {key: value for key, value in common.items() if key != "checkpoint_root"},
        gateway_defaults(own, doors=doors, taken=taken, source=file.source),
        own,
    )
    share = CoreShare(cores=(), num_threads=1, environment={})
    planned = _plan_service(GatewaySettings, values, file.directory.absolute(), "gateway", share, file)
    check_producers(planned.settings, is_played=is_played)
    return planned


def _evaluator_defaults(file: RunFile, generators: Sequence[ServicePlan], taken: set[int]) -> dict[str, Any]:
    own = file.evaluator_values
    values: dict[str, Any] = {
        "evals": [each.model_dump(mode="json", exclude_none=True) for each in file.run.evals],
        "results": str(file.directory.absolute() / "evals.jsonl"),
        "exit_when_run_ends": True,
    }
    if "http_port" not in own:
        values["http_port"] = free_port(avoid=frozenset(taken))
    if own.get("engine", "generators") == "generators":
        values["engine"] = "generators"
        values["generators"] = [each.settings.grpc_address for each in generators]
    return values
