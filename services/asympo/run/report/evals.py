"""Evaluations of a run, from the file that its evaluator wrote."""

import logging
from pathlib import Path

from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log.evals.result import EvalResult, best_of

log = logging.getLogger(__name__)

RESULTS = "evals.jsonl"


def read_results(path: Path) -> list[EvalResult]:
    """Every result, oldest first; none where there is no file. Lines that cannot be read are left out."""
    found = []
    for row in read_jsonl(path):
        try:
            found.append(EvalResult.from_dict(row))
        except ValueError as error:
            log.warning("A row of %s is left out: %s", path, error)
    return found


def summary_rows(results: list[EvalResult]) -> list[tuple[str, str]]:
    """First, best and last result of each evaluation."""
    rows = []
    for name in dict.fromkeys(each.eval for each in results):
        own = [each for each in results if each.eval == name]
        for word, result in (("first", own[0]), ("best", best_of(own, name)), ("last", own[-1])):
            if result is not None:
                policy = "the model" if result.policy_step is None else f"policy {result.policy_step}"
                rows.append((f"{name}, {word}", f"mean@{result.samples} {result.mean}, {policy}"))
    return rows
