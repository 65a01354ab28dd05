"""Random histories of generators, learner and broker: every prompt is consumed exactly once in the end."""

import uuid
from collections import Counter
from typing import Any

from asympo.common.rollout_log import AppendOutcome, Broker, CommitRecord, Lease, RunLog, permuted_index
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.common.trained_ids import TrainedIds
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .conftest import Learner, start_run

NUM_PROMPTS, NUM_EPOCHS = 5, 3
PICK = st.integers(0, 1_000_000)


def payload_of(group_id: str) -> bytes:
    """Of every second prompt one that lies beside the log."""
    return group_id.encode() * (MIN_APART_BYTES if group_id[-1] in "02468" else 1)


class LogMachine(RuleBasedStateMachine):
    """A broker that may go back in time, generators that may be late, a learner that may die."""

    broker: Broker

    @initialize()
    def start(self) -> None:
        self.log = RunLog(self.broker, f"machine-{uuid.uuid4().hex[:10]}")
        self.learner: Learner = start_run(
            self.log,
            num_prompts=NUM_PROMPTS,
            num_epochs=NUM_EPOCHS,
            groups_per_step=2,
            max_groups_per_step=4,
            max_prompt_failures=2,
            task={"order": "by-success"},
        )
        self.held: list[Lease] = []
        self.answered: list[Lease] = []
        self.uncommitted: list[str] = []
        self.durable: tuple[TrainedIds, CommitRecord | None] = (self.learner.trained.copy(), None)
        self.old_states: list[dict[str, Any]] = []
        self.must_reconcile = False
        self.is_undisturbed = True

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        try:
            self.reconcile()
            for _ in range(200):
                if (stats := self.log.stats.read()).is_exhausted and not stats.open:
                    break
                self.expire_everything()
                self.lease()
                while self.held:
                    self.append(0)
                self.consume(4)
            self.every_prompt_was_consumed_or_set_aside()
        finally:
            self.log.state.delete()

    def every_prompt_was_consumed_or_set_aside(self) -> None:
        given_up = {name.decode() for name, _why in self.broker.hash_items(self.log.access.key("set_aside"))}
        every = {f"{epoch}-{index}" for epoch in range(NUM_EPOCHS) for index in range(NUM_PROMPTS)}
        known = given_up | self.resting()
        left = {group_id for group_id in every - known if group_id not in self.learner.trained}
        assert not left, f"never consumed: {left}"

    @rule(count=st.integers(1, 4))
    def lease(self, count: int = 1) -> None:
        for _ in range(count):
            self.lease_one()

    def lease_one(self) -> None:
        lease = self.log.leases.acquire(holder="gen", policy_step=0)
        if isinstance(lease, Lease):
            assert lease.token not in {held.token for held in self.held}
            self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def append(self, pick: int) -> None:
        lease = self.held.pop(pick % len(self.held))
        self.log.leases.append(lease, payload_of(lease.group_id), producer="gen")
        self.answered.append(lease)

    @precondition(lambda self: self.answered)
    @rule(pick=PICK)
    def retry_append(self, pick: int) -> None:
        lease = self.answered[pick % len(self.answered)]
        result = self.log.leases.append(lease, payload_of(lease.group_id), producer="gen")
        if self.is_undisturbed:
            assert result.outcome in (AppendOutcome.DUPLICATE, AppendOutcome.LEASE_LOST)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, is_prompt_failure=st.booleans())
    def hand_back(self, pick: int, is_prompt_failure: bool) -> None:
        lease = self.held.pop(pick % len(self.held))
        self.log.leases.hand_back(lease, reason="chance", is_prompt_failure=is_prompt_failure)
        self.answered.append(lease)

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def expire(self, pick: int) -> None:
        """The holder keeps the lease and may come back late."""
        token = self.held[pick % len(self.held)].token
        self.broker.client.zadd(self.log.access.key("deadlines"), {token: 1}, xx=True)

    def expire_everything(self) -> None:
        for token in self.broker.client.zrange(self.log.access.key("deadlines"), 0, -1):
            self.broker.client.zadd(self.log.access.key("deadlines"), {token: 1}, xx=True)

    @precondition(lambda self: not self.must_reconcile)
    @rule(count=st.integers(1, 4))
    def consume(self, count: int) -> None:
        learner = self.learner
        entries = self.log.reader.read(
            after_sequence=learner.sequence, max_count=count, block_seconds=0, fence=learner.fence
        )
        for entry in entries:
            assert entry.payload == payload_of(entry.group_id)
            is_new = learner.trained.add(entry.group_id)
            assert is_new or not self.is_undisturbed, f"{entry.group_id} was in the log twice"
            learner.sequence = entry.sequence
            self.uncommitted.append(entry.group_id)
        self.log.commits.free(
            learner.fence, [entry.group_id for entry in entries], trained_sequence=learner.sequence
        )

    @precondition(lambda self: not self.must_reconcile)
    @rule()
    def commit(self) -> None:
        learner = self.learner
        learner.commit(self.uncommitted)
        self.uncommitted = []
        record = CommitRecord(
            sequence=learner.sequence,
            state_name=f"step-{learner.step}",
            step=learner.step,
            fence=learner.fence.number,
        )
        self.durable = (learner.trained.copy(), record)

    @precondition(lambda self: not self.must_reconcile)
    @rule(epoch=st.integers(1, NUM_EPOCHS - 1), bits=st.integers(0, 2**NUM_PROMPTS - 2), adopts=st.booleans())
    def rest(self, epoch: int, bits: int, adopts: bool) -> None:
        """A learner may die, or lose its broker, before it has seen what held."""
        learner, durable = self.learner, self.durable[0]
        begun = self.log.rests.propose(
            learner.fence, epoch=epoch, bits=bytes([bits]), keep_from=durable.complete_epochs
        )
        for held, found in self.log.rests.read(num_prompts=NUM_PROMPTS).items():
            if adopts and held <= begun:
                learner.trained.rest(held, found)

    @rule()
    def kill_the_learner_and_resume(self) -> None:
        trained, committed = self.durable[0].copy(), self.durable[1]
        fence = self.log.fence.take("again", take_over=True, at_least=self.learner.fence.number)
        report = self.log.reconciler.reconcile(fence, committed=committed, trained=trained)
        sequence = committed.sequence if committed else 0
        self.learner = Learner(
            log=self.log, fence=report.fence, trained=trained, sequence=sequence, step=self.learner.step
        )
        self.uncommitted = []
        self.must_reconcile = self.is_undisturbed = False

    @rule()
    def reconcile(self) -> None:
        learner = self.learner
        report = self.log.reconciler.reconcile(
            learner.fence,
            committed=self.durable[1],
            trained=learner.trained,
            trained_sequence=learner.sequence,
        )
        learner.fence = report.fence
        self.must_reconcile = False

    @rule()
    def copy_the_broker(self) -> None:
        client = self.broker.client
        self.old_states.append({noun: client.dump(self.log.access.key(noun)) for noun in NOUNS})

    @precondition(lambda self: self.old_states)
    @rule(pick=PICK)
    def roll_the_broker_back(self, pick: int) -> None:
        old = self.old_states[pick % len(self.old_states)]
        pipe = self.broker.client.pipeline(transaction=True)
        for noun, content in old.items():
            pipe.delete(self.log.access.key(noun))
            if content is not None:
                pipe.restore(self.log.access.key(noun), 0, content)
        pipe.execute()
        self.must_reconcile, self.is_undisturbed = True, False

    @invariant()
    def every_issued_prompt_is_in_exactly_one_place(self) -> None:
        if not hasattr(self, "log") or self.must_reconcile:
            return
        client, key = self.broker.client, self.log.access.key
        leased = [stored.partition(b"|")[0].decode() for stored in client.hvals(key("leases"))]
        queued = [group_id.decode() for group_id in client.lrange(key("reissue"), 0, -1)]
        open_ids = [group_id.decode() for group_id in client.smembers(key("open"))]
        given_up = {group_id.decode() for group_id in client.hkeys(key("set_aside"))}
        unread = [
            entry.group_id for entry in self.log.reader.iter_entries(after_sequence=self.learner.sequence)
        ]
        over = self.consumed() | self.resting()
        assert sorted(open_ids) == sorted(set(unread) - over)
        assert len(open_ids) == sum(group_id not in over for group_id in unread)
        stats = self.log.stats.read()
        issued = {
            f"{epoch}-{permuted_index(seed=3, epoch=epoch, position=position, num_prompts=NUM_PROMPTS)}"
            for epoch in range(stats.epoch + 1)
            for position in range(NUM_PROMPTS if epoch < stats.epoch else stats.position)
        }
        issued -= self.resting()
        places = Counter([*leased, *queued, *open_ids, *self.consumed(), *(given_up - self.consumed())])
        assert set(places) == issued, (issued - set(places), set(places) - issued)
        assert set(places.values()) <= {1}, places
        if self.is_undisturbed:
            assert stats.open + len(leased) <= stats.capacity

    def consumed(self) -> set[str]:
        trained = self.learner.trained
        every = ((epoch, index) for epoch in range(NUM_EPOCHS) for index in range(NUM_PROMPTS))
        return {f"{e}-{i}" for e, i in every if trained.contains(e, i) and f"{e}-{i}" not in self.resting()}

    def resting(self) -> set[str]:
        """What epochs that have begun pass over."""
        trained, begun = self.learner.trained, self.log.stats.read().epoch
        held = self.log.rests.read(num_prompts=NUM_PROMPTS) | trained.resting()
        return {
            f"{epoch}-{index}"
            for epoch, bits in held.items()
            for index in range(NUM_PROMPTS)
            if epoch <= begun and bits[0] >> index & 1
            if trained.is_resting(epoch, index) or not trained.contains(epoch, index)
        }


def test_every_prompt_is_consumed_exactly_once_whatever_happens(broker: Broker) -> None:
    machine = type("BoundLogMachine", (LogMachine,), {"broker": broker})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
