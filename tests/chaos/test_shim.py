"""The library that slows disks, fills them and moves clocks, loaded into a real process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asympo.chaos.shim import Control, build_shim

from tests.conftest import require


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_shim(tmp_path_factory.mktemp("shim"))
    require(built is not None, "a C compiler")
    assert built is not None
    return built


@pytest.fixture
def control(library: Path, tmp_path: Path) -> Control:
    return Control(library=library, path=tmp_path / "control")


def run_under(control: Control, program: str, *arguments: str) -> str:
    environment = {**os.environ, **control.environment}
    command = [sys.executable, "-S", "-c", program, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=True
    ).stdout.strip()


def test_process_is_itself_while_nothing_is_asked_for(control: Control, tmp_path: Path) -> None:
    program = (
        "import sys,time,os; f=open(sys.argv[1],'w'); f.write('x'); f.flush(); os.fsync(f.fileno()); "
        "print(time.time())"
    )
    assert abs(float(run_under(control, program, str(tmp_path / "file"))) - time.time()) < 10
    assert (tmp_path / "file").read_text() == "x"
    assert (control.num_slow_fsyncs, control.num_refused_writes, control.num_shifted_reads) == (0, 0, 0)


def test_fsync_takes_as_long_as_told(control: Control, tmp_path: Path) -> None:
    program = (
        "import os,sys,time; f=open(sys.argv[1],'w'); t=time.monotonic(); os.fsync(f.fileno()); "
        "os.fdatasync(f.fileno()); print(time.monotonic()-t)"
    )
    control.slow_fsync(0.2)
    assert float(run_under(control, program, str(tmp_path / "file"))) >= 0.4
    assert control.num_slow_fsyncs == 2


def test_full_disk_refuses_writes_below_its_prefix_only(control: Control, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        with open(path, 'wb', 0) as f: f.write(b'x')\n"
        "        print('written')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    full, other = tmp_path / "full", tmp_path / "fuller"
    full.mkdir()
    other.mkdir()
    control.fill_disk(full)
    assert run_under(control, program, str(full / "file"), str(other / "file")).split() == ["28", "written"]
    assert control.num_refused_writes == 1
    control.free_disk()
    assert run_under(control, program, str(full / "file")) == "written"


@pytest.mark.parametrize("shift", [3600.5, -7200.25])
def test_wall_clock_is_moved_and_the_monotonic_one_is_not(control: Control, shift: float) -> None:
    program = "import time; print(time.time(), time.monotonic())"
    control.shift_clock(shift)
    wall, monotonic = map(float, run_under(control, program).split())
    assert abs(wall - time.time() - shift) < 10
    assert abs(monotonic - time.monotonic()) < 10
    assert control.num_shifted_reads >= 1
    assert control.clock_shift_seconds == shift
