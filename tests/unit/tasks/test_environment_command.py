"""`asympo environment`: rows and player beside services that somebody else starts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.ops import environment
from asympo.ops.environment import main
from asympo.tasks.base import held_out_keys

GAME = """
class Game:
    def __init__(self, most):
        self.most = most
    def reset(self, **row):
        pass
    def guess(self, number: int) -> str:
        '''Guess.

        Args:
            number: The number.
        '''
    def get_reward(self):
        return 1.0
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a learner, as its pod has them."""
    (tmp_path / "game.py").write_text(GAME)
    rows = [{"prompt": "Guess.", "secret": number} for number in range(20)]
    (tmp_path / "asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "learner.toml"
    path.write_text(
        f"""
run = "r"
redis_url = "redis://127.0.0.1"
[sampling]
max_tokens = 32
[task]
name = "trl-environment"
environment = "game:Game"
environment_args = {{most = 9}}
environment_rows = "{tmp_path}/asked.jsonl"
path = "{tmp_path}/new/rows.jsonl"
held_out_fraction = 0.5
"""
    )
    return path


def test_rows_are_written_once_and_a_share_of_them_held_out(config: Path, tmp_path: Path) -> None:
    assert main(["rows", str(config), "--hold-out"]) == 0
    (written,) = (tmp_path / "new").iterdir()
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["given"]["secret"] for row in rows] == list(range(20))
    assert 0 < sum("held_out" in row for row in rows) < 20
    # A run of an earlier version whose file was lost holds out what it did.
    earlier = [json.dumps(row["given"] | {"prompt": row["prompt"]}, sort_keys=True) for row in rows]
    chosen = held_out_keys(earlier, fraction=0.5, seed=0)
    assert [row.get("held_out", False) for row in rows] == [key in chosen for key in earlier]
    written.write_text("as the run was created\n")
    assert main(["rows", str(config)]) == 0
    assert written.read_text() == "as the run was created\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Written down before somebody plays them."""
    path = tmp_path / "new" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "Guess."}\n')
    return path


def python_of(directory: Path, script: str) -> Path:
    """A player that is a script."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("rows")
def test_player_is_told_what_the_learner_s_settings_say(config: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path, f'for word in "$@"; do echo "$word"; done > {tmp_path}/said; exit 7')
    assert main(["play", str(config), "--gateway", "http://g:1", "--python", str(python)]) == 7
    _, player, spec, *rest = (tmp_path / "said").read_text().splitlines()
    assert Path(player).name == "__main__.py"
    assert json.loads(spec) == {
        "kind": "trl-environment",
        "environment": "game:Game",
        "arguments": {"most": 9},
        "source": f"{tmp_path}/asked.jsonl",
        "rows": f"{tmp_path}/new/rows.jsonl",
    }
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 32}
    assert (rest[:2], json.loads(rest[2]), rest[3]) == (["play", "http://g:1"], sampling, "4")


@pytest.mark.usefixtures("rows")
def test_player_ends_with_us(config: Path, tmp_path: Path) -> None:
    """It has us stopped, and would then go on for ever."""
    python = python_of(tmp_path, f"echo $$ > {tmp_path}/pid; kill -TERM $PPID; exec sleep 600")
    assert main(["play", str(config), "--gateway", "http://g:1", "--python", str(python)]) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.fixture
def staying(config: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """One that stays, whose player finds nothing to play."""
    python = python_of(tmp_path, "exit 0")
    command = [sys.executable, "-m", "asympo.cli", "environment", "play", str(config), "--stay"]
    command += ["--gateway", "http://g:1", "--python", str(python)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        yield waiting
        waiting.kill()


def said_by(waiting: "subprocess.Popen[str]") -> str:
    assert waiting.stderr is not None
    return waiting.stderr.readline()


@pytest.mark.usefixtures("rows")
def test_once_the_run_has_ended_it_waits_to_be_stopped(staying: "subprocess.Popen[str]") -> None:
    assert "nothing left to play" in said_by(staying)
    staying.send_signal(signal.SIGTERM)
    assert staying.wait(30) == 0


@pytest.mark.usefixtures("rows")
def test_one_that_stays_plays_on_when_the_run_goes_on_after_its_end(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its learner has loaded, a run with more steps to do looks as ended as before."""
    monkeypatch.setattr(environment, "_AGAIN_SECONDS", 0.0)
    python = python_of(tmp_path, f"mkdir {tmp_path}/asked-before && exit 0; exit 7")
    assert main(["play", str(config), "--gateway", "http://g:1", "--python", str(python), "--stay"]) == 7


def test_one_that_stays_waits_for_the_rows(staying: "subprocess.Popen[str]", tmp_path: Path) -> None:
    """In a cluster it starts beside the learner's pod, which writes them."""
    assert "Waiting for" in said_by(staying)
    path = tmp_path / "new" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "Guess."}\n')
    assert "nothing left to play" in said_by(staying)


def test_one_that_waits_for_the_rows_can_be_stopped(staying: "subprocess.Popen[str]") -> None:
    assert "Waiting for" in said_by(staying)
    staying.send_signal(signal.SIGTERM)
    assert staying.wait(30) == 0


def test_rows_that_nobody_wrote_are_told(config: Path) -> None:
    with pytest.raises(BadSetting, match="write it with asympo environment rows"):
        main(["play", str(config), "--gateway", "http://g:1"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[task]\nname = "addition"', "give task.name verifiers or trl-environment"),
        ('[task]\nname = "verifiers"\nenvironment = "wordle"', "and task.path, its rows"),
        ("[task", "learner.toml cannot be read"),
    ],
)
def test_settings_of_no_environment_are_refused(config: Path, text: str, sentence: str) -> None:
    config.write_text(text)
    with pytest.raises(BadSetting, match=sentence):
        main(["rows", str(config)])


@pytest.mark.usefixtures("rows")
def test_python_that_is_none_is_named(config: Path) -> None:
    with pytest.raises(BadSetting, match="/none cannot be run: No such file"):
        main(["play", str(config), "--gateway", "http://g:1", "--python", "/none"])
