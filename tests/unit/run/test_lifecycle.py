"""First signal: a flag. Second signal: out."""

import asyncio
import os
import signal
import subprocess
import sys

from asympo.common.lifecycle import StopSignal


def test_first_signal_sets_the_flag_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_runs_the_hook_and_exits_at_once() -> None:
    code = (
        "import os, signal\nfrom asympo.common.lifecycle import StopSignal\n"
        "with StopSignal(on_force=lambda: os.write(1, b'forced')):\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "forced")


def test_coroutines_are_woken_by_a_signal() -> None:
    async def wait(stop: StopSignal) -> str:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait_async(), timeout=5)
        return stop.reason

    with StopSignal() as stop:
        assert asyncio.run(wait(stop)) == "SIGTERM"


def test_only_the_first_reason_is_kept_and_late_listeners_hear_at_once() -> None:
    stop, heard = StopSignal(), []
    stop.on_stop(lambda: heard.append("early"))
    stop.set("drained")
    stop.set("other")
    stop.on_stop(lambda: heard.append("late"))
    assert (stop.reason, heard) == ("drained", ["early", "late"])
