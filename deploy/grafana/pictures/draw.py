"""Draws recorded dashboards: a small page of Grafana's UI components in headless Chromium."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

SOURCE = Path(__file__).parent
CACHE = SOURCE.parents[2] / ".cache/dashboard-pictures"
_PAGE = ("package.json", "package-lock.json", "index.html", "page.jsx", "vite.config.js")
_WIDTH, _ROW, _GAP = 1392, 30, 8
"""As the page has them, in pixels."""
_NUM_COLOURS = 128


def draw(data: dict[str, Any], folder: Path) -> list[Path]:
    """One picture for each dashboard; raises CalledProcessError when a tool fails."""
    page = _built_page()
    (page / "data.json").write_text(json.dumps(data))
    pictures = []
    with _served(page) as address:
        for name, board in data["boards"].items():
            picture = folder / f"dashboard-{name}.png"
            _photograph(f"{address}/index.html?{name}", picture, height=_height(board))
            pictures.append(picture)
    return pictures


def _built_page() -> Path:
    """The page as Vite builds it, from locked packages; built anew when its source has changed."""
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in _PAGE)).hexdigest()[:16]
    built = CACHE / "dist" / digest
    if (built / "index.html").exists():
        return built
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()[:16]
    for name in _PAGE:
        shutil.copyfile(SOURCE / name, CACHE / name)
    stamp = CACHE / f".stamp-{lock}"
    if not stamp.exists():
        # Not `npm ci`: that refuses a lock without the builds for platforms which the registry did not offer.
        install = ["npm", "install", "--no-save", "--legacy-peer-deps", "--ignore-scripts"]
        install += ["--no-audit", "--no-fund"]
        subprocess.run(install, cwd=CACHE, check=True)
        stamp.touch()
    build = [
        *("node", "node_modules/vite/bin/vite.js", "build"),
        *("--outDir", str(built), "--logLevel", "error"),
    ]
    subprocess.run(build, cwd=CACHE, check=True)
    return built


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the page's requests are of no interest."""


def _height(board: dict[str, Any]) -> int:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    return int(rows * (_ROW + _GAP) + _GAP)


def _photograph(url: str, path: Path, *, height: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium: apt-get install --no-install-recommends chromium")
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += ["--hide-scrollbars", f"--window-size={_WIDTH},{height}", "--virtual-time-budget=10000"]
        flags += [f"--user-data-dir={scratch}/profile", f"--screenshot={shot}", url]
        subprocess.run(
            [browser, *flags],
            check=True,
            timeout=120,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TZ": "UTC"},
        )
        # Few colours: a fraction of the size, and no visible difference.
        Image.open(shot).convert("RGB").quantize(_NUM_COLOURS).save(path, optimize=True)
