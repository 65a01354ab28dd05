"""Brokers behind TLS that ask for certificates, Sentinels likewise, and what happens when files are replaced.

Debian's Redis: the embedded Valkey is built without TLS.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from asympo.common.errors import BadSetting, BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import Broker, RunLog
from asympo.local.broker import LocalBroker
from asympo.local.ports import free_port

from tests.conftest import start_broker
from tests.integration.rollout_log.certificates import Authority, Pair
from tests.integration.rollout_log.conftest import must_append, server_binary, start_run


class Secured:
    """A server, or a Sentinel, that only talks TLS with those that our authority knows."""

    def __init__(self, folder: Path, authority: Authority, pair: Pair) -> None:
        self.port = free_port()
        self.flags = (
            *("--tls-port", str(self.port), "--tls-cert-file", str(pair.certificate)),
            *("--tls-key-file", str(pair.key), "--tls-ca-cert-file", str(authority.certificate)),
            *("--tls-auth-clients", "yes", "--tls-replication", "yes"),
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def client(authority: Authority) -> Pair:
    return authority.sign("client")


@pytest.fixture
def secured(tmp_path: Path, authority: Authority) -> Secured:
    return Secured(tmp_path, authority, authority.sign("server"))


@pytest.fixture
def server(secured: Secured, tmp_path: Path) -> Iterator[LocalBroker]:
    process = start_broker(server_binary("redis"), tmp_path / "broker", *secured.flags)
    yield process
    process.kill()


def query(authority: Authority, client: Pair | None, prefix: str = "") -> str:
    shown = {"ssl_ca_certs": authority.certificate}
    if client is not None:
        shown |= {"ssl_certfile": client.certificate, "ssl_keyfile": client.key}
    return "&".join(f"{prefix}{name}={path}" for name, path in shown.items())


def works(url: str, run: str) -> None:
    """A run begins there."""
    broker = Broker.connect(url)
    log = RunLog(broker, run)
    start_run(log)
    must_append(log)
    broker.close()


def test_broker_asks_for_a_certificate(
    server: LocalBroker, secured: Secured, authority: Authority, client: Pair, run_name: str
) -> None:
    url = f"rediss://127.0.0.1:{secured.port}/0?"
    works(url + query(authority, client), run_name)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        Broker.connect(url + query(authority, None), max_retries=0)


def test_certificate_of_another_authority_is_refused(
    server: LocalBroker, secured: Secured, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "other-ca").sign("stranger")
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        Broker.connect(f"rediss://127.0.0.1:{secured.port}/0?{query(authority, stranger)}", max_retries=0)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rediss://h:1/0?ssl_ca_certs=/no/such.crt", "ssl_ca_certs is /no/such.crt, which cannot be read"),
        ("rediss://h:1/0?ssl_cert=x", "there is no option ssl_cert, choose from ssl_ca_certs"),
        ("rediss://h:1/0?ssl_certfile=/dev/null", "ssl_certfile and ssl_keyfile go together"),
        ("rediss+sentinel://h:1/s?timeout=1", "there is no option timeout with Sentinel"),
        ("rediss+sentinel://h:1/s?sentinel_tls=maybe", "'maybe' is neither yes nor no"),
        ("rediss+sentinel://h:1/s?sentinel_ssl_ca_certs=/no", "sentinel_ssl_ca_certs is /no, which cannot"),
    ],
)
def test_unusable_tls_options_are_named(url: str, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        Broker.connect(url, max_retries=0)


def test_replaced_certificate_files_are_used_at_the_next_connect(
    server: LocalBroker, secured: Secured, authority: Authority, client: Pair, tmp_path: Path, run_name: str
) -> None:
    mounted = Pair(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")

    def mount(pair: Pair) -> None:
        shutil.copy(pair.certificate, mounted.certificate)
        shutil.copy(pair.key, mounted.key)

    mount(client)
    url = f"rediss://127.0.0.1:{secured.port}/0?{query(authority, mounted)}"
    broker = Broker.connect(url, max_retries=0)
    mount(Authority(tmp_path, "other-ca").sign("stranger"))
    assert broker.run_names() == []
    broker.client.connection_pool.disconnect()
    with pytest.raises(BrokerUnavailable):
        broker.run_names()
    mount(authority.sign("renewed"))
    assert broker.run_names() == []
    broker.close()


def test_replaced_password_file_is_used_at_the_next_connect(
    server: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, password = redis.Redis(port=server.port or 0), tmp_path / "password"
    admin.acl_setuser("learner", enabled=True, passwords=["+first"], keys=["*"], commands=["+@all"])
    password.write_text("first\n")
    monkeypatch.setenv("REDIS_USERNAME", "learner")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(password))
    broker = Broker.connect(server.url, max_retries=0)
    # In this order nobody is ever turned away: both are right, the file is replaced, the old one goes.
    admin.acl_setuser("learner", enabled=True, passwords=["+second"])
    password.write_text("second")
    admin.acl_setuser("learner", enabled=True, passwords=["-first"])
    assert broker.run_names() == []
    broker.client.connection_pool.disconnect()
    assert broker.run_names() == []
    password.write_text("wrong")
    broker.client.connection_pool.disconnect()
    with pytest.raises(BrokerRefused, match="check user, password and ACL") as refused:
        broker.run_names()
    assert "wrong" not in str(refused.value)
    broker.close()


def test_password_and_password_file_are_not_given_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD_FILE", "file")
    monkeypatch.setenv("REDIS_PASSWORD", "x")
    with pytest.raises(BadSetting, match="REDIS_PASSWORD and REDIS_PASSWORD_FILE are both given"):
        Broker.connect("redis://127.0.0.1:1/0")


@pytest.fixture
def sentinel(
    server: LocalBroker, secured: Secured, authority: Authority, client: Pair, tmp_path: Path
) -> Iterator[tuple[int, Authority]]:
    """One with an authority and a password of its own, which watches the server as a client of that one."""
    others = Authority(tmp_path, "sentinel-ca")
    own = Secured(tmp_path, authority, others.sign("sentinel"))
    both = tmp_path / "both.crt"
    both.write_bytes(authority.certificate.read_bytes() + others.certificate.read_bytes())
    flags = dict(zip(own.flags[::2], own.flags[1::2], strict=True)) | {"--tls-ca-cert-file": str(both)}
    flags |= {"--tls-client-cert-file": str(client.certificate), "--tls-client-key-file": str(client.key)}
    flags["--tls-auth-clients"] = "optional"
    lines = [f"{name[2:]} {value}" for name, value in flags.items()]
    lines += ["port 0", "bind 127.0.0.1", "requirepass sentinel-secret"]
    lines += [f"sentinel monitor fleet 127.0.0.1 {secured.port} 1"]
    config = tmp_path / "sentinel.conf"
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [server_binary("redis"), str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        yield own.port, others
    finally:
        process.kill()
        process.wait()


def _until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sentinel_has_tls_and_a_password_of_its_own(
    sentinel: tuple[int, Authority],
    authority: Authority,
    client: Pair,
    run_name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    port, others = sentinel
    servers = f"rediss+sentinel://127.0.0.1:{port}/fleet?{query(authority, client)}"
    url = f"{servers}&{query(others, None, 'sentinel_')}"
    password = tmp_path / "sentinel-password"
    password.write_text("sentinel-secret\n")
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD_FILE", str(password))

    def knows_its_master() -> bool:
        try:
            Broker.connect(url, max_retries=0).close()
        except BrokerUnavailable:
            return False
        return True

    _until(knows_its_master)
    works(url, run_name)
    with pytest.raises(BrokerUnavailable):
        Broker.connect(servers, max_retries=0)
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD_FILE", "")
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", "wrong")
    with pytest.raises((BrokerRefused, BrokerUnavailable)):
        Broker.connect(url, max_retries=0)
