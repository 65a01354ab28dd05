"""The embedded broker's own files, run with real servers: durability, users, what each may not do."""

import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting, BrokerRefused, BrokerUnavailable
from asympo.common.records import MAX_PAYLOAD_BYTES
from asympo.common.rollout_log import Broker, CommitRecord, Lease, RunConfig, RunLog, RunState
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.common.trained_ids import TrainedIds
from asympo.local.ports import free_port

from deploy.chart import rendering
from tests.conftest import require, valkey_binary
from tests.helm.conftest import CHART
from tests.integration.rollout_log.certificates import Authority


@dataclass(kw_only=True)
class Embedded:
    """A broker started as its container starts it."""

    port: int
    passwords: dict[str, str]
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    probe: list[str]

    def connect(self, user: str) -> Broker:
        return Broker.connect(f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/0", max_retries=1)

    def kill_and_start_again(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = subprocess.Popen(self.process.args, env=self.environment, stdout=subprocess.DEVNULL)
        wait_until_up(self)


@pytest.fixture(params=["redis", "valkey"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Embedded]:
    binary = valkey_binary() if request.param == "valkey" else shutil.which("redis-server")
    require(binary is not None, "redis-server (apt-get install redis-server)")
    result = rendering.template(
        CHART,
        values=[CHART / "examples/laptop-cpu/values.yaml"],
        sets=["run=run-a", "evaluator.enabled=true"],
    )
    things = {(each["kind"], each["metadata"]["name"]): each for each in rendering.objects(result.stdout)}
    container = things["StatefulSet", "asympo-redis"]["spec"]["template"]["spec"]["containers"][0]
    passwords = {role: f"password-of-{role}" for role in ("learner", "generator", "evaluator", "operator")}

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
    started.process.kill()
    started.process.wait()


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
    largest = learner.broker.command("CONFIG GET", "proto-max-bulk-len")
    assert int(largest["proto-max-bulk-len"]) == 2 * MAX_PAYLOAD_BYTES
    config = RunConfig(
        run="run-a", group_size=2, groups_per_step=1, max_groups_per_step=2, num_prompts=9, seed=1, model="m"
    )
    learner.state.create_or_join(config)
    assert generator.state.wait_for_config(5) == learner.state.config()
    fence = learner.fence.take("learner-0")
    fence = learner.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=9)).fence
    learner.policies.announce(fence, step=0, digest="d")
    learner.state.set(RunState.RUNNING, fence=fence)
    generator.presence.report("gen", {"state": "generating"}, ttl_seconds=5)
    assert len(learner.presence.generators()) == 1
    announced = generator.policies.wait(None, 5)
    assert announced is not None
    assert announced.step == 0
    first, second = (generator.leases.acquire(holder="gen", policy_step=0) for _ in range(2))
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert generator.leases.renew([first, second]) == []
    assert generator.leases.hand_back(second, reason="test") is True
    assert generator.leases.append(first, b"p" * MIN_APART_BYTES, producer="gen").outcome == "appended"
    generator.policies.mark_bad(step=7, fence=1, reason="test", holder="gen")
    assert len(generator.policies.bad()) == len(learner.policies.bad()) == 1
    generator.leases.wait_for_slot(0.01)
    [entry] = learner.reader.read(after_sequence=0, max_count=5, block_seconds=1, fence=fence)
    learner.fence.heartbeat(fence)
    learner.commits.free(fence, [entry.group_id], trained_sequence=1)
    learner.commits.commit(fence, sequence=1, state_name="s", step=1, group_ids=[entry.group_id])
    learner.stats.read()
    assert learner.commits.last() == CommitRecord(sequence=1, state_name="s", step=1, fence=fence.number)
    learner.fence.release(fence)
    operator = RunLog(embedded.connect("operator"), "run-a")
    pieces = list(learner.copies.read())
    assert [piece.noun for piece in operator.copies.read()] == [piece.noun for piece in pieces]
    operator.state.delete()
    operator.copies.put_back(pieces)
    assert operator.stats.read().trained == 1
    before = list(operator.copies.read())
    embedded.kill_and_start_again()
    assert list(RunLog(embedded.connect("operator"), "run-a").copies.read()) == before


FORBIDDEN = (
    ("generator", "SET", "asympo:{run-a}:config", "x"),
    ("generator", "DEL", "asympo:{run-a}:commit"),
    ("generator", "SET", "elsewhere", "x"),
    ("generator", "FLUSHALL"),
    ("evaluator", "XADD", "asympo:{run-a}:log", "*", "a", "b"),
    ("evaluator", "SET", "asympo:{run-a}:config", "x"),
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
        with pytest.raises(BrokerRefused, match="rejected our login or a command"):
            broker.command(*command)
        broker.close()


def test_strangers_are_turned_away_and_the_probe_is_not(embedded: Embedded) -> None:
    with pytest.raises(BrokerRefused):
        Broker.connect(f"redis://127.0.0.1:{embedded.port}/0", max_retries=1)
    with pytest.raises(BrokerRefused):
        Broker.connect(f"redis://learner:wrong@127.0.0.1:{embedded.port}/0", max_retries=1)
    if shutil.which("redis-cli", path=embedded.environment["PATH"]):
        run: Callable[..., Any] = subprocess.run
        assert run(embedded.probe, env=embedded.environment, check=False).returncode == 0
        embedded.process.terminate()
        embedded.process.wait(timeout=10)
        assert run(embedded.probe, env=embedded.environment, check=False, capture_output=True).returncode != 0


def settings_and_files(values: str, tmp_path: Path) -> tuple[str, dict[str, str], dict[str, dict[str, str]]]:
    """The learner's broker URL and environment, files moved below `tmp_path`; Secret and keys by mount."""
    result = rendering.template(CHART, values=[CHART / values])
    things = {(each["kind"], each["metadata"]["name"]): each for each in rendering.objects(result.stdout)}
    text = things["ConfigMap", "asympo-learner-settings"]["data"]["learner.toml"]
    pod = things["StatefulSet", "asympo-learner"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    secrets = {}
    for volume in pod["volumes"]:
        if "secret" in volume and "items" in volume["secret"]:
            assert mounts[volume["name"]] == f"/etc/asympo/{volume['name']}"
            items = {item["path"]: item["key"] for item in volume["secret"]["items"]}
            secrets[volume["name"]] = {"secret": volume["secret"]["secretName"], **items}
    url = tomllib.loads(text)["redis_url"].replace("/etc/asympo", str(tmp_path))
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    moved = {name: value.replace("/etc/asympo", str(tmp_path)) for name, value in variables.items()}
    return url, {name: value for name, value in moved.items() if name.startswith("REDIS")}, secrets


def test_rendered_url_and_files_get_into_a_broker_that_asks_for_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = shutil.which("redis-server")
    require(binary is not None, "redis-server (apt-get install redis-server)")
    url, environment, secrets = settings_and_files("examples/external-redis/values.yaml", tmp_path)
    assert secrets["broker-password"] == {"secret": "broker-users", "password": "learner-password"}
    authority = Authority(tmp_path)
    own, ours = authority.sign("server"), authority.sign("client")
    files = {
        "broker-ca/ca.crt": authority.certificate,
        "broker-client/tls.crt": ours.certificate,
        "broker-client/tls.key": ours.key,
    }
    for folder in secrets:
        (tmp_path / folder).mkdir()
    for name, path in files.items():
        shutil.copy(path, tmp_path / name)
    (tmp_path / "broker-password/password").write_text("its-secret\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    server = [str(binary), "--port", "0", "--tls-port", str(port), "--dir", str(tmp_path)]
    server += ["--tls-cert-file", str(own.certificate), "--tls-key-file", str(own.key)]
    server += ["--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "yes"]
    server += ["--user", environment["REDIS_USERNAME"], "on", ">its-secret", "~*", "+@all"]
    process = subprocess.Popen(server, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        url = url.replace("broker.example.com:6380", f"127.0.0.1:{port}")
        broker = Broker.connect(url)
        assert broker.command("ACL", "WHOAMI") == b"asympo-learner"
        broker.close()
        shutil.copy(Authority(tmp_path, "other").certificate, tmp_path / "broker-ca/ca.crt")
        with pytest.raises(BrokerUnavailable):
            Broker.connect(url, max_retries=0)
    finally:
        process.kill()
        process.wait()


def test_rendered_sentinel_url_and_environment_name_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, environment, secrets = settings_and_files("ci/sentinel-values.yaml", tmp_path)
    assert environment["REDIS_SENTINEL_USERNAME"] == "asympo"
    for folder, items in secrets.items():
        (tmp_path / folder).mkdir()
        for name in items:
            (tmp_path / folder / name).write_text("secret" if name == "password" else "")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = url.replace("sentinel-0:26379,sentinel-1:26379", f"127.0.0.1:{free_port()}")
    # No BadSetting: options and files are right, and nobody is there.
    with pytest.raises(BrokerUnavailable, match="No master found"):
        Broker.connect(url, max_retries=0)
    (tmp_path / "sentinel-ca/ca.crt").unlink()
    with pytest.raises(BadSetting, match=r"sentinel_ssl_ca_certs is .* which cannot be read"):
        Broker.connect(url, max_retries=0)
