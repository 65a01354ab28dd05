"""One S3 server and one bucket for all tests here; they keep apart by run names."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.checkpoints.store import PolicyStore
from asympo.common.object_store import ObjectStoreOptions

from tests.object_store import CREDENTIALS, ObjectServer
from tests.object_store_victim import policies_in

Opener = Callable[..., PolicyStore]


@pytest.fixture(autouse=True, scope="session")
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = ObjectServer(tmp_path_factory.mktemp("object-server") / "log").start()
    try:
        yield server.wait_until_ready()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def options(server: ObjectServer) -> ObjectStoreOptions:
    return server.options("checkpoints")


@pytest.fixture(scope="session")
def bucket(options: ObjectStoreOptions, credentials: None) -> Bucket:
    """Connections are expensive to set up, so all tests share them."""
    return Bucket(options)


@pytest.fixture
def open_store(bucket: Bucket, run_name: str, tmp_path: Path) -> Opener:
    """A store as one machine has it: its own disk."""

    def opener(
        machine: str, *, cached: int = 3, through: Bucket | None = None, keyframe_every: int = 1
    ) -> PolicyStore:
        return policies_in(
            through or bucket, tmp_path / machine, run_name, cached=cached, keyframe_every=keyframe_every
        )

    return opener
