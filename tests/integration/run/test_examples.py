"""The examples of rewards train two steps; only model, engine and what is on a network stand in."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asympo.local.ports import free_port
from asympo.testing.run_process import RunProcess

EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS = 2


class Runs:
    """One example at a time, with a tiny model and the simulated engine."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.model = model

    def metrics(self, name: str, *flags: str) -> dict[str, Any]:
        """The last step's row."""
        run = RunProcess(
            EXAMPLES / f"{name}.toml",
            f"--run.directory={self.directory}",
            f"--run.model={self.model}",
            "--run.evaluate=false",
            "--run.sampling.max-tokens=8",
            f"--learner.total-steps={STEPS}",
            f"--learner.http-port={free_port()}",
            "--learner.groups-per-step=2",
            "--learner.compute-dtype=float32",
            "--learner.share-prefixes=always",
            "--generator.engine=simulated",
            *flags,
            log_path=self.directory / f"{name}.log",
        ).start()
        try:
            assert run.wait(150) == 0, run.log
        finally:
            run.kill()
        lines = (self.directory / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == STEPS
        row: dict[str, Any] = json.loads(lines[-1])
        return row


@pytest.fixture
def runs(tmp_path: Path, tiny_model: Path) -> Runs:
    return Runs(tmp_path, tiny_model)


def written(path: Path, rows: list[dict[str, Any]], *, subset: str = "") -> Path:
    (path / subset).mkdir(parents=True)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split, part in (("train", rows[1:]), ("test", rows[:1])):
        parquet.write_table(pyarrow.Table.from_pylist(part), path / subset / f"{split}-0.parquet")
    return path


@pytest.mark.timeout(300)
def test_hub_data_with_rewards_of_trl(runs: Runs, tmp_path: Path) -> None:
    rows = [{"question": f"{a} and {b}?", "answer": f"So.\n#### {a + b}"} for a in (1, 2) for b in range(4)]
    row = runs.metrics("gsm8k-trl", f"--run.task.data={written(tmp_path / 'gsm8k', rows, subset='main')}")
    assert 0 <= row["reward/correctness/mean"] <= 1
    assert row["reward/correctness/spread"] > 0
    assert row["reward/says_how/mean"] == 0.0
    assert 0 <= row["reward/correctness/without_a_number/mean"] <= 1
    assert row["reward_mean"] == pytest.approx(row["reward/correctness/mean"])


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server that grades by the response's length; what it was asked."""
    asked: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
            grade = f"{len(body['messages'][0]['content']) % 11}."
            payload = json.dumps({"choices": [{"message": {"content": grade}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    yield asked
    server.shutdown()


@pytest.mark.timeout(300)
def test_llm_judge(runs: Runs, judge: list[dict[str, Any]]) -> None:
    row = runs.metrics("llm-judge")
    assert 0 < row["reward/judge/mean"] <= 1
    assert row["reward/judge/spread"] > 0
    assert len(judge) >= STEPS * 2 * 8
    assert {(each["path"], each["key"]) for each in judge} == {("/v1/chat/completions", "Bearer secret")}
    assert "Right answer:" in judge[0]["messages"][0]["content"]


@pytest.mark.timeout(300)
def test_code_reward(runs: Runs, tmp_path: Path, sandbox: None) -> None:
    rows = [
        {"text": f"Add {n}.", "test_list": [f"assert add(1) == {n + 1}", "assert add(0) != 0"]}
        for n in range(1, 9)
    ]
    # The simulated engine writes no code; lengths alone tell its responses apart.
    by_length = '{function="length", options={free=0, limit=100, unit="characters"}}'
    row = runs.metrics(
        "code",
        f"--run.task.data={written(tmp_path / 'mbpp', rows, subset='full')}",
        f'--run.task.rewards=[{{function="code", timeout_seconds=30.0}}, {by_length}]',
    )
    assert row["reward/code/mean"] == row["reward/code/passed/mean"] == 0.0
    assert row["reward/length/mean"] < 0
