"""Results of evaluations on the broker: the newest few thousand, for page, trackers and pruning."""

import json

from asympo.common.rollout_log.access import RunAccess, text
from asympo.common.rollout_log.evals.result import EvalResult

_BATCH = 200
_MAX_BATCHES = 32


class Evaluations:
    """Written by evaluators; nothing that trains reads them."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def add(self, result: EvalResult) -> None:
        """Keeps a result."""
        self._run.call("add_evaluation", json.dumps(result.to_dict()))

    def after(self, entry_id: str = "0") -> tuple[list[EvalResult], str]:
        """Some thousand results kept after `entry_id` at most, oldest first, and the id to go on from."""
        found = []
        for _ in range(_MAX_BATCHES):
            flat = self._run.call("list_evaluations", entry_id, _BATCH)
            for value in flat[1::2]:
                values = self._run.read_object("evaluations", value)
                if values is None:
                    continue
                try:
                    found.append(EvalResult.from_dict(values))
                except ValueError as error:
                    self._run.count_unreadable("evaluations", str(error))
            entry_id = text(flat[-2]) if flat else entry_id
            if len(flat) < 2 * _BATCH:
                break
        return found, entry_id
