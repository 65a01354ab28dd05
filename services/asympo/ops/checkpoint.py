"""`asympo checkpoint list|verify|best`: looks at the policies a run has published."""

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.directory import step_names
from asympo.common.checkpoints.opening import open_policies
from asympo.common.checkpoints.store import POLICIES
from asympo.common.checkpoints.verify import read_manifest, verify_step
from asympo.common.commands import CommandParser, write_json, write_table
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.common.rollout_log.evals.result import best_of
from asympo.ops.access import add_checkpoint_root_flag
from asympo.run.report.evals import RESULTS, read_results


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo checkpoint", description="The policies that a run has published.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("list", "published policies; sizes are checked, contents are not"),
        ("verify", "read every byte and compare it with the manifest"),
        ("best", "the policy that an evaluation likes best"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--run", required=True, metavar="RUN")
        add_checkpoint_root_flag(verb)
        verb.add_argument(
            "--json", action="store_true", help="print one JSON object per line and nothing else"
        )
        if name == "verify":
            verb.add_argument("--step", type=int, help="only the policies of this step")
        if name == "best":
            verb.add_argument("--eval", metavar="NAME", help="needed if there are several evaluations")
            verb.add_argument(
                "--results",
                type=Path,
                metavar="FILE",
                help="what the evaluator wrote; none: the run's own",
            )
    arguments = parser.parse_args(argv)
    store = open_policies(arguments.checkpoint_root, arguments.run)
    if not store.path.is_dir():
        raise BadSetting(f"there are no policies in {store.path}: check --run and --checkpoint-root")
    # What does not verify is part of the answer here, not a line of the log.
    logging.getLogger("asympo").setLevel(logging.ERROR)
    return {"list": _list, "verify": _verify, "best": _best}[arguments.verb](store, arguments)


def _list(store: PolicyStore, arguments: Namespace) -> int:
    rows = [row for row in _described(store, with_digests=False) if row]
    if arguments.json:
        for row in rows:
            write_json(row)
        return 0
    columns = ("name", "step", "fence", "kind", "MiB", "tensors", "published", "state")
    write_table(f"policies in {store.path}", columns, [[row[column] for column in columns] for row in rows])
    return 0


def _verify(store: PolicyStore, arguments: Namespace) -> int:
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


def _best(store: PolicyStore, arguments: Namespace) -> int:
    file = arguments.results or store.path.parent / RESULTS
    results = read_results(file)
    if not results:
        raise BadSetting(f"{file} holds no results: give the file of the evaluator's setting results")
    names = list(dict.fromkeys(each.eval for each in results))
    name = arguments.eval or names[0]
    if name not in names or (arguments.eval is None and len(names) > 1):
        raise BadSetting(f"{file} holds the evaluations {', '.join(names)}: give one with --eval")
    best = best_of(results, name)
    if best is None:
        raise BadSetting(
            f"no result of {name} belongs to a single policy: give the evaluator an engine of its own"
        )
    kept = [
        each for each in step_names(store.path) if each.sequence is None and each.step == best.policy_step
    ]
    newest = max(kept, key=lambda each: each.fence, default=None)
    row = {
        "eval": name,
        "step": best.policy_step,
        "mean": best.mean.value,
        "path": str(store.path / str(newest)) if newest else None,
    }
    if arguments.json:
        write_json(row)
    else:
        where = row["path"] or "pruned: learner.keep_best keeps the best one"
        sys.stdout.write(f"step {best.policy_step}: {name} mean@{best.samples} {best.mean}; {where}\n")
    return 0


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
            row["state"] = "verified" if with_digests else "complete"
        except CorruptCheckpoint as error:
            row["state"] = str(error)
        rows.append(row)
    return rows
