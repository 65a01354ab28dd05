"""`asympo checkpoint list|verify|best`: looks at the policies a run has published."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.links import file_of
from asympo.common.checkpoints.names import MANIFEST_NAME
from asympo.common.checkpoints.opening import open_policies
from asympo.common.commands import write_json, write_table
from asympo.common.errors import BadSetting, CorruptCheckpoint, UnknownVersion
from asympo.common.settings import object_store_of
from asympo.ops.access import CHECK_PLACE
from asympo.ops.checkpoint.chosen import best_result


def list_policies(arguments: Namespace) -> int:
    """Manifests and sizes."""
    store = _store_of(arguments)
    rows = _described(store, arguments, with_digests=False)
    if arguments.json:
        for row in rows:
            write_json(row)
        return 0
    columns = ["name", "step", "fence", "kind", "MiB", "stored", "tensors", "published", "state"]
    if _is_in_bucket(arguments):
        columns = [column for column in columns if column not in ("stored", "published")]
    write_table(f"policies in {store.path}", columns, [[row[column] for column in columns] for row in rows])
    return 0


def verify(arguments: Namespace) -> int:
    """Every byte; 1 where one is wrong."""
    if _is_in_bucket(arguments):
        # Copies that are here already say nothing of the bucket.
        with TemporaryDirectory(prefix="asympo-verify-") as room:
            store = open_policies(Path(room), arguments.run, object_store_of(arguments), cached=2)
            rows = _described(store, arguments, with_digests=True, step=arguments.step)
    else:
        store = _store_of(arguments)
        rows = _described(store, arguments, with_digests=True, step=arguments.step)
    if not rows:
        step = "" if arguments.step is None else f" of step {arguments.step}"
        raise BadSetting(f"run {arguments.run} has no policy{step} there: check --run and where it is")
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
        for each in store.names()
        if each.step == found.policy_step and found.policy_fence in (None, each.fence)
    ]
    newest = max(kept, key=lambda each: each.fence, default=None)
    where = newest and ("" if _is_in_bucket(arguments) else f"{store.path}/") + str(newest)
    row = {"eval": found.eval, "step": found.policy_step, "mean": found.mean.value, "path": where}
    if arguments.json:
        write_json(row)
    else:
        where = where or "pruned: learner.keep_best keeps the best one"
        if newest and _is_in_bucket(arguments):
            where += " in the object store: `asympo checkpoint export best` brings it"
        elif newest and _as_it_lies(store.path / str(newest), "full")["kind"] == "delta":
            where += ", as a difference: `asympo checkpoint export best` writes it whole"
        sys.stdout.write(
            f"step {found.policy_step}: {found.eval} mean@{found.samples} {found.mean}; {where}\n"
        )
    return 0


def _is_in_bucket(arguments: Namespace) -> bool:
    options = object_store_of(arguments)
    return options is not None and options.is_given


def _store_of(arguments: Namespace) -> PolicyStore:
    store = open_policies(arguments.checkpoint_root, arguments.run, object_store_of(arguments))
    if not _is_in_bucket(arguments) and not store.path.is_dir():
        raise BadSetting(f"there are no policies in {store.path}: {CHECK_PLACE}")
    return store


def _described(
    store: PolicyStore, arguments: Namespace, *, with_digests: bool, step: int | None = None
) -> list[dict[str, Any]]:
    rows = []
    for name in store.names():
        if step is not None and name.step != step:
            continue
        row: dict[str, Any] = {"name": str(name), "step": name.step, "fence": name.fence}
        row |= {"kind": None, "MiB": None, "stored": None, "tensors": None, "published": None}
        try:
            manifest = store.manifest(name)
            row |= {
                "kind": manifest.kind,
                "MiB": round(manifest.size_bytes / 2**20, 1),
                "tensors": len(manifest.tensors),
            }
            if not _is_in_bucket(arguments):
                row |= _as_it_lies(store.path / str(name), manifest.kind)
            store.look(name, with_digests=with_digests)
            row["state"] = "verified" if with_digests else "complete"
        except (CorruptCheckpoint, UnknownVersion) as error:
            if name not in store.names():
                # Pruned meanwhile.
                continue
            row["state"] = str(error)
        rows.append(row)
    return rows


def _as_it_lies(path: Path, kind: str) -> dict[str, Any]:
    """What only a directory tells; CorruptCheckpoint."""
    try:
        stored, published = _stored(path), path.stat().st_mtime
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    return {
        "kind": "delta" if _is_delta(stored) else kind,
        "stored": round(sum(stored.values()) / 2**20, 1),
        "published": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(published)),
    }


def _stored(path: Path) -> dict[str, int]:
    """Bytes of what lies in the directory of a policy beside its manifest, by name."""
    return {each.name: each.lstat().st_size for each in path.iterdir() if each.name != MANIFEST_NAME}


def _is_delta(stored: Iterable[str]) -> bool:
    return any(file_of(each) != each for each in stored)
