"""Publishing beside training: what is written, announced and freed, and in which order."""

import builtins
import errno
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.archive import open_archive
from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.directory_steps import DirectorySteps
from asympo.common.checkpoints.store import POLICIES
from asympo.common.clock import SystemClock
from asympo.common.errors import BrokerChanged, Fenced, PublishFailed
from asympo.common.jsonl import JsonlWriter
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, Fence, Lease, PolicyAnnouncement, RunConfig, RunLog, RunState
from asympo.common.rollout_log.policies import Policies
from asympo.common.telemetry import new_registry
from asympo.common.tracing import Tracing
from asympo.common.trained_ids import TrainedIds
from asympo.learner.context import LearnerContext
from asympo.learner.control import LearnerControl
from asympo.learner.gpu_turn import GpuTurn
from asympo.learner.ledger import Ledger
from asympo.learner.log.segment import LogSegment
from asympo.learner.log.session import LogSession
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.weights import Weights
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.publish.policy_writer import PolicyWriter
from asympo.learner.record.traces import GroupTraces
from asympo.learner.record.trained_log import TrainedLog
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.archive import Archive
from asympo.tasks.tokenizer import load_tokenizer
from safetensors.torch import load_file
from transformers import PreTrainedModel

CPU = torch.device("cpu")


class GatedStore(PolicyStore):
    """Storage that is as slow as the test wants, and full when told so."""

    def __init__(self, root: Path, run: str) -> None:
        super().__init__(DirectorySteps(root, run, POLICIES, keyframe_every=1))
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.is_full = False
        self.gate.set()

    def publish(self, **arguments: object) -> PolicyRef:
        self.entered.release()
        assert self.gate.wait(20)
        if self.is_full:
            raise PublishFailed("storage is full")
        return super().publish(**arguments)  # type: ignore[arg-type]


class ChangingPolicies(Policies):
    """Refuses announcements like a broker that has failed over since the fence was checked."""

    num_refusals = 0

    def announce(
        self, fence: Fence, *, step: int, digest: str, policy_fence: int | None = None
    ) -> PolicyAnnouncement:
        if self.num_refusals:
            self.num_refusals -= 1
            raise BrokerChanged("the broker restarted")
        return super().announce(fence, step=step, digest=digest, policy_fence=policy_fence)


@dataclass
class Stand:
    """One learner's publishing with everything real around it."""

    run_log: RunLog
    policies: ChangingPolicies
    store: GatedStore
    session: LogSession
    publishing: BackgroundPublisher
    model: PreTrainedModel
    ledger: Ledger

    def append_one(self) -> Lease:
        """A group from lease to log."""
        policy = self.run_log.policies.latest()
        lease = self.run_log.leases.acquire(holder="g", policy_step=policy.step if policy else 0)
        assert isinstance(lease, Lease)
        self.run_log.leases.append(lease, b"payload", producer="g")
        return lease

    def consume_one(self) -> str:
        """A group from lease to trained: its slot is held for the next policy."""
        lease = self.append_one()
        self.session.progress.sequence += 1
        self.session.trained.add(lease.group_id)
        self.publishing.hold([lease.group_id])
        return lease.group_id

    def published_weight(self) -> torch.Tensor:
        ref = self.store.newest(with_digests=True)
        assert ref is not None
        return load_file(ref.path / "model.safetensors")["model.norm.weight"]


def ledger_of(
    context: LearnerContext, *, session: LogSession, publishing: BackgroundPublisher, traces: GroupTraces
) -> Ledger:
    root, run = context.settings.checkpoint_root, context.settings.run
    archive = open_archive(root)
    writer = JsonlWriter(root / "trained.jsonl")
    return Ledger(
        context=context,
        session=session,
        archive=Archive(store=archive, is_on=False, run=run, recipe={}, tip=None, sequence=0, step=0),
        trained_log=TrainedLog(writer, on_failure=context.metrics.publish_failed),
        traces=traces,
        publishing=publishing,
    )


@pytest.fixture
def stand(broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path) -> Iterator[Stand]:
    settings = LearnerSettings(run=run_name, model=str(tiny_model), checkpoint_root=tmp_path)
    broker = Broker.connect(broker_url)
    run_log = RunLog(broker, run_name)
    run_log.policies = policies = ChangingPolicies(run_log.access)
    run_log.state.create_or_join(
        RunConfig(
            run=run_name, group_size=4, groups_per_step=2, max_groups_per_step=4, num_prompts=50, model="tiny"
        )
    )
    stop, clock = StopSignal(), SystemClock()
    trained = TrainedIds(num_prompts=50)
    control = LearnerControl(settings=settings, stop=stop, clock=clock)
    session = LogSession(
        run_log=run_log,
        fence=run_log.fence.take("one"),
        stop=stop,
        clock=clock,
        trained=trained,
        progress=control.progress,
    )
    session.reconcile()
    store = GatedStore(tmp_path, run_name)
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    shadow = load_model(tiny_model, dtype=torch.bfloat16, device=CPU).eval()
    metrics = LearnerMetrics(new_registry(service="learner", version="test"))
    traces = GroupTraces(tracing=Tracing(), clock=clock)
    publishing = BackgroundPublisher(
        publisher=PolicyWriter(
            store=store,
            shadow=Policy(model=shadow, compute_dtype=torch.float32),
            tokenizer=load_tokenizer(str(tiny_model)),
            tolerance=0.05,
            keep=2,
        ),
        weights=Weights(model=model, ranks=None),
        session=session,
        learner=control,
        metrics=metrics,
        traces=traces,
        clock=clock,
        retry_seconds=5.0,
    )
    context = LearnerContext(
        settings=settings,
        control=control,
        metrics=metrics,
        tracing=Tracing(),
        stop=stop,
        clock=clock,
        ranks=None,
        gpu=GpuTurn(None, clock=clock),
    )
    ledger = ledger_of(context, session=session, publishing=publishing, traces=traces)
    publishing.start(step=0)
    session.set_state(RunState.RUNNING)
    yield Stand(run_log, policies, store, session, publishing, model, ledger)
    store.gate.set()
    publishing.close()
    broker.close()


def shift(model: PreTrainedModel, to: float) -> None:
    with torch.no_grad():
        dict(model.named_parameters())["model.norm.weight"].fill_(to)


def test_slot_is_freed_only_when_the_policy_is_announced_and_training_goes_on_meanwhile(stand: Stand) -> None:
    stand.consume_one()
    stand.store.gate.clear()
    shift(stand.model, 3.0)
    stand.publishing.begin(step=1, probes=())
    shift(stand.model, 7.0)
    later = stand.consume_one()
    stand.publishing.settle(wait=False)
    before = stand.run_log.policies.latest()
    assert before is not None
    assert (before.step, stand.run_log.stats.read().open) == (0, 2)
    stand.store.gate.set()
    stand.publishing.settle(wait=True)
    after = stand.run_log.policies.latest()
    assert after is not None
    assert (after.step, stand.run_log.stats.read().open) == (1, 1)
    assert stand.published_weight().unique().tolist() == [3.0], "the weights of the step, not of a later one"
    stand.publishing.begin(step=2, probes=())
    stand.publishing.settle(wait=True)
    assert stand.run_log.stats.read().open == 0, f"{later} is freed by the policy after it"
    assert stand.publishing.staleness_of(before.published_at_seconds) == 2


def test_reconcile_before_a_policy_takes_no_slot_again_that_the_reader_freed(stand: Stand) -> None:
    leases = [stand.append_one() for _ in range(2)]
    entries = tuple(stand.session.read(after_sequence=0, max_count=2, block_seconds=0.0))
    without_signal = leases[1].group_id
    stand.session.free([without_signal])
    segment = LogSegment(
        first_sequence=1,
        last_sequence=2,
        groups=(),
        entries=entries,
        reasons={},
        freed_ids=frozenset({without_signal}),
    )
    stand.ledger.trained(segment, row_limits=(1, 1), staleness=[], begun=0.0)
    stand.session.reconcile()
    assert stand.run_log.stats.read().open == 1
    assert stand.publishing.publish(step=1)
    assert stand.run_log.stats.read().open == 0


def test_policy_is_announced_without_the_training_thread(stand: Stand) -> None:
    stand.consume_one()
    before = stand.run_log.policies.latest()
    stand.publishing.begin(step=1, probes=())
    announced = stand.run_log.policies.wait(before, 20)
    assert announced is not None
    assert announced.step == 1
    stand.publishing.settle(wait=True)
    assert stand.run_log.stats.read().open == 0


@pytest.mark.parametrize("refused", ["config.json", "tokenizer.json", "manifest.json"])
def test_full_disk_at_any_file_is_tried_again_later(
    stand: Stand, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.consume_one()
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refusing(io.open, refused))
        patch.setattr(builtins, "open", refusing(builtins.open, refused))
        stand.publishing.begin(step=1, probes=())
        stand.publishing.settle(wait=True)
    assert stand.publishing.retry_at is not None
    assert stand.publishing.published_step == 0
    assert stand.run_log.stats.read().open == 1
    assert stand.publishing.publish(step=1)
    published = stand.store.newest(with_digests=True)
    assert published is not None
    assert published.step == 1
    assert (published.path / "tokenizer.json").stat().st_size > 0


def refusing(opener: Callable[..., Any], refused: str) -> Callable[..., Any]:
    """Opens as `opener` does, but finds the disk full at files of one name."""

    def open_unless_refused(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if str(file).endswith(refused) and set(mode) & set("wxa"):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return opener(file, mode, *rest, **more)

    return open_unless_refused


def test_next_publish_waits_for_the_one_in_flight(stand: Stand) -> None:
    while stand.store.entered.acquire(blocking=False):
        pass
    stand.store.gate.clear()
    stand.publishing.begin(step=1, probes=())
    second = threading.Thread(target=lambda: stand.publishing.begin(step=2, probes=()))
    second.start()
    assert stand.store.entered.acquire(timeout=20)
    assert not stand.store.entered.acquire(timeout=0.2)
    stand.store.gate.set()
    second.join(20)
    stand.publishing.settle(wait=True)
    assert [ref.step for ref in stand.store.list()] == [1, 2]


def test_failed_publish_keeps_the_slots_and_is_owed(stand: Stand) -> None:
    stand.consume_one()
    stand.store.is_full = True
    assert not stand.publishing.publish(step=1)
    assert stand.publishing.retry_at is not None
    assert stand.run_log.stats.read().open == 1
    stand.store.is_full = False
    assert stand.publishing.publish(step=1)
    assert stand.publishing.retry_at is None
    assert stand.run_log.stats.read().open == 0


def test_training_thread_announces_what_the_broker_did_not_take_from_the_background(stand: Stand) -> None:
    stand.consume_one()
    stand.policies.num_refusals = 1
    stand.publishing.begin(step=1, probes=())
    stand.publishing.settle(wait=True)
    policy, ref = stand.run_log.policies.latest(), stand.store.newest()
    assert policy is not None
    assert ref is not None
    assert (policy.step, policy.digest) == (1, ref.digest)
    assert stand.policies.num_refusals == 0
    assert stand.run_log.stats.read().open == 0


def test_fenced_learner_learns_it_from_its_publish(stand: Stand) -> None:
    stand.store.gate.clear()
    stand.publishing.begin(step=1, probes=())
    stand.run_log.fence.take("two", take_over=True)
    stand.store.gate.set()
    with pytest.raises(Fenced):
        stand.publishing.settle(wait=True)
    policy = stand.run_log.policies.latest()
    assert policy is not None
    assert policy.step == 0
