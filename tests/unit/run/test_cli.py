"""The command line answers at once and imports nothing heavy to do so."""

import io
import subprocess
import sys
from importlib.metadata import version

import pytest
from asympo.cli import COMMANDS, main

HEAVY = ("torch", "vllm", "transformers", "redis", "grpc", "numpy", "rich", "fastapi")
SERVICES = [command.name for command in COMMANDS if command.settings_class]


def probe(*argv: str) -> tuple[float, list[str], str]:
    """Seconds, heavy modules imported and output of one command, in a process of its own."""
    code = (
        "import sys, time\nstarted = time.process_time()\nfrom asympo.cli import main\n"
        f"main({list(argv)!r})\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], time.process_time() - started, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, _, seconds = done.stderr.strip().splitlines()[-1].rpartition(" ")
    return float(seconds), eval(found), done.stdout


@pytest.mark.parametrize(
    "argv", [["--help"], *([name, "--help"] for name in SERVICES), ["run", "--help"], ["demo", "--help"]]
)
def test_help_answers_within_half_a_second_without_heavy_imports(argv: list[str]) -> None:
    seconds, heavy, output = probe(*argv)
    assert heavy == []
    assert "usage:" in output
    # CPU time, not wall time: other tests may be running beside this one.
    assert seconds < 0.5


def test_verbs_of_the_log_answer_without_torch() -> None:
    _, heavy, output = probe("log", "--help")
    assert "usage:" in output
    assert heavy == ["redis"]


@pytest.mark.parametrize("name", [*SERVICES, "demo"])
def test_check_config_imports_nothing_heavy(name: str) -> None:
    _, heavy, output = probe(name, "--check-config")
    assert heavy == []
    assert "log_level" in output


def test_unknown_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lerner"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("asympo: there is no command lerner")
    assert error.count("\n") == 1


def test_number_that_is_no_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "70000"]) == 2
    assert "--port: needs a port from 1 to 65535, not 70000" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)


def test_terminal_that_is_not_utf_8_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["task", "score", "--help"]) == 0
    terminal.seek(0)
    assert '"response": "\\u2026"' in terminal.read()


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asympo {version('asympo')}\n"
