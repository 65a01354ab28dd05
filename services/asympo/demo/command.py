"""`asympo demo`: a preset of `asympo run` for newcomers."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.common.commands import CommandParser, at_least_one
from asympo.common.errors import BadSetting
from asympo.common.settings import merge
from asympo.demo.seeds import SEEDS, run_seeds
from asympo.local.processor import has_native_bfloat16
from asympo.run.command import add_run_flags, run_file
from asympo.run.prepare.machine import look_at_machine
from asympo.run.settings import RunFile, TargetsSection, parse_overrides, parse_with_overrides, read_run_file

LORA = {"lora": {}, "learning_rate": 3e-4}
"""Settings of `--lora`: the best of the rates that were tried (docs/weights.md)."""
STEPS_OF_LORA = {"total_steps": 48}
"""Of `--lora` where steps are quick: an adapter learns a little more slowly than all weights."""
IN_FLOAT32 = {"total_steps": 35}
"""Settings where products are computed in float32, which takes twice as long."""
PRESET = Path(__file__).with_name("demo.toml")


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo demo",
        description="A small language model learns to add on this machine, in a few minutes.",
        epilog="Any setting of `asympo run` can be given as a flag: --learner.total-steps 60",
    )
    parser.add_argument("--model", metavar="ID_OR_PATH", help="another Hugging Face id or path")
    parser.add_argument("--lora", action="store_true", help="train an adapter, not all weights")
    parser.add_argument("--resume", action="store_true", help="continue the demo that was stopped")
    parser.add_argument(
        "--seeds", type=at_least_one, metavar="N", help="N demos in turn, each with its own seed"
    )
    parser.add_argument("--json", action="store_true", help="with --seeds: print one JSON object at the end")
    add_run_flags(parser)
    arguments, rest = parse_with_overrides(parser, argv)
    if arguments.seeds:
        return _run_seeds(arguments, rest)
    if arguments.json:
        raise BadSetting("--json goes with --seeds N; a demo's own results are in summary.json of its run")
    if arguments.resume and arguments.fresh:
        raise BadSetting("--resume continues and --fresh starts over: give only one of them")
    overrides = parse_overrides(rest)
    if arguments.model:
        overrides.setdefault("run", {})["model"] = arguments.model
    if not _is_as_it_is(overrides):
        overrides = merge({"run": {"targets": dict.fromkeys(TargetsSection.model_fields)}}, overrides)
    overrides = merge({"learner": suited_to_this_machine(is_lora=arguments.lora)}, overrides)
    file = read_run_file(PRESET, overrides=overrides)
    if not (arguments.resume or arguments.fresh or arguments.dry_run or arguments.check_config):
        code = greet_existing(file)
        if code is not None:
            return code
    check_learner_values(file)
    if "model" not in file.learner_values and not arguments.check_config:
        file = _with_prepared_model(file)
    return run_file(file, arguments)


def suited_to_this_machine(*, is_lora: bool) -> Mapping[str, Any]:
    """Settings of the learner that go before those of the file: fewer steps where they take longer."""
    is_fast = has_native_bfloat16() or bool(look_at_machine().gpus)
    if is_lora:
        return LORA | (STEPS_OF_LORA if is_fast else {})
    return {} if is_fast else IN_FLOAT32


def _run_seeds(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from asympo.run.prepare.plan import anchored_file

    if arguments.resume or arguments.dry_run or arguments.check_config:
        raise BadSetting(
            "--seeds starts demos from nothing: give neither --resume nor --dry-run nor --check-config"
        )
    file = read_run_file(PRESET, overrides=parse_overrides(rest))
    flags = [*rest, *(["--model", arguments.model] if arguments.model else [])]
    flags += ["--lora"] if arguments.lora else []
    return run_seeds(
        arguments.seeds, flags, directory=anchored_file(file).directory.parent, is_json=arguments.json
    )


def _is_as_it_is(overrides: Mapping[str, Any], own: Mapping[str, Any] = SEEDS) -> bool:
    """Whether the targets hold for it: how it is shown, its name and its seeds change nothing."""
    return all(
        name in ("view", "broker")
        or (name in own and (not isinstance(own[name], Mapping) or _is_as_it_is(value, own[name])))
        for name, value in overrides.items()
    )


def check_learner_values(file: RunFile) -> None:
    """Before the model is prepared: a misspelt flag must not cost half a minute."""
    from asympo.run.prepare.plan import check_learner_values

    check_learner_values(file)


def greet_existing(file: RunFile) -> int | None:
    """Says how to go on when there is a demo already; None when there is none."""
    from asympo.run.directory import RunDirectory

    directory = RunDirectory(file.directory)
    if not directory.exists:
        return None
    mark = directory.read_mark()
    start_over = "start over with `asympo demo --fresh` (make demo ARGS=--fresh)"
    if mark.get("is_finished"):
        sys.stdout.write(f"There is a finished demo in {file.directory}: {start_over}.\n")
        summary = directory.path / "summary.json"
        if summary.exists():
            sys.stdout.write(json.dumps(json.loads(summary.read_text()), indent=2) + "\n")
        return 0
    if directory.is_held:
        sys.stdout.write(
            f"The demo in {file.directory} is running (process {directory.holder or 'unknown'}), at step "
            f"{directory.step}.\n"
        )
        return 1
    sys.stdout.write(
        f"There is a demo in {file.directory} that stopped at step {directory.step}: resume it with "
        f"`asympo demo --resume` (make demo ARGS=--resume), or {start_over}.\n"
    )
    return 1


def _with_prepared_model(file: RunFile) -> RunFile:
    from asympo.demo.model import is_prepared, prepare_model

    if not is_prepared():
        sys.stdout.write("preparing the model, once (about half a minute)\n")
        sys.stdout.flush()
    path = prepare_model()
    return file.model_copy(update={"learner_values": {**file.learner_values, "model": str(path)}})
