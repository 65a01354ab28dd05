"""Downloads through a connection that breaks again and again."""

import socket
import threading
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.object_store import ObjectStoreOptions

CUT_AFTER = 300_000


class CuttingRelay:
    """Relays to a server, and ends connections after so many bytes of answers, up to `num_cuts` of them."""

    def __init__(self, endpoint: str, *, num_cuts: int) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self._left, self.num_cuts, self.num_bytes = num_cuts, 0, 0
        self._lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            threading.Thread(target=self._relay, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, CUT_AFTER), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while content := source.recv(65536):
                target.sendall(content)
                passed += len(content)
                if limit is not None:
                    with self._lock:
                        self.num_bytes += len(content)
                        if passed > limit and self._left:
                            self._left -= 1
                            self.num_cuts += 1
                            break
        except OSError:
            # One side is gone; the other is told below.
            pass
        for each in (source, target):
            with suppress(OSError):
                # The thread of the other direction waits for it.
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def content(bucket: Bucket, run_name: str, tmp_path: Path) -> tuple[str, bytes]:
    path, key = tmp_path / "object", f"{run_name}/object"
    path.write_bytes(bytes(range(256)) * 9000)
    bucket.upload({key: path})
    return key, path.read_bytes()


@pytest.mark.parametrize("is_hopeless", [False, True])
def test_download_goes_on_where_its_connection_broke(
    options: ObjectStoreOptions, content: tuple[str, bytes], tmp_path: Path, is_hopeless: bool
) -> None:
    key, wanted = content
    assert options.endpoint is not None
    relay = CuttingRelay(options.endpoint, num_cuts=3)
    with closing(relay.listener):
        through = Bucket(options.model_copy(update={"endpoint": relay.endpoint}))
        if is_hopeless:
            with pytest.raises(StoreError, match="nothing-there"):
                through.download({f"{key}/nothing-there": tmp_path / "copy"})
        else:
            through.download({key: tmp_path / "copy"})
            assert (tmp_path / "copy").read_bytes() == wanted
            assert relay.num_cuts == 3
            assert relay.num_bytes < 1.3 * len(wanted), "nothing that had come was brought again"
