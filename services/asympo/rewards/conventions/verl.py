"""`compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict`: one response."""

from collections.abc import Mapping, Sequence
from typing import Any

from asympo.rewards.conventions.base import Asked, FunctionOutcome, Notes, failed, outcome_of, plain_extra

_NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")


class Verl:
    """A dict needs `score`; its other entries are logged."""

    takes_group = False
    wants_token_ids = False

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        columns = asked.columns
        return (), {
            "data_source": columns["data_source"] if columns.get("data_source") is not None else "unknown",
            "solution_str": asked.texts[0],
            "ground_truth": ground_truth(asked),
            "extra_info": columns.get("extra_info") or {},
        }

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        if not isinstance(result, Mapping):
            return [outcome_of(result)]
        if "score" not in result:
            return [failed("wrong_result", f"the dict has no score, only {', '.join(map(str, result))}")]
        extras = {str(name): plain_extra(value) for name, value in result.items() if name != "score"}
        return [outcome_of(result["score"], extras=extras)]

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return set(_NAMES)


def ground_truth(asked: Asked) -> Any:
    """`reward_model.ground_truth` as verl keeps it, else the row's answer."""
    model = asked.columns.get("reward_model")
    if isinstance(model, Mapping) and model.get("ground_truth") is not None:
        return model["ground_truth"]
    return asked.first_of("ground_truth", "answer")
