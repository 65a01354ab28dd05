import dataclasses
import threading
import time
from typing import Any

import pytest
from asympo.common.errors import BadSetting, Fenced, NoProgress, RunConfigMismatch
from asympo.common.rollout_log import Broker, RunLog, RunState, list_runs
from asympo.common.rollout_log.keys import DELETED
from asympo.common.trained_ids import TrainedIds

from .conftest import config_of, lose, must_append, start_run


def test_run_config_is_written_once_and_joined_after(log: RunLog) -> None:
    config = config_of(log.run)
    assert log.state.config() is None
    assert (
        log.state.create_or_join(config) == log.state.create_or_join(config) == log.state.config() == config
    )


def test_run_config_refuses_to_join_with_other_settings(log: RunLog) -> None:
    log.state.create_or_join(config_of(log.run))
    with pytest.raises(RunConfigMismatch, match="seed: given 4, stored 3"):
        log.state.create_or_join(config_of(log.run, seed=4))


def test_waiting_for_a_run_returns_when_it_is_created(log: RunLog) -> None:
    timer = threading.Timer(0.2, lambda: log.state.create_or_join(config_of(log.run)))
    timer.start()
    began = time.monotonic()
    assert log.state.wait_for_config(60).run == log.run
    assert 0.1 < time.monotonic() - began < 30
    timer.join()


def test_waiting_for_a_run_reads_an_event_once(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a run is restored, which has its events before its config."""
    log.state.create_or_join(config_of(log.run))
    log.broker.command("DEL", log.access.key("config"))
    asked, read = list[str](), log.broker.blocking_read

    def counted(key: str, *, after_id: str, max_count: int, block_seconds: float) -> list[Any]:
        asked.append(after_id)
        return read(key, after_id=after_id, max_count=max_count, block_seconds=block_seconds)

    monkeypatch.setattr(log.broker, "blocking_read", counted)
    with pytest.raises(NoProgress):
        log.state.wait_for_config(0.1)
    assert asked[0] == "0"
    assert len(set(asked)) == 2
    assert len(asked) <= 4


def test_waiting_for_a_run_ends_with_one_sentence_when_nobody_creates_it(log: RunLog) -> None:
    with pytest.raises(NoProgress, match="was not created within"):
        log.state.wait_for_config(0.1)


def test_run_is_joined_under_its_id_once_its_learner_has_written_that_again(log: RunLog) -> None:
    config = log.state.create_or_join(config_of(log.run))
    run_id = log.state.run_id()
    log.broker.command("DEL", log.access.key("learner"))
    with pytest.raises(NoProgress):
        log.state.wait_to_join(0.1)
    log.state.create_again(run_id="")
    assert log.state.wait_to_join(0.1) == (config, run_id)


@pytest.mark.parametrize("lost", ["all", "all, twice", "learner", "config", "nothing: it was deleted"])
@pytest.mark.parametrize("has_restarted", [True, False])
def test_run_that_was_lost_while_no_learner_was_up_keeps_the_id_of_its_training_state(
    log: RunLog, lost: str, has_restarted: bool
) -> None:
    fence, config = start_run(log).fence, config_of(log.run)
    known = log.state.known_by(fence)
    if has_restarted or lost.startswith("all"):
        known = dataclasses.replace(known, server_id="before the restart")
    if lost in ("learner", "config"):
        lose(log, lost)
    elif lost.startswith("all"):
        lose(log)
    else:
        log.state.delete()
    successor = RunLog(log.broker, log.run)
    successor.state.create_or_join(config, known=lambda: known)
    if lost == "all, twice":
        # Again, before the successor takes it.
        lose(log)
    fence = successor.fence.take("learner-1", take_over=True, at_least=fence.number)
    report = successor.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
    assert (report.fence.run_id == known.run_id) is not lost.startswith("nothing")
    assert report.fence.run_id == log.state.run_id() != ""


@pytest.mark.parametrize("lost", ["all", "config"])
def test_run_that_was_lost_and_is_created_with_other_settings_is_another_run(log: RunLog, lost: str) -> None:
    fence = start_run(log).fence
    known = dataclasses.replace(log.state.known_by(fence), server_id="before the restart")
    lose(log, *(() if lost == "all" else (lost,)))
    RunLog(log.broker, log.run).state.create_or_join(config_of(log.run, group_size=8), known=lambda: known)
    assert log.state.run_id() not in ("", fence.run_id)


def test_run_of_other_settings_is_not_taken_for_one_that_lost_its_limits(log: RunLog) -> None:
    fence = start_run(log).fence
    known = dataclasses.replace(log.state.known_by(fence), server_id="before the restart")
    log.state.delete()
    log.state.create_or_join(config_of(log.run, group_size=8))
    lose(log, "learner")
    successor = RunLog(log.broker, log.run)
    successor.state.create_or_join(config_of(log.run, group_size=8), known=lambda: known)
    fence = successor.fence.take("learner-1", at_least=fence.number)
    report = successor.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
    assert report.fence.run_id not in ("", known.run_id)


def test_learner_of_a_run_that_was_deleted_before_its_broker_restarted_stops(log: RunLog) -> None:
    fence = dataclasses.replace(start_run(log).fence, server_id="before the restart")
    log.state.delete()
    with pytest.raises(Fenced, match="was deleted from its broker: this learner must stop"):
        log.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
    assert log.state.config() is None


def test_run_of_an_earlier_version_is_joined_without_an_id(log: RunLog) -> None:
    config = log.state.create_or_join(config_of(log.run))
    log.broker.command("RENAME", log.access.key("learner"), log.access.key("run"))
    log.broker.command("HDEL", log.access.key("run"), "run_id")
    assert log.state.wait_to_join(0.1) == (config, "")


def test_run_state_is_kept_and_refused_to_a_fenced_learner(log: RunLog) -> None:
    learner = start_run(log)
    assert log.state.get() == RunState.RUNNING
    log.fence.take("learner-1", take_over=True)
    with pytest.raises(Fenced):
        log.state.set(RunState.FAILED, fence=learner.fence)
    assert log.state.get() == RunState.RUNNING
    log.state.set(RunState.FAILED, reason="a person said so")
    assert (log.state.get(), log.stats.read().state_reason) == (RunState.FAILED, "a person said so")


def test_run_state_of_an_unknown_run_cannot_be_set(log: RunLog) -> None:
    with pytest.raises(BadSetting, match="no run"):
        log.state.set(RunState.FINISHED)


def test_runs_lists_what_the_broker_holds_until_deleted(broker: Broker, log: RunLog) -> None:
    start_run(log)
    must_append(log)
    (summary,) = [run for run in list_runs(broker) if run.run == log.run]
    assert (summary.state, summary.model, summary.backlog) == (RunState.RUNNING, "tiny", 1)
    log.state.delete()
    assert log.run not in broker.run_names()
    (left,) = broker.client.scan_iter(match=f"*{log.run}*")
    assert left.decode() == log.access.key(DELETED)
    assert broker.client.ttl(left) > 29 * 24 * 3600


def test_stats_of_a_run_that_does_not_exist_are_zero(log: RunLog) -> None:
    stats = log.stats.read()
    assert (stats.state, stats.appended, stats.bytes_used) == (RunState.CREATED, 0, 0)
