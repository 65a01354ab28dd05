"""Turns on a GPU: between processes, and when one of them dies."""

import subprocess
import sys
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.local.gpu_lock import GpuLock

HOLDS = """
import sys, time
from pathlib import Path
from asympo.local.gpu_lock import GpuLock
lock = GpuLock(Path(sys.argv[1]))
print(lock.try_own() if sys.argv[2] == "own" else lock.try_share(), flush=True)
sys.stdin.read()
"""


def test_learner_has_the_gpu_alone_and_comes_before_generators_that_wait(tmp_path: Path) -> None:
    learner, first, second = (GpuLock(tmp_path / "run" / "gpu.lock") for _ in range(3))
    assert first.try_share()
    assert second.try_share(), "generators use it beside each other"
    assert not first.is_wanted()
    assert not learner.try_own()
    assert first.is_wanted()
    first.unshare()
    assert not first.try_share(), "whoever went to sleep does not come before the learner that waits"
    assert not learner.try_own(), "the second is still awake"
    second.unshare()
    assert learner.try_own()
    assert second.is_wanted()
    assert not second.try_share()
    learner.disown()
    assert not second.is_wanted()
    assert second.try_share()


@pytest.mark.parametrize("way", ["own", "share"])
def test_lock_of_a_killed_process_is_free(way: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    command = [sys.executable, "-c", HOLDS, str(path), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        mine = GpuLock(path)
        assert not mine.try_own()
        process.kill()
        process.wait()
        assert mine.try_own()


def test_file_that_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadSetting, match=r"gpu_lock .*gpu\.lock cannot be opened"):
        GpuLock(tmp_path / "file" / "gpu.lock")
