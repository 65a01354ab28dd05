"""What cannot start says so in one sentence: no traceback, no exit code 0, no process that stays."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.testing.tiny_model import write_tiny_model

TOO_LONG = "/tmp/" + "a" * 300
SECRET = "Pl4nted"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asympo.cli", *arguments]
    ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command,
        env={**os.environ, **ours, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=110,
        check=False,
    )


def is_one_sentence(text: str) -> bool:
    """Behind what a library prints as it reads a file, which is not ours to word."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("[transformers]")]
    said = "\n".join(lines)
    return "Traceback" not in said and "\x1b" not in said and lines[-1].startswith("asympo: ")


def change_config(**values: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty weights": lambda model: (model / "model.safetensors").write_bytes(b""),
    "weights cut off": cut,
    "header without end": lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
    "unknown attention": change_config(_attn_implementation="warp", attn_implementation="warp"),
    "unknown family": change_config(model_type="\x1b[31mwarp"),
    "number that is none": change_config(num_hidden_layers="many"),
    "nested config": lambda model: (model / "config.json").write_bytes(b"[" * 100_000),
    "broken tokenizer": lambda model: (model / "tokenizer.json").write_bytes(b"{"),
}


ONE_BY_ONE = """
import json, sys, traceback
from asympo.cli import main
for arguments in json.load(sys.stdin):
    try:
        code = main(["learner", *arguments])
    except BaseException:  # a learner may leave in any way; all are printed
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.stderr.write(f"<<<{code}>>>")
    sys.stderr.flush()
"""
"""Learners in one process, which takes its libraries in once."""


@pytest.mark.timeout(175)
def test_learner_that_cannot_start_says_why_in_one_sentence(
    tmp_path: Path, tiny_model: Path, broker_url: str, run_name: str
) -> None:
    cases: dict[str, tuple[str, str]] = {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        damage(write_tiny_model(tmp_path / f"model-{number}"))
        cases[name] = (str(tmp_path / f"model-{number}"), str(tmp_path / "c"))
    for root in (TOO_LONG, "/proc/nothing", "/dev/null"):
        cases[f"root {root[:20]}"] = (str(tiny_model), root)
    common = ["--redis-url", broker_url, "--task.name", "addition", "--http-port", "0", "--grpc-port", "0"]
    asked = [
        [*common, "--run", f"{run_name}-{number}", "--model", model, "--checkpoint-root", root]
        for number, (model, root) in enumerate(cases.values())
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE],
        input=json.dumps(asked),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=170,
        check=False,
    )
    said = re.findall(r"(.*?)<<<(-?\d+)>>>", done.stderr, flags=re.DOTALL)
    assert len(said) == len(cases), done.stderr[-2000:]
    for (name, (model, root)), (text, code) in zip(cases.items(), said, strict=True):
        assert int(code) != 0, name
        assert is_one_sentence(text), f"{name}: {text[-2000:]}"
        assert (root if name.startswith("root") else model)[:100] in text, f"{name}: {text[-500:]}"


PLANTED = {
    "REDIS_URL": f"redis://u:{SECRET}/#@127.0.0.1:1/0?password={SECRET}",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{SECRET}@127.0.0.1:1/?api-key={SECRET}",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "HF_TOKEN": SECRET,
    "WANDB_API_KEY": SECRET,
    "MLFLOW_TRACKING_URI": f"https://u:{SECRET}@127.0.0.1:port/",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "MLFLOW_TRACKING_TOKEN": SECRET,
    "REDIS_SENTINEL_PASSWORD": SECRET,
    "ASYMPO_RUN_NOTIFY_URL": "",
}
COMMANDS = (
    ("learner", "--check-config"),
    ("generator", "--check-config"),
    ("gateway", "--check-config"),
    ("run", "{file}", "--check-config"),
    ("run", "{file}", f"--run.notify-url=https://h/{SECRET}", "--check-config"),
    ("run", "{file}", "--run.nothing", SECRET),
    ("runs", "show", "r"),
    ("runs", "list"),
    ("log", "show", "--run", "r"),
    ("doctor", "--json"),
    ("learner", "--redis-url", f"redis://:{SECRET}@h:port/0", "--check-config"),
    ("generator", "--redis-url", f"redis+x://u:{SECRET}@h/0"),
    ("gateway", "--redis-url", f"redis://h:1/0?password={SECRET}"),
    ("learner", "--object-store.secret-access-key", SECRET, "--check-config"),
    ("learner", f"--trackers.mlflow-uri=https://u:{SECRET}@h/?token={SECRET}", "--check-config"),
    ("run", "{file}", f"--learner.trackers.mlflow-uri=https://u:{SECRET}@h/", "--dry-run"),
    ("evaluator", "--check-config"),
    ("evaluator", "--run", "r", "--http-port", "0", "--redis-url", f"redis://u:{SECRET}@h:port/0"),
    ("gateway", "--doors", f"ftp://u:{SECRET}@h/v1"),
    ("generator", "--run", "r", "--redis-url", f"rediss://h:1/0?ssl_nothing=1&password={SECRET}"),
    ("generator", "--http-port", f"redis://u:{SECRET}@h/0"),
    ("chaos", "--mode", f"redis://u:{SECRET}@h/0"),
    ("chaos", f"--token={SECRET}"),
    ("bench", "log", "--redis-url", f"redis://u:{SECRET}@127.0.0.1:1/0"),
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_shows_a_secret(command: tuple[str, ...], tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'[run]\nname = "r"\nmodel = "{tiny_model}"\ndirectory = "{tmp_path}"\n'
        f'notify_url = "https://hooks.example/services/{SECRET}?token={SECRET}"\n'
        f'[broker]\nurl = "redis://u:{SECRET}@127.0.0.1:1/0"\n[generator]\nengine = "simulated"\n'
    )
    planted = {name: value for name, value in PLANTED.items() if value}
    process = subprocess.Popen(
        [sys.executable, "-m", "asympo.cli", *(part.format(file=file) for part in command)],
        env={**os.environ, **planted, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=8 if command[0] == "gateway" else 60)
    except subprocess.TimeoutExpired:
        # A gateway waits for its broker for as long as it takes.
        process.kill()
        said, _ = process.communicate()
    written = b"".join(
        path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path != file and "model" not in path.name
    )
    assert said
    assert SECRET.encode() not in said + written, said.decode(errors="replace")[-3000:]
