"""`asympo checkpoint list|verify|best`: looks at the policies a run has published."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.directory import step_names
from asympo.common.checkpoints.links import file_of
from asympo.common.checkpoints.names import MANIFEST_NAME
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import read_manifest
from asympo.common.commands import write_json, write_table
from asympo.common.errors import BadSetting, CorruptCheckpoint, UnknownVersion
from asympo.ops.checkpoint.chosen import best_result


def list_policies(arguments: Namespace) -> int:
    """Manifests and sizes."""
    store = _store_of(arguments)
    rows = _described(store, with_digests=False)
    if arguments.json:
        for row in rows:
            write_json(row)
        return 0
    columns = ("name", "step", "fence", "kind", "MiB", "stored", "tensors", "published", "state")
    write_table(f"policies in {store.path}", columns, [[row[column] for column in columns] for row in rows])
    return 0


def verify(arguments: Namespace) -> int:
    """Every byte; 1 where one is wrong."""
    store = _store_of(arguments)
    rows = _described(store, with_digests=True, step=arguments.step)
    if not rows:
        raise BadSetting(f"there is no policy of step {arguments.step} in {store.path}")
    num_bad = sum(row["state"] != "verified" for row in rows)
    for row in rows:
        if arguments.json:
            write_json(row)
        else:
            sys.stdout.write(f"{row['name']}: {row['state']}\n")
    if num_bad and not arguments.json:
        sys.stdout.write(f"{num_bad} of {len(rows)} policies are damaged; readers pass them over\n")
    return 1 if num_bad else 0


def best(arguments: Namespace) -> int:
    """By the results that the evaluator wrote."""
    store = _store_of(arguments)
    found = best_result(arguments)
    kept = [
        each
        for each in step_names(store.path)
        if each.sequence is None
        and each.step == found.policy_step
        and found.policy_fence in (None, each.fence)
    ]
    newest = max(kept, key=lambda each: each.fence, default=None)
    row = {
        "eval": found.eval,
        "step": found.policy_step,
        "mean": found.mean.value,
        "path": str(store.path / str(newest)) if newest else None,
    }
    if arguments.json:
        write_json(row)
    else:
        where = str(row["path"] or "pruned: learner.keep_best keeps the best one")
        if newest and _is_delta(_stored(store.path / str(newest))):
            where += ", as a difference: `asympo checkpoint export best` writes it whole"
        sys.stdout.write(
            f"step {found.policy_step}: {found.eval} mean@{found.samples} {found.mean}; {where}\n"
        )
    return 0


def _store_of(arguments: Namespace) -> PolicyStore:
    store = open_policies(arguments.checkpoint_root, arguments.run)
    if not store.path.is_dir():
        raise BadSetting(f"there are no policies in {store.path}: check --run and --checkpoint-root")
    return store


def _described(store: PolicyStore, *, with_digests: bool, step: int | None = None) -> list[dict[str, Any]]:
    rows = []
    for name in step_names(store.path):
        if name.sequence is not None or (step is not None and name.step != step):
            continue
        path = store.path / str(name)
        row: dict[str, Any] = {"name": str(name), "step": name.step, "fence": name.fence}
        row |= {"kind": None, "MiB": None, "stored": None, "tensors": None, "published": None}
        try:
            manifest = read_manifest(path, POLICIES)
            stored = _stored(path)
            row |= {
                "kind": "delta" if _is_delta(stored) else manifest.kind,
                "MiB": round(manifest.size_bytes / 2**20, 1),
                "stored": round(sum(stored.values()) / 2**20, 1),
                "tensors": len(manifest.tensors),
                "published": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime)),
            }
            store.look(name, with_digests=with_digests)
            row["state"] = "verified" if with_digests else "complete"
        except (CorruptCheckpoint, UnknownVersion) as error:
            row["state"] = str(error)
        rows.append(row)
    return rows


def _stored(path: Path) -> dict[str, int]:
    """Bytes of what lies in the directory of a policy beside its manifest, by name."""
    return {each.name: each.stat().st_size for each in path.iterdir() if each.name != MANIFEST_NAME}


def _is_delta(stored: Iterable[str]) -> bool:
    return any(file_of(each) != each for each in stored)
