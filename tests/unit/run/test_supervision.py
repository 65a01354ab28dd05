"""Processes: bound to their cores, restarted when that helps, stopped in order, gone with their children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from asympo.common.errors import Fenced
from asympo.local.process import Process
from asympo.local.service import RestartPolicy, Service
from asympo.run.prepare.machine import FEW_KERNELS, KEEP_MEMORY, Machine, split_machine
from asympo.run.processes import services as processes
from asympo.run.processes.services import Services

QUICK = RestartPolicy(max_restarts=2, first_wait_seconds=0.01, max_wait_seconds=0.02)


def make_service(tmp_path: Path, code: str, **options: object) -> Service:
    return Service(
        name="worker",
        command=[sys.executable, "-c", code],
        log_path=tmp_path / "logs" / "worker.log",
        policy=QUICK,
        **options,  # type: ignore[arg-type]
    )


def services_of(learner: Service, **others: Any) -> Services:
    """Of a run with a broker of somebody else."""
    absent = dict.fromkeys(("broker", "evaluator", "gateway", "environment"))
    return Services(learner=learner, broker_url="", description=(), **{**absent, "generators": [], **others})


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def look_after(service: Service, *, until: Callable[[], object]) -> list[str]:
    notes: list[str] = []

    def turn() -> object:
        note = service.check()
        if note:
            notes.append(note)
        return until()

    wait_for(turn)
    return notes


def test_service_killed_by_a_signal_is_started_again(tmp_path: Path) -> None:
    service = make_service(tmp_path, "import time; time.sleep(60)", restart_arguments=["again"])
    service.start()
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    notes = look_after(service, until=lambda: service.num_restarts == 1 and service.pid)
    assert "worker was killed by SIGKILL; starting it again in 0.01 s" in notes
    wait_for(lambda: psutil.Process(service.pid).cmdline()[-1:] == ["again"])
    assert service.stop(deadline_seconds=10)


def test_restarts_are_bounded_and_the_last_words_are_reported(tmp_path: Path) -> None:
    service = make_service(tmp_path, "print('no luck'); raise SystemExit(1)")
    service.start()
    notes = look_after(service, until=lambda: service.has_ended)
    assert service.num_restarts == 2
    assert "given up after 3 starts" in notes[-1]
    assert "no luck" in notes[-1]


@pytest.mark.parametrize("code", [0, 2, Fenced.exit_code])
def test_final_exit_codes_are_not_started_again(code: int, tmp_path: Path) -> None:
    service = make_service(tmp_path, f"raise SystemExit({code})")
    service.start()
    notes = look_after(service, until=lambda: service.has_ended)
    assert (service.exit_code, service.num_restarts) == (code, 0)
    assert bool(notes) == (code != 0)


def test_those_that_end_with_the_run_are_started_again_until_its_learner_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_ANEW_SECONDS", 0.0)
    learner = make_service(tmp_path, "import time; time.sleep(60)")
    environment, evaluator = (make_service(tmp_path, "pass") for _ in range(2))
    services = services_of(learner, environment=environment, evaluator=evaluator)
    services.start()
    notes: list[str] = []

    # More often than a crash would be forgiven: an end in order counts for nothing.
    def many() -> bool:
        notes.extend(services.check())
        return len(notes) > 8

    wait_for(many)
    assert set(notes) == {"worker ended before the run; started again"}
    learner.stop(deadline_seconds=10)
    for service in (environment, evaluator):
        service.stop(deadline_seconds=10)
    assert services.check() == []


def test_service_that_lived_long_is_still_told_that_it_is_started_again(tmp_path: Path) -> None:
    service = make_service(tmp_path, "import sys; sys.exit(' '.join(sys.argv))", restart_arguments=["again"])
    service.policy = RestartPolicy(window_seconds=0.0, first_wait_seconds=0.01)
    service.start()
    notes = look_after(service, until=lambda: service.num_restarts and service.is_waiting)
    assert "-c again" in notes[-1]


def test_children_of_a_killed_service_do_not_survive_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    service = make_service(tmp_path, code)
    service.start()
    wait_for(lambda: service.log_path.read_text().strip())
    child = int(service.log_path.read_text())
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    look_after(service, until=lambda: service.num_restarts)
    wait_for(lambda: not psutil.pid_exists(child))
    service.kill()


def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
        "time.sleep(60)"
    )
    service = make_service(tmp_path, code)
    service.start()
    wait_for(lambda: "up" in service.log_path.read_text())
    assert not service.stop(deadline_seconds=0.1)
    assert service.exit_code == -signal.SIGKILL


def test_share_reaches_the_process(tmp_path: Path) -> None:
    core = sorted(os.sched_getaffinity(0))[0]
    machine = Machine(cores=(core,), memory_bytes=1, gpus=())
    share, _ = split_machine(machine, num_generators=1)
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_MAX_")
    code = f"import os; print(sorted(os.sched_getaffinity(0)), *(os.environ[n] for n in {names}))"
    service = make_service(tmp_path, code, cores=share.cores, environment=share.environment)
    service.start()
    look_after(service, until=lambda: service.has_ended)
    assert service.log_path.read_text().strip() == f"[{core}] 1 0"


def test_service_drains_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    drained = tmp_path / "drained"
    log = tmp_path / "log"
    child = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(drained)!r}).touch(), sys.exit()))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    supervisor = (
        "import sys, time\nfrom pathlib import Path\nfrom asympo.local.service import Service\n"
        f"s = Service(name='w', command=[sys.executable, '-c', {child!r}], log_path=Path({str(log)!r}))\n"
        "s.start()\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor])
    wait_for(lambda: log.exists() and "up" in log.read_text())
    process.kill()
    process.wait()
    wait_for(drained.exists)


def test_cores_are_split_and_only_the_learner_keeps_memory() -> None:
    machine = Machine(cores=tuple(range(8)), memory_bytes=1, gpus=())
    learner, generators = split_machine(machine, num_generators=2)
    assert learner.cores == (0, 1, 2, 3, 4, 5)
    assert [share.cores for share in generators] == [(6,), (7,)]
    assert (KEEP_MEMORY | FEW_KERNELS).items() <= learner.environment.items()
    assert not KEEP_MEMORY.keys() & generators[0].environment.keys()
    assert all(share.environment["KMP_BLOCKTIME"] == "0" for share in (learner, *generators))


@pytest.mark.parametrize(("num_cores", "num_generators"), [(1, 1), (1, 3), (2, 1), (2, 4), (3, 1)])
def test_every_process_gets_a_core_however_few_there_are(num_cores: int, num_generators: int) -> None:
    machine = Machine(cores=tuple(range(num_cores)), memory_bytes=1, gpus=())
    learner, generators = split_machine(machine, num_generators=num_generators)
    assert all(share.cores and share.num_threads == len(share.cores) for share in (learner, *generators))
    if num_cores > 1:
        assert not set(learner.cores) & {core for share in generators for core in share.cores}


HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def start_while_held(tmp_path: Path) -> tuple[Process, psutil.Process, subprocess.Popen[str]]:
    """A program's keeper, the program, and whoever holds the lock."""
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    keeper = Process(command=["sleep", "60"], log_path=tmp_path / "log", while_held=lock).start()
    children = psutil.Process(keeper.pid).children
    named = keeper.until(lambda: [each for each in children() if each.name() == "sleep"], seconds=20)
    return keeper, named[0], holder


def test_program_ends_once_nobody_holds_its_lock_and_not_before(tmp_path: Path) -> None:
    keeper, program, holder = start_while_held(tmp_path)
    assert program.is_running()
    holder.kill()
    assert keeper.wait(20) == -signal.SIGTERM
    assert not program.is_running()
    holder.wait()


@pytest.mark.parametrize("victim", ["keeper", "program"])
def test_program_and_its_keeper_end_together(victim: str, tmp_path: Path) -> None:
    keeper, program, holder = start_while_held(tmp_path)
    os.kill(program.ppid() if victim == "keeper" else program.pid, signal.SIGKILL)
    assert keeper.wait(20) == -signal.SIGKILL
    wait_for(lambda: not program.is_running())
    holder.kill()
    holder.wait()
