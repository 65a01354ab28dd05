"""Doors on storage: directories beside the run's own, and rows of a task."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

from asympo.chaos.hostile.doors import Door, Misbehaved, in_short
from asympo.chaos.hostile.garbage import LARGE_BYTES, Garbage
from asympo.common.checkpoints.names import MAX_FENCE
from asympo.common.errors import BadSetting
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task

_MAX_SECONDS = 5.0
_KINDS = ("policy", "train", "archive", "")


class FileDoors:
    """Both of them."""

    def __init__(self, *, run_directory: Path, scratch: Path) -> None:
        self._run_directory = run_directory
        self._scratch = scratch

    @property
    def all(self) -> list[Door]:
        return [Door(name="checkpoint root", put=self._strange), Door(name="task rows", put=self._rows)]

    async def _strange(self, garbage: Garbage) -> str:
        rng = garbage.rng
        parent = self._run_directory / rng.choice(_KINDS)
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / _name(garbage)
        try:
            if rng.random() < 0.2:
                path.symlink_to(rng.choice(("/dev/zero", "/", str(path), "/nowhere")))
                return "symbolic link"
            if rng.random() < 0.1:
                path.write_bytes(garbage.data())
                return "file in place of a directory"
            path.mkdir()
            if rng.random() < 0.3:
                return "empty directory"
            (path / "manifest.json").write_bytes(garbage.document())
            if rng.random() < 0.5:
                name = rng.choice(("model.safetensors", "rank-00000.safetensors", "config.json", "x.pkl"))
                (path / name).write_bytes(garbage.data()[:LARGE_BYTES])
            return "directory with a manifest"
        except (OSError, ValueError) as error:
            return f"no such name: {in_short(getattr(error, 'strerror', error))}"

    async def _rows(self, garbage: Garbage) -> str:
        rng = garbage.rng
        path = self._scratch / "rows.jsonl"
        rows = [b'{"prompt": "1 + 1?", "answer": "2"}', *(garbage.document() for _ in range(3))]
        if rng.random() < 0.3:
            rows.append(b'{"prompt": ' + garbage.document() + b', "answer": "2"}')
        rng.shuffle(rows)
        path.write_bytes(b"\n".join(rows))
        kind = rng.choice((("jsonl", "path"), ("data", "data")))
        config = TaskConfig.model_validate({"name": kind[0], kind[1]: str(path)})
        begun = time.monotonic()
        try:
            task = await asyncio.to_thread(load_task, config)
            said = f"read: {len(task)} rows"
        except BadSetting as error:
            said = f"refused: {in_short(str(error).replace(str(path), 'file'))}"
        except Exception as error:
            raise Misbehaved(f"rows of a task are met with {error!r}"[:500]) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if time.monotonic() - begun > _MAX_SECONDS:
            raise Misbehaved(f"rows of a task took {time.monotonic() - begun:.1f} s")
        return said


def _name(garbage: Garbage) -> str:
    rng = garbage.rng
    step, fence = rng.randrange(10**6), rng.choice((1, 2, 9_000, 10**6, MAX_FENCE, 10**20))
    return rng.choice(
        (
            f"step-{step:08d}-f{fence:04d}",
            f"step-{step:08d}-f{fence:04d}-n{rng.randrange(10**6):012d}",
            f"step-{'9' * 60}-f0001",
            f".tmp-step-{step:08d}-f{fence:04d}-{rng.randrange(16**16):016x}",
            f".trash-step-{step:08d}-f{fence:04d}-{rng.randrange(16**16):016x}",
            f"step-{step:08d}-f{fence:04d}.retained",
            f"decisions-f{fence:04d}-n{step:04d}.json",
            "step-\x1b[31m",
            garbage.text()[:80] or "x",
        )
    )
