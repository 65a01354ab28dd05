"""A small run with every real part but the engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asympo.local.ports import free_port
from asympo.testing.run_process import RunProcess


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [run]
        name = "tiny"
        directory = "{tmp_path}/runs"
        model = "{tiny_model}"
        max_evaluation_prompts = 8
        [run.sampling]
        max_tokens = 6
        [learner]
        http_port = {free_port()}
        group_size = 4
        groups_per_step = 2
        total_steps = 2000
        save_every = 4
        # Measuring what is faster takes seconds of every start.
        compute_dtype = "float32"
        share_prefixes = "always"
        [generator]
        engine = "simulated"
        """
    )
    return path


@pytest.fixture
def start(config: Path, tmp_path: Path) -> Iterator[Callable[..., RunProcess]]:
    runs: list[RunProcess] = []

    def begin(*flags: str) -> RunProcess:
        runs.append(RunProcess(config, *flags, log_path=tmp_path / f"run-{len(runs)}.log"))
        return runs[-1].start()

    yield begin
    for run in runs:
        run.kill()


def last_step(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0
