"""Results of evaluations on the broker: the newest few thousand, for page, trackers and pruning."""

import json

from asympo.common.rollout_log.access import RunAccess
from asympo.common.rollout_log.evals.result import EvalResult

_BATCH = 200


class Evaluations:
    """Written by evaluators; nothing that trains reads them."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def add(self, result: EvalResult) -> None:
        """Keeps a result."""
        self._run.call("add_evaluation", json.dumps(result.to_dict()))

    def after(self, entry_id: str = "0") -> tuple[list[EvalResult], str]:
        """Results kept after `entry_id`, oldest first, and the id to go on from."""
        found = []
        while True:
            entries = self._run.broker.read_range(
                self._run.key("evaluations"), first_id=f"({entry_id}", max_count=_BATCH
            )
            for _, fields in entries:
                values = self._run.read_object("evaluations", fields.get("result") or b"")
                if values is None:
                    continue
                try:
                    found.append(EvalResult.from_dict(values))
                except ValueError as error:
                    self._run.count_unreadable("evaluations", str(error))
            entry_id = entries[-1][0] if entries else entry_id
            if len(entries) < _BATCH:
                return found, entry_id
