"""The ranks above the first: they do what the first one says, in the same order, and nothing on their own."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from asympo.common.errors import BrokerUnavailable, PublishFailed, SequenceGap
from asympo.common.rollout_log import Broker, RunLog
from asympo.learner.log.segment import GroupReader
from asympo.learner.model.batching import TrainedGroup
from asympo.learner.model.weights import PUBLISHED_DTYPE, Weights
from asympo.learner.ranks import Ranks
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.open import open_states
from asympo.learner.state.store import TrainingState
from asympo.learner.step.compute import Compute, set_up_torch
from asympo.learner.step.objectives import StepScope
from asympo.learner.step.shares import Share
from asympo.learner.step.stepper import StepParts, build_group_reader, build_step_parts
from asympo.tasks.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0
"""How long a broker may be silent while the other ranks wait for this one's payloads."""


class RankWorker:
    """One rank. It opens no door and holds no fence; a signal to stop reaches it through the first rank."""

    def __init__(self, *, settings: LearnerSettings, ranks: Ranks) -> None:
        self._settings = settings
        self._ranks = ranks
        self._states = open_states(
            settings.checkpoint_root, settings.run, settings.object_store, process_group=ranks.group
        )

    def run(self) -> None:
        """Until told to stop. Raises whatever keeps this rank from going on: then all ranks restart."""
        start = self._ranks.hear()
        if start["do"] == "stop":
            return
        broker = _answered(lambda: Broker.connect(self._settings.redis_url))
        try:
            self._follow(start, RunLog(broker, self._settings.run))
        finally:
            broker.close()

    def _follow(self, start: dict[str, Any], run_log: RunLog) -> None:
        compute = Compute.of(start["decisions"])
        set_up_torch(seed=self._settings.seed, num_threads=compute.num_threads)
        parts = build_step_parts(self._settings, compute, ranks=self._ranks)
        # These stay: where several ranks run out of memory, nothing is made smaller.
        tokens, logits = start["decisions"]["row_limits"]["used"]
        parts.stepper.row_limits = (tokens, logits)
        reader = build_group_reader(
            policy=parts.policy,
            tokenizer=load_tokenizer(self._settings.model),
            config=run_log.state.wait_for_config(_PATIENCE_SECONDS),
            max_row_tokens=self._settings.max_row_tokens,
            is_trained=lambda group_id: False,
        )
        if start["state"] is not None:
            self._states.load(start["state"], model=parts.policy.model, optimizer=parts.optimizer)
        weights = Weights(model=parts.policy.model, ranks=self._ranks)
        log.info("Rank %d trains with the others", self._ranks.rank)
        while (message := self._ranks.hear())["do"] != "stop":
            match message["do"]:
                case "step":
                    groups = _fetch(run_log, reader, message["shares"][self._ranks.rank])
                    parts.stepper.train(groups, StepScope(**message["scope"]), step=message["step"])
                case "contribute":
                    weights.contribute(dtype=PUBLISHED_DTYPE)
                case "save":
                    self._save(parts, message)
                case unknown:
                    raise RuntimeError(f"rank {self._ranks.rank} was told to {unknown!r}")

    def _save(self, parts: StepParts, message: dict[str, Any]) -> None:
        state = TrainingState(
            step=message["step"], fence=message["fence"], sequence=message["sequence"], trained_ids=b""
        )
        try:
            self._states.save(state, model=parts.policy.model, optimizer=parts.optimizer)
        except PublishFailed as error:
            log.warning("%s; the first rank decides when to try again", error)


def _fetch(
    run_log: RunLog, reader: GroupReader, told: list[tuple[int, str, list[int]]]
) -> list[TrainedGroup]:
    """This rank's responses, from its own reading of the log: what the first rank read, or SequenceGap."""
    digests = {sequence: digest for sequence, digest, _ in told}
    shares = [Share(sequence=sequence, responses=tuple(responses)) for sequence, _, responses in told]
    groups = {}
    for entry in _answered(lambda: run_log.reader.read_at(sorted(digests))):
        if entry.payload_digest != digests[entry.sequence]:
            raise SequenceGap(
                f"run {run_log.run!r}: entry {entry.sequence} is another group than the first rank has read: "
                "the broker went back in time"
            )
        groups[entry.sequence] = reader.read(entry).to_trained()
    return [share.of(groups[share.sequence]) for share in shares]


def _answered(action: Callable[[], T]) -> T:
    """The broker's answer, asked for again while it is away."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return action()
        except BrokerUnavailable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("Waiting for the broker: %s", error)
            time.sleep(_RETRY_SECONDS)
