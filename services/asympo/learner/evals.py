"""Results of evaluations, as evaluators leave them beside the log: for page and trackers, and for pruning."""

import json
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.checkpoints import PolicyRef
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.evals.result import EvalResult, best_of
from asympo.learner.samples import SampleStore
from asympo.local.whole_file import write_whole

log = logging.getLogger(__name__)

_MAX_RESULTS = 4096


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    """The best policy as it is written down: the broker forgets results when there are thousands."""

    digest: str
    result: EvalResult


class EvalHistory:
    """Thread-safe: the heartbeat reads the broker, the others ask here."""

    def __init__(self, *, keep_best: str | None, shows_samples: bool, best_file: Path) -> None:
        """`keep_best`: the evaluation whose best policy is never pruned, or None; `best_file` names it."""
        self._keep_best, self._best_file = keep_best, best_file
        self._best: EvalResult | None = None
        self._remembered = None if keep_best is None else _read(best_file)
        self.samples = SampleStore() if shows_samples else None
        """What policies answered; None when that is not shown."""
        self._samples_after, self._num_samples = "0", 0
        self._lock = threading.Lock()
        self._results: deque[EvalResult] = deque(maxlen=_MAX_RESULTS)
        self._new: list[EvalResult] = []
        self._after, self._is_read = "0", False

    def look(self, run_log: RunLog) -> None:
        """Reads what came since the last look. Raises BrokerUnavailable."""
        found, self._after = run_log.evaluations.after(self._after)
        if self.samples is not None:
            samples, self._samples_after = run_log.evaluations.samples_after(self._samples_after)
            first, self._num_samples = self._num_samples, self._num_samples + len(samples)
            self.samples.add([each.to_group(number=first + place) for place, each in enumerate(samples)])
        with self._lock:
            self._results.extend(found)
            self._best = self._better(self._best, *found)
            # What was there before this learner is in the trackers already.
            self._new += found if self._is_read else []
            self._is_read = True

    def take_numbers(self) -> dict[str, float]:
        """Numbers of the results since this was asked last, the newest of each evaluation."""
        with self._lock:
            taken, self._new = self._new, []
        return {name: value for each in taken for name, value in each.numbers().items()}

    def is_best(self, policy: PolicyRef) -> bool:
        """Whether pruning must leave this policy; yes for all of them until that is known."""
        if self._keep_best is None:
            return False
        remembered = self._remembered
        with self._lock:
            if not self._is_read:
                return True
            if remembered is not None and remembered.digest == policy.digest:
                self._best = self._better(remembered.result, self._best)
            best = self._best
        if best is None or best.policy_step != policy.step or best.policy_fence not in (None, policy.fence):
            return False
        self._remember(_Remembered(digest=policy.digest, result=best))
        return True

    def _better(self, *results: EvalResult | None) -> EvalResult | None:
        return best_of((each for each in results if each is not None), str(self._keep_best))

    def _remember(self, found: _Remembered) -> None:
        """Unless a better one is written down, which pruning may come to later."""
        before = self._remembered
        if found == before or (before and self._better(before.result, found.result) == before.result):
            return
        try:
            write_whole(
                self._best_file, json.dumps({"digest": found.digest, "result": found.result.to_dict()})
            )
        except OSError as error:
            log.warning("The best policy is not written down in %s: %s", self._best_file, error)
            return
        self._remembered = found

    def to_dicts(self) -> Sequence[dict[str, Any]]:
        """All results, oldest first."""
        with self._lock:
            return [each.to_dict() for each in self._results]


def _read(path: Path) -> _Remembered | None:
    try:
        values = json.loads(path.read_text())
        return _Remembered(digest=str(values["digest"]), result=EvalResult.from_dict(values["result"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("What %s says of the best policy cannot be read: %s", path, error)
        return None
