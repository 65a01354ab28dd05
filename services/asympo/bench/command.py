"""`asympo bench`: this machine's numbers; the arms of a ratio take turns in one run."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from asympo.bench.pipeline_flags import add_pipeline_flags
from asympo.bench.shapes import parse_shape
from asympo.common.commands import CommandParser, add_json_flag, at_least_one, say, write_json
from asympo.common.errors import BadSetting
from asympo.local.heap import large_imports

_MARK = "ASYMPO_BENCH_ENVIRONMENT"
"""Set where the environment is the one that the supervisor gives a learner."""


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark."""
    parser = CommandParser(prog="asympo bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="WHAT")
    text = "speed and memory of the learner's step; needs neither a broker nor an engine"
    verb = verbs.add_parser("learner", help=text, description=text)
    add_learner_flags(verb)
    text = "cost of the rollout log against bare streams; starts a broker of its own"
    verb = verbs.add_parser("log", help=text, description=text)
    add_log_flags(verb)
    text = "what asynchrony is worth: the real services with a simulated engine, against synchronous steps"
    note = "`generator_wait_ratio` is an estimate, 1 - Tg / seconds of a step (Tg: the generator alone)"
    verb = verbs.add_parser("pipeline", help=text, description=f"{text}. {note}")
    add_pipeline_flags(verb)
    text = "what the gateway costs and keeps: ingest, agents, sessions while generators die, garbage"
    verb = verbs.add_parser("gateway", help=text, description=text)
    verb.add_argument("--malformed", type=at_least_one, default=10_000, help="malformed requests")
    verb.add_argument("--quick", action="store_true", help="finish within seconds; the speeds mean nothing")
    add_json_flag(verb)
    text = "vLLM and a server over the demo model's 4-bit weights feed one learner: does the reward rise?"
    verb = verbs.add_parser("mixed", help=text, description=text)
    verb.add_argument("--server", required=True, metavar="URL", help="its address, with /v1")
    verb.add_argument("--total-steps", type=at_least_one, default=20)
    add_json_flag(verb)
    text = "every family of models, tiny, the way it would be trained against its own forward"
    verb = verbs.add_parser("models", help=text, description=text)
    verb.add_argument(
        "--family", action="append", metavar="NAME", help="only this one; may be given several times"
    )
    add_json_flag(verb)
    text = "swaps with requests in flight, every one read back, and faults to catch; needs vLLM, no broker"
    verb = verbs.add_parser("reload", help=text, description=text)
    add_reload_flags(verb)
    text = "what scoring costs beside the reward functions themselves; needs neither a broker nor an engine"
    verb = verbs.add_parser("rewards", help=text, description=text)
    verb.add_argument("--groups", type=int, default=500, help="timed groups, scored one at a time")
    add_json_flag(verb)
    arguments = parser.parse_args(list(argv))
    if arguments.verb != "learner":
        others = {
            "gateway": _gateway,
            "log": _log,
            "mixed": _mixed,
            "models": _models,
            "pipeline": _pipeline,
            "reload": _reload,
            "rewards": _rewards,
        }
        return others[arguments.verb](arguments)
    check_learner_flags(arguments)
    if sys.platform.startswith("linux") and not os.environ.get(_MARK):
        return _in_the_learners_environment(argv)
    return _learner(arguments)


def add_learner_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench learner`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", metavar="ID_OR_PATH", help="Hugging Face id or path; default: the demo's")
    model.add_argument("--model-config", metavar="NAME", help="a well-known shape; needs --random-weights")
    parser.add_argument(
        "--random-weights", action="store_true", help="the shape of --model-config with random weights"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--attention",
        choices=("auto", "blocks", "flex"),
        default="auto",
        help="flex needs CUDA; the gains then compare it with blocks",
    )
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens of one micro-batch")
    parser.add_argument(
        "--head-chunk-rows",
        type=int,
        help="rows of logits at once; if not given, as many as the learner takes",
    )
    parser.add_argument("--num-threads", type=int, help="CPU threads; if not given, the environment's")
    parser.add_argument("--repeats", type=int, default=1, help="timed steps of every arm")
    parser.add_argument(
        "--shape",
        action="append",
        metavar="PROMPT/RESPONSE/GROUPS",
        help="a step's shape instead of the usual three; may be given several times",
    )
    parser.add_argument(
        "--only",
        choices=("speed", "loss", "sharing", "parts"),
        action="append",
        help="only this part of the report; may be given several times",
    )
    add_json_flag(parser)


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench log`."""
    parser.add_argument("--redis-url", help="measure this broker instead of starting one")
    parser.add_argument(
        "--appendfsync",
        choices=("always", "everysec"),
        action="append",
        help="default: always; give both to compare them",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that each arm takes")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured in each turn")
    parser.add_argument(
        "--quick", action="store_true", help="finish within seconds; the figures mean nothing"
    )
    add_json_flag(parser)


def add_reload_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench reload`."""
    parser.add_argument("--model", metavar="PATH", help="Hugging Face directory to swap; default: a tiny one")
    parser.add_argument(
        "--swaps", type=int, default=100, help="swaps without a fault, besides one after each fault"
    )
    parser.add_argument("--requests", type=int, default=16, help="requests in flight")
    parser.add_argument("--tokens", type=int, default=128, help="length of each response")
    parser.add_argument(
        "--publish-steps",
        type=int,
        default=20,
        metavar="N",
        help="train as many steps in four runs, to measure what is published and what that costs; 0: do not",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-6, help="size of the step between policies")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="the engine's arithmetic"
    )
    parser.add_argument(
        "--family",
        action="append",
        choices=("tied-llama", "qwen3", "mixtral", "deepseek-v2"),
        help="inject faults only into tiny models of this family; may be given several times",
    )
    add_json_flag(parser)


def _log(arguments: argparse.Namespace) -> int:
    from asympo.bench.log import LogBench, measure_log

    if arguments.rounds < 1 or arguments.seconds <= 0:
        raise BadSetting("--rounds and --seconds: give at least 1 round and more than 0 seconds")
    bench = LogBench(
        redis_url=arguments.redis_url,
        appendfsync=tuple(dict.fromkeys(arguments.appendfsync or ("always",))),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    if arguments.quick:
        bench = dataclasses.replace(
            bench,
            rounds=1,
            seconds=0.3,
            generator_counts=(1, 64),
            staleness_cases=((0, 1), (1, 4)),
            max_knee_rounds=1,
        )
    report = measure_log(bench, say=say)
    return _answer(report, arguments)


def _gateway(arguments: argparse.Namespace) -> int:
    from asympo.bench.gateway.report import GatewayBench, measure_gateway

    bench = GatewayBench(num_malformed=arguments.malformed)
    if arguments.quick:
        bench = dataclasses.replace(
            bench,
            num_groups=100,
            latency_seconds=0.5,
            num_requests=64,
            num_malformed=200,
            num_sessions=32,
            mean_delay_seconds=0.05,
        )
    return _answer(measure_gateway(bench, say=say), arguments)


def check_learner_flags(arguments: argparse.Namespace) -> None:
    """Before anything heavy is imported; raises BadSetting."""
    if arguments.model_config and not arguments.random_weights:
        raise BadSetting("--model-config names a shape, not weights: add --random-weights, or give --model")
    if arguments.random_weights and not arguments.model_config:
        raise BadSetting("--random-weights needs --model-config NAME")
    for name in ("token_budget", "head_chunk_rows", "repeats"):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            raise BadSetting(f"--{name.replace('_', '-')} is {given}: give at least 1")
    for text in arguments.shape or ():
        parse_shape(text)


def _learner(arguments: argparse.Namespace) -> int:
    with large_imports():
        from asympo.bench.learner import measure_learner

    return _answer(measure_learner(arguments, say=say), arguments)


def _mixed(arguments: argparse.Namespace) -> int:
    from asympo.bench.mixed import measure_mixed

    report = measure_mixed(server=arguments.server, total_steps=arguments.total_steps, say=say)
    return _answer(report, arguments)


def _models(arguments: argparse.Namespace) -> int:
    import transformers

    from asympo.bench.families import family_names, measure_families
    from asympo.bench.tables import families_table

    transformers.logging.set_verbosity_error()
    known = family_names()
    for name in arguments.family or ():
        if name not in known:
            raise BadSetting(f"--family {name}: the installed transformers has {', '.join(known)}")
    report = measure_families(arguments.family or known, say=say)
    write_json(report) if arguments.json else sys.stdout.write(families_table(report) + "\n")
    return 0


def _pipeline(arguments: argparse.Namespace) -> int:
    from asympo.bench.pipeline import measure_pipeline

    return _answer(measure_pipeline(arguments, say=say), arguments)


def _reload(arguments: argparse.Namespace) -> int:
    with large_imports():
        from asympo.bench.reload.swaps import measure_reload

    # vLLM and its processes log to standard output, which is for the answer alone.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        report = measure_reload(arguments, say=say)
    finally:
        os.dup2(answers, 1)
        os.close(answers)
    return _answer(report, arguments)


def _rewards(arguments: argparse.Namespace) -> int:
    from asympo.bench.rewards.overhead import measure_rewards

    if arguments.groups < 1:
        raise BadSetting(f"--groups is {arguments.groups}: give at least 1")
    return _answer(measure_rewards(num_groups=arguments.groups, say=say), arguments)


def _in_the_learners_environment(argv: Sequence[str]) -> int:
    """A process of its own: libc reads how to keep memory once, when a process starts."""
    from asympo.run.prepare.machine import KEEP_MEMORY, QUIET

    command = [sys.executable, "-m", "asympo.cli", "bench", *argv]
    return subprocess.run(
        command, env={**QUIET, **KEEP_MEMORY, **os.environ, _MARK: "1"}, check=False
    ).returncode


def _answer(report: dict[str, Any], arguments: argparse.Namespace) -> int:
    if arguments.json:
        write_json(report)
    else:
        sys.stdout.write(_text(report))
    return 0


def _text(report: dict[str, Any]) -> str:
    lines: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name} {key}".strip())
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{name.replace('_', ' '):<64} {shown}")

    walk(report, "")
    return "\n".join(lines) + "\n"
