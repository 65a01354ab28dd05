"""The embedded broker's own files, run with real servers: durability, users, what each may not do."""

import base64
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rendering
from asympo.common.errors import BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import Broker, CommitRecord, RunConfig, RunLog, RunState
from asympo.common.trained_ids import TrainedIds

from tests.conftest import free_port, require, valkey_binary
from tests.helm.conftest import CHART


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A broker started as its container starts it."""

    port: int
    passwords: dict[str, str]
    process: subprocess.Popen
    environment: dict[str, str]
    probe: list[str]

    def connect(self, user: str) -> Broker:
        return Broker.connect(f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/0", max_retries=1)


@pytest.fixture(params=["redis", "valkey"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Embedded]:
    binary = valkey_binary() if request.param == "valkey" else shutil.which("redis-server")
    require(binary is not None, "redis-server (apt-get install redis-server)")
    result = rendering.template(CHART, values=[CHART / "examples/laptop-cpu/values.yaml"])
    things = {(each["kind"], each["metadata"]["name"]): each for each in rendering.objects(result.stdout)}
    container = things["StatefulSet", "asympo-redis"]["spec"]["template"]["spec"]["containers"][0]
    secret = things["Secret", "asympo-broker-users"]["data"]
    passwords = {
        key.removesuffix("-password"): base64.b64decode(value).decode() for key, value in secret.items()
    }

    port = free_port()
    moved = {
        "/etc/asympo": f"{tmp_path}/etc",
        "/run/asympo": f"{tmp_path}/run",
        "dir /data": f"dir {tmp_path}",
    }
    moved["port 6379"] = f"port {port}"
    for folder in ("etc/broker", "etc/passwords", "run", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in things["ConfigMap", "asympo-redis-settings"]["data"].items():
        for old, new in moved.items():
            text = text.replace(old, new)
        (tmp_path / "etc/broker" / name).write_text(text)
    for role, password in passwords.items():
        (tmp_path / f"etc/passwords/{role}-password").write_text(password)
    (tmp_path / f"bin/{request.param}-server").symlink_to(str(binary))

    environment = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    shell, script = container["command"]
    script = script.replace("/etc/asympo", f"{tmp_path}/etc")
    process = subprocess.Popen([shell, script], env=environment, stdout=subprocess.DEVNULL)
    probe = [*container["readinessProbe"]["exec"]["command"]]
    probe[-1] = probe[-1].replace("--user", f"-p {port} --user")
    started = Embedded(port=port, passwords=passwords, process=process, environment=environment, probe=probe)
    wait_until_up(started)
    yield started
    process.kill()
    process.wait()


def wait_until_up(broker: Embedded) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            broker.connect("learner").close()
            return
        except Exception:
            if time.monotonic() > deadline or broker.process.poll() is not None:
                raise
            time.sleep(0.05)


def test_services_work_as_their_users_and_lose_nothing(embedded: Embedded) -> None:
    learner = RunLog(embedded.connect("learner"), "run-a")
    generator = RunLog(embedded.connect("generator"), "run-a")
    assert learner.broker.info().warnings == ()
    config = RunConfig(
        run="run-a", group_size=2, groups_per_step=1, max_groups_per_step=2, num_prompts=9, seed=1, model="m"
    )
    learner.create_or_join(config)
    assert generator.wait_for_config(5) == learner.config()
    fence = learner.take_fence("learner-0")
    fence = learner.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=9)).fence
    learner.announce_policy(fence, step=0, digest="d")
    learner.set_state(RunState.RUNNING, fence=fence)
    generator.report_presence("gen", {"state": "generating"}, ttl_seconds=5)
    assert len(learner.generators()) == 1
    assert generator.wait_for_policy(None, 5).step == 0
    first, second = (generator.acquire(holder="gen", policy_step=0) for _ in range(2))
    assert generator.renew([first, second]) == []
    assert generator.hand_back(second, reason="test") is True
    assert generator.append(first, b"payload", producer="gen").outcome == "appended"
    generator.mark_bad_policy(step=7, fence=1, reason="test", holder="gen")
    assert len(generator.bad_policies()) == len(learner.bad_policies()) == 1
    generator.stats()
    generator.wait_for_slot(0.01)
    [entry] = learner.read(after_sequence=0, max_count=5, block_seconds=1, fence=fence)
    learner.heartbeat(fence)
    learner.free(fence, [entry.group_id], trained_sequence=1)
    learner.commit(fence, sequence=1, state_name="s", step=1, group_ids=[entry.group_id])
    learner.stats()
    assert learner.last_commit() == CommitRecord(sequence=1, state_name="s", step=1, fence=fence.number)
    learner.release(fence)
    operator = RunLog(embedded.connect("operator"), "run-a")
    pieces = list(learner.copy())
    assert [piece.noun for piece in operator.copy()] == [piece.noun for piece in pieces]
    operator.delete()
    operator.put_back(pieces)
    assert operator.stats().trained == 1


FORBIDDEN = (
    ("generator", "SET", "asympo:{run-a}:config", "x"),
    ("generator", "DEL", "asympo:{run-a}:commit"),
    ("generator", "SET", "elsewhere", "x"),
    ("generator", "FLUSHALL"),
    ("learner", "FLUSHALL"),
    ("learner", "CONFIG", "SET", "appendonly", "no"),
    ("learner", "SHUTDOWN"),
    ("learner", "GET", "elsewhere"),
    ("operator", "ACL", "SETUSER", "default", "on"),
    ("operator", "KEYS", "*"),
)


def test_roles_may_not_do_more_than_they_need(embedded: Embedded) -> None:
    for user, *command in FORBIDDEN:
        broker = embedded.connect(user)
        with pytest.raises(BrokerRefused, match="turned us away"):
            broker.command(*command)
        broker.close()


def test_strangers_are_turned_away_and_the_probe_is_not(embedded: Embedded) -> None:
    with pytest.raises(BrokerRefused):
        Broker.connect(f"redis://127.0.0.1:{embedded.port}/0", max_retries=1)
    with pytest.raises(BrokerRefused):
        Broker.connect(f"redis://learner:wrong@127.0.0.1:{embedded.port}/0", max_retries=1)
    if shutil.which("redis-cli", path=embedded.environment["PATH"]):
        run: Callable = subprocess.run
        assert run(embedded.probe, env=embedded.environment, check=False).returncode == 0
        embedded.process.terminate()
        embedded.process.wait(timeout=10)
        assert run(embedded.probe, env=embedded.environment, check=False, capture_output=True).returncode != 0


def test_rendered_tls_url_verifies_the_server(tmp_path: Path) -> None:
    binary = shutil.which("redis-server")
    require(binary is not None, "redis-server (apt-get install redis-server)")
    require(shutil.which("openssl") is not None, "openssl")
    for name in ("ours", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=broker"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    result = rendering.template(CHART, values=[CHART / "examples/external-redis/values.yaml"])
    things = {(each["kind"], each["metadata"]["name"]): each for each in rendering.objects(result.stdout)}
    text = things["ConfigMap", "asympo-learner-settings"]["data"]["learner.toml"]
    url = tomllib.loads(text)["redis_url"]
    pod = things["StatefulSet", "asympo-learner"]["spec"]["template"]["spec"]
    [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "broker-ca"]
    assert f"{mount['mountPath']}/ca.crt" in url
    port = free_port()
    url = url.replace("broker.example.com:6380", f"127.0.0.1:{port}")

    server = [str(binary), "--port", "0", "--tls-port", str(port), "--dir", str(tmp_path)]
    server += ["--tls-cert-file", "ours.crt", "--tls-key-file", "ours.key", "--tls-auth-clients", "no"]
    process = subprocess.Popen(server, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        ours = url.replace(f"{mount['mountPath']}/ca.crt", str(tmp_path / "ours.crt"))
        Broker.connect(ours).close()
        with pytest.raises(BrokerUnavailable):
            Broker.connect(ours.replace("ours.crt", "other.crt"), max_retries=0)
    finally:
        process.kill()
        process.wait()
