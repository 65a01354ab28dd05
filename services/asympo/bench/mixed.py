"""`asympo bench mixed`: vLLM and a server over the same model's 4-bit weights feed one learner."""

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from asympo.common.errors import AsympoError
from asympo.common.jsonl import read_steps
from asympo.common.settings import dump_toml, merge, read_toml
from asympo.demo.command import PRESET
from asympo.demo.model import prepare_model
from asympo.local.broker import broker_url, socket_path
from asympo.local.ports import free_port
from asympo.local.process import Process
from asympo.testing.run_process import RunProcess

RUN = "mixed"
STEPS_AT_AN_END = 3
"""Steps whose mean reward is the first figure, and the last."""
_MAX_SECONDS = 3600.0
_POLL_SECONDS = 1.0
_APPENDED = re.compile(r'^asympo_generator_groups_total\{outcome="appended"\} (\S+)', re.MULTILINE)


def measure_mixed(*, server: str, total_steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the demo with a second generator that asks the server. Raises AsympoError when the run fails."""
    with tempfile.TemporaryDirectory(prefix="asympo-mixed-") as name:
        folder, begun = Path(name), time.monotonic()
        ports = {engine: free_port() for engine in ("vllm", "server")}
        run = RunProcess(_run_file(folder, total_steps, ports["vllm"]), log_path=folder / "run.log").start()
        second = Process(command=_second(folder, server, ports["server"]), log_path=folder / "server.log")
        appended, is_joined = dict.fromkeys(ports, 0), False
        try:
            while run.is_running:
                if time.monotonic() - begun > _MAX_SECONDS:
                    raise AsympoError(f"the run has not ended after {_MAX_SECONDS:g} s")
                if not is_joined and socket_path(folder / "runs" / RUN / "broker").exists():
                    say("the generator of the server starts")
                    second.start()
                    is_joined = True
                appended |= {engine: max(appended[engine], _count(port)) for engine, port in ports.items()}
                time.sleep(_POLL_SECONDS)
            if (code := run.wait(60)) != 0:
                raise AsympoError(f"the run ended with {code}: {(folder / 'run.log').read_text()[-400:]}")
        finally:
            for process in (second, run):
                process.kill()
        rewards = [row["reward_mean"] for row in read_steps(folder / "runs" / RUN / "metrics.jsonl")]
    return {
        "steps": len(rewards),
        "groups_of_vllm": appended["vllm"],
        "groups_of_server": appended["server"],
        "reward_first": round(fmean(rewards[:STEPS_AT_AN_END]), 3),
        "reward_last": round(fmean(rewards[-STEPS_AT_AN_END:]), 3),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _run_file(folder: Path, total_steps: int, http_port: int) -> Path:
    """The demo, without its targets."""
    values = read_toml(PRESET)
    values["run"].pop("targets", None)
    changes = {
        "run": {
            "name": RUN,
            "directory": str(folder / "runs"),
            "model": str(prepare_model()),
            "evaluate": False,
        },
        "learner": {"total_steps": total_steps, "http_port": free_port(), "show_samples": False},
        "generator": {"http_port": http_port},
    }
    path = folder / "run.toml"
    path.write_text(dump_toml(merge(values, changes), comment="Written by `asympo bench mixed`."))
    return path


def _second(folder: Path, server: str, http_port: int) -> list[str]:
    """The generator that asks the server; it joins as soon as the broker of the run answers."""
    values = {
        "run": RUN,
        "redis_url": broker_url(folder / "runs" / RUN / "broker", port=None),
        "checkpoint_root": str(folder / "runs"),
        "engine": "openai",
        "openai": {"base_url": server},
        "max_groups_in_flight": 2,
        "http_port": http_port,
        "grpc_port": free_port(),
    }
    path = folder / "server.toml"
    path.write_text(dump_toml(values, comment="Written by `asympo bench mixed`."))
    return [sys.executable, "-m", "asympo.cli", "generator", "--config", str(path)]


def _count(http_port: int) -> int:
    """Groups that a generator has appended; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=5) as answer:
            found = _APPENDED.search(answer.read().decode())
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(float(found[1])) if found else 0
