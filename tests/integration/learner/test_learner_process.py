"""A real learner process on a real broker: stopped, killed, resumed, fed bad records."""

import signal
import time
from pathlib import Path

import grpc
import pytest
from asympo.common.archive import open_archive
from asympo.common.checkpoints.opening import open_policies
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log import Broker, RunLog, RunState
from asympo.local.ports import free_port
from asympo.run.audit import effective_segments
from asympo.v1 import learner_service_pb2 as messages
from asympo.v1.learner_service_pb2_grpc import LearnerServiceStub
from safetensors.numpy import load_file

from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import GROUP_SIZE, Producer, make_any_group


def final_digests(root: Path, run: str) -> dict[str, str]:
    store = open_policies(root, run)
    ref = store.newest(with_digests=True)
    assert ref is not None
    return {tensor.name: tensor.sha256 for tensor in store.load_manifest(ref).tensors}


def state_bytes(root: Path, run: str) -> dict[str, bytes]:
    """Weights and optimizer of the last training state, tensor by tensor."""
    last = max((root / run / "train").glob("step-*"), key=lambda path: path.name)
    tensors = load_file(last / "rank-00000.safetensors")
    assert any(name.startswith("optimizer.") for name in tensors)
    return {name: value.tobytes() for name, value in tensors.items() if not name.startswith("rng")}


@pytest.mark.timeout(400)
def test_learner_killed_and_stopped_ends_with_the_weights_of_an_undisturbed_one(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    flags = ("--total-steps", "12")
    runs = (f"{run_name}-a", f"{run_name}-b")
    plain, disturbed = (
        LearnerProcess(url=broker_url, run=run, root=tmp_path, model=tiny_model, flags=flags) for run in runs
    )
    with Producer(url=broker_url, run=runs[0]):
        assert plain.start().wait() == 0, plain.log
    with Producer(url=broker_url, run=runs[1]) as producer:
        producer.hold_at_step = 5
        disturbed.start("--retain")
        disturbed.until(lambda: disturbed.reached(5))
        disturbed.end(signal.SIGKILL)
        producer.hold_at_step = 8
        disturbed.start("--take-over", "--retain")
        disturbed.until(lambda: disturbed.reached(8))
        code = disturbed.end(signal.SIGTERM)
        assert code == 0, disturbed.log
        begun = time.time()
        disturbed.start("--retain").until(lambda: disturbed.get("/readyz") == "ok")
        # It publishes nothing while nothing changes, and how much a restart would cost counts from here.
        assert disturbed.metric("asympo_learner_last_publish_timestamp_seconds") > 0
        assert disturbed.metric("asympo_learner_last_commit_timestamp_seconds") > begun
        producer.hold_at_step = None
        assert disturbed.wait() == 0, disturbed.log
    assert final_digests(tmp_path, runs[0]) == final_digests(tmp_path, runs[1])
    assert state_bytes(tmp_path, runs[0]) == state_bytes(tmp_path, runs[1])
    assert [row["step"] for row in disturbed.rows] == list(range(1, 13))
    numbers = ("reward_mean", "nll_positive", "nll_negative", "grad_norm", "sequence")
    for one, other in zip(plain.rows, disturbed.rows, strict=True):
        assert {key: one[key] for key in numbers} == {key: other[key] for key in numbers}
    first_of_fence = {row["fence"]: row for row in reversed(disturbed.rows)}
    assert len(first_of_fence) == 3
    assert {row["generation_staleness_mean"] for row in first_of_fence.values()} == {None}
    archived = list(open_archive(tmp_path / runs[1]).entries())
    assert [entry.sequence for entry in archived] == list(range(1, disturbed.rows[-1]["sequence"] + 1))
    assert all(entry.payload == encode_group(make_any_group(entry.group_id)) for entry in archived)
    trained = [decode_group(entry.payload, limits=WireLimits()).responses[0] for entry in archived]
    assert {bool(each.segments) for each in trained} == {bool(each.text) for each in trained} == {True, False}
    segments = effective_segments(read_jsonl(tmp_path / runs[1] / "trained.jsonl"))
    assert [entry.group_id for entry in archived] == [i for row in segments for i in row["group_ids"]]
    assert {entry.step for entry in archived} >= set(range(1, 13))
    broker = Broker.connect(broker_url)
    stats = RunLog(broker, runs[1]).stats.read()
    broker.close()
    assert stats.state is RunState.FINISHED
    assert stats.open <= stats.capacity
    assert stats.dead_letters == 0


def test_learner_serves_status_history_samples_and_control(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    learner = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model).start()
    with Producer(url=broker_url, run=run_name, hostile_every=7):
        learner.until(lambda: learner.reached(3))
        assert learner.get("/livez") == "ok"
        assert learner.get("/readyz") == "ok"
        with grpc.insecure_channel(f"127.0.0.1:{learner.grpc_port}") as channel:
            stub = LearnerServiceStub(channel)
            watched = next(iter(stub.WatchCheckpoints(messages.LearnerServiceWatchCheckpointsRequest())))
            assert watched.announcement.manifest_digest
            stub.Pause(messages.LearnerServicePauseRequest(reason="test"))
            learner.until(lambda: (learner.get("/v1/status") or {}).get("state") == "paused")
            saved = stub.Save(messages.LearnerServiceSaveRequest(retain=True))
            step = stub.Status(messages.LearnerServiceStatusRequest()).step
            assert saved.step == step
            commit = run_log.commits.last()
            assert commit is not None
            assert (commit.step, commit.state_name) == (step, saved.state_name)
            stub.Pause(messages.LearnerServicePauseRequest(reason="later", after_step=step + 3))
            learner.until(lambda: (learner.get("/v1/status") or {}).get("step") == step + 3)
            learner.until(lambda: (learner.get("/v1/status") or {}).get("state") == "paused")
            assert stub.Status(messages.LearnerServiceStatusRequest()).step == step + 3
            run_id = run_log.state.run_id()
            run_log.broker.command("DEL", run_log.access.key("learner"))
            learner.until(lambda: run_log.state.get() is RunState.RUNNING)
            assert run_log.state.run_id() == run_id, "what the broker loses in a pause is back before it ends"
            stub.Resume(messages.LearnerServiceResumeRequest())
            learner.until(lambda: learner.reached(step + 5))
        # The status looks at the log once a second; the steps of this model take a twentieth of that.
        learner.until(lambda: ((learner.get("/v1/status") or {}).get("dead_letters") or 0) >= 1)
        status = learner.get("/v1/status")
        assert status["run"] == run_name
        assert status["capacity"] == 6
        rows = learner.get("/v1/history?after=1")["rows"]
        assert [row["step"] for row in rows][:2] == [2, 3]
        sample = learner.get("/v1/samples?limit=1")["groups"][0]
        assert len(sample["responses"]) == GROUP_SIZE
        assert "asympo_learner_step_seconds_bucket" in learner.get("/metrics")
        assert learner.end(signal.SIGTERM) == 0, learner.log
    commit = run_log.commits.last()
    assert commit is not None
    policy = run_log.policies.latest()
    assert policy is not None
    assert commit.step == policy.step == learner.rows[-1]["step"]
    assert run_log.stats.read().state is RunState.RUNNING
    segments = list(read_jsonl(tmp_path / run_name / "trained.jsonl"))
    trained = [group for row in segments for group in row["group_ids"]]
    assert len(trained) == len(set(trained)) == commit.sequence
    assert [row["first_sequence"] for row in segments] == [
        1,
        *(row["last_sequence"] + 1 for row in segments[:-1]),
    ]
    assert segments[-1]["last_sequence"] == commit.sequence
    assert (tmp_path / run_name / "train" / saved.state_name / "manifest.json").exists()


def test_synchronous_run_whose_policy_was_marked_bad_says_so_and_goes_on_with_a_new_one(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    flags = ("--total-steps", "1", "--max-staleness", "0")
    learner = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=flags)
    broker = Broker.connect(broker_url)
    run_log = RunLog(broker, run_name)
    learner.start()
    bad = learner.until(run_log.policies.latest)
    run_log.policies.mark_bad(step=0, fence=bad.fence, reason="layer 3 differs", holder="gen-0")
    assert learner.wait() == 1, learner.log
    said = "generator 'gen-0' marked the newest policy, of step 0, as bad (layer 3 differs)"
    assert learner.count(said) == 1, learner.log
    learner.start()
    with Producer(url=broker_url, run=run_name):
        assert learner.wait() == 0, learner.log
    assert [(each.step, each.fence > bad.fence) for each in open_policies(tmp_path, run_name).list()] == [
        (0, False),
        (0, True),
        (1, True),
    ]
    broker.close()


def test_learner_refuses_a_run_that_another_one_holds(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    first = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model)
    (tmp_path / run_name).mkdir()
    # With a lower fence than a row that is there already its own would count for nothing.
    (tmp_path / run_name / "trained.jsonl").write_text('{"step": 1, "fence": 7}\n')
    first.start().until(lambda: first.get("/readyz") == "ok")
    assert first.get("/v1/status")["fence"] == 8
    second = LearnerProcess(url=broker_url, run=run_name, root=tmp_path, model=tiny_model).start()
    assert second.wait() == 6
    assert "has a live learner" in second.log
    assert first.end(signal.SIGTERM) == 0, first.log


def test_learner_answers_while_it_waits_for_the_broker(
    run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    learner = LearnerProcess(url=url, run=run_name, root=tmp_path, model=tiny_model).start()
    learner.until(lambda: learner.get("/livez") == "ok")
    assert learner.get("/readyz") is None
    assert learner.get("/v1/status")["state"] == "starting"
    assert learner.end(signal.SIGTERM) == 0, learner.log
