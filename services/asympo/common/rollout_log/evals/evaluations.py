"""Results of evaluations on the broker: the newest few thousand, for page, trackers and pruning."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asympo.common.rollout_log.access import MAX_VALUE_BYTES, RunAccess, text
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.common.rollout_log.evals.sample import EvalSample

_BATCH = 200
_MAX_BATCHES = 32
T = TypeVar("T")


class Evaluations:
    """Written by evaluators; nothing that trains reads them."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def add(self, result: EvalResult) -> None:
        """Keeps a result."""
        self._run.call("add_evaluation", json.dumps(result.to_dict()))

    def add_sample(self, sample: EvalSample) -> None:
        """Keeps what was answered to one prompt, texts cut off where they are long. Raises BrokerFull."""
        self._run.call("add_eval_sample", sample.to_json(max_bytes=MAX_VALUE_BYTES))

    def after(self, entry_id: str = "0") -> tuple[list[EvalResult], str]:
        """Some thousand results kept after `entry_id` at most, oldest first, and the id to go on from."""
        return self._after("list_evaluations", "evaluations", EvalResult.from_dict, entry_id)

    def samples_after(self, entry_id: str = "0") -> tuple[list[EvalSample], str]:
        """The same for what was answered, of which the newest few hundred are kept."""
        return self._after("list_eval_samples", "eval_samples", EvalSample.from_dict, entry_id)

    def _after(
        self, script: str, noun: str, parse: Callable[[Mapping[str, Any]], T], entry_id: str
    ) -> tuple[list[T], str]:
        found = []
        for _ in range(_MAX_BATCHES):
            flat = self._run.call(script, entry_id, _BATCH)
            for value in flat[1::2]:
                values = self._run.read_object(noun, value)
                if values is None:
                    continue
                try:
                    found.append(parse(values))
                except ValueError as error:
                    self._run.count_unreadable(noun, str(error))
            entry_id = text(flat[-2]) if flat else entry_id
            if len(flat) < 2 * _BATCH:
                break
        return found, entry_id
