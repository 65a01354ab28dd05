"""Every way a supervisor can end leaves no process behind and a run that goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
from asympo.run.events import read_events
from asympo.run.report.page import how_it_ended
from asympo.testing.run_process import RunProcess

from tests.integration.run.conftest import last_step


def family(pid: int) -> list[psutil.Process]:
    """Everything that hangs on a supervisor."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def wait_until_gone(processes: list[psutil.Process], *, seconds: float = 300.0) -> None:
    _, left = psutil.wait_procs(processes, timeout=seconds)
    left = [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    assert not left, [each.cmdline() for each in left]


def last_event(directory: Path) -> str:
    return str(read_events(directory)[-1]["text"])


def commit_of(directory: Path) -> int:
    states = sorted((directory / "train").glob("step-*"))
    return max((int(state.name.split("-")[1]) for state in states), default=0)


def guard_of(processes: Iterable[psutil.Process]) -> psutil.Process:
    return next(each for each in processes if "asympo.run.processes.guard" in each.cmdline())


@pytest.mark.timeout(900)
def test_run_goes_on_after_every_end_of_its_supervisor_and_leaves_nothing_behind(
    start: Callable[..., RunProcess], tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "tiny"
    run = start("--run.evaluate=false")
    run.until(lambda: last_step(directory) >= 3, seconds=300)
    run_pid = run.pid
    assert run_pid is not None
    all_of_it = family(run_pid)
    # The parent alone, as the kernel does it when memory runs out.
    guard = guard_of(all_of_it)
    guard.suspend()
    os.kill(run_pid, signal.SIGKILL)

    # Started again at once, it waits for what still drains, and goes on from there.
    again = start("--run.evaluate=false")
    again.until(lambda: "still stopping" in again.log, seconds=60)
    guard.resume()
    wait_until_gone(all_of_it)
    events = [event["text"] for event in read_events(directory)]
    assert any("was killed: its services are stopped in order" in text for text in events)
    assert any(
        text == "all of its services have ended; start the run again the same way to go on" for text in events
    )
    drained = commit_of(directory)
    assert drained >= 3, "what was trained was saved on the way out"
    again.until(lambda: last_step(directory) > drained + 2, seconds=300)

    # Supervisor and guard at once: the services drain by themselves, and the broker ends after them.
    assert again.pid is not None
    all_of_it = family(again.pid)
    guard_of(all_of_it).kill()
    os.kill(again.pid, signal.SIGKILL)
    wait_until_gone(all_of_it)
    assert commit_of(directory) > drained, "what was trained was saved on the way out"
    drained = commit_of(directory)
    assert how_it_ended(directory)[1].startswith("it ended without a word")
    again = start("--run.evaluate=false")
    again.until(lambda: last_step(directory) > drained + 2, seconds=300)

    # A session that ends: SIGTERM to all of them, the broker too, SIGHUP, SIGTERM again by the supervisor.
    assert again.pid is not None
    all_of_it = family(again.pid)
    for number in (signal.SIGTERM, signal.SIGHUP):
        for each in all_of_it:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)
    assert again.wait(300) == 130, again.log
    wait_until_gone(all_of_it)
    mark = json.loads((directory / "run.json").read_text())
    assert commit_of(directory) == mark["step"] > drained, "the last step was saved"
    assert last_event(directory).startswith(f"stopped at step {mark['step']} by SIG")


def test_run_started_with_nohup_does_not_hear_its_terminal_close() -> None:
    code = (
        "import os, signal\nfrom asympo.common.lifecycle import StopSignal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopSignal() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(stop.is_set)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False")


@pytest.mark.parametrize(
    ("signals", "environment", "code"),
    [
        (("SIGHUP", "SIGHUP", "SIGTERM"), {}, 0),
        (("SIGTERM", "SIGTERM"), {"ASYMPO_SUPERVISED": "1"}, 0),
        (("SIGTERM", "SIGINT"), {}, 130),
        (("SIGHUP", "SIGINT", "SIGINT"), {}, 130),
    ],
)
def test_only_asking_twice_forces(signals: tuple[str, ...], environment: dict[str, str], code: int) -> None:
    program = (
        "import os, signal\nfrom asympo.common.lifecycle import StopSignal\n"
        "with StopSignal():\n"
        f"    for name in {signals!r}:\n        os.kill(os.getpid(), getattr(signal, name))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment})
    assert done.returncode == code


def test_signal_that_comes_twice_at_once_is_one_asking() -> None:
    program = (
        "import os, signal\nfrom asympo.common.lifecycle import StopSignal\n"
        "with StopSignal(same_within_seconds=60.0):\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
