"""Records of a run as a release left it, and how a test puts them back.

`python -m tests.compat.recording tests/compat/v0.2` records one of the code as it is: the last thing before a
release. The folder of the release before the last is deleted then. Nothing else writes there.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asympo.common.codec import encode_group
from asympo.common.rollout_log import Broker, CopiedPiece, Lease, RunLog
from asympo.common.rollout_log.lua import load_script, script_names
from asympo.common.settings import dump_toml, iter_options
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.tasks.base import Task
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import start_broker, valkey_binary
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer, make_group

RUN = "recorded"
ROOT = "@ROOT@"
"""Stands in the record for the directory that it lies in."""
TASK_ROWS = [{"prompt": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(60)]
FLAGS = (
    *(
        "--retain",
        "--num-epochs",
        "1",
        "--keep-states",
        "1",
        "--keep-policies",
        "2",
        "--share-prefixes",
        "never",
    ),
    *("--task.name", "jsonl", "--task.held-out-fraction", "0"),
)


def task_flags(root: Path) -> tuple[str, ...]:
    return ("--task.path", str(root / "rows.jsonl"))


def recorded_pieces(record: Path, *, root: Path) -> Iterator[CopiedPiece]:
    """The run's keys as if `root` were where they were written."""
    for line in (record / "broker.jsonl").read_text().splitlines():
        row = json.loads(line)
        items = tuple(
            bytes.fromhex(item[1]) if isinstance(item, list) else item.encode() for item in row["items"]
        )
        items = tuple(item.replace(ROOT.encode(), str(root).encode()) for item in items)
        yield CopiedPiece(noun=row["noun"], kind=row["kind"], place=row["place"], items=items)


def put_back(record: Path, *, root: Path, url: str) -> None:
    """Broker and storage of the recorded run."""
    shutil.copytree(record / "storage", root, dirs_exist_ok=True)
    broker = Broker.connect(url)
    RunLog(broker, RUN).copies.put_back(recorded_pieces(record, root=root))
    broker.close()


def _record_broker(log: RunLog, record: Path, *, root: Path) -> None:
    rows = []
    for piece in log.copies.read():
        items = [item.replace(str(root).encode(), ROOT.encode()) for item in piece.items]
        shown = [_shown(item) for item in items]
        rows.append({"noun": piece.noun, "kind": piece.kind, "place": piece.place, "items": shown})
    (record / "broker.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _shown(item: bytes) -> str | list[str]:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return ["hex", item.hex()]


def _record_run(record: Path) -> None:
    """A learner killed behind its last commit, with groups open, a backlog and two leases out."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        # Tens of kilobytes, so that it can be committed.
        write_tiny_model(root / "model", hidden_size=8, head_size=8, num_layers=1, vocabulary_size=259)
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TASK_ROWS))
        server = start_broker(valkey_binary(), root / "broker")
        broker = Broker.connect(server.url)
        log = RunLog(broker, RUN)
        learner = LearnerProcess(
            url=server.url, run=RUN, root=root, model=root / "model", flags=(*FLAGS, *task_flags(root))
        )
        with Producer(url=server.url, run=RUN, hostile_every=7):
            learner.start()
            learner.until(lambda: learner.reached(5), seconds=600)
        learner.until(lambda: log.stats.read().open <= 3, seconds=600)
        learner.end(signal.SIGKILL)
        _leave_work_behind(log)
        _record_broker(log, record, root=root)
        server.kill()
        for name in ("model", "rows.jsonl", RUN):
            target = record / "storage" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, target)


def _leave_work_behind(log: RunLog) -> None:
    """One group more in the log, and two prompts leased to somebody who is gone."""
    policy = log.policies.latest()
    assert policy is not None
    leases = [log.leases.acquire(holder="left-behind", policy_step=policy.step) for _ in range(3)]
    answered = leases[0]
    assert all(isinstance(lease, Lease) for lease in leases)
    assert isinstance(answered, Lease)
    log.leases.append(answered, encode_group(make_group(answered.group_id)), producer="left-behind")


def _record_settings(record: Path) -> None:
    """Every setting that there is, by name and in a file."""
    names = {}
    for kind in (LearnerSettings, GeneratorSettings):
        names[kind.service] = [".".join(option.path) for option in iter_options(kind)]
        values = kind().model_dump(mode="json")
        (record / f"{kind.service}.toml").write_text(dump_toml(values, comment=f"asympo {kind.service}"))
    (record / "setting_names.json").write_text(json.dumps(names, indent=1) + "\n")


def _digests() -> dict[str, str]:
    tasks: list[Task] = [load_task(TaskConfig.model_validate({"name": "addition"}))]
    return {task.name: task.digest for task in tasks}


def main(record: Path) -> None:
    """Writes the whole record."""
    record.mkdir(parents=True)
    _record_run(record)
    _record_settings(record)
    (record / "task_digests.json").write_text(json.dumps(_digests(), indent=1) + "\n")
    (record / "payload.bin").write_bytes(encode_group(make_group("0-1")))
    shutil.copy("helm/asympo/values.yaml", record / "values.yaml")
    (record / "scripts").mkdir()
    # Those of a backup are run by hand and not by a part of the other release.
    for name in set(script_names()) - {"copy", "put_back"}:
        (record / "scripts" / f"{name}.lua").write_text(load_script(name).source)
    subprocess.run(["du", "-sh", str(record)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
