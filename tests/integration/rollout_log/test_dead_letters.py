"""`asympo log show --dead`, `retry` and `purge --dead`: what people do with records that were set aside."""

import json
from dataclasses import replace

import pytest
from asympo.cli import main
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.rollout_log import RunLog
from asympo.local.broker import LocalBroker

from tests.integration.learner.producer import make_group

from .conftest import Learner, must_append, must_lease, start_run


@pytest.fixture
def learner(log: RunLog) -> Learner:
    """Three records are set aside, one of which no reader can take; all of it is committed and trimmed."""
    learner = start_run(log)
    for spoilt in (False, True, False):
        lease = must_lease(log)
        payload = b"\xff" if spoilt else encode_group(replace(make_group("0-1"), group_id=lease.group_id))
        must_append(log, lease, payload)
    for entry in learner.consume(3):
        log.dead_letters.add(learner.fence, entry, "test \x1b[31mred")
    learner.commit([])
    return learner


def command(log: RunLog, server: LocalBroker, verb: str, *flags: str) -> int:
    return main(["log", verb, "--redis-url", server.url, "--run", log.run, *flags])


def test_retry_appends_what_can_be_read_and_says_what_stays(
    log: RunLog, learner: Learner, shared_server: LocalBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(log, shared_server, "retry") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 is group 4 now"
    assert lines[1].startswith("2 stays: ")
    assert lines[2] == "3 is group 5 now"
    entries = learner.consume(5)
    assert [entry.group_id for entry in entries] == ["retry/1.0", "retry/3.0"]
    for entry in entries:
        group = decode_group(entry.payload, limits=WireLimits())
        assert (group.group_id, group.responses) == (entry.group_id, make_group("0-1").responses)
    assert [letter.sequence for letter in log.dead_letters.newest()] == [2]
    assert command(log, shared_server, "retry") == 0
    assert capsys.readouterr().out.startswith("2 stays: ")
    assert learner.consume(5, block_seconds=0.0) == []
    log.dead_letters.add(learner.fence, entries[0], "test")
    assert command(log, shared_server, "retry", "--json") == 0
    stays, appended = map(json.loads, capsys.readouterr().out.splitlines())
    assert (stays["sequence"], stays["state"]) == (2, "stays")
    assert stays["reason"]
    assert appended == {"sequence": 4, "state": "appended", "appended_as": 6}


def test_purge_deletes_them_and_makes_room(
    log: RunLog, learner: Learner, shared_server: LocalBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(log, shared_server, "show", "--dead", "--json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["sequence"] for each in shown] == [3, 2, 1]
    assert command(log, shared_server, "show", "--dead") == 0
    assert "\x1b" not in capsys.readouterr().out
    assert command(log, shared_server, "purge", "--dead", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"purged": 3}
    assert log.dead_letters.newest() == []
    assert log.broker.command("HGET", log.access.key("learner"), "dead_letter_bytes") == b"0"
    assert command(log, shared_server, "purge", "--dead") == 0
    assert capsys.readouterr().out == "0 records that were set aside are deleted\n"
    must_append(log)
    assert [entry.sequence for entry in learner.consume(5)] == [4]
