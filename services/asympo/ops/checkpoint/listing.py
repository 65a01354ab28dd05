"""`asympo checkpoint list|verify|best`: looks at the policies a run has published."""

import sys
import time
from argparse import Namespace
from typing import Any

from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.directory import step_names
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import read_manifest, verify_step
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
    columns = ("name", "step", "fence", "kind", "MiB", "tensors", "published", "state")
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
        each for each in step_names(store.path) if each.sequence is None and each.step == found.policy_step
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
        where = row["path"] or "pruned: learner.keep_best keeps the best one"
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
        row |= {"kind": None, "MiB": None, "tensors": None, "published": None}
        try:
            manifest = read_manifest(path, POLICIES)
            row |= {
                "kind": manifest.kind,
                "MiB": round(manifest.size_bytes / 2**20, 1),
                "tensors": len(manifest.tensors),
                "published": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime)),
            }
            verify_step(path, POLICIES, with_digests=with_digests)
            if with_digests:
                store.check_merge(manifest)
            row["state"] = "verified" if with_digests else "complete"
        except (CorruptCheckpoint, UnknownVersion) as error:
            row["state"] = str(error)
        rows.append(row)
    return rows
