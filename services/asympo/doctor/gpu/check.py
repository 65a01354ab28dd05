"""`asympo doctor --gpu`: runs the steps one after the other and writes down what they found."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.doctor.gpu.steps import STEPS, Found, Step
from asympo.run.prepare.machine import PCI_ORDER, Machine, look_at_machine

TOTAL_SECONDS = 600.0
"""Of all steps together; those that find no time left are not tried."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A step and what came of it."""

    step: Step
    found: Found
    seconds: float

    @property
    def sign(self) -> str:
        return "skip " if self.found.is_skipped else "ok   " if self.found.is_ok else "WRONG"


def require_gpu(machine: Machine) -> None:
    """Raises BadSetting at once if there is nothing to check."""
    if not machine.gpus:
        raise BadSetting(machine.gpu_problem or "there is no GPU here: nothing was checked")


def check_gpu(*, directory: Path, as_json: bool) -> int:
    """The whole check, its report in `directory`; 1 if something is wrong. BadSetting without a GPU."""
    machine = look_at_machine()
    require_gpu(machine)
    say = (lambda text: None) if as_json else _say
    say(f"checking {machine.gpus[0].name}; at most {TOTAL_SECONDS / 60:.0f} minutes, report in {directory}")
    tried = try_steps(STEPS, device="cuda", directory=directory, say=say)
    report = report_of(machine, tried)
    write_report(report, directory)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _say("nothing is wrong" if report["is_healthy"] else "something is wrong: see above")
    return 0 if report["is_healthy"] else 1


def try_steps(
    steps: Sequence[Step],
    *,
    device: str,
    directory: Path,
    say: Callable[[str], None],
    total_seconds: float = TOTAL_SECONDS,
) -> list[Tried]:
    """Each in a process of its own, so that what one leaves on the device is gone before the next."""
    directory.mkdir(parents=True, exist_ok=True)
    end, tried = time.monotonic() + total_seconds, []
    for step in steps:
        left = end - time.monotonic()
        if left <= 0:
            found = Found(sentence="not tried: the time of the whole check was used up", is_ok=False)
            tried.append(Tried(step=step, found=found, seconds=0.0))
        else:
            limited = replace(step, limit_seconds=min(step.limit_seconds, left))
            tried.append(try_step(limited, device=device, directory=directory))
        latest = tried[-1]
        say(f"{latest.sign} {step.name}: {latest.found.sentence} ({latest.seconds:.0f} s)")
    return tried


def try_step(step: Step, *, device: str, directory: Path) -> Tried:
    """One step, ended with all that it started when its time is over; its output is in `NAME.log`."""
    log, begun = directory / f"{step.name}.log", time.monotonic()
    command = [sys.executable, "-m", "asympo.doctor.gpu.steps", step.name, device, str(directory)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **PCI_ORDER},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=step.limit_seconds)
            found = _read(output, process.returncode, log)
        except subprocess.TimeoutExpired:
            found = Found(sentence=f"took more than {step.limit_seconds:.0f} s: see {log}", is_ok=False)
        finally:
            # An engine's own processes outlive it and would keep the device's memory from the next step.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return Tried(step=step, found=found, seconds=round(time.monotonic() - begun, 1))


def _read(output: bytes, code: int, log: Path) -> Found:
    lines = output.decode(errors="replace").strip().splitlines()
    if code == 0 and lines:
        with suppress(ValueError, TypeError):
            return Found(**json.loads(lines[-1]))
    words = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return Found(sentence=f"ended with exit code {code}: {words[-1][:300]} (log: {log})", is_ok=False)


def report_of(machine: Machine, tried: Sequence[Tried]) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "is_healthy": all(each.found.is_ok for each in tried),
        "gpus": [asdict(gpu) for gpu in machine.gpus],
        "seconds": round(sum(each.seconds for each in tried), 1),
        "steps": [
            {"name": each.step.name, "shows": each.step.shows, "seconds": each.seconds, **asdict(each.found)}
            for each in tried
        ],
    }


def write_report(report: dict[str, Any], directory: Path) -> None:
    """`gpu-check.json`, and the same as a page: `gpu-check.md`."""
    (directory / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n")
    (directory / "gpu-check.md").write_text(page_of(report))


def page_of(report: dict[str, Any]) -> str:
    """Markdown: a table of the steps, then the figures of each."""
    cards = ", ".join(gpu["name"] for gpu in report["gpus"]) or "no GPU"
    lines = [f"# GPU check: {cards}", "", "| step | shows | result | seconds |", "|---|---|---|---|"]
    for step in report["steps"]:
        word = "not tried" if step["is_skipped"] else "ok" if step["is_ok"] else "**wrong**"
        lines.append(
            f"| {step['name']} | {step['shows']} | {word}: {step['sentence']} | {step['seconds']:.0f} |"
        )
    for step in report["steps"]:
        if step["figures"]:
            lines += ["", f"## {step['name']}", "", "| figure | value |", "|---|---|"]
            lines += [
                f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in step["figures"].items()
            ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
