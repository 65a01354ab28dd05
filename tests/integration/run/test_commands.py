"""runs, log, checkpoint and doctor on real logs and real files; bad input gets one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from asympo.cli import main
from asympo.common.codec import encode_group
from asympo.common.errors import BadSetting, BrokerUnavailable
from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup
from asympo.common.rollout_log import Broker, Lease, RunConfig, RunLog, RunState
from asympo.doctor import checks
from asympo.doctor.command import parse, target_of
from asympo.doctor.findings import Level
from asympo.local.broker import LocalBroker, answers, find_broker_binary
from asympo.local.ports import free_port
from asympo.run.directory import RunDirectory
from asympo.run.events import write_event

from tests.conftest import start_broker

LOOK = """
import sys, time
from pathlib import Path
from asympo.ops.access import open_broker
with open_broker(None, directory=Path(sys.argv[1]), run="demo"):
    print("open", flush=True)
    time.sleep(60)
"""


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def append_groups(url: str, run: str, *, rewards: list[tuple[float, float]]) -> None:
    """A run with these groups in its log."""
    broker = Broker.connect(url)
    log = RunLog(broker, run)
    log.state.create_or_join(
        RunConfig(run=run, group_size=2, groups_per_step=8, max_groups_per_step=8, num_prompts=9, model="m")
    )
    fence = log.fence.take("learner")
    log.state.set(RunState.RUNNING, fence=fence)
    log.policies.announce(fence, step=0, digest="d")
    for pair in rewards:
        lease = log.leases.acquire(holder="g", policy_step=0)
        assert isinstance(lease, Lease)
        responses = tuple(
            Response(
                token_ids=(1, 2), text=f"says [bold]{reward}", reward=reward, finish_reason=FinishReason.STOP
            )
            for reward in pair
        )
        group = RolloutGroup(
            group_id=lease.group_id, prompt=Prompt(token_ids=(1,), text="1 + 1?"), responses=responses
        )
        log.leases.append(lease, encode_group(group), producer="g")
    log.fence.release(fence)
    broker.close()


def asympo(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _no_broker_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def test_log_show_has_rewards_and_advantages(
    broker_url: str, run_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    append_groups(broker_url, run_name, rewards=[(0.0, 1.0), (0.5, 0.5)])
    where = ("--redis-url", broker_url, "--run", run_name)
    code, out, _ = asympo(capsys, "log", "show", *where, "--json")
    groups = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [group["sequence"] for group in groups] == [1, 2]
    assert [response["advantage"] for response in groups[0]["responses"]] == [-0.5, 0.5]
    code, out, _ = asympo(capsys, "log", "show", *where, "--sequence", "2")
    assert "says [bold]0.5" in out
    assert "+0.000" in out
    code, out, _ = asympo(capsys, "log", "stats", *where, "--json")
    assert json.loads(out)["backlog"] == 2
    code, _, err = asympo(capsys, "log", "show", *where, "--sequence", "3")
    assert (code, err.count("\n")) == (2, 1)


def test_runs_are_listed_shown_and_deleted(
    broker_url: str, run_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    append_groups(broker_url, run_name, rewards=[(0.0, 1.0)])
    url = ("--redis-url", broker_url)
    _, out, _ = asympo(capsys, "runs", "list", *url, "--json")
    assert run_name in [json.loads(line)["run"] for line in out.splitlines()]
    _, out, _ = asympo(capsys, "runs", "show", run_name, *url, "--json")
    shown = json.loads(out)
    assert (shown["config"]["model"], shown["stats"]["appended"]) == ("m", 1)
    assert asympo(capsys, "runs", "show", run_name, *url)[0] == 0
    code, _, err = asympo(capsys, "runs", "delete", run_name, *url)
    assert code == 2
    assert "--yes" in err
    code, out, _ = asympo(capsys, "runs", "delete", run_name, *url, "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"deleted": run_name})
    code, _, err = asympo(capsys, "runs", "show", run_name, *url)
    assert (code, err.count("\n")) == (2, 1)
    assert f"knows no run {run_name}" in err


def test_log_of_a_stopped_run_is_read_by_starting_its_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(tmp_path / "demo") as held:
        broker = LocalBroker(
            binary=find_broker_binary().path,
            directory=held.path / "broker",
            log_path=held.path / "broker.log",
        ).start()
        append_groups(broker.url, "demo", rewards=[(0.0, 1.0)])
        broker.stop(deadline_seconds=10)
    code, out, _ = asympo(capsys, "log", "show", "--run", "demo", "--directory", str(tmp_path), "--json")
    assert (code, json.loads(out)["sequence"]) == (0, 1)
    _, out, _ = asympo(capsys, "runs", "list", "--directory", str(tmp_path), "--json")
    assert json.loads(out)["state"] == "stopped"
    with subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path)], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"open\n"
        assert answers(broker.url)
        of_looking = [each for each in psutil.process_iter() if str(tmp_path) in command_of(each)]
        looking.kill()
    assert psutil.wait_procs(of_looking, timeout=60)[1] == [], "the broker ends with whoever looked"
    assert asympo(capsys, "runs", "delete", "demo", "--directory", str(tmp_path), "--yes")[0] == 0
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("way", ["port", "socket elsewhere"])
def test_broker_of_a_run_is_found_wherever_it_listens(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / ("d" * 90)
    with RunDirectory(root / "demo") as held:
        broker = LocalBroker(
            binary=find_broker_binary().path,
            directory=held.path / "broker",
            port=free_port() if way == "port" else None,
            log_path=held.path / "broker.log",
        ).start()
        held.write_mark(broker_url=broker.url)
        append_groups(broker.url, "demo", rewards=[(0.0, 1.0)])
        # As for a command of cron.
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        code, out, err = asympo(capsys, "log", "stats", "--run", "demo", "--directory", str(root), "--json")
        assert code == 0, err
        assert json.loads(out)["backlog"] == 1
        _, out, _ = asympo(capsys, "runs", "list", "--directory", str(root), "--json")
        assert json.loads(out)["backlog"] == 1
        broker.stop(deadline_seconds=10)


def test_fresh_deletes_no_run_that_somebody_trains(
    own_broker: LocalBroker, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f"[run]\nname = 'demo'\ndirectory = '{tmp_path}/runs'\nmodel = '{tiny_model}'\n")
    with RunDirectory(tmp_path / "runs" / "demo"):
        pass
    broker = Broker.connect(own_broker.url)
    log = RunLog(broker, "demo")
    log.fence.take("learner-elsewhere", heartbeat_seconds=600)
    fresh = ("run", str(config), "--fresh", "--view.kind=plain", f"--broker.url={own_broker.url}")
    code, _, err = asympo(capsys, *fresh)
    assert code == 2
    assert "learner-elsewhere still works on the run demo" in err
    assert log.stats.read().is_fence_alive
    assert (tmp_path / "runs" / "demo").exists()
    broker.close()


def test_local_runs_are_told_as_they_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that cannot be read hides no other."""
    for name, mark in (("done", {"is_finished": True}), ("lost", {"failure": "no disk"}), ("now", {})):
        with RunDirectory(tmp_path / name) as held:
            held.write_mark(step=3, **mark)
            write_event(held.path, "begun", kind="begin")
            write_event(held.path, "ended", kind="end")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").touch()
    with RunDirectory(tmp_path / "now"):
        _, out, _ = asympo(capsys, "runs", "list", "--directory", str(tmp_path), "--json")
        found = list(checks.check_runs(checks.Target(directory=tmp_path, redis_url=None, ports=())))
    states = {row["run"]: row["state"] for row in map(json.loads, out.splitlines())}
    assert states == {"done": "finished", "lost": "failed", "now": "going on", "torn": "unreadable"}
    wrong = [each.text for each in found if each.level is Level.WRONG]
    assert wrong == ["run lost failed at step 3", "what run torn noted cannot be read"]
    # Killed after a start that had ended at step 3: what the learner wrote since is what counts.
    report = {"steps": 3, "held_out_accuracy_after": 0.5, "warnings": ["no disk"]}
    (tmp_path / "lost" / "summary.json").write_text(json.dumps(report))
    (tmp_path / "lost" / "metrics.jsonl").write_text('{"step": 6}\n{"step": 7}\n{"ste')
    for name, step in (("lost", 7), ("done", 3)):
        _, out, _ = asympo(capsys, "runs", "show", name, "--directory", str(tmp_path), "--json")
        assert json.loads(out)["report"]["steps"] == step
    _, out, _ = asympo(capsys, "runs", "show", "lost", "--directory", str(tmp_path))
    assert "steps: 7; held-out accuracy in the start that ended at step 3: None before, 0.5 after\n" in out
    assert "went wrong in the start that ended at step 3: no disk\n" in out
    code, _, err = asympo(capsys, "runs", "show", "torn", "--directory", str(tmp_path))
    assert code == 2
    assert "move it away and start the run again" in err


def test_damaged_checkpoint_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    import shutil

    from asympo.common.checkpoints import Probe, ProbeSequence
    from asympo.common.checkpoints.opening import open_policies

    store = open_policies(tmp_path, "demo")
    probe = Probe(
        sequences=(ProbeSequence(token_ids=(1, 2), num_prompt_tokens=1, mean_nll=1.0),), tolerance=0.1
    )

    def fill(directory: Path) -> None:
        for path in tiny_model.iterdir():
            shutil.copy(path, directory / path.name)

    refs = [store.publish(step=step, fence=1, fill=fill, probe=probe) for step in (1, 2)]
    where = ("--run", "demo", "--checkpoint-root", str(tmp_path))
    assert asympo(capsys, "checkpoint", "verify", *where)[0] == 0
    with (refs[1].path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    code, out, _ = asympo(capsys, "checkpoint", "verify", *where, "--json")
    states = {row["step"]: row["state"] for row in map(json.loads, out.splitlines())}
    assert (code, states[1]) == (1, "verified")
    assert "model.safetensors" in states[2]
    assert asympo(capsys, "checkpoint", "list", *where)[0] == 0
    assert asympo(capsys, "checkpoint", "list", "--run", "none", "--checkpoint-root", str(tmp_path))[0] == 2


def test_doctor_finds_nothing_wrong_with_a_good_broker(own_broker: LocalBroker, tmp_path: Path) -> None:
    target = checks.Target(directory=tmp_path, redis_url=own_broker.url, ports=())
    findings = [*checks.check_broker(target), *checks.check_storage(target), *checks.check_python(target)]
    assert not [
        finding for finding in findings if finding.level is Level.WRONG and finding.check != "storage"
    ]


@pytest.mark.parametrize(
    ("setting", "lost", "repair"),
    [
        (("--appendonly", "no"), "possibly the whole run's log", "set appendonly yes and appendfsync always"),
        (("--appendfsync", "everysec"), "about the last second of acknowledged", "set appendfsync always"),
        (("--appendfsync", "no"), "whatever the kernel had not written", "set appendfsync always"),
        (
            ("--maxmemory-policy", "allkeys-lru"),
            "deletes unread groups",
            "set maxmemory-policy noeviction",
        ),
        (("--replicaof", "127.0.0.1 1"), "is a replica of 127.0.0.1:1", "give the URL of the primary"),
    ],
    ids=["no AOF", "everysec", "no fsync", "eviction", "replica"],
)
def test_doctor_names_what_a_careless_broker_may_lose(
    setting: tuple[str, str], lost: str, repair: str, broker_binary: str, tmp_path: Path
) -> None:
    careless = start_broker(broker_binary, tmp_path / "broker", *setting)
    try:
        target = checks.Target(directory=tmp_path, redis_url=careless.url, ports=())
        (wrong,) = [each for each in checks.check_broker(target) if each.level is Level.WRONG]
    finally:
        careless.kill()
    assert lost in wrong.text
    assert wrong.repair == repair


@pytest.mark.parametrize(
    "withheld",
    [
        ("--user", "default", "on", "nopass", "~*", "+@all", "-config"),
        ("--rename-command", "CONFIG", ""),
    ],
    ids=["from this user", "from everyone"],
)
def test_doctor_notes_what_cannot_be_seen_without_config(
    withheld: tuple[str, ...], broker_binary: str, tmp_path: Path
) -> None:
    careless = start_broker(broker_binary, tmp_path / "broker", *withheld, "--appendfsync", "everysec")
    try:
        target = checks.Target(directory=tmp_path, redis_url=careless.url, ports=())
        findings = list(checks.check_broker(target))
    finally:
        careless.kill()
    assert [each.level for each in findings] == [Level.OK, Level.NOTE]
    assert "CONFIG is withheld here" in findings[1].text
    assert "CONFIG GET appendfsync" in findings[1].repair


def test_doctor_examines_the_broker_and_the_checkpoint_root_of_a_service(
    own_broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    file = tmp_path / "learner.toml"
    file.write_text(f"redis_url = '{own_broker.url}'\ncheckpoint_root = '{root}'\ntotal_steps = 3\n")

    def storage(*flags: str) -> list[str]:
        target = target_of(parse(["--settings", str(file), *flags]))
        assert target.redis_url == own_broker.url
        return [each.text for each in checks.check_storage(target)]

    root.mkdir()
    assert all(str(root) in text for text in storage())
    both = storage("--directory", str(elsewhere))
    assert {str(root) in text for text in both} == {True, False}
    monkeypatch.setattr(checks, "try_atomic_publish", lambda directory: pytest.fail(f"wrote to {directory}"))
    assert storage("--reads-only") == [f"{root} can be read (0 entries)"]
    root.rmdir()
    assert storage("--reads-only") == [f"{root} cannot be read: No such file or directory"]
    own = target_of(parse(["--settings", str(file), "--redis-url", "redis://other:1/0"]))
    assert own.redis_url == "redis://other:1/0"
    # As --check-config writes it where no store is given.
    file.write_text(f"{file.read_text()}[object_store]\ncached_policies = 3\n")
    assert target_of(parse(["--settings", str(file)])).object_store is None
    file.write_text("checkpoint_root = 3\n")
    with pytest.raises(BadSetting, match="checkpoint_root was given 3"):
        target_of(parse(["--settings", str(file)]))


def test_doctor_exits_1_and_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    code, out, _ = asympo(capsys, "doctor", "--redis-url", url, "--directory", str(tmp_path), "--json")
    report = json.loads(out)
    assert (code, report["is_healthy"]) == (1, False)
    (wrong,) = [each for each in report["findings"] if each["level"] == "wrong" and each["check"] == "broker"]
    assert url in wrong["text"]


def test_doctor_notices_a_directory_it_cannot_publish_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    target = checks.Target(directory=tmp_path, redis_url=None, ports=())
    assert any("Read-only file system" in finding.text for finding in checks.check_storage(target))


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--learner.total-step=3"], 2, "did you mean total_steps?"),
        (["--run.model=/nowhere"], 2, "/nowhere"),
        (["--run.task.name=jsonl", "--run.task.path=/nowhere.jsonl"], 2, "/nowhere.jsonl"),
        (["--broker.url=redis://127.0.0.1:1/0"], BrokerUnavailable.exit_code, "127.0.0.1:1"),
        (["--broker.url=carrier-pigeon://x"], 2, "carrier-pigeon"),
        (["--learner.http-port={busy}"], 2, "learner.http_port"),
        (["--broker.port={busy}"], 2, "broker.port"),
    ],
)
def test_bad_input_of_run_is_one_sentence_and_starts_nothing(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    tiny_model: Path,
    own_broker: LocalBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f"[run]\nname = 'bad'\ndirectory = '{tmp_path}/runs'\nmodel = '{tiny_model}'\n")
    given = [flag.format(busy=own_broker.port) for flag in flags]
    found, _, err = asympo(capsys, "run", str(config), "--view.kind=plain", *given)
    assert found == code, err
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
