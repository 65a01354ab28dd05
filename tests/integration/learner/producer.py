"""A generator without an engine: answers every lease at once with a group that depends on its id alone."""

import random
import threading
from dataclasses import replace

from asympo.common.codec import encode_group
from asympo.common.errors import BrokerUnavailable, NoProgress
from asympo.common.records import FinishReason, Prompt, Response, ResponseSegment, RolloutGroup
from asympo.common.rollout_log import Broker, Refused, RunLog

GROUP_SIZE = 4


def make_group(group_id: str) -> RolloutGroup:
    """Every fourth group has no signal."""
    rng = random.Random(group_id)
    number = int(group_id.partition("-")[2])
    rewards = [float(rng.random() < 0.5) for _ in range(GROUP_SIZE)]
    if number % 4 == 0:
        rewards = [1.0] * GROUP_SIZE
    elif len(set(rewards)) == 1:
        rewards[0] = 1.0 - rewards[0]
    return RolloutGroup(
        group_id=group_id,
        prompt=Prompt(token_ids=(1, 5, 6, *(10 + rng.randrange(200) for _ in range(5)))),
        responses=tuple(
            Response(
                token_ids=tuple(10 + rng.randrange(200) for _ in range(rng.randint(1, 8))),
                text="an answer",
                reward=reward,
                finish_reason=rng.choice([FinishReason.STOP, FinishReason.LENGTH]),
            )
            for reward in rewards
        ),
    )


def make_any_group(group_id: str) -> RolloutGroup:
    """The same, of five groups one with a response in segments, and one with a text."""
    group, number = make_group(group_id), int(group_id.partition("-")[2])
    first, *others = group.responses
    if number % 5 == 1:
        segments = (
            ResponseSegment(token_ids=(21, 22, 23, 24), trained_token_mask=(True, False, False, True)),
            ResponseSegment(context_ids=(1, 5, number % 200), token_ids=(25, 26)),
            ResponseSegment(
                context_ids=(1, 9), token_ids=(27, 28, 29), trained_token_mask=(True, False, True)
            ),
        )
        first = replace(first, token_ids=(), text="", segments=segments)
    elif number % 5 == 2:
        first = replace(first, token_ids=())
    return replace(group, responses=(first, *others))


class Producer:
    """Runs in a thread of the test; appends in the order of the leases."""

    def __init__(self, *, url: str, run: str, hostile_every: int = 0) -> None:
        self._broker = Broker.connect(url)
        self._run_log = RunLog(self._broker, run)
        self._hostile_every = hostile_every
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.hold_at_step: int | None = None
        """From the policy of this step on nothing is answered; the learner makes two steps more at most."""
        self.num_appended = 0
        self.acknowledged: list[tuple[str, int, bytes]] = []
        """Group id, number and payload of every append that the broker acknowledged."""

    def __enter__(self) -> "Producer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join(10)
        self._broker.close()

    def _work(self) -> None:
        while not self._is_ended.is_set():
            try:
                self._run_log.state.wait_for_config(0.5)
                self._answer_one()
            except (NoProgress, BrokerUnavailable):
                self._is_ended.wait(0.2)

    def _answer_one(self) -> None:
        policy = self._run_log.policies.latest()
        if policy is None:
            self._run_log.policies.wait(None, 0.5)
            return
        if self.hold_at_step is not None and policy.step >= self.hold_at_step:
            self._is_ended.wait(0.02)
            return
        lease = self._run_log.leases.acquire(holder="producer", policy_step=policy.step)
        if isinstance(lease, Refused):
            self._run_log.leases.wait_for_slot(0.2, refused=lease)
            return
        payload = encode_group(make_any_group(lease.group_id))
        if self._hostile_every and self.num_appended % self._hostile_every == 1:
            payload = b"\xff" + payload
        result = self._run_log.leases.append(lease, payload, producer="producer")
        if result.sequence is not None:
            self.acknowledged.append((lease.group_id, result.sequence, payload))
        self.num_appended += 1
