"""Stores whose answer no waiting changes: a service says so and ends, rather than ask for ever."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.checkpoints.bucket_check import try_reading, try_writing
from asympo.common.errors import BadSetting
from asympo.common.object_store import ObjectStoreOptions

EMPTY = "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>"


class RefusingStore(ThreadingHTTPServer):
    """Lists nothing, and refuses to write; or refuses all."""

    status, code, lists = 501, "NotImplemented", True

    @property
    def options(self) -> ObjectStoreOptions:
        return ObjectStoreOptions(url="s3://bucket/prefix", endpoint=f"http://127.0.0.1:{self.server_port}")


class Handler(BaseHTTPRequestHandler):
    server: RefusingStore

    def answer(self) -> None:
        is_listed = self.command == "GET" and self.server.lists
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        error = f"<Error><Code>{self.server.code}</Code><Message>because</Message></Error>"
        content = (EMPTY if is_listed else error).encode()
        self.send_response(200 if is_listed else self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-amz-bucket-region", "elsewhere")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def store() -> Iterator[RefusingStore]:
    with RefusingStore(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "AuthorizationHeaderMalformed"), (301, "PermanentRedirect"), (400, "InvalidBucketName")],
)
def test_store_that_refuses_for_good_is_a_bad_setting(store: RefusingStore, status: int, code: str) -> None:
    store.status, store.code, store.lists = status, code, False
    with pytest.raises(BadSetting, match=rf"{code}.*check object_store"):
        try_reading(Bucket(store.options))


def test_store_that_says_that_it_has_no_conditional_writes_is_a_bad_setting(store: RefusingStore) -> None:
    with pytest.raises(BadSetting, match=r"NotImplemented.*conditional writes"):
        [*try_writing(Bucket(store.options))]


@pytest.mark.parametrize(
    ("given", "environment", "region"),
    [("here", "there", "here"), (None, "there", "there"), (None, None, "us-east-1")],
)
def test_region_is_the_given_one_or_else_the_environments(
    monkeypatch: pytest.MonkeyPatch, given: str | None, environment: str | None, region: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    if environment is not None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", environment)
    options = ObjectStoreOptions(url="s3://bucket", endpoint="http://127.0.0.1:1", region=given)
    assert Bucket(options)._client.meta.region_name == region
