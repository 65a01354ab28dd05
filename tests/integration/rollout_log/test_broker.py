"""What a broker may do to us: die, fill up, turn us away, speak TLS, be a cluster."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from asympo.common.errors import BadSetting, BrokerChanged, BrokerFull, BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import AppendOutcome, Broker, RunLog, list_runs
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.common.rollout_log.lua import load_script, script_names
from asympo.local.broker import LocalBroker
from asympo.local.ports import free_port

from tests.conftest import require, start_broker

from .conftest import config_of, must_append, must_lease, server_binary, start_run

StartServer = Callable[..., LocalBroker]
PATIENT: dict[str, Any] = {"max_retries": 30, "backoff_base_seconds": 0.02, "backoff_cap_seconds": 0.1}


def test_broker_info_of_a_safe_server(start_server: StartServer, server: str) -> None:
    info = Broker.connect(start_server().url).info()
    assert (info.server, info.aof, info.appendfsync, info.warnings) == (server, True, "always", ())


def test_broker_warns_about_a_server_that_may_lose_data(start_server: StartServer) -> None:
    unsafe = start_server("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    warnings = Broker.connect(unsafe.url).info().warnings
    assert ["append-only" in warnings[0], "noeviction" in warnings[1]] == [True, True]


def test_acknowledged_groups_survive_a_kill_and_callers_only_see_a_delay(
    start_server: StartServer, run_name: str
) -> None:
    process = start_server()
    log = RunLog(Broker.connect(process.url, **PATIENT), run_name)
    start_run(log, groups_per_step=100, max_groups_per_step=100, num_prompts=500)
    acknowledged: dict[str, bytes] = {}
    is_half_way = threading.Event()

    def kill_half_way() -> None:
        is_half_way.wait()
        process.kill()
        process.start()

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    for number in range(150):
        if number == 75:
            is_half_way.set()
        lease, payload = must_lease(log), b"group %d" % number * (1 + number % 2 * MIN_APART_BYTES)
        result = log.leases.append(lease, payload, producer="gen-0")
        assert result.outcome in (AppendOutcome.APPENDED, AppendOutcome.DUPLICATE)
        acknowledged[lease.group_id] = payload
    killer.join()
    entries = list(log.reader.iter_entries())
    assert [entry.sequence for entry in entries] == list(range(1, 151))
    assert {entry.group_id: entry.payload for entry in entries} == acknowledged


def test_broker_that_stays_away_is_unavailable_with_one_sentence(
    start_server: StartServer, run_name: str
) -> None:
    process = start_server()
    log = RunLog(Broker.connect(process.url, max_retries=2, backoff_base_seconds=0.01), run_name)
    process.kill()
    with pytest.raises(BrokerUnavailable, match=f"{process.port}/0 does not answer"):
        log.stats.read()


def test_full_broker_refuses_appends_whole_and_still_lets_the_learner_free(
    start_server: StartServer, run_name: str
) -> None:
    process = start_server("--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    log = RunLog(Broker.connect(process.url), run_name)
    sizes = {"groups_per_step": 500, "max_groups_per_step": 500, "num_prompts": 1000}
    config, learner = config_of(run_name, **sizes), start_run(log, **sizes)
    held = [must_lease(log) for _ in range(200)]
    num_appended = 0
    with pytest.raises(BrokerFull):  # noqa: PT012 - which append is the first refused one depends on the server
        for num_appended in range(200):
            log.leases.append(held[num_appended], b"x" * 100_000, producer="gen-0")
    full = log.stats.read()
    assert full.appended == full.open == full.last_sequence == num_appended
    assert full.leases == 200 - num_appended
    assert log.leases.renew(held[num_appended:]) == []
    log.broker.client.config_set("maxmemory", "1mb")
    with pytest.raises(BrokerFull):
        log.leases.acquire(holder="gen-0", policy_step=0)
    with pytest.raises(BrokerFull):
        RunLog(log.broker, f"{run_name}-new").state.create_or_join(config_of(f"{run_name}-new"))
    # A learner that is started again now: it must get in, since only its commits make room.
    assert log.state.create_or_join(config) == config
    learner.fence = log.fence.take("learner-1", take_over=True)
    learner.fence = log.reconciler.reconcile(learner.fence, committed=None, trained=learner.trained).fence
    assert log.leases.hand_back(held.pop(), reason="stopping")
    log.presence.report("gen-0", {}, ttl_seconds=5)
    entries = learner.consume(1000)
    log.dead_letters.add(learner.fence, entries[0], "a letter is written even now")
    log.policies.announce(learner.fence, step=1, digest="d1")
    log.fence.heartbeat(learner.fence)
    learner.commit([entry.group_id for entry in entries])
    log.broker.client.config_set("maxmemory", "6mb")
    must_append(log, held[num_appended], b"x" * 100_000)
    assert (
        log.reader.read(after_sequence=num_appended, max_count=1, block_seconds=0)[0].sequence
        == num_appended + 1
    )


def test_wrong_password_is_refused_and_never_printed(start_server: StartServer, run_name: str) -> None:
    process = start_server()
    Broker.connect(process.url).client.config_set("requirepass", "right-secret")
    with pytest.raises(BrokerRefused, match="check user, password and ACL") as refused:
        Broker.connect(process.url.replace("redis://", "redis://:wrong-secret@"))
    assert "secret" not in str(refused.value)
    with pytest.raises(BrokerRefused):
        Broker.connect(process.url)
    broker = Broker.connect(process.url.replace("redis://", "redis://:right-secret@"))
    assert "secret" not in broker.url
    start_run(RunLog(broker, run_name))


def test_password_comes_from_the_environment_when_the_url_has_none(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_server()
    Broker.connect(process.url).client.config_set("requirepass", "right-secret")
    monkeypatch.setenv("REDIS_PASSWORD", "right-secret")
    assert Broker.connect(process.url).run_names() == []


def test_user_without_config_and_admin_rights_can_run_everything(
    start_server: StartServer, run_name: str
) -> None:
    process = start_server()
    admin = Broker.connect(process.url)
    rights = (
        "~asympo:* resetchannels -@all +@read +@write +@connection +@scripting -flushall -flushdb +info +time"
    )
    admin.client.execute_command("ACL", "SETUSER", "asympo", "on", ">pw", *rights.split())
    broker = Broker.connect(process.url.replace("redis://", "redis://asympo:pw@"))
    assert broker.info().appendfsync == "unknown"
    log = RunLog(broker, run_name)
    learner = start_run(log)
    must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(1)])
    assert log.stats.read().trained == 1
    with pytest.raises(BrokerRefused, match="ACL"):
        broker.command("SET", "elsewhere", "x")


@pytest.mark.parametrize(
    "url", ["http://x", "redis+sentinel://a:1,b:2", "redis+sentinel://a/s", "localhost:6379"]
)
def test_unusable_url_is_a_bad_setting(url: str) -> None:
    with pytest.raises(BadSetting, match="give redis://host:port/0"):
        Broker.connect(url)


def test_broker_speaks_tls(tmp_path: Path, run_name: str) -> None:
    require(shutil.which("openssl") is not None, "openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    tls_port = free_port()
    tls = ("--tls-port", str(tls_port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    # The embedded Valkey is built without TLS; Debian's Redis has it.
    process = start_broker(server_binary("redis"), tmp_path / "broker", *tls, "--tls-auth-clients", "no")
    try:
        url = f"rediss://127.0.0.1:{tls_port}/0"
        log = RunLog(Broker.connect(f"{url}?ssl_ca_certs={certificate}"), run_name)
        start_run(log)
        must_append(log)
        with pytest.raises(BrokerUnavailable, match="certificate"):
            Broker.connect(url, max_retries=0)
    finally:
        process.kill()


def test_everything_works_on_a_cluster(start_server: StartServer, run_name: str) -> None:
    # The default bus port, 10,000 above the other, may not exist.
    process = start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    node = redis.Redis(port=process.port or 0)
    node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    _wait_until(
        lambda: "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO")).replace("': '", ":")
    )
    broker = Broker.connect(process.url)
    assert broker.info().mode == "cluster"
    log = RunLog(broker, run_name)
    learner = start_run(log)
    must_append(log)
    must_append(log)
    entries = learner.consume(1)
    log.dead_letters.add(learner.fence, entries[0], "bad")
    learner.commit([entry.group_id for entry in entries])
    held = must_lease(log)
    assert log.leases.renew([held]) == []
    log.leases.hand_back(held, reason="stopping")
    log.policies.mark_bad(step=1, fence=1, reason="r", holder="h")
    assert len(log.policies.bad()) == 1
    log.presence.report("gen-0", {}, ttl_seconds=5)
    assert len(log.presence.generators()) == 1
    assert log.policies.wait(None, 1) is not None
    log.reconciler.reconcile(learner.fence, committed=log.commits.last(), trained=learner.trained)
    assert [run.run for run in list_runs(broker)] == [log.run]
    log.state.delete()
    assert list_runs(broker) == []


def test_learner_reconciles_after_a_fail_over_by_sentinel(
    start_server: StartServer, server: str, tmp_path: Path, run_name: str
) -> None:
    master = start_server()
    replica = start_server("--replicaof", f"127.0.0.1 {master.port}")
    for each in (master, replica):
        account = ("on", ">p@ss/#", "~*", "&*", "+@all")
        redis.Redis(port=each.port or 0).execute_command("ACL", "SETUSER", "learner", *account)
    sentinel_port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor fleet 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds fleet 500\nsentinel failover-timeout fleet 3000\n"
    )
    sentinel = subprocess.Popen(
        [server_binary(server), str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        url = f"redis+sentinel://learner:p%40ss%2F%23@127.0.0.1:{sentinel_port}/fleet"
        log = RunLog(Broker.connect(url, max_retries=200, backoff_cap_seconds=0.1), run_name)
        _wait_until(lambda: "num-slaves=1" in _sentinel_view(sentinel_port))
        learner = start_run(log)
        must_append(log)
        learner.consume(1)
        admin = redis.Redis(port=master.port or 0)
        _wait_until(lambda: admin.execute_command("WAIT", 1, 100) == 1)
        master.kill()
        with pytest.raises(BrokerChanged):
            log.fence.heartbeat(learner.fence)
        assert redis.Redis(port=replica.port or 0).info("replication")["role"] == "master"
        report = log.reconciler.reconcile(
            learner.fence, committed=None, trained=learner.trained, trained_sequence=1
        )
        assert not report.was_rolled_back
        learner.fence = report.fence
        assert must_append(log).sequence == 2
        assert len(learner.consume(1)) == 1
    finally:
        sentinel.kill()
        sentinel.wait()


def _sentinel_view(port: int) -> str:
    try:
        masters: Any = redis.Redis(port=port).sentinel_masters()
        (master,) = masters.values()
    except redis.ConnectionError:
        return ""
    return f"num-slaves={master['num-slaves']}"


def _wait_until(is_true: Callable[[], bool], *, timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_scripts_say_what_they_need_of_the_broker() -> None:
    frees = {
        "free",
        "commit",
        "hand_back",
        "renew",
        "heartbeat",
        "take_fence",
        "release",
        "dead_letter",
        "settle",
    }
    for name in script_names():
        first = load_script(name).source.splitlines()[0]
        assert first.startswith("#!lua"), name
        assert ("allow-oom" in first) or name not in frees, name
        assert ("allow-oom" not in first) or name not in {"append", "acquire", "create"}, name
