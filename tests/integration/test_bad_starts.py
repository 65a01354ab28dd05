"""What cannot start says so in one sentence: no traceback, no exit code 0, no process that stays."""

import json
import os
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


def is_one_sentence(done: subprocess.CompletedProcess[str]) -> bool:
    # What a library prints as it reads a file is not ours to word.
    lines = (done.stderr + done.stdout).splitlines()
    said = "\n".join(line for line in lines if not line.startswith("[transformers]"))
    last = done.stderr.strip().splitlines()[-1]
    return (
        done.returncode != 0
        and "Traceback" not in said
        and "\x1b" not in said
        and last.startswith("asympo: ")
    )


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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", DAMAGES)
def test_model_that_is_damaged_is_refused(
    damage: str, tmp_path: Path, broker_url: str, run_name: str
) -> None:
    DAMAGES[damage](write_tiny_model(tmp_path / "model"))
    flags = ("--run", run_name, "--redis-url", broker_url, "--model", str(tmp_path / "model"))
    roots = ("--checkpoint-root", str(tmp_path / "c"), "--task.name", "addition")
    done = run("learner", *flags, *roots, "--http-port", "0", "--grpc-port", "0")
    assert is_one_sentence(done), done.stderr[-2000:]
    assert str(tmp_path / "model") in done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("root", [TOO_LONG, "/proc/nothing", "/dev/null"])
def test_root_that_cannot_be_written_is_refused(
    root: str, tiny_model: Path, broker_url: str, run_name: str
) -> None:
    flags = (
        "--run",
        run_name,
        "--redis-url",
        broker_url,
        "--model",
        str(tiny_model),
        "--task.name",
        "addition",
    )
    done = run("learner", *flags, "--checkpoint-root", root, "--http-port", "0", "--grpc-port", "0")
    assert is_one_sentence(done), done.stderr[-2000:]


PLANTED = {
    "REDIS_URL": f"redis://u:{SECRET}/#@127.0.0.1:1/0?password={SECRET}",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{SECRET}@127.0.0.1:1/?api-key={SECRET}",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "HF_TOKEN": SECRET,
    "WANDB_API_KEY": SECRET,
    "ASYMPO_RUN_NOTIFY_URL": "",
}
COMMANDS = (
    ("learner", "--check-config"),
    ("generator", "--check-config"),
    ("gateway", "--check-config"),
    ("run", "{file}", "--check-config"),
    ("run", "{file}", f"--run.notify-url=https://h/{SECRET}", "--check-config"),
    ("run", "{file}", "--run.nothing", SECRET),
    ("run", "{file}", "--dry-run"),
    ("runs", "show", "r"),
    ("runs", "list"),
    ("log", "show", "--run", "r"),
    ("doctor", "--json"),
    ("learner", "--redis-url", f"redis://:{SECRET}@h:port/0", "--check-config"),
    ("generator", "--redis-url", f"redis+x://u:{SECRET}@h/0"),
    ("gateway", "--redis-url", f"redis://h:1/0?password={SECRET}"),
    ("learner", "--object-store.secret-access-key", SECRET, "--check-config"),
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
