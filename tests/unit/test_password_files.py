"""Files with the password of a broker: of services (REDIS_PASSWORD_FILE) and of `asympo log acl`."""

import hashlib
from argparse import Namespace
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.common.rollout_log import Broker
from asympo.common.rollout_log.broker.client import PasswordFile
from asympo.ops import broker_users
from redis import exceptions

NO_PASSWORDS = {
    "empty": b"",
    "line ends": b"\n",
    "two lines": b"first\nsecond\n",
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(16),
    "too long": b"x" * 5000,
}


def acl(path: Path) -> int:
    return broker_users.main(Namespace(run=["r"], role="generator", user=None, password_file=path))


@pytest.fixture(params=[*NO_PASSWORDS, "missing", "directory", "not ours to read", "endless"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "password"
    if request.param in NO_PASSWORDS:
        path.write_bytes(NO_PASSWORDS[request.param])
    elif request.param == "directory":
        path.mkdir()
    elif request.param == "not ours to read":
        return Path("/proc/1/mem")
    elif request.param == "endless":
        return Path("/dev/zero")
    return path


def test_file_without_a_password_is_named(unusable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSetting, match=rf"^--password-file is {unusable}, which (holds no|cannot be)"):
        acl(unusable)
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(unusable))
    with pytest.raises(BadSetting, match=rf"^REDIS_PASSWORD_FILE is {unusable}, which (holds no|cannot be)"):
        Broker.connect("redis://127.0.0.1:1/0")
    # Once connected, a file that is being replaced is read again.
    with pytest.raises(exceptions.ConnectionError):
        PasswordFile(user="u", path=str(unusable)).get_credentials()


@pytest.mark.parametrize("content", ["secret", "secret\n", "secret\r\n"])
def test_end_of_the_line_belongs_to_no_password(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content.encode())
    assert PasswordFile(user=None, path=str(path)).get_credentials() == ("secret",)
    assert acl(path) == 0
    printed = capsys.readouterr()
    assert f"#{hashlib.sha256(b'secret').hexdigest()}" in printed.out
    assert printed.out.count("\n") == 1
    assert "user default off allkeys allchannels +@all" in printed.err
