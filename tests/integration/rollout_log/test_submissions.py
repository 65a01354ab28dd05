"""Groups that producers submit under ids of their own."""

import threading

import pytest
from asympo.common.errors import BrokerRefused, InvalidRecord
from asympo.common.rollout_log import (
    REMEMBERED_IDS,
    RunLog,
    RunState,
    Submission,
    SubmitOutcome,
    foreign_id,
)

from .conftest import let_expire, let_heartbeat_expire, must_append, must_lease, start_run


def groups(*local_ids: str, producer: str = "agents") -> list[Submission]:
    return [
        Submission(group_id=foreign_id(producer, local_id), payload=f"payload {local_id}".encode())
        for local_id in local_ids
    ]


def submit(log: RunLog, *local_ids: str, producer: str = "agents", max_slots: int | None = None) -> list[str]:
    answers, _ = log.submissions.submit(producer, groups(*local_ids, producer=producer), max_slots=max_slots)
    return [str(answer.outcome) for answer in answers]


def test_submitted_groups_enter_the_log_in_order_beside_leased_ones(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log)
    assert submit(log, "7", "8-b") == ["appended", "appended"]
    must_append(log)
    entries = learner.consume(10)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4]
    assert [entry.group_id for entry in entries][1:3] == ["agents/7", "agents/8-b"]
    assert [entry.producer for entry in entries] == ["gen-0", "agents", "agents", "gen-0"]
    assert log.stats.read().appended == 4


def test_group_sent_again_is_appended_once_whether_trained_meanwhile_or_not(log: RunLog) -> None:
    learner = start_run(log)
    assert submit(log, "1", "1") == ["appended", "duplicate"]
    learner.consume(10)
    assert submit(log, "1", "2", producer="agents") == ["duplicate", "appended"]
    assert submit(log, "1", producer="others") == ["appended"]
    assert log.submissions.counts() == {
        "agents": {"appended": 2, "duplicate": 2},
        "others": {"appended": 1},
    }


def test_id_older_than_all_that_are_remembered_is_refused_and_counted(log: RunLog) -> None:
    learner = start_run(log, groups_per_step=REMEMBERED_IDS, max_groups_per_step=REMEMBERED_IDS)
    for start in range(10, 10 + REMEMBERED_IDS + 5, 256):
        local_ids = [str(number) for number in range(start, min(start + 256, 10 + REMEMBERED_IDS + 5))]
        assert set(submit(log, *local_ids)) == {"appended"}
    learner.consume(REMEMBERED_IDS + 5)
    assert submit(log, "9", "10", "14") == ["too_old"] * 3
    assert submit(log, "15", "9999999", "3", producer="agents") == ["duplicate", "appended", "too_old"]
    assert submit(log, "3", producer="others") == ["appended"]
    assert log.submissions.counts()["agents"]["too_old"] == 4


def test_submission_to_another_run_of_the_name_comes_before_its_start(log: RunLog) -> None:
    joined = start_run(log).fence.run_id
    log.state.delete()
    own = start_run(log).fence.run_id
    for run_id, outcome in ((joined, "not_started"), (own, "appended"), (joined, "not_started")):
        answers, _ = log.submissions.submit("agents", groups("1"), run_id=run_id)
        assert [str(answer.outcome) for answer in answers] == [outcome]
    assert log.stats.read().appended == 1


def test_submission_takes_a_slot_like_a_lease(log: RunLog) -> None:
    learner = start_run(log)  # capacity is 8
    leases = [must_lease(log) for _ in range(5)]
    assert submit(log, "1", "2", "3", "4") == ["appended"] * 3 + ["no_capacity"]
    learner.consume(1)
    assert submit(log, "4") == ["appended"]
    assert submit(log, "5") == ["no_capacity"]
    let_expire(log, leases[0])
    assert submit(log, "5") == ["appended"]


def test_refused_submitter_is_woken_by_a_slot_that_is_freed(log: RunLog) -> None:
    learner = start_run(log)
    submit(log, *map(str, range(8)))
    _, refused = log.submissions.submit("agents", groups("8"))
    freeing = threading.Timer(0.05, lambda: learner.consume(1))
    freeing.start()
    log.leases.wait_for_slot(30, refused=refused)
    freeing.join()
    assert submit(log, "8") == ["appended"]


def test_share_binds_only_while_others_hold_slots(log: RunLog) -> None:
    learner = start_run(log)
    assert submit(log, "1", "2", "3", max_slots=2) == ["appended"] * 3
    lease = must_lease(log, holder="gen-0")
    assert submit(log, "4", max_slots=2) == ["over_share"]
    assert submit(log, "1", producer="others", max_slots=2) == ["appended"]
    learner.consume(2)
    assert submit(log, "4", "5", max_slots=2) == ["appended", "over_share"]
    must_append(log, lease)
    learner.consume(10)
    assert submit(log, "5", "6", "7", max_slots=2) == ["appended"] * 3


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(RunState.FINISHED, "run_ended"), (RunState.FAILED, "run_ended"), (RunState.DRAINING, "paused")],
)
def test_run_that_takes_nothing_says_why(log: RunLog, state: RunState, outcome: str) -> None:
    learner = start_run(log)
    log.state.set(state, fence=learner.fence)
    assert submit(log, "1") == [outcome]


def test_run_that_nobody_started_takes_nothing(log: RunLog) -> None:
    assert submit(log, "1") == [SubmitOutcome.NOT_STARTED]


@pytest.mark.parametrize(
    "local_id", ["", "a", "-1", "01", "1-", "1/2", "9" * 17, "1-" + "x" * 65, "1-ä", "1\n"]
)
def test_id_that_cannot_be_ordered_or_stored_is_refused(local_id: str) -> None:
    with pytest.raises(InvalidRecord, match="a number that grows"):
        foreign_id("agents", local_id)


@pytest.mark.parametrize("producer", ["", "0-agents", "Agents", "a/b", "a" * 33, "a\n"])
def test_producer_whose_ids_could_be_taken_for_others_is_refused(producer: str) -> None:
    with pytest.raises(InvalidRecord, match="producer"):
        foreign_id(producer, "1")


def test_record_larger_than_the_run_takes_is_refused_and_its_sibling_is_kept(log: RunLog) -> None:
    start_run(log)
    log.broker.command("HSET", log.access.key("learner"), "max_record_bytes", 100)
    large = Submission(group_id="agents/1", payload=b"x" * 101)
    answers, _ = log.submissions.submit("agents", [large, *groups("2")])
    assert [str(answer.outcome) for answer in answers] == ["too_large", "appended"]


def test_purge_takes_out_what_one_producer_appended_and_nobody_trained(log: RunLog) -> None:
    learner = start_run(log)
    submit(log, "1", "2")
    learner.consume(1)
    submit(log, "1", producer="others")
    lease = must_lease(log)
    log.leases.append(lease, b"leased", producer="agents")
    submit(log, "3")
    assert log.submissions.purge("agents") == (3, 0)
    assert log.submissions.purge("agents") == (0, 0)
    report = log.reconciler.reconcile(
        learner.fence, committed=None, trained=learner.trained, trained_sequence=learner.sequence
    )
    assert (report.lost_sequences, report.was_rolled_back) == (0, False), "the broker has lost nothing"
    entries = learner.consume(10)
    assert [(entry.sequence, entry.group_id) for entry in entries] == [(3, "others/1")]
    assert log.stats.read().open == 0
    assert must_lease(log).group_id == lease.group_id
    assert submit(log, "2", "4") == ["duplicate", "appended"]
    assert [entry.group_id for entry in learner.consume(10)] == ["agents/4"]


def test_purge_leaves_what_the_learner_has_in_its_hands_and_says_so(log: RunLog) -> None:
    learner = start_run(log)
    submit(log, "1")
    learner.consume(1)
    submit(log, "2")
    lease = must_lease(log)
    log.leases.append(lease, b"leased", producer="agents")
    submit(log, "3")
    # Of a segment that is collected, or in a step: other ranks still fetch it.
    begun = log.reader.read(after_sequence=1, max_count=2, block_seconds=0, fence=learner.fence)
    assert log.submissions.purge("agents", batch=2) == (1, 2)
    assert (
        [each.sequence for each in log.reader.read_at([2, 3])] == [each.sequence for each in begun] == [2, 3]
    )
    assert log.stats.read().reissue == 0, "its prompt is not issued again while its group is trained"
    assert [entry.sequence for entry in learner.consume(10)] == [2, 3]


@pytest.mark.parametrize("end", ["released", "killed", "succeeded"])
def test_purge_takes_what_a_learner_that_is_gone_had_read_or_trained(log: RunLog, end: str) -> None:
    learner = start_run(log)
    submit(log, "1", "2")
    learner.consume(1)
    log.reader.read(after_sequence=1, max_count=1, block_seconds=0, fence=learner.fence)
    if end == "released":
        log.fence.release(learner.fence)
    elif end == "killed":
        let_heartbeat_expire(log)
    else:
        log.fence.take("learner-1", take_over=True)
        assert log.stats.read().backlog == 2, "what was trained and not committed is to be trained again"
    assert log.submissions.purge("agents") == (2, 0)


@pytest.mark.parametrize(
    ("producer", "group_id"),
    [
        ("agents", "0-1"),
        ("agents", "others/1"),
        ("agents", "agents"),
        ("agents", "agents/" + "1" * 200),
        ("0", "0/1"),
        ("", "/1"),
        ("agents\n", "agents\n/1"),
        ("a" * 33, "a" * 33 + "/1"),
    ],
)
def test_script_stores_no_group_under_a_name_that_is_not_its_producers(
    log: RunLog, producer: str, group_id: str
) -> None:
    start_run(log)
    sound = Submission(group_id=f"{producer}/1", payload=b"p")
    with pytest.raises(BrokerRefused, match="begin with its name"):
        log.submissions.submit(producer, [sound, Submission(group_id=group_id, payload=b"p")])
    assert log.stats.read().appended == 0
