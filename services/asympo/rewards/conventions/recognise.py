"""Which convention a function follows, by its signature; what it needs and the rows do not have."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from asympo.common.errors import BadSetting
from asympo.rewards.conventions.base import Convention
from asympo.rewards.conventions.openrlhf import OpenRlhf
from asympo.rewards.conventions.plain import OfTaskPrompt, Plain
from asympo.rewards.conventions.trl import Trl
from asympo.rewards.conventions.verl import Verl

CONVENTIONS: dict[str, Convention] = {
    "trl": Trl(),
    "verl": Verl(),
    "openrlhf": OpenRlhf(),
    "plain": Plain(),
    "task-prompt": OfTaskPrompt(),
}
FORMS = (
    "trl f(completions, **columns), verl f(data_source, solution_str, ground_truth, extra_info), "
    "openrlhf f(queries, prompts, labels), plain f(response_text, **columns), "
    "task-prompt f(prompt, response_text)"
)
_NUM_POSITIONAL = {"plain": 1, "task-prompt": 2}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def signature_of(function: Callable[..., Any], what: str) -> inspect.Signature:
    """Raises BadSetting for what has none, as some functions written in C."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise BadSetting(f"{what} has no readable signature: wrap it in a Python function") from error


def recognise(function: Callable[..., Any], what: str) -> str:
    """The one convention that the names of the parameters speak of. Raises BadSetting."""
    signature = signature_of(function, what)
    names = list(signature.parameters)
    found = []
    if {"completions", "completion_ids"} & set(names):
        found.append("trl")
    if "solution_str" in names:
        found.append("verl")
    if "queries" in names:
        found.append("openrlhf")
    if names[:1] == ["response_text"]:
        found.append("plain")
    if len(names) > 1 and names[0] in ("prompt", "task_prompt") and names[1] in ("response_text", "text"):
        found.append("task-prompt")
    if len(found) == 1:
        return found[0]
    problem = f"could be {' or '.join(found)}" if found else "is not one of a known convention"
    raise BadSetting(f"the signature of {what}, {signature}, {problem}: set convention to one of {FORMS}")


def check_signature(
    function: Callable[..., Any], name: str, what: str, columns: Sequence[str] | None
) -> None:
    """Raises BadSetting when the function cannot be called so, or needs columns that the rows do not have."""
    signature = signature_of(function, what)
    parameters = list(signature.parameters.values())
    num_positional = _NUM_POSITIONAL.get(name, 0)
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if len(positional) < num_positional and not takes_any:
        raise BadSetting(
            f"{what} takes {signature}, but {name} calls it with {num_positional} positional argument"
            f"{'s' if num_positional > 1 else ''}: write it as {FORMS}"
        )
    by_name = [each for each in parameters if each not in positional[:num_positional]]
    for each in by_name:
        if each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
            raise BadSetting(
                f"{what} takes {each.name} by position only, but {name} passes it by name: remove the / "
                f"of {signature}"
            )
    if columns is None:
        return
    provided = CONVENTIONS[name].provided(columns) or set()
    missing = [
        each.name
        for each in by_name
        if each.kind in _BY_NAME and each.default is each.empty and each.name not in provided
    ]
    if missing:
        raise BadSetting(
            f"{what} needs {', '.join(missing)}, which {name} does not pass for rows with columns "
            f"{', '.join(columns) or 'of no name'}: name the column in task.columns, or give it a default"
        )


def names_taken(function: Callable[..., Any], name: str) -> frozenset[str] | None:
    """Names that may be passed by keyword, those of positional arguments aside; None: any."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    by_name = [each.name for each in parameters if each.kind in _BY_NAME]
    return frozenset(by_name[_NUM_POSITIONAL.get(name, 0) :])
