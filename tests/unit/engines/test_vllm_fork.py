"""A process for vLLM's engine that is made ahead; the scripts stand for services, still with one thread."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm_start import fork_ahead

_GIVES_WORK = """
import os, sys
from asympo.engines.vllm_fork import EngineFork

def work(path):
    with open(path, "w") as file:
        file.write(os.environ["SAID"] + " " + os.environ.get("UNSAID", ""))

os.environ["UNSAID"] = "at first"
fork = EngineFork({})
os.environ["SAID"] = "later"
del os.environ["UNSAID"]
process = fork.Process(target=work, name="EngineCore", kwargs={"path": sys.argv[1]})
assert fork.is_waiting
process.start()
assert not fork.is_waiting
process.join(20)
print(process.name, process.exitcode)
"""
_GIVES_NONE = """
import sys
from asympo.engines.vllm_fork import EngineFork
fork = EngineFork({})
print(fork._process.pid, flush=True)
sys.stdin.read()
print(fork.is_waiting)
"""


def test_fork_runs_what_it_is_sent_under_the_environment_of_that_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _GIVES_WORK, str(tmp_path / "said")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.stdout == "EngineCore 0\n", done.stderr
    assert (tmp_path / "said").read_text() == "later "


def test_fork_without_work_ends_with_who_made_it() -> None:
    command = [sys.executable, "-c", _GIVES_NONE]
    for number in (None, signal.SIGKILL):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdin is not None
            assert service.stdout is not None
            fork = psutil.Process(int(service.stdout.readline()))
            if number is None:
                service.stdin.close()
            else:
                os.kill(service.pid, number)
            service.wait(40)
            fork.wait(40)


@pytest.mark.parametrize(("number", "is_waiting"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_fork_waits_on_after_an_interrupt_and_is_not_used_when_it_was_killed(
    number: signal.Signals, is_waiting: bool
) -> None:
    command = [sys.executable, "-c", _GIVES_NONE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as service:
        assert service.stdout is not None
        fork = psutil.Process(int(service.stdout.readline()))
        fork.send_signal(number)
        while not is_waiting and fork.status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
        assert service.communicate("", timeout=40) == (f"{is_waiting}\n", "")


def test_engine_of_several_processes_is_not_forked() -> None:
    assert fork_ahead(EngineSettings(tensor_parallel_size=2)) is None
