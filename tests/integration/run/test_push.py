"""checkpoint export --push, against a hub on loopback that takes uploads as the real one does."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asympo.common.checkpoints import PolicyStore
from huggingface_hub import constants

from tests.integration.run import test_checkpoints
from tests.integration.run.test_checkpoints import Asympo

asympo, store = test_checkpoints.asympo, test_checkpoints.store
TOKEN = "hf_of_the_test"


class Hub:
    """What a hub was given."""

    def __init__(self) -> None:
        self.address = ""
        self.tokens: set[str | None] = set()
        self.repositories: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.committed: dict[str, bytes] = {}
        self.is_full = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if method == "PUT":
            self.objects[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories[name] = asked["visibility"]
            return 200, {"url": f"{self.address}/{name}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            for each in files:
                each["uploadMode"] = "lfs" if each["path"].endswith("safetensors") else "regular"
                each["shouldIgnore"] = False
            return 200, {"files": files}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.address}/put/{each['oid']}"}}
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            return self._commit(body)
        is_known = path.removeprefix("/api/models/").partition("?")[0] in self.repositories
        return (200 if is_known or method == "POST" else 404), {"id": "a/b"}

    def _commit(self, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.is_full:
            return 403, {"error": "this account is full"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.committed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.committed[value["path"]] = self.objects[value["oid"]]
        return 200, {"commitUrl": f"{self.address}/a/b/commit/1", "commitOid": "1"}


@contextlib.contextmanager
def served() -> Iterator[Hub]:
    hub = Hub()

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "/repos/create" in self.path or "/commit/" in self.path:
                hub.tokens.add(self.headers.get("Authorization"))
            status, answer = hub.answer(self.command, self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """That of this process: its library has read the environment already. With a token for it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN)
    with served() as hub:
        for name, value in (
            ("ENDPOINT", hub.address),
            ("HF_TOKEN_PATH", str(tmp_path / "token")),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(constants, name, value)
        yield hub


def test_export_is_pushed_whole_to_a_new_private_repository(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, hub: Hub
) -> None:
    code, out, err = asympo("export", "1", "--to", str(tmp_path / "out"), "--push", "me/sums", "--json")
    assert code == 0, err
    assert json.loads(out)["pushed"] == f"{hub.address}/me/sums"
    assert hub.repositories == {"me/sums": "private"}
    assert hub.committed == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in out + err
    code, _, err = asympo("export", "1", "--to", str(tmp_path / "again"), "--push", "me/sums")
    assert (code, err.count("\n")) == (2, 1)
    assert "exists on the hub" in err
    (tmp_path / "token").unlink()
    code, _, err = asympo("export", "1", "--to", str(tmp_path / "again"), "--push", "me/others")
    assert (code, err.count("\n")) == (2, 1)
    assert "HF_TOKEN" in err
    assert not (tmp_path / "again").exists()


def test_export_that_the_hub_does_not_take_stays_here(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, hub: Hub
) -> None:
    hub.is_full = True
    code, _, err = asympo("export", "1", "--to", str(tmp_path / "out"), "--push", "me/sums")
    assert (code, err.count("\n")) == (1, 1)
    assert "is complete and could not be pushed" in err
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("name", ["sums", "a/b/c", "../sums", "me/su ms"])
def test_name_that_is_no_repository_is_refused(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, name: str
) -> None:
    code, _, err = asympo("export", "1", "--to", str(tmp_path / "out"), "--push", name)
    assert (code, err.count("\n")) == (2, 1)
    assert "give owner/name" in err
    assert not (tmp_path / "out").exists()
