"""The rows of an environment, written down once: they are the task's prompts."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from asympo.common.errors import BadSetting
from asympo.local.whole_file import write_whole
from asympo.tasks.base import held_out_keys
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player.stage import given_of
from asympo.tasks.environments.player_command import player_command

_LOAD_SECONDS = 300.0


def write_rows(python: Path, task: TaskConfig, out: Path, *, holds_out: bool) -> None:
    """Has the environment write them; `holds_out` marks a share of them, unless it has a split of its own.

    A file that is there stays: its run was created with it. Raises BadSetting.
    """
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    # The name is taken once all is there: whoever is stopped in between begins anew.
    draft = out.with_suffix(".draft")
    _run(player_command(python, task, "rows", str(draft)), task.environment)
    if not draft.exists():
        raise BadSetting(f"the environment {task.environment} wrote no rows")
    text = draft.read_text()
    write_whole(out, _with_held_out(task, text) if holds_out else text)
    draft.unlink()


def _with_held_out(task: TaskConfig, text: str) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    if any(row.get("held_out") for row in rows):
        return text
    # All of a row: many environments ask the same of every row, and hide what differs. As earlier versions
    # wrote it, so that a run whose file was lost holds out what it did.
    asked = [json.dumps(given_of(row) | {"prompt": row["prompt"]}, sort_keys=True) for row in rows]
    chosen = held_out_keys(asked, fraction=task.held_out_fraction, seed=task.seed)
    for row, key in zip(rows, asked, strict=True):
        if key in chosen:
            row["held_out"] = True
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _run(command: Sequence[str], name: str | None) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadSetting(f"the environment {name} did not load within {_LOAD_SECONDS:.0f} s") from error
    except OSError as error:
        raise BadSetting(f"the environment's Python {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BadSetting(f"the environment {name} cannot be loaded by {command[0]}: {said}")
