"""Results of evaluations, as evaluators leave them beside the log: for page and trackers, and for pruning."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from asympo.common.checkpoints import PolicyRef
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.evals.result import EvalResult, best_of
from asympo.learner.samples import SampleStore

_MAX_RESULTS = 4096


class EvalHistory:
    """Thread-safe: the heartbeat reads the broker, the others ask here."""

    def __init__(self, *, keep_best: str | None, shows_samples: bool) -> None:
        """`keep_best`: the evaluation whose best policy is never pruned, or None."""
        self._keep_best = keep_best
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
        with self._lock:
            best = best_of(self._results, self._keep_best)
            if not self._is_read:
                return True
        return (
            best is not None and best.policy_step == policy.step and best.policy_fence in (None, policy.fence)
        )

    def to_dicts(self) -> Sequence[dict[str, Any]]:
        """All results, oldest first."""
        with self._lock:
            return [each.to_dict() for each in self._results]
