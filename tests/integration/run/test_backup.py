"""`asympo backup` of a run that goes on, and `asympo restore` of it after everything was lost."""

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from asympo.chaos.auditor import audit
from asympo.chaos.evidence import Acknowledged, Rollback, read_archive, read_trained
from asympo.cli import main
from asympo.common.checkpoints.opening import open_policies
from asympo.common.rollout_log import Broker, RunLog, RunState
from asympo.local.broker import LocalBroker
from asympo.run.directory import RunDirectory

from tests.integration.learner.process import STARTED, LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.rollout_log.conftest import must_append, must_lease, start_run
from tests.integration.test_checkpoint_faults import max_file_bytes
from tests.integration.test_checkpoint_store import publish

RUN = "kept"
NUM_PROMPTS = 60


@pytest.fixture(autouse=True)
def no_learner_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()


@pytest.fixture
def log(own_broker: LocalBroker) -> Iterator[RunLog]:
    broker = Broker.connect(own_broker.url)
    yield RunLog(broker, RUN)
    broker.close()


def acknowledged(producer: Producer) -> list[Acknowledged]:
    return [
        Acknowledged(
            group_id=group_id,
            sequence=sequence,
            digest=hashlib.sha256(payload).hexdigest(),
            producer="producer",
            at_seconds=0.0,
        )
        for group_id, sequence, payload in producer.acknowledged
    ]


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    """What a command says with --json."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


@pytest.mark.timeout(400)
def test_run_that_lost_broker_and_storage_goes_on_from_its_backup(
    own_broker: LocalBroker, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    asked = [{"prompt": f"{number} + 1 = ?", "answer": str(number + 1)} for number in range(NUM_PROMPTS)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    flags = (
        *("--task.name", "jsonl", "--task.path", str(rows), "--task.held-out-fraction", "0"),
        *("--num-epochs", "1", "--retain", "--share-prefixes", "never"),
        *("--max-groups-per-step", "6"),  # ten steps at least, however fast the producer is
    )
    root, out = tmp_path / "runs", tmp_path / "backup"
    learner = LearnerProcess(url=own_broker.url, run=RUN, root=root, model=tiny_model, flags=flags)
    with Producer(url=own_broker.url, run=RUN) as before:
        learner.start()
        learner.until(lambda: learner.reached(5), seconds=300)
        where = ("--redis-url", own_broker.url, "--checkpoint-root", str(root))
        taken = told(capsys, "backup", RUN, *where, "--out", str(out))
        learner.end(signal.SIGKILL)
        own_broker.kill()
    shutil.rmtree(root)
    shutil.rmtree(own_broker.directory)
    own_broker.start()

    [decisions] = (out / "storage" / "train").glob("decisions-*.json")
    assert told(capsys, "restore", str(out), *where)["last_sequence"] == taken["last_sequence"]
    assert (root / RUN / "train" / decisions.name).read_bytes() == decisions.read_bytes()
    learner = LearnerProcess(url=own_broker.url, run=RUN, root=root, model=tiny_model, flags=flags)
    with Producer(url=own_broker.url, run=RUN) as after:
        assert learner.start().wait(300) == 0, learner.log
    broker = Broker.connect(own_broker.url)
    log = RunLog(broker, RUN)
    commit, state = log.commits.last(), log.state.get()
    broker.close()
    assert commit is not None
    assert state is RunState.FINISHED
    held = taken["last_sequence"]
    assert isinstance(held, int)
    found = audit(
        acknowledged={"before": acknowledged(before), "after": acknowledged(after)},
        trained=read_trained(root / RUN / "trained.jsonl"),
        archived=read_archive(root / RUN, state_name=commit.state_name),
        # Groups behind the backup are gone with the broker, and only those.
        rollbacks=[Rollback(held_sequence=held, lost_up_to=10**6, settled_at_seconds=float("inf"))],
        num_prompts=NUM_PROMPTS,
        num_epochs=1,
    )
    assert found.is_clean, found
    assert found.prompts_answered == NUM_PROMPTS
    assert main(["restore", str(out), *where]) == 2
    assert "holds policy, train, archive" in capsys.readouterr().err


@pytest.fixture
def backup(log: RunLog, own_broker: LocalBroker, tmp_path: Path) -> Path:
    """Of a run without checkpoints: two groups in the log, one prompt leased."""
    start_run(log)
    must_append(log), must_append(log), must_lease(log)
    out = tmp_path / "backup"
    flags = ("--redis-url", own_broker.url, "--checkpoint-root", str(tmp_path), "--out", str(out))
    assert main(["backup", RUN, *flags]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) != 0
    return capsys.readouterr().err


def test_restore_onto_a_run_that_is_there_is_refused_and_leaves_no_files(
    backup: Path, own_broker: LocalBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new"
    where = ("--redis-url", own_broker.url, "--checkpoint-root", str(root))
    said = refused(capsys, "restore", str(backup), *where)
    assert f"has a run '{RUN}': stop its services and delete it" in said
    assert not (root / RUN).exists()


def test_backup_comes_back_as_a_run_of_this_machine_with_what_it_noted_or_not_at_all(
    log: RunLog,
    own_broker: LocalBroker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    start_run(log)
    must_append(log)
    with RunDirectory(tmp_path / RUN) as held:
        held.write_mark(step=7, command=["asympo", "run", "x.toml"], broker_url="unix:///gone")
    for name in ("_notes.json", ".settings.toml", "a..json"):
        (tmp_path / RUN / name).write_text("somebody's own, and no name of a backup's file")
    root, out = tmp_path / "new", tmp_path / "of-a-run"
    where = ("--checkpoint-root", str(tmp_path), "--out", str(out))
    assert main(["backup", RUN, "--redis-url", own_broker.url, *where]) == 0
    onto = ("--directory", str(root))
    with monkeypatch.context() as patch:
        patch.setattr("asympo.common.rollout_log.copies.Copies.put_back", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["restore", str(out), *onto])
    assert list(root.iterdir()) == []
    assert told(capsys, "restore", str(out), *onto)["last_sequence"] == 1
    mark = RunDirectory(root / RUN).read_mark()
    assert (mark["step"], mark["command"]) == (7, ["asympo", "run", "x.toml"])
    assert mark["broker_url"].startswith("unix://")
    assert mark["redis_url"] is None
    assert told(capsys, "log", "stats", "--run", RUN, "--directory", str(root))["backlog"] == 1
    log.broker.command("FLUSHALL")
    given = ("--redis-url", own_broker.url, "--checkpoint-root", str(tmp_path / "given"))
    assert told(capsys, "restore", str(out), *given)["last_sequence"] == 1
    mark = RunDirectory(tmp_path / "given" / RUN).read_mark()
    assert (mark["broker_url"], mark["redis_url"]) == (None, own_broker.url)


def test_backup_into_a_directory_that_is_there_is_refused(
    backup: Path, own_broker: LocalBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--redis-url", own_broker.url, "--out", str(backup))
    assert "give the backup a new directory" in refused(capsys, "backup", RUN, *flags)


def test_backup_that_does_not_fit_says_so(
    log: RunLog, own_broker: LocalBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run(log)
    publish(open_policies(tmp_path, RUN), 1)
    out = tmp_path / "backup"
    flags = ("--redis-url", own_broker.url, "--checkpoint-root", str(tmp_path), "--out", str(out))
    with max_file_bytes(8192):
        said = refused(capsys, "backup", RUN, *flags)
    assert f"the backup of {RUN} does not fit under {tmp_path}" in said
    assert not out.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "unfinished"])
def test_damaged_backup_is_refused_by_name(
    backup: Path, own_broker: LocalBroker, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = backup / ("manifest.json" if damage == "unfinished" else "broker.jsonl")
    content = path.read_bytes()
    if damage in ("gone", "unfinished"):
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content[:-2] + b"?\n")
    said = refused(capsys, "restore", str(backup), "--redis-url", own_broker.url)
    assert str(backup) in said
    assert ("not a backup, or was not finished" in said) == (damage == "unfinished")


def test_backup_of_another_checkpoint_root_is_refused(
    log: RunLog, own_broker: LocalBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = start_run(log)
    must_append(log), must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(1)])
    out = tmp_path / "backup"
    flags = ("--redis-url", own_broker.url, "--checkpoint-root", str(tmp_path / "wrong"), "--out", str(out))
    assert "group 1 is neither in the log nor in a training state" in refused(capsys, "backup", RUN, *flags)
    assert not out.exists()


def test_backup_comes_back_as_a_run_of_this_machine(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--checkpoint-root", str(tmp_path / "runs"))
    assert "both are one directory" in refused(
        capsys, "restore", str(backup), *where, "--directory", str(tmp_path / "other")
    )
    assert told(capsys, "restore", str(backup), *where)["leases_taken_back"] == 1
    [shown] = [told(capsys, "runs", "show", RUN, "--directory", str(tmp_path / "runs"))]
    stats = shown["stats"]
    assert isinstance(stats, dict)
    assert (stats["backlog"], stats["reissue"], stats["leases"]) == (2, 1, 0)
    assert "holds a broker's data" in refused(capsys, "restore", str(backup), *where)
