"""`events.jsonl`: what happened to a run that a person may want to know next morning, one line each."""

import json
import time
from pathlib import Path
from typing import Any

from asympo.common.jsonl import read_jsonl
from asympo.common.redaction import redact_text

_NAME = "events.jsonl"
_MAX_BYTES = 2 * 2**20


def write_event(directory: Path, text: str, *, kind: str = "note") -> None:
    """Appends one event; past 2 MiB the older half goes. A full disk must not end a run: it is left out."""
    path = directory / _NAME
    line = json.dumps({"at_seconds": round(time.time(), 3), "kind": kind, "text": redact_text(text)}) + "\n"
    try:
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            lines = path.read_text(errors="replace").splitlines(keepends=True)
            path.write_text("".join(lines[len(lines) // 2 :]))
        with path.open("a") as out:
            out.write(line)
    except OSError:
        # The same text goes to the terminal and to supervisor.log.
        return


def read_events(directory: Path) -> list[dict[str, Any]]:
    """All events in order; a torn line is left out."""
    return list(read_jsonl(directory / _NAME))
