"""Each script alone, called as a client calls it, twice: what it replies, what it changes, and nothing more.

A test a script, named after it. A retry after a lost reply is a second call with the same words.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from asympo.common.rollout_log import Lease, RunLog
from asympo.common.rollout_log.keys import DELETED, NOUNS, key
from asympo.common.rollout_log.lua import load_script, script_names

from .conftest import Learner, must_append, must_lease, start_run

ACQUIRE_KEYS = "run open leases deadlines reissue wake"
APPEND_KEYS = "run log open leases deadlines answers reissue wake failures"
COMMIT_KEYS = "run commit log open leases reissue holes wake payloads"
RECONCILE_KEYS = "run commit log holes open leases deadlines reissue set_aside wake"
SURVEY_KEYS = "run commit holes open leases reissue set_aside resting"
PRESENCE_KEYS = "presence presence_until"


def test_every_script_has_a_test_of_its_own() -> None:
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.rglob("test_scripts.py")]
    tests = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in script_names():
        assert any(re.match(f"test_{name}_(?!policy_)", test) for test in tests), name


@pytest.fixture
def learner(log: RunLog) -> Learner:
    return start_run(log)


def call(log: RunLog, script: str, nouns: str, *arguments: Any) -> Any:
    given = nouns.split()
    assert load_script(script).nouns in ((), tuple(given)), "the script's head says what its client gives"
    return log.broker.run_script(script, [key(log.run, noun) for noun in given], arguments)


def fenced(learner: Learner) -> tuple[Any, ...]:
    return learner.fence.number, learner.fence.token, learner.fence.server_id


def content(log: RunLog, *, without: str = "") -> dict[str, bytes | None]:
    """Every key of the run as the broker would store it, deadlines and events aside."""
    names = set(NOUNS) - {"wake", "deadlines", *without.split()}
    return {name: log.broker.command("DUMP", key(log.run, name)) for name in names}


def twice(log: RunLog, script: str, nouns: str, *arguments: Any, without: str = "") -> Any:
    """The reply of both calls; the second one has changed nothing."""
    first = call(log, script, nouns, *arguments)
    before = content(log, without=without)
    again = call(log, script, nouns, *arguments)
    assert content(log, without=without) == before
    return first, again


def test_create_writes_the_run_once_and_lets_others_join(log: RunLog) -> None:
    nouns = "config run learner wake"
    first, again = twice(log, "create", nouns, "{}", "", "", "config_digest", "d", "capacity", 3)
    assert (first, again) == ([b"CREATED", b"{}"], [b"JOINED", b"{}"])
    other = call(log, "create", nouns, "other", "", "", "config_digest", "e", "capacity", 9)
    assert other == [b"JOINED", b"{}"]
    assert log.broker.command("HGET", key(log.run, "learner"), "capacity") == b"3"


def test_acquire_grants_one_prompt_for_one_token(log: RunLog, learner: Learner) -> None:
    first, again = twice(log, "acquire", ACQUIRE_KEYS, "t" * 32, 0, "g")
    assert (first[:2], first[2]) == (again[:2], 15_000)
    assert 0 < again[2] <= 15_000
    other = call(log, "acquire", ACQUIRE_KEYS, "u" * 32, 0, "g", learner.fence.run_id)
    assert other[1] != first[1]
    assert call(log, "acquire", ACQUIRE_KEYS, "v" * 32, 0, "g", "another run")[1] == b"not_started"


def test_renew_extends_what_is_held_and_names_what_is_lost(log: RunLog, learner: Learner) -> None:
    lease = must_lease(log)
    first, again = twice(log, "renew", "run leases deadlines", lease.token, "x" * 32)
    assert first == again == [1, 0]


def test_hand_back_returns_the_prompt_once(log: RunLog, learner: Learner) -> None:
    lease = must_lease(log)
    nouns = "run leases deadlines reissue wake failures set_aside"
    first, again = twice(log, "hand_back", nouns, lease.token, 1, "why")
    assert (first, again) == ([1], [0])
    assert log.broker.command("LRANGE", key(log.run, "reissue"), 0, -1) == [lease.group_id.encode()]
    assert (log.stats.read().leases, log.stats.read().prompt_failures) == (0, 1)


def test_append_gives_one_lease_one_number(log: RunLog, learner: Learner) -> None:
    lease = must_lease(log)
    first = call(log, "append", APPEND_KEYS, lease.token, b"p", "g")
    before = content(log, without="run")
    again = call(log, "append", APPEND_KEYS, lease.token, b"p", "g")
    assert (first[:2], again[:2]) == ([b"APPENDED", 1], [b"DUPLICATE", 1])
    # In the run itself only the retry is counted.
    assert content(log, without="run") == before
    assert (log.stats.read().appended, log.stats.read().duplicate_appends) == (1, 1)


def test_mirror_decisions_shows_the_newest_ones(log: RunLog, learner: Learner) -> None:
    first, again = twice(log, "mirror_decisions", "run decisions", *fenced(learner), b"{}")
    assert first == again == [b"OK"]
    assert log.decisions.read() == b"{}"
    log.decisions.replace(learner.fence, b"{1}")
    assert log.decisions.read() == b"{1}"


def test_free_empties_slots_once(log: RunLog, learner: Learner) -> None:
    lease = appended(log)
    first, again = twice(log, "free", "run open wake", *fenced(learner), 1, lease.group_id, "0-unknown")
    assert (first, again) == ([b"OK", 1], [b"OK", 0])
    assert (log.stats.read().open, log.stats.read().backlog) == (0, 0)


def test_commit_records_frees_and_trims_once(log: RunLog, learner: Learner) -> None:
    lease = appended(log)
    arguments = (*fenced(learner), 1, "state", 4, 1, lease.group_id)
    first, again = twice(log, "commit", COMMIT_KEYS, *arguments, without="commit")
    assert first == again == [b"OK"]
    commit = log.commits.last()
    assert commit is not None
    assert (commit.sequence, commit.state_name, commit.step) == (1, "state", 4)
    assert (log.stats.read().open, log.stats.read().trained, list(log.reader.iter_entries())) == (0, 1, [])


def test_dead_letter_is_written_once(log: RunLog, learner: Learner) -> None:
    lease = appended(log)
    arguments = (*fenced(learner), 10, 10_000, 1, lease.group_id, "g", "why", b"p")
    first, again = twice(log, "dead_letter", "run dead open wake", *arguments)
    assert first == again == [b"OK"]
    assert (log.stats.read().dead_letters, log.stats.read().open, log.stats.read().last_sequence) == (1, 0, 1)


def test_announce_policy_tells_of_a_step_once(log: RunLog, learner: Learner) -> None:
    first, again = twice(log, "announce_policy", "run policies policy_steps", *fenced(learner), 7, "d7", 1)
    assert first[0] == again[0] == b"OK"
    assert int(first[1]) == int(again[1])
    assert log.broker.command("XLEN", key(log.run, "policies")) == 2, "that of the start and this one"


def test_mark_bad_policy_keeps_the_first_report(log: RunLog, learner: Learner) -> None:
    first, again = twice(log, "mark_bad_policy", "bad_policies wake", "1:0", '{"reason": "r", "holder": "h"}')
    assert first == again == [b"OK"]
    call(log, "mark_bad_policy", "bad_policies wake", "1:0", '{"reason": "later", "holder": "i"}')
    assert [(bad.step, bad.reason) for bad in log.policies.bad()] == [(0, "r")]


def test_take_fence_gives_one_token_one_number(log: RunLog) -> None:
    arguments = ("t" * 32, "l", 60_000, 0, 0)
    first, again = call(log, "take_fence", "run", *arguments), call(log, "take_fence", "run", *arguments)
    assert first == again
    assert first[:2] == [b"TAKEN", 1]
    assert call(log, "take_fence", "run", "u" * 32, "m", 60_000, 0, 0)[:3] == [b"HELD", 1, b"l"]
    assert call(log, "take_fence", "run", "u" * 32, "m", 60_000, 1, 5)[:2] == [b"TAKEN", 6]


def test_read_fenced_reads_for_who_owns_the_run(log: RunLog, learner: Learner) -> None:
    appended(log)
    first, again = twice(log, "read_fenced", "run log", *fenced(learner), 0, 9, 999, 999)
    assert first == again == call(log, "read", "run log", 0, 9, 999, 999)
    number, token, server_id = fenced(learner)
    for holder, answer in (
        ((number, "x" * 32, server_id), [b"FENCED", 1, b"learner-0"]),
        ((number, token, "another"), [b"CHANGED"]),
        ((number + 1, token, server_id), [b"CHANGED"]),
    ):
        assert call(log, "read_fenced", "run log", *holder, 0, 9, 999, 999) == answer


def test_heartbeat_keeps_the_run(log: RunLog, learner: Learner) -> None:
    for _ in range(2):
        assert call(log, "heartbeat", "run", *fenced(learner), 90_000, 3) == [b"OK"]
    left = int(log.broker.command("HGET", key(log.run, "learner"), "fence_deadline_ms"))
    assert left - log.stats.read().server_time_seconds * 1000 > 60_000
    assert log.broker.command("HGET", key(log.run, "learner"), "trained_sequence") == b"3"


def test_release_gives_up_what_is_ours_once(log: RunLog, learner: Learner) -> None:
    number, token, _ = fenced(learner)
    call(log, "release", "run", number, "x" * 32)
    assert log.stats.read().is_fence_alive
    first, again = twice(log, "release", "run", number, token)
    assert first == again == [b"OK"]
    assert (log.stats.read().is_fence_alive, log.stats.read().fence) == (False, number)


def test_set_state_moves_a_run_that_exists(log: RunLog, learner: Learner) -> None:
    first, again = twice(log, "set_state", "run wake", 0, "", "", "draining", "why")
    assert first == again == [b"OK"]
    assert (log.stats.read().state, log.stats.read().state_reason) == ("draining", "why")
    nobody = RunLog(log.broker, f"{log.run}-not-there")
    assert call(nobody, "set_state", "run wake", 0, "", "", "draining", "why") == [b"MISSING"]


def test_report_presence_holds_for_its_time_and_ends_with_goodbye(log: RunLog) -> None:
    for _ in range(2):
        call(log, "report_presence", PRESENCE_KEYS, "g", '{"a": 1}', 5000)
    assert [each["holder"] for each in log.presence.generators()] == ["g"]
    twice(log, "report_presence", PRESENCE_KEYS, "g", "{}", 0)
    assert log.presence.generators() == []


def test_list_presence_leaves_out_who_is_silent(log: RunLog) -> None:
    call(log, "report_presence", PRESENCE_KEYS, "g", '{"a": 1}', 5000)
    log.broker.client.zadd(key(log.run, "presence_until"), {"h": 1})
    log.broker.client.hset(key(log.run, "presence"), "h", "{}")
    first, _ = twice(log, "list_presence", PRESENCE_KEYS)
    assert (first[0], first[2:]) == (b"g", [b'{"a": 1}'])
    assert 0 < first[1] <= 5000


def test_log_ids_lists_what_follows_a_number(log: RunLog, learner: Learner) -> None:
    ids = [appended(log).group_id.encode() for _ in range(3)]
    first, again = twice(log, "log_ids", "run log", 1, 10)
    assert first == again == [2, ids[1], 3, ids[2]]
    assert call(log, "log_ids", "run log", 0, 1) == [1, ids[0]]


def test_survey_reinstates_the_fence_and_lists_what_is_out(log: RunLog, learner: Learner) -> None:
    opened, leased = appended(log), must_lease(log)
    number, token, server_id = fenced(learner)
    # Two more were consumed than this broker knows of: their numbers are used.
    arguments = (number, token, 9, 3, "l", 90_000, learner.fence.run_id, 0)
    first = call(log, "survey", SURVEY_KEYS, *arguments)
    again = call(log, "survey", SURVEY_KEYS, *arguments)
    assert first[0] == b"OK"
    assert first[1][:3] == again[1][:3] == [9, 3, 2]
    assert first[3:5] == again[3:5] == [[opened.group_id.encode()], [leased.group_id.encode()]]
    assert call(log, "survey", SURVEY_KEYS, number, "x" * 32, 0, 0, "m", 1, "", 0)[0] == b"FENCED"
    assert call(log, "survey", SURVEY_KEYS, number, token, 0, 0, "l", 1, "another", 0)[0] == b"FENCED"
    log.broker.command("DEL", key(log.run, "learner"))
    assert call(log, "survey", SURVEY_KEYS, *arguments, server_id) == [b"MISSING"], "the config is there"
    log.state.delete()
    for server, answer in ((server_id, b"DELETED"), ("another", b"MISSING")):
        assert call(log, "survey", SURVEY_KEYS, *arguments, server) == [answer]


def test_settle_makes_its_repairs_once(log: RunLog, learner: Learner) -> None:
    covered, lost, leased = appended(log).group_id, appended(log).group_id, must_lease(log)
    cursor = (0, 3)
    lists = ((covered,), (lost,), ("0-reopened",), (lost, "0-reopened", leased.group_id), ())
    flat = [item for items in lists for item in (len(items), *items)]
    arguments = (*fenced(learner), *cursor, 0, *cursor, 1, "state", 4, learner.fence.number, *flat)
    first, again = twice(log, "settle", RECONCILE_KEYS, *arguments)
    assert first == again == [b"OK"]
    assert log.broker.client.smembers(key(log.run, "open")) == {b"0-reopened"}
    # What is open or leased has an owner: it is not issued again.
    assert log.broker.command("LRANGE", key(log.run, "reissue"), 0, -1) == [lost.encode()]
    commit = log.commits.last()
    assert commit is not None
    assert (commit.sequence, commit.state_name) == (1, "state")
    must_lease(log), must_lease(log)
    assert call(log, "settle", RECONCILE_KEYS, *arguments) == [b"RETRY"]


def test_rest_writes_the_pieces_of_an_epoch(log: RunLog, learner: Learner) -> None:
    assert twice(log, "rest", "run resting", *fenced(learner), 0, 1, 0, b"x") == ([b"OK", 0], [b"OK", 0])
    assert log.rests.read(num_prompts=8) == {1: b"x"}


def test_stats_reads_one_instant(log: RunLog, learner: Learner) -> None:
    appended(log), must_lease(log)
    first, _ = twice(log, "stats", "run open leases deadlines reissue set_aside")
    found = dict(zip(first[::2], first[1::2], strict=True))
    assert [found[name] for name in (b"open", b"leases", b"appended", b"backlog")] == [1, 1, 1, 1]


@pytest.mark.parametrize("seconds", [100, 0])
def test_delete_leaves_nothing_but_the_id_if_asked_to(log: RunLog, learner: Learner, seconds: int) -> None:
    appended(log)
    nouns = " ".join((DELETED, "learner", "run", *NOUNS))
    assert twice(log, "delete", nouns, seconds) == ([b"OK"], [b"OK"])
    left = list(log.broker.client.scan_iter(match=f"asympo:{{{log.run}}}:*", count=1000))
    assert left == ([key(log.run, DELETED).encode()] if seconds else [])
    if seconds:
        assert log.broker.client.smembers(left[0]) == {learner.fence.run_id.encode()}


def test_copy_reads_keys_of_every_type(log: RunLog, learner: Learner) -> None:
    appended(log), must_lease(log)
    first, again = twice(log, "copy", "config open answers policies commit")
    assert first == again
    assert [kind for kind, _ in first] == [b"string", b"set", b"zset", b"stream", b"none"]
    assert len(first[1][1]) == 1
    [entry_id, fields] = first[3][1]
    assert b"-" in entry_id
    assert fields[:2] == [b"step", b"0"]


def test_put_back_writes_a_piece_once_and_nothing_into_a_whole_run(log: RunLog) -> None:
    pieces = {
        "run": ("hash", 0, "state", "running"),
        "open": ("set", 0, "0-1", "0-2"),
        "reissue": ("list", 0, "0-3", "0-4"),
        "answers": ("zset", 0, "token", "1"),
        "log": ("stream", 0, "5-0", "group_id", "0-1"),
    }
    for noun, arguments in pieces.items():
        first, again = twice(log, "put_back", f"{noun} config", *arguments)
        assert first == again == [b"OK"]
    assert call(log, "put_back", "reissue config", "list", 2, "0-5") == [b"OK"]
    assert log.broker.command("LRANGE", key(log.run, "reissue"), 0, -1) == [b"0-3", b"0-4", b"0-5"]
    assert twice(log, "put_back", "config config", "string", 0, "{}") == ([b"OK"], [b"OK"])
    assert call(log, "put_back", "config config", "string", 0, "other") == [b"EXISTS"]
    assert call(log, "put_back", "open config", "set", 0, "0-9") == [b"EXISTS"]
    assert log.broker.command("SCARD", key(log.run, "open")) == 2
    assert log.broker.command("XLEN", key(log.run, "log")) == 1


def appended(log: RunLog) -> Lease:
    """A lease whose group is in the log."""
    lease = must_lease(log)
    must_append(log, lease)
    return lease


def test_read_measures_before_it_replies(log: RunLog, learner: Learner) -> None:
    for size in (10, 5000, 10):
        must_append(log, must_lease(log), b"x" * size)
    first, again = twice(log, "read", "run log", 0, 10, 1000, 2000)
    assert first == again
    assert list(first[1::3]) == [b"1-0"], "the second would be too much at once"
    too_large = call(log, "read", "run log", 1, 1, 1000, 20)
    assert b"payload" not in too_large[3], "of one too large its payload is left"
    apart = call(log, "read", "run log", 1, 1, 1000, 9000)
    assert apart[2] > 5000, "a payload beside the log counts"


def test_expel_takes_out_what_no_append_wrote_and_nothing_else(log: RunLog, learner: Learner) -> None:
    appended(log)
    stream = key(log.run, "log")
    for entry_id in ("1-7", "5-0"):
        log.broker.command("XADD", stream, entry_id, "x", b"\xff")
    arguments = (*fenced(learner), 10, 10_000, "why", "1-0", "1-7", "5-0")
    first, again = twice(log, "expel", "run log dead", *arguments)
    assert first == again == [b"OK"]
    assert [entry.sequence for entry in log.reader.iter_entries()] == [1]
    assert [letter.payload for letter in log.dead_letters.newest()] == [b"x \xff", b"x \xff"]
    appended(log)
    assert [entry.sequence for entry in log.reader.iter_entries()] == [1, 2]


def test_retry_appends_once(log: RunLog, learner: Learner) -> None:
    lease = appended(log)
    call(
        log,
        "dead_letter",
        "run dead open wake",
        *fenced(learner),
        10,
        999,
        1,
        lease.group_id,
        "g",
        "why",
        b"p",
    )
    first, again = twice(log, "retry", "run log open dead", "1-0", "retry/1.0", b"q", "g")
    assert (first, again) == ([b"OK", 2], [b"MISSING"])
    assert [entry.group_id for entry in log.reader.iter_entries()] == [lease.group_id, "retry/1.0"]


def test_purge_leaves_none_and_lets_none_come_back(log: RunLog, learner: Learner) -> None:
    lease = appended(log)
    letter = (*fenced(learner), 10, 999, 1, lease.group_id, "g", "why", b"p")
    call(log, "dead_letter", "run dead open wake", *letter)
    assert twice(log, "purge", "run dead") == ([1], [0])
    call(log, "dead_letter", "run dead open wake", *letter)
    assert log.dead_letters.newest() == []


def test_list_bad_policies_leaves_long_reports(log: RunLog, learner: Learner) -> None:
    call(log, "mark_bad_policy", "bad_policies wake", "1:0", '{"reason": "r"}')
    log.broker.command("HSET", key(log.run, "bad_policies"), "1:1", b"x" * 100_000)
    first, again = twice(log, "list_bad_policies", "bad_policies")
    assert first == again
    assert dict(zip(first[::2], map(len, first[1::2]), strict=True))[b"1:1"] == 0


SUBMIT_KEYS = "run log open leases deadlines reissue wake submitted producers"


def test_submit_appends_each_group_once(log: RunLog, learner: Learner) -> None:
    arguments = ("agents", 2**53, 10, "agents/0000000000000001", "agents/1", b"payload")
    first, again = twice(log, "submit", SUBMIT_KEYS, *arguments, without="producers")
    assert (first[2:], again[2:]) == ([b"APPENDED", 1], [b"DUPLICATE", 0])


def test_purge_producer_takes_its_entries_out(log: RunLog, learner: Learner) -> None:
    arguments = ("agents", 2**53, 10, "agents/0000000000000001", "agents/1", b"payload")
    call(log, "submit", SUBMIT_KEYS, *arguments)
    first, again = twice(log, "purge_producer", "run log open reissue holes wake", "agents", 0, 10, "agents/")
    assert (first, again) == ([1, 1, 0], [0, 0, 0])
