"""`asympo task show|score|try`: what would be asked and what responses would earn, before any training."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.commands import CommandParser, add_json_flag, at_least_one, write_json, write_table
from asympo.common.context_length import PlainConfig, context_length
from asympo.common.errors import BadModel, BadSetting
from asympo.common.settings import validate
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.rewards.scorer import Scored, Scorer
from asympo.run.settings import RunFile, parse_overrides, parse_with_overrides, read_run_file
from asympo.tasks.base import Task, TaskPrompt, columns_of
from asympo.tasks.registry import load_task
from asympo.tasks.tokenizer import files_of, open_tokenizer

_BARS = 10
_BAR_WIDTH = 40


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo task", description="Look at a task before training on it.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("show", "rows, columns, prompts as the model sees them, lengths, what is left out"),
        ("score", "score the responses of a file"),
        ("try", "sample a few responses with the model and score them"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("config", type=Path, metavar="CONFIG", help="settings file of asympo run")
        add_json_flag(verb)
        if name == "score":
            verb.add_argument(
                "--responses",
                type=Path,
                required=True,
                metavar="FILE",
                help='one {"row": n, "response": "…"} a line, rows from 1; the lines of a row are one group',
            )
        else:
            verb.add_argument("--count", type=at_least_one, default=3, help="prompts shown (default 3)")
    arguments, rest = parse_with_overrides(parser, argv)
    file = read_run_file(arguments.config, overrides=parse_overrides(rest))
    return {"show": _show, "score": _score, "try": _try}[arguments.verb](file, arguments)


# --- show ------------------------------------------------------------------------------------------


def _show(file: RunFile, arguments: Namespace) -> int:
    settings = validate(LearnerSettings, file.learner_values)
    task = load_task(settings.task)
    shown = _described(task, settings, arguments.count)
    if arguments.json:
        write_json(shown)
        return 0
    write = sys.stdout.write
    write(f"task: {task.name}, {shown['num_prompts']} prompts to train, {shown['num_held_out']} held out\n")
    write(f"columns: {', '.join(shown['columns']) or 'none'}\n")
    for note in shown["notes"]:
        write(f"note: {note}\n")
    for each in shown["prompts"]:
        write(f"\nrow {each['row']}, {each['num_tokens'] or 'unknown'} tokens, answer {each['answer']!r}\n")
        write(each["text"] + "\n")
    _write_histogram(shown["lengths"])
    return 0


def _described(task: Task, settings: LearnerSettings, count: int) -> dict[str, Any]:
    from asympo.tasks.lengths import changes
    from asympo.tasks.render import render_prompt

    notes = _notes(task)
    lengths: list[int] = []
    try:
        tokenizer = open_tokenizer(settings.model)
    except BadModel as error:
        notes.append(f"{error}; prompts are shown as the rows have them")
        rendered = [_unrendered(task.prompt(index)) for index in range(min(count, len(task)))]
    else:
        ids = [render_prompt(task.prompt(index), tokenizer) for index in range(len(task))]
        lengths = [len(each) for each in ids]
        rendered = [tokenizer.decode(each) for each in ids[:count]]
        notes += changes(task, tokenizer)
        limit = longest_prompt(settings.model, settings.sampling.max_tokens)
        left_out = [place for place, length in enumerate(lengths) if limit is not None and length > limit]
        if left_out:
            rows = ", ".join(str(task.prompt(place).row) for place in left_out[:5])
            notes.append(
                f"{len(left_out)} of {len(lengths)} prompts are longer than {limit} tokens (the model's "
                f"context less max_tokens) and are left out: rows {rows}{', …' if len(left_out) > 5 else ''}"
            )
    return {
        "task": task.name,
        "num_prompts": len(task),
        "num_held_out": len(task.held_out()),
        "columns": columns_of(task),
        "notes": notes,
        "lengths": lengths,
        "prompts": [
            {
                "row": task.prompt(index).row,
                "answer": task.prompt(index).answer,
                "num_tokens": lengths[index] if lengths else None,
                "text": text,
            }
            for index, text in enumerate(rendered)
        ],
    }


def longest_prompt(model: str, max_tokens: int) -> int | None:
    """Tokens that a prompt may have; None where the model's files do not say."""
    try:
        values = json.loads((files_of(model) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    context = context_length(PlainConfig(values))
    return None if context is None else context - max_tokens


def _notes(task: Task) -> list[str]:
    notes = []
    repeated = getattr(task, "num_repeated", 0)
    if repeated:
        notes.append(
            f"{repeated} rows ask what another row asks: they are on the same side, trained or held out"
        )
    return notes


def _unrendered(prompt: TaskPrompt) -> str:
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"[{message['role']}] {message.get('content')}" for message in prompt.messages or ())


def _write_histogram(lengths: Sequence[int]) -> None:
    if not lengths:
        return
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // _BARS))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    sys.stdout.write("\ntokens  prompts\n")
    for place, count in enumerate(counts):
        first = low + place * width
        label = str(first) if width == 1 else f"{first}-{first + width - 1}"
        bar = "█" * -(-count * _BAR_WIDTH // max(counts))
        sys.stdout.write(f"{label:>11} {count:>6} {bar}\n")


# --- score -----------------------------------------------------------------------------------------


def _score(file: RunFile, arguments: Namespace) -> int:
    settings = validate(LearnerSettings, file.learner_values)
    task = load_task(settings.task)
    rows = {_row_number(task, prompt): prompt for prompt in _all_prompts(task)}
    given = read_responses(arguments.responses, rows)
    progress = settings.progress(num_prompts=len(task))
    with _scorer(file, settings, task) as scorer:
        tokenizer = _tokenizer(settings.model) if scorer.wants_token_ids else None
        results: dict[int, dict[str, Any]] = {}
        for row, lines in given.items():
            texts = [text for _, text in lines]
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts] if tokenizer else ()
            started = time.perf_counter()
            scores = scorer.score(rows[row], texts, token_ids=ids, progress=progress)
            seconds = time.perf_counter() - started
            for (line, text), score in zip(lines, scores, strict=True):
                results[line] = {"row": row, "response": text, **_shown(score), "seconds": seconds}
    _write_scores([results[line] for line in sorted(results)], arguments)
    return 0


def _tokenizer(model: str) -> Any:
    """None where its files are not here: a function that cannot do without says so of each response."""
    try:
        return open_tokenizer(model)
    except BadModel:
        return None


def _all_prompts(task: Task) -> list[TaskPrompt]:
    return [task.prompt(index) for index in range(len(task))] + list(task.held_out())


def _row_number(task: Task, prompt: TaskPrompt) -> int:
    """Rows of a file are counted from 1 already, entries of a generated data set from 0."""
    return prompt.row if task.name in ("jsonl", "data") else prompt.row + 1


def read_responses(path: Path, rows: dict[int, TaskPrompt]) -> dict[int, list[tuple[int, str]]]:
    """Row to (line, response) of each of its lines. BadSetting about the first line that is wrong."""
    given: dict[int, list[tuple[int, str]]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        raise BadSetting(f"the responses {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadSetting(f"{where} is not JSON: {error}") from None
        row = value.get("row") if isinstance(value, dict) else None
        text = value.get("response") if isinstance(value, dict) else None
        if not isinstance(row, int) or isinstance(row, bool) or not isinstance(text, str):
            raise BadSetting(f'{where} is {line[:60]}: give {{"row": n, "response": "…"}}')
        if row not in rows:
            raise BadSetting(f"{where} names row {row}: the task has rows {min(rows)} to {max(rows)}")
        given.setdefault(row, []).append((number, text))
    if not given:
        raise BadSetting(f'the responses {path} hold none: give one {{"row": n, "response": "…"}} a line')
    return given


def _scorer(file: RunFile, settings: LearnerSettings, task: Task) -> Scorer:
    generator = validate(GeneratorSettings, file.generator_values)
    return Scorer(
        task=settings.task,
        timeout_seconds=generator.reward_timeout_seconds,
        num_workers=generator.reward_workers,
        allow_python=generator.allow_python,
        columns=columns_of(task),
    )


def _shown(score: Any) -> dict[str, Any]:
    if isinstance(score, Scored):
        shown: dict[str, Any] = {"reward": score.reward, "functions": score.functions}
        return shown | ({"extras": score.extras} if score.extras else {})
    return {"reward": None, "functions": score.functions, "problem": score.reason}


def _write_scores(results: Sequence[dict[str, Any]], arguments: Namespace) -> None:
    if arguments.json:
        write_json({"rows": list(results)})
        return
    names = list(dict.fromkeys(name for each in results for name in each["functions"]))
    write_table(
        "",
        ("row", "reward", *names, "response"),
        [
            [
                each["row"],
                each.get("problem", each["reward"]),
                *(each["functions"].get(name) for name in names),
                " ".join(each["response"].split())[:80],
            ]
            for each in results
        ],
    )


# --- try -------------------------------------------------------------------------------------------


def _try(file: RunFile, arguments: Namespace) -> int:
    from asympo.ops.sampling import sample_responses

    settings = validate(LearnerSettings, file.learner_values)
    generator = validate(GeneratorSettings, file.generator_values)
    task = load_task(settings.task)
    prompts = [task.prompt(index) for index in range(min(arguments.count, len(task)))]
    results = []
    progress = settings.progress(num_prompts=len(task))
    # The scoring processes say what is wrong before a model is loaded.
    with _scorer(file, settings, task) as scorer:
        groups = sample_responses(prompts, settings=settings, generator=generator)
        for prompt, samples in zip(prompts, groups, strict=True):
            texts = [sample.text for sample in samples]
            started = time.perf_counter()
            ids = [sample.token_ids for sample in samples]
            scores = scorer.score(prompt, texts, token_ids=ids, progress=progress)
            seconds = time.perf_counter() - started
            results += [
                {"row": _row_number(task, prompt), "response": text, **_shown(score), "seconds": seconds}
                for text, score in zip(texts, scores, strict=True)
            ]
    _write_scores(results, arguments)
    return 0
