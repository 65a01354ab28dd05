"""`asympo run CONFIG`: broker, generators and learner on this machine until the run is finished."""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO, cast

from asympo.common.commands import CommandParser
from asympo.common.paths import given_path
from asympo.common.redaction import redacted_arguments
from asympo.run.settings import RunFile, TargetsSection, parse_overrides, parse_with_overrides, read_run_file

_PORTS = ("http_port", "grpc_port")
_OF_EVALUATOR = (
    *("http_port", "evals", "results", "exit_when_run_ends", "engine", "generators"),
    *("doors", "doors_token", "environment", "environment_python", "tool_call_parser"),
)
_SAME_SIGNAL_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo run",
        description="Starts broker, generators and learner on this machine; run it again to resume.",
        epilog="Any setting of the file can be given as a flag: --learner.total-steps 100",
    )
    parser.add_argument(
        "config", type=given_path, metavar="CONFIG", help="settings file (TOML); see examples/"
    )
    add_run_flags(parser)
    arguments, rest = parse_with_overrides(parser, argv)
    overrides = parse_overrides(rest)
    file = read_run_file(arguments.config, overrides=overrides)
    return run_file(file, arguments)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over: delete this run's directory, and its log at REDIS_URL or broker.url if given",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print estimates and one scored prompt; start nothing"
    )
    parser.add_argument("--check-config", action="store_true", help="print the resolved settings and exit")


def run_file(file: RunFile, arguments: Any) -> int:
    """What `run` and `demo` share, from a resolved file on."""
    from asympo.run.directory import RunDirectory
    from asympo.run.prepare.before_deletion import check_before_deletion
    from asympo.run.prepare.broker import check_broker
    from asympo.run.prepare.machine import look_at_machine
    from asympo.run.prepare.plan import anchored_file, check_learner_values

    file = anchored_file(file)
    check_learner_values(file)
    if arguments.check_config:
        sys.stdout.write(resolved_text(file))
        return 0
    machine = look_at_machine()
    if arguments.dry_run:
        from asympo.run.prepare.needs import print_needs

        return print_needs(file, machine)
    directory = RunDirectory(file.directory, say=_say)
    if arguments.fresh:
        if not directory.is_held:
            # A run that goes on has its ports, and is refused as such.
            check_before_deletion(file, machine)
        delete_run(directory, file)
    if directory.exists and (done := finished_step(directory.read_mark(), file)) is not None:
        sys.stdout.write(
            f"The run in {file.directory} is finished at step {done}: give a larger --learner.total-steps "
            "to go on, or --fresh to start over.\n"
        )
        return 0
    check_broker(file, directory.read_mark())
    from asympo.run.console.terminal import steady_terminal

    with directory, steady_terminal():
        return _supervise(file, machine, directory)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def finished_step(mark: Mapping[str, Any], file: RunFile) -> int | None:
    """The step at which the run ended; None when there is something left to do."""
    total = file.learner_values.get("total_steps")
    if not mark.get("is_finished") or (total is not None and mark["step"] < total):
        return None
    return int(mark["step"])


def delete_run(directory: Any, file: RunFile) -> None:
    """The directory, and on a broker that is not ours the run's keys; neither while somebody trains there."""
    if not file.external_broker_url:
        directory.delete()
        return
    from asympo.common.rollout_log import Broker, RunLog
    from asympo.run.deletion import check_nobody_trains, delete_log

    broker = Broker.connect(file.external_broker_url)
    try:
        log = RunLog(broker, file.run.name)
        check_nobody_trains(log)
        directory.delete()
        delete_log(log)
    finally:
        broker.close()


def _supervise(file: RunFile, machine: Any, directory: Any) -> int:
    from asympo.common.lifecycle import StopSignal
    from asympo.common.telemetry import set_up_logging
    from asympo.run.console.terminal import SteadyStream
    from asympo.run.console.view import make_view
    from asympo.run.held_out.measurements import HeldOutMeasurements
    from asympo.run.prepare.broker import noted_broker
    from asympo.run.prepare.environment import episodes_of
    from asympo.run.prepare.plan import make_plan
    from asympo.run.processes.services import build_services
    from asympo.run.supervisor import Supervisor

    plan = make_plan(file, machine)
    model = fetch_model(plan.learner.settings.model)
    check_room(plan, model)
    directory.write_mark(
        command=[_program(), *redacted_arguments(sys.argv[1:])],
        **noted_broker(plan.broker_url if plan.is_broker_embedded else None, os.environ.get("REDIS_URL")),
        is_finished=False,
        failure=None,
    )
    services = build_services(plan)
    log_path = directory.path / "logs" / "supervisor.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    held_out = None
    if file.run.evaluate:
        first = plan.generators[0].settings
        gateway = plan.gateway.settings if plan.gateway else None
        held_out = HeldOutMeasurements(
            directory=directory.path,
            learner_settings=plan.learner.settings_path,
            settings=plan.learner.settings,
            generator_address=first.grpc_address,
            max_prompts=file.run.max_evaluation_prompts,
            allow_python=first.allow_python,
            episodes=episodes_of(plan.file, plan.learner.settings, gateway),
        )
    stopping = StopSignal(on_force=services.kill_at_once, same_within_seconds=_SAME_SIGNAL_SECONDS)
    with ExitStack() as at_the_end:
        with log_path.open("a") as log_file, stopping as stop:
            set_up_logging(service="run", log_format="text", stream=cast(TextIO, SteadyStream(log_file)))
            view = make_view(file.view.kind)
            supervisor = Supervisor(
                plan=plan, services=services, directory=directory, view=view, stop=stop, held_out=held_out
            )
            at_the_end.callback(_notify_end, supervisor)
            try:
                outcome = supervisor.run()
            finally:
                view.close()
                logging.getLogger().handlers.clear()
        title = f"{directory.path.name}: {Path(plan.learner.settings.model).name}"
        return _report(outcome, directory.path, title=title, targets=file.run.targets)


def _notify_end(supervisor: Any) -> None:
    """Whoever interrupts it has no part in how the run ended, which stays as it is."""
    from asympo.common.lifecycle import StopSignal

    with StopSignal(same_within_seconds=_SAME_SIGNAL_SECONDS) as stop:
        for problem in supervisor.notify_end(stop):
            sys.stderr.write(f"asympo: {problem}\n")


def _report(outcome: Any, path: Path, *, title: str, targets: TargetsSection | None) -> int:
    """Writes and prints what became of the run; its exit code, or its failure."""
    from asympo.run.report.page import write_page
    from asympo.run.report.summary import draw, print_promises, print_summary, write_summary

    try:
        summary = write_summary(outcome, path, targets)
        problem = draw(path, title=title)
        write_page(path, summary)
    except OSError as error:
        if outcome.failure is None:
            raise
        sys.stderr.write(f"asympo: the report of the run cannot be written: {error}\n")
        raise outcome.failure from error
    if outcome.failure is not None and not outcome.step:
        # It never got going: its one sentence is all there is to tell.
        raise outcome.failure
    print_summary(summary, path)
    for text in (problem, *(f"{name} had to be killed" for name in outcome.killed)):
        if text:
            sys.stderr.write(f"asympo: {text}\n")
    if outcome.failure is not None:
        sys.stdout.write("The run failed. When the cause is mended, start it again the same way to go on.\n")
        sys.stdout.flush()
        raise outcome.failure
    if not outcome.is_finished:
        sys.stdout.write(f"The run can go on from step {outcome.step}: start it again the same way.\n")
        return 130
    print_promises(summary)
    return 1 if summary["broken_promises"] and targets is not None else 0


def fetch_model(model: str) -> Path:
    """Downloads what is not here yet, its progress in sight: it must not count as the start of an engine."""
    if Path(model).is_dir():
        return Path(model)
    from asympo.engines.model_files import local_model

    sys.stdout.write(f"looking for the model {model}; what is not here is downloaded\n")
    sys.stdout.flush()
    return local_model(model)


def check_room(plan: Any, model: Path) -> None:
    """BadSetting when the disk cannot hold what the run keeps."""
    from asympo.run.prepare.disk import check_disk, disk_need

    run = plan.file.run
    need = disk_need(
        plan.learner.settings,
        model,
        num_generators=len(plan.generators),
        max_log_bytes=int(run.max_log_mb * 1e6),
        broker_bytes=int(plan.file.broker.rewrite_mb * 2**20) if plan.is_broker_embedded else 0,
        max_archive_bytes=int(run.max_archive_gb * 1e9),
    )
    check_disk(plan.directory, need, keep_free_bytes=int(run.keep_free_mb * 1e6))


def resolved_text(file: RunFile) -> str:
    """The whole file with every default, as TOML that `run` reads back."""
    from asympo.common.redaction import redacted
    from asympo.common.settings import dump_toml, validate
    from asympo.evaluator.settings import EvaluatorSettings
    from asympo.gateway.settings import GatewaySettings
    from asympo.generator.settings import GeneratorSettings
    from asympo.learner.settings import LearnerSettings

    decided = {"run", "redis_url", "checkpoint_root"}

    def service(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
        full = validate(model, values).model_dump(mode="json")
        return {key: value for key, value in full.items() if key not in decided}

    generator = service(GeneratorSettings, file.generator_values)
    learner = service(LearnerSettings, file.learner_values)
    gateway = service(GatewaySettings, file.gateway_values or {})
    evaluator = service(EvaluatorSettings, file.evaluator_without_addresses)
    for section, given, left_open in (
        (generator, file.generator_values, _PORTS),
        (learner, file.learner_values, _PORTS),
        (gateway, file.gateway_values or {}, (*_PORTS, "doors", "doors_token", "model_name")),
        (evaluator, file.evaluator_values, _OF_EVALUATOR),
    ):
        for name in left_open:
            # Left to the supervisor, which finds what is free and knows its generators.
            if name not in given:
                section.pop(name, None)
    evaluator |= {key: value for key, value in file.evaluator_values.items() if key == "engine"}
    sections = {
        "run": file.run.model_dump(mode="json"),
        "broker": file.broker.model_dump(mode="json"),
        "view": file.view.model_dump(mode="json"),
        "generator": {**file.generators.model_dump(mode="json"), **generator},
        "learner": learner,
        **({} if file.gateway_values is None else {"gateway": gateway}),
        **({"evaluator": evaluator} if file.run.evals else {}),
    }
    return dump_toml(redacted(sections), comment=f"asympo run, from {file.source}")


def _program() -> str:
    """What to type: the name, or where it lies if the name alone would not be found."""
    called = Path(sys.argv[0])
    return "asympo" if called.name != "asympo" or shutil.which("asympo") else str(called.absolute())
