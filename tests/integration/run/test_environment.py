"""A run does not need what a person at a terminal has: a home, a language, a reader, enough memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import asympo
import pytest
from asympo.run.events import read_events

FROM_CRON = (
    "import os, sys\nos.umask(0o077)\nos.close(0)\n"
    "os.execve(sys.executable, [sys.executable, '-m', 'asympo.cli', 'run', *sys.argv[1:]], dict(ENVIRONMENT))"
)
CODE = Path(asympo.__file__).parents[1]


@pytest.mark.timeout(400)
def test_run_goes_on_from_cron_under_an_odd_path_when_nobody_reads_what_it_says(
    config: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a line\n"
    odd.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()

    def run(steps: int, **environment: str) -> str:
        bare = {"PYTHONPATH": str(CODE), "TMPDIR": "/nonexistent", "TERM": "dumb", "LC_ALL": "C"}
        code = FROM_CRON.replace("ENVIRONMENT", repr({**bare, **environment}))
        flags = [f"--run.directory={json.dumps(str(odd))}", "--run.evaluate=false"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(config), *flags, f"--learner.total-steps={steps}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        # As `| head -1` does.
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        assert (process.wait(), said) == (0, ""), first
        return first

    assert "broker: " in run(2, TZ="America/New_York")
    # A clock that is set back between the two, as summer time does to those who look at the wall.
    assert "broker: " in run(4, TZ="Asia/Tokyo")
    events = [each["text"] for each in read_events(tmp_path / "elsewhere" / "tiny")]
    assert events[-1] == "finished at step 4"
    assert (tmp_path / "elsewhere" / "tiny" / "report.html").stat().st_mode & 0o077 == 0


SUPERVISOR = """
import sys, time
from pathlib import Path
from asympo.local.service import RestartPolicy, Service

eats = "held = []\\nwhile True: held.append(bytearray(b'x' * 2**20))"
service = Service(
    name="worker",
    command=[sys.executable, "-c", eats],
    log_path=Path(sys.argv[1]),
    policy=RestartPolicy(first_wait_seconds=0.01, max_wait_seconds=0.02),
)
Path(sys.argv[2], "cgroup.procs").write_text("0")
service.start()
while not service.has_ended:
    if note := service.check():
        print(note, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def small_group(tmp_path: Path) -> Path:
    """A control group whose memory ends soon."""
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"asympo-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(160 * 2**20))
        except OSError as error:
            why = error
            continue
        return group
    pytest.skip(f"no control group with little memory can be made here: {why}")


@pytest.mark.timeout(120)
def test_service_that_ran_out_of_memory_is_told_as_far_as_it_is_known(
    small_group: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path / "log"), str(small_group)]
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(CODE)}, capture_output=True, text=True
        )
    finally:
        small_group.rmdir()
    told = done.stdout.splitlines()
    assert told[0] == (
        "worker was killed by SIGKILL in a time in which the kernel killed 1x for lack of memory; "
        "starting it again in 0.01 s"
    ), done.stderr
    assert "given up after 3 starts in a row that ended the same way" in told[-1]
