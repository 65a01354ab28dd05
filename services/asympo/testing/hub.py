"""A model hub on loopback, so that the pod that fetches a model has somewhere to fetch it from."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def serve(directory: Path, *, repository: str, revision: str, address: str = "127.0.0.1") -> Iterator[str]:
    """The URL under which `directory` is served as `repository` at `revision`."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api = f"/api/models/{repository}"
            if self.path.startswith(f"{api}/revision/{revision}"):
                siblings = [{"rfilename": name} for name in files]
                self.reply(json.dumps({"id": repository, "sha": revision, "siblings": siblings}).encode())
            elif self.path.startswith(f"{api}/tree/{revision}"):
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": ""}
                    for name, content in files.items()
                ]
                self.reply(json.dumps(tree).encode())
            else:
                content = files.get(self.path.rpartition("/")[2])
                self.reply(content or b"", status=404 if content is None else 200)

        do_HEAD = do_GET

        def reply(self, content: bytes, *, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", revision)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
