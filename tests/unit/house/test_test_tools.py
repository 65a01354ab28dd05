"""`make test` fetches its tools; what cannot be had is said in a line each and fails nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ("redis-server", "redis-sentinel", "redis-cli", "chromium", "promtool", "openssl", "cc")


def run_tools(root: Path, *, programs: tuple[str, ...], fetched: str) -> list[str]:
    """Lines of the script where registries answer with `fetched` and these programs are installed."""
    for path in ("deploy/chart/tools.sh", "deploy/local/tools.sh"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"#!/bin/sh\n{fetched}\n")
        (root / path).chmod(0o755)
    script = root / "deploy/local/test_tools.sh"
    shutil.copy(ROOT / "deploy/local/test_tools.sh", script)
    (root / "bin").mkdir()
    for name in ("bash", "sh", "env", "dirname", "mktemp", "tail", "rm"):
        (root / "bin" / name).symlink_to(str(shutil.which(name)))
    for name in programs:
        (root / "bin" / name).symlink_to("/bin/true")
    environment = {**os.environ, "PATH": str(root / "bin")}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_nothing_is_said_when_everything_is_there(tmp_path: Path) -> None:
    assert run_tools(tmp_path, programs=PROGRAMS, fetched="exit 0") == []


def test_registry_that_does_not_answer_is_a_sentence_for_each_tool(tmp_path: Path) -> None:
    lines = run_tools(tmp_path, programs=PROGRAMS, fetched="echo gone >&2; echo no network >&2; exit 1")
    assert len(lines) == 2
    assert all("are skipped (no network)" in line for line in lines)


@pytest.mark.parametrize("missing", [("promtool",), PROGRAMS])
def test_programs_of_the_distribution_are_named_in_one_line_with_the_command(
    tmp_path: Path, missing: tuple[str, ...]
) -> None:
    present = tuple(name for name in PROGRAMS if name not in missing)
    [line] = run_tools(tmp_path, programs=present, fetched="exit 0")
    command, packages = line.split("--no-install-recommends ")
    assert "apt-get install" in command
    assert len(packages.split()) == len(missing)
    assert "prometheus" in packages


def test_make_test_fetches_its_tools_before_it_runs() -> None:
    done = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    tools = lines.index("deploy/local/test_tools.sh")
    assert any("pytest" in line for line in lines[tools:])
