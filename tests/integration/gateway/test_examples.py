"""The producers in examples/, as a person starts them."""

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asympo.common.codec import WireLimits, decode_group
from asympo.common.rollout_log import RunLog
from asympo.local.ports import free_port
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import NUM_SUMS, StartGateway
from tests.integration.rollout_log.conftest import Learner, start_run

pytest.importorskip("openai")
importlib.import_module("transformers.models.auto.tokenization_auto")

PRODUCERS = Path(__file__).parents[3] / "examples" / "producers"


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def texts(learner: Learner) -> list[tuple[str, list[tuple[str, float]]]]:
    groups = [
        decode_group(entry.payload, limits=WireLimits()) for entry in learner.consume(10, block_seconds=20)
    ]
    return [(group.prompt.text, [(each.text, each.reward) for each in group.responses]) for group in groups]


def test_example_of_a_file_appends_each_line_once(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    gateway = start_gateway(producers=None)
    for _ in range(2):
        out = run(sys.executable, PRODUCERS / "offline.py", PRODUCERS / "answers.jsonl", gateway.http)
        assert "0 refused" in out
    found = texts(learner)
    assert [prompt for prompt, _ in found] == [
        "Name a prime number.",
        "Name a mammal.",
        "Spell the number 4.",
    ]
    assert found[1][1] == [("A whale.", 1.0), ("A shark.", 0.0)]


def test_example_of_a_shell_script_appends_a_group(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    learner = start_run(log)
    gateway = start_gateway(producers=None, model=str(write_tiny_model(tmp_path / "model")))
    assert '"outcome":"appended"' in run(PRODUCERS / "curl.sh", gateway.http)
    ((prompt, responses),) = texts(learner)
    assert "Which planet is the largest?" in prompt
    assert responses == [("Jupiter.", 1.0), ("The Sun.", 0.0)]


def test_example_of_an_agent_trains_through_its_base_url(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    door = FakeDoor()
    gateway = start_gateway(producers=None, doors=(door.address,))
    try:
        out = run(sys.executable, PRODUCERS / "agent.py", gateway.http, 2)
    finally:
        door.stop()
    assert out.count("earns") == 8
    entries = learner.consume(10, block_seconds=20)
    groups = [decode_group(entry.payload, limits=WireLimits()) for entry in entries]
    assert groups
    assert all(len(group.responses) == 4 for group in groups)
    assert all(bytes(group.prompt.token_ids).startswith(b"system:Add the numbers.") for group in groups)


@pytest.fixture(scope="module")
def foreign_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An engine that knows nothing of us, with a model of its own: `transformers serve`."""
    model = write_tiny_model(tmp_path_factory.mktemp("foreign"), seed=7)
    port = free_port()
    command = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    engine = subprocess.Popen(
        [Path(sys.executable).parent / "transformers", *command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", engine)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        engine.kill()
        engine.wait()


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)


def test_example_of_a_foreign_engine_answers_the_runs_prompts_as_text(
    log: RunLog, start_gateway: StartGateway, foreign_engine: tuple[str, Path]
) -> None:
    engine, model = foreign_engine
    learner = start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    gateway = start_gateway(producers=None, model=str(model))
    out = run(sys.executable, PRODUCERS / "foreign_engine.py", engine, model, gateway.http, 2)
    entries = learner.consume(10, block_seconds=20)
    assert out.count(": appended") == len(entries) == 2
    for entry in entries:
        group = decode_group(entry.payload, limits=WireLimits())
        assert group.prompt.token_ids
        assert all(each.text and not each.token_ids for each in group.responses)
        assert entry.group_id in out


def test_example_of_a_page_trains_what_the_person_presses(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    door, port = FakeDoor(), free_port()
    gateway = start_gateway(producers=None, doors=(door.address,))
    page = subprocess.Popen(
        [sys.executable, PRODUCERS / "choose.py", gateway.http, str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert page.stdout is not None
        assert "Choose at" in page.stdout.readline()
        address = f"http://127.0.0.1:{port}/"
        shown = httpx.get(address, timeout=60).text
        assert httpx.get(f"{address}favicon.ico").status_code == 404
        answers = re.findall(r'<button name="better" value="(\w+)">(\w+)</button>', shown)
        assert [text for _, text in answers] == ["1", "2"]
        form = {"shown": [session_id for session_id, _ in answers], "better": answers[1][0]}
        assert httpx.post(address, data=form, timeout=60).status_code == 303
    finally:
        page.kill()
        page.wait()
        door.stop()
    (entry,) = learner.consume(10, block_seconds=20)
    group = decode_group(entry.payload, limits=WireLimits())
    assert [(bytes(each.token_ids), each.reward) for each in group.responses] == [(b"1;", 0.0), (b"2;", 1.0)]


def test_every_example_is_short_and_shown_in_the_docs() -> None:
    shown = (PRODUCERS.parents[1] / "docs" / "producers.md").read_text()
    for path in sorted(PRODUCERS.glob("*.[ps][yh]")):
        assert len(path.read_text().splitlines()) <= 60, path
        assert f"examples/producers/{path.name}" in shown, path
