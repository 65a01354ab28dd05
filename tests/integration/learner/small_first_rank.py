"""`asympo learner` under torchrun, whose first rank has no memory for step 3 until all are started again."""

import os
import sys

from asympo.cli import main
from asympo.learner.model.batching import PackedBatch
from asympo.learner.model.policy import Policy, ResponseNll
from asympo.learner.step.step import Stepper

IS_SMALL = os.environ["RANK"] == os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
_train, _response_nll = Stepper.train, Policy.response_nll
_step = 0


def train(self, groups, scope, *, step):  # type: ignore[no-untyped-def]
    global _step
    _step = step
    return _train(self, groups, scope, step=step)


def response_nll(self: Policy, batch: PackedBatch) -> ResponseNll:
    if IS_SMALL and _step == 3:
        raise MemoryError("there is no room for anything")
    return _response_nll(self, batch)


if __name__ == "__main__":
    Stepper.train = train  # type: ignore[method-assign]
    Policy.response_nll = response_nll  # type: ignore[method-assign]
    sys.exit(main(["learner", *(flag for flag in sys.argv[1:] if flag != "--")]))
