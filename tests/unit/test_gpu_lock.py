"""Turns on a GPU: between processes, and when one of them dies."""

import subprocess
import sys
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.learner import gpu_turn
from asympo.learner.gpu_turn import GpuTurn
from asympo.local.gpu_lock import GpuLock

GIB = 1 << 30
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
    with pytest.raises(BadSetting, match=r"gpu_lock .*gpu\.lock cannot be locked"):
        GpuLock(tmp_path / "file" / "gpu.lock")


class HandClock:
    """Time passes only in sleep."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now_seconds(self) -> float:
        return self.seconds

    def monotonic_seconds(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.mark.parametrize(("freed_after", "waited"), [(3.0, 3.0), (1e9, gpu_turn._FREE_SECONDS)])
def test_turn_begins_once_the_memory_of_a_killed_engine_is_free_or_after_a_while(
    freed_after: float, waited: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, freed_at = HandClock(), 0.0
    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda: 40 * GIB if clock.seconds >= freed_at else 10 * GIB)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    turn = GpuTurn(tmp_path / "gpu.lock", clock=clock)
    assert turn.take(within_seconds=0.5)
    turn.give_back()
    # One that is given up while it waits for memory says nothing of what is free.
    freed_at = clock.seconds + 1e9
    assert not turn.take(within_seconds=0.5)
    turn.give_back()
    begun, freed_at = clock.seconds, clock.seconds + freed_after
    while not turn.take(within_seconds=0.5):
        assert clock.seconds < begun + 60
    assert clock.seconds - begun == pytest.approx(waited, abs=0.05)


def test_first_turn_after_the_start_waits_for_no_memory_that_engines_took_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, free = HandClock(), [40 * GIB]
    monkeypatch.setattr(gpu_turn, "_free_bytes", lambda: free[0])
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    turn = GpuTurn(tmp_path / "gpu.lock", clock=clock)
    assert turn.take(within_seconds=0.5)
    turn.give_back(is_measured=False)
    free[0] = 38 * GIB
    assert turn.take(within_seconds=0.0)


def test_without_a_lock_it_is_always_the_learners_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = GpuTurn(None, clock=HandClock())
    assert turn.take(within_seconds=0.0)
    turn.give_back()
