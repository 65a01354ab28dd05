"""Users as `asympo log acl` prints them, on real servers: what a role needs works, all else is refused."""

import contextlib
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asympo.common.errors import BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import Broker, RunLog, RunState, Submission
from asympo.common.rollout_log.broker.users import ROLES, acl_line
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.local.broker import LocalBroker

from tests.integration.rollout_log.conftest import must_append, must_lease, start_run

RUN, OTHER = "run-a", "run-b"
OWN, FOREIGN = f"asympo:{{{RUN}}}:", f"asympo:{{{OTHER}}}:"


class Server:
    """A server with a user for each role, and one who may do everything."""

    def __init__(self, process: LocalBroker) -> None:
        self.process = process
        self.admin = Broker.connect(process.url)
        for role in ROLES:
            digest = hashlib.sha256(role.encode()).hexdigest()
            line = acl_line(role, runs=[RUN], user=role, digests=[digest])
            self.admin.command("ACL SETUSER", *line.split()[1:])

    def log(self, role: str, run: str = RUN) -> RunLog:
        url = self.process.url.replace("redis://", f"redis://{role}:{role}@")
        return RunLog(Broker.connect(url, max_retries=0), run)


@pytest.fixture
def users(start_server: Callable[..., LocalBroker]) -> Server:
    return Server(start_server())


def refused(log: RunLog, *command: Any) -> str:
    with pytest.raises(BrokerRefused) as error:
        log.broker.command(*command)
    return str(error.value)


def test_a_whole_run_works_as_its_users(users: Server) -> None:
    log, generator = users.log("learner"), users.log("generator")
    learner = start_run(log, num_prompts=9, group_size=2)
    assert generator.state.wait_for_config(5).num_prompts == 9
    assert generator.policies.latest() == log.policies.latest()
    generator.presence.report("gen-0", {"state": "generating"}, ttl_seconds=60)
    must_append(generator, payload=b"p" * MIN_APART_BYTES)
    kept, back = must_lease(generator), must_lease(generator)
    assert generator.leases.renew([kept, back]) == []
    assert generator.leases.hand_back(back, reason="test", is_prompt_failure=True)
    generator.policies.mark_bad(step=7, fence=1, reason="test", holder="gen-0")
    assert len(generator.policies.bad()) == len(log.policies.bad()) == 1
    generator.leases.wait_for_slot(0.01)
    assert generator.policies.wait(generator.policies.latest(), 0.01) is None

    gateway, producer = users.log("gateway"), users.log("producer")
    assert gateway.state.wait_for_config(5).num_prompts == 9
    assert producer.state.run_id() == log.state.run_id()
    lease = must_lease(gateway, holder="agents")
    assert gateway.leases.renew([lease]) == []
    assert gateway.leases.find(lease.token, holder="others") is None
    assert getattr(gateway.leases.find(lease.token, holder="agents"), "group_id", None) == lease.group_id
    assert gateway.leases.append(lease, b"payload", producer="agents").outcome == "appended"
    for log_, name in ((gateway, "agents"), (producer, "batch")):
        [answer], refusal = log_.submissions.submit(name, [Submission(group_id=f"{name}/1", payload=b"p")])
        assert answer.outcome == "appended"
        log_.leases.wait_for_slot(0.01, refused=refusal)

    log.fence.heartbeat(learner.fence)
    entries = learner.consume(9)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4]
    assert entries[0].payload == b"p" * MIN_APART_BYTES
    log.dead_letters.add(learner.fence, entries[0], "test")
    log.decisions.replace(learner.fence, b"{}")
    learner.commit([entry.group_id for entry in entries])
    log.policies.announce(learner.fence, step=1, digest="d1")
    assert log.stats.read().trained == 4
    assert len(log.presence.generators()) == 1
    assert log.policies.publish_times()
    log.fence.release(learner.fence)

    evaluator = users.log("evaluator")
    assert evaluator.state.wait_for_config(5).num_prompts == 9
    assert evaluator.state.get() is RunState.RUNNING
    assert (evaluator.policies.bad(), evaluator.policies.num_after(0)) == (log.policies.bad(), 1)
    assert len(evaluator.presence.generators()) == 1
    evaluator.presence.report("evaluator", {"service": "evaluator"}, ttl_seconds=9)
    assert (len(evaluator.presence.generators()), len(log.presence.holders())) == (1, 2)
    evaluator.evaluations.add(RESULT)
    assert log.evaluations.after()[0] == evaluator.evaluations.after()[0] == [RESULT]

    operator = users.log("operator")
    assert operator.broker.run_names() == [RUN]
    assert operator.stats.read().trained == 4
    pieces = list(operator.copies.read())
    assert operator.dead_letters.purge() == 1
    operator.state.set(RunState.DRAINING)
    operator.state.delete()
    operator.copies.put_back(pieces)
    assert log.state.get() is RunState.RUNNING


RESULT = EvalResult(
    eval="held-out",
    policy_step=1,
    policy_fence=1,
    last_policy_step=1,
    prompts=4,
    samples=1,
    mean=Estimate(value=0.5, low=0.2, high=0.8),
    pass_at={1: Estimate(value=0.5, low=0.2, high=0.8)},
)
LOOP = "while true do end"
FORBIDDEN = {
    "generator": (
        ("GET", FOREIGN + "config"),
        ("HGETALL", FOREIGN + "run"),
        ("XADD", FOREIGN + "log", "*", "a", "b"),
        ("XREAD", "STREAMS", FOREIGN + "wake", "0"),
        ("SET", OWN + "config", "x"),
        ("HSET", OWN + "learner", "state", "failed"),
        ("HSET", OWN + "learner", "fence", 9, "fence_token", "x"),
        ("HDEL", OWN + "learner", "policy_step"),
        ("XADD", OWN + "policies", "*", "step", "9"),
        ("ZADD", OWN + "policy_steps", 9, 9),
        ("HSET", OWN + "commit", "sequence", 9),
        ("SET", OWN + "decisions", "x"),
        ("XADD", OWN + "dead", "*", "a", "b"),
        ("XTRIM", OWN + "log", "MAXLEN", 0),
        ("XDEL", OWN + "log", "1-0"),
        ("DEL", OWN + "log"),
        ("UNLINK", OWN + "run"),
        ("RENAME", OWN + "log", OWN + "open"),
        ("EXPIRE", OWN + "log", 1),
        ("HSET", OWN + "payloads", "a", "b"),
        ("HDEL", OWN + "payloads", "a"),
        ("HSETNX", OWN + "learner", "a", "b"),
        ("HSETNX", FOREIGN + "payloads", "a", "b"),
    ),
    "producer": (
        ("GET", OWN + "config"),
        ("HSET", OWN + "learner", "capacity", 9),
        ("ZADD", OWN + "answers", 1, "x"),
        ("LPOP", OWN + "reissue"),
    ),
    "gateway": (
        ("HSET", OWN + "learner", "capacity", 9),
        ("HSET", OWN + "presence", "a", "b"),
        ("HSET", OWN + "bad_policies", "1:1", "x"),
    ),
    "evaluator": (
        ("XADD", OWN + "log", "*", "a", "b"),
        ("XADD", OWN + "policies", "*", "step", "9"),
        ("ZADD", OWN + "policy_steps", 9, 9),
        ("XTRIM", OWN + "evaluations", "MAXLEN", 0),
        ("XRANGE", FOREIGN + "evaluations", "-", "+"),
    ),
    "learner": (
        ("DEL", FOREIGN + "log"),
        ("GET", FOREIGN + "config"),
        ("SET", "elsewhere", "x"),
        ("SCAN", 0),
        ("SCRIPT KILL",),
    ),
    "operator": (("GET", "elsewhere"), ("CLIENT KILL", "TYPE", "normal"), ("SCRIPT FLUSH",)),
}
NOBODY = (
    ("EVAL", LOOP, 0),
    ("EVAL_RO", LOOP, 0),
    ("FCALL", "any", 0),
    ("FUNCTION LOAD", "#!lua name=a\nredis.register_function('a', function() end)"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("CONFIG SET", "maxmemory", 1),
    ("SHUTDOWN", "NOSAVE"),
    ("MONITOR",),
    ("REPLICAOF", "127.0.0.1", 1),
    ("ACL SETUSER", "default", "on"),
    ("SUBSCRIBE", "any"),
    ("PUBLISH", "any", "x"),
)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_user_may_do_nothing_else(users: Server, role: str) -> None:
    start_run(users.log("learner"))
    log = users.log(role)
    own_script = users.admin.command("SCRIPT LOAD", LOOP)
    for command in (*FORBIDDEN[role], *NOBODY, ("EVALSHA", own_script, 0)):
        assert "rejected our login or a command" in refused(log, *command), command
    if role not in ("learner", "operator"):
        assert "rejected our login or a command" in refused(log, "SCRIPT LOAD", LOOP)
        with pytest.raises(BrokerRefused):
            log.fence.take("intruder", take_over=True)
        with pytest.raises(BrokerRefused):
            log.state.set(RunState.FAILED)
    if role != "operator":
        with pytest.raises(BrokerRefused):
            must_lease(users.log(role, OTHER))


def test_who_may_not_load_scripts_is_told_so_and_works_once_they_are_there(users: Server) -> None:
    learner = users.log("learner")
    run, generator = start_run(learner), users.log("generator")
    must_append(generator)
    users.admin.command("SCRIPT FLUSH")
    with pytest.raises(BrokerUnavailable, match="does not know script acquire of this release"):
        must_lease(generator)
    learner.fence.heartbeat(run.fence)
    must_append(generator)
    users.admin.command("SCRIPT FLUSH")
    assert learner.broker.load_scripts() is True
    assert generator.broker.load_scripts() is False
    must_append(generator)


def test_an_operator_ends_a_script_that_does_not_end(users: Server) -> None:
    users.admin.command("CONFIG SET", "busy-reply-threshold", 10)
    ended = []

    def loop() -> None:
        with pytest.raises(BrokerRefused, match="killed by user"):
            users.admin.command("EVAL", LOOP, 0)
        ended.append(True)

    thread = threading.Thread(target=loop, daemon=True)
    operator = users.log("operator")
    thread.start()
    while not ended:
        with contextlib.suppress(BrokerRefused):  # NOTBUSY before it has begun
            operator.broker.command("SCRIPT KILL")
        thread.join(0.05)
    assert ended == [True]
