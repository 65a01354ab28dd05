"""`asympo eval`: measures one policy or model now, with the evaluations of a run's settings file."""

import asyncio
import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from asympo.common.commands import CommandParser, add_json_flag, write_json, write_table
from asympo.common.errors import BadSetting
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.common.settings import validate
from asympo.engines.base import SamplingSettings
from asympo.engines.choice import build_engine
from asympo.engines.model_files import local_model
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.measure import Measured, measure
from asympo.evaluator.prepare import Chosen, choose, render
from asympo.evaluator.samplers import EngineSampler
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.ops.answers import write_sample
from asympo.run.settings import RunFile, read_run_file


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo eval", description="Measure one policy or model now.")
    parser.add_argument("model", metavar="POLICY_OR_MODEL", help="directory, or owner/name on the hub")
    parser.add_argument("settings", metavar="CONFIG", type=Path, help="settings file of `asympo run`")
    parser.add_argument("--eval", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument(
        "--show",
        action="store_true",
        help="answers to the first prompts too, show_prompts of each",
    )
    add_json_flag(parser)
    arguments = parser.parse_args(argv)
    file = read_run_file(arguments.settings)
    measured = asyncio.run(_measure(file, _asked(file, arguments), arguments.model))
    samples = [sample for each in measured for sample in each.samples] if arguments.show else []
    if arguments.json:
        values = {"model": arguments.model, "evals": [each.result.to_dict() for each in measured]}
        shown = {"samples": [dataclasses.asdict(each) for each in samples]} if arguments.show else {}
        write_json(values | shown)
        return 0
    for sample in samples:
        write_sample(sample)
    _write_table([each.result for each in measured], arguments.model)
    return 0


def _asked(file: RunFile, arguments: Namespace) -> list[EvalConfig]:
    evals = file.run.evals or (EvalConfig(),)
    names = [each.name for each in evals]
    for name in arguments.eval or ():
        if name not in names:
            raise BadSetting(f"{file.source} has no evaluation {name}: it has {', '.join(names)}")
    return [each for each in evals if not arguments.eval or each.name in arguments.eval]


async def _measure(file: RunFile, evals: Sequence[EvalConfig], model: str) -> list[Measured]:
    learner = validate(LearnerSettings, file.learner_values)
    generator = validate(GeneratorSettings, file.generator_values)
    of_run = SamplingSettings(**learner.sampling.model_dump())
    allow_python = bool(file.evaluator_values.get("allow_python", generator.allow_python))
    progress = learner.progress(num_prompts=0)
    chosen: list[Chosen] = []
    if generator.engine == "openai":
        raise BadSetting(
            "a server of generator.engine = 'openai' loads no policy by hand: set generator.engine to vllm"
        )
    engine = build_engine(generator)
    try:
        # Data and reward functions say what is wrong before a model is loaded.
        for each in evals:
            found = choose(
                each,
                task_of_run=learner.task,
                sampling_of_run=of_run,
                timeout_seconds=generator.reward_timeout_seconds,
                num_workers=generator.reward_workers,
                allow_python=allow_python,
                progress=progress,
            )
            chosen.append(found)
        path = Path(model) if generator.engine == "simulated" else local_model(model)
        await engine.start(model_path=path)
        sampler = EngineSampler(engine, policy_step=None, policy_name=path.name)
        prepared = [render(each, engine.tokenizer) for each in chosen]
        limit = generator.max_groups_in_flight
        return [await measure(each, sampler, max_in_flight=limit) for each in prepared]
    finally:
        await engine.close()
        for opened in chosen:
            opened.scorer.close()


def _write_table(results: Sequence[EvalResult], model: str) -> None:
    rows = []
    for each in results:
        rows.append([each.eval, each.prompts, f"mean@{each.samples}", each.mean])
        rows += [[each.eval, each.prompts, f"pass@{k}", value] for k, value in each.pass_at.items()]
        rows += [
            [each.eval, each.prompts, f"reward {name}", f"{value:.3f}"]
            for name, value in each.functions.items()
        ]
        if each.unscored:
            rows.append([each.eval, each.prompts, "not scored", each.unscored])
    write_table(model, ("evaluation", "prompts", "what", "value"), rows)
