"""Times one optimizer step of several learners on the same model, rollouts, machine and libraries.

`make bench-peers` runs it. Arms take turns, each turn in a process of its own, with the same threads and
allocator settings, in the virtual environment of `requirements.lock`; verl, whose transformers is another
one, in that of `requirements-verl.lock`. Writes medians, ratios and every single measurement beside this
file, to `results.json`, or `results-bf16.json` with `--dtype bfloat16`; with `--shape` the other shapes of
that file stay, if they were measured on the same machine with the same libraries.

An arm that the kernel kills for want of memory is written down as such, and the run goes on: for TRL with its
whole batch, TRL in micro-batches of one group takes over, in a row of its own name.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asympo.bench.shapes import SHAPES, Shape, make_rollouts, num_true_tokens, parse_shape
from asympo.bench.tables import peers_table
from asympo.demo.model import prepare_model
from asympo.learner.settings import HEAD_ROWS, LearnerSettings
from asympo.run.prepare.machine import KEEP_MEMORY, NO_SPINNING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


_TIMEOUT_SECONDS = 1800
_NLL_TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
"""Nats between the mean NLLs that two arms find for the same rollouts."""

# Processor seconds are reported beside those of the clock: on a machine with other work they are steadier.
ALTERNATING = ("asympo", "trl")
"""These take a turn in every round."""
ONCE = ("plain", "verl", "asympo_lora", "asympo_lora_8bit", "trl_lora")
"""These take one turn, in the first round, unless asked for with --arm."""
INSTEAD = {"trl": "trl_by_group"}
"""Who takes over from an arm that does not fit into memory."""
OURS = {"trl_lora": "asympo_lora"}
"""Which of our arms another one is compared with, where that is not `asympo`."""
ARMS: dict[str, tuple[str, ...]] = {
    "asympo": ("arm_asympo.py",),
    "asympo_lora": ("arm_asympo.py", "--lora"),
    "asympo_lora_8bit": ("arm_asympo.py", "--lora", "--base-bits", "8"),
    "trl_lora": ("arm_trl.py", "--lora"),
    "trl": ("arm_trl.py",),
    "trl_by_group": ("arm_trl.py", "--micro-batch", "8"),
    "trl_without_old_logprobs": ("arm_trl.py", "--without-old-logprobs"),
    "plain": ("arm_plain.py",),
    "verl": ("arm_verl.py",),
}


def main() -> int:
    arguments = _parse()
    pythons = {arm: Path(arguments.verl_python if arm == "verl" else arguments.python) for arm in ARMS}
    model = arguments.model or str(prepare_model())
    shapes = [parse_shape(text) for text in arguments.shape or ()] or list(SHAPES)
    arms = arguments.arm or [*ALTERNATING, *ONCE]
    results: dict[str, Any] = {
        "machine": _machine(),
        "libraries": _libraries({arm: pythons[arm] for arm in arms}),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": arguments.model or "the demo's (SmolLM2-135M-Instruct)",
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "shapes": {},
    }
    if arguments.shape:
        results["shapes"] = _kept_shapes(arguments.output, results)
    for shape in shapes:
        results["shapes"][shape.name] = _measure(shape, arms, pythons, model, arguments)
        for name, key in (("speedup_vs_trl", "speedup"), ("memory_ratio_vs_trl", "memory_ratio")):
            results[name] = {
                measured_shape: measured[key]["trl"]
                for measured_shape, measured in results["shapes"].items()
                if "trl" in measured[key]
            }
            # What is known where the whole batch did not fit.
            results[f"{name}_by_group"] = {
                measured_shape: measured[key]["trl_by_group"]
                for measured_shape, measured in results["shapes"].items()
                if "trl_by_group" in measured[key]
            }
        # After every shape: what is measured stays if a later one fails.
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(peers_table(results) + "\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="path of a model; the demo's when none")
    parser.add_argument("--shape", action="append", metavar="PROMPT/RESPONSE/GROUPS")
    parser.add_argument("--arm", action="append", choices=ARMS)
    parser.add_argument("--rounds", type=int, default=2, help="turns of every arm")
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a turn")
    for flag, venv in (("--python", "peers-venv"), ("--verl-python", "peers-verl-venv")):
        parser.add_argument(
            flag, default=ROOT / f".cache/{venv}/bin/python", help=f"other than .cache/{venv}'s"
        )
    parser.add_argument(
        "--dtype", choices=_NLL_TOLERANCE, default="float32", help="of products, in every learner"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.output is None:
        name = "results.json" if arguments.dtype == "float32" else "results-bf16.json"
        arguments.output = HERE / name
    return arguments


def _measure(
    shape: Shape, arms: Sequence[str], pythons: dict[str, Path], model: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    config = json.loads((Path(model) / "config.json").read_text())
    rollouts = make_rollouts(shape, vocab_size=config["vocab_size"])
    groups = [
        {"prompt_ids": r.prompt_ids, "responses": r.responses, "advantages": r.advantages} for r in rollouts
    ]
    arms = list(arms)
    turns: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    too_large: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rollouts.json"
        path.write_text(json.dumps(groups))
        for round_number in range(arguments.rounds):
            for arm in arms:
                if arm in too_large or (round_number and arm in ONCE and not arguments.arm):
                    continue
                flags = ("--model", model, "--rollouts", str(path))
                flags += ("--steps", str(arguments.steps), "--dtype", arguments.dtype)
                turn = _turn(arm, pythons[arm], flags)
                if turn is None:
                    sys.stderr.write(f"{shape.name} round {round_number + 1} {arm}: out of memory\n")
                    too_large.append(arm)
                    del turns[arm]
                    if arm in INSTEAD and INSTEAD[arm] not in arms:
                        arms.append(INSTEAD[arm])
                    continue
                turns.setdefault(arm, []).append(turn)
                seconds = statistics.median(turn["seconds"])
                sys.stderr.write(f"{shape.name} round {round_number + 1} {arm}: {seconds:.2f} s a step\n")
    _check_same_work(shape, turns, tolerance=_NLL_TOLERANCE[arguments.dtype])
    return {**_summary(shape, num_true_tokens(rollouts), turns), "out_of_memory": too_large}


def _turn(arm: str, python: Path, common: Sequence[str]) -> dict[str, Any] | None:
    """One process' measurement; None when the kernel killed it because the machine's memory was used up."""
    script, *flags = ARMS[arm]
    if script == "arm_asympo.py":
        defaults = LearnerSettings.model_fields
        flags += ["--token-budget", str(defaults["token_budget"].default)]
        flags += ["--chunk-rows", str(HEAD_ROWS["cpu"])]
    command = [str(python), str(HERE / script), *common, *flags]
    environment = {
        **os.environ,
        **KEEP_MEMORY,
        **NO_SPINNING,
        "PYTHONPATH": str(ROOT / "services"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    kills_before = _num_memory_kills()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    if done.returncode == -signal.SIGKILL and _num_memory_kills() > kills_before:
        return None
    if done.returncode != 0:
        raise SystemExit(f"{arm} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    turn: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return turn


def _num_memory_kills() -> int:
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("oom_kill", 0))


def _kept_shapes(output: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What the file holds already, if it can stand beside what is measured now."""
    if not output.exists():
        return {}
    before = json.loads(output.read_text())
    same = ("machine", "libraries", "model", "dtype", "rounds", "steps_per_round")
    return dict(before["shapes"]) if all(before.get(name) == results[name] for name in same) else {}


def _check_same_work(shape: Shape, turns: dict[str, list[dict[str, Any]]], *, tolerance: float) -> None:
    """All arms must have seen the same rollouts with the same model; None is an arm that does not know."""
    found = {arm: turn["mean_nll"] for arm, taken in turns.items() for turn in taken}
    known = {arm: nll for arm, nll in found.items() if nll is not None}
    if known and max(known.values()) - min(known.values()) > tolerance:
        raise SystemExit(f"{shape.name}: the arms did not do the same work, mean NLLs are {known}")


def _summary(shape: Shape, true_tokens: int, turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    arms = {}
    for arm, taken in turns.items():
        seconds = [s for turn in taken for s in turn["seconds"]]
        optimizer = [s for turn in taken for s in turn["optimizer_seconds"]]
        without = [whole - part for whole, part in zip(seconds, optimizer, strict=True)]
        arms[arm] = {
            "seconds": statistics.median(seconds),
            "seconds_without_optimizer": statistics.median(without),
            "cpu_seconds": statistics.median(s for turn in taken for s in turn["cpu_seconds"]),
            "tokens_per_second": true_tokens / statistics.median(seconds),
            "peak_memory_bytes": statistics.median(turn["peak_memory_bytes"] for turn in taken),
            "turns": taken,
        }
    summary: dict[str, Any] = {"shape": asdict(shape), "true_tokens": true_tokens, "arms": arms}
    pairs = {
        arm: (arms[ours], result)
        for arm, result in arms.items()
        if (ours := OURS.get(arm, "asympo")) in arms and not arm.startswith("asympo")
    }
    for key, of in (
        ("speedup", lambda a, b: b["seconds"] / a["seconds"]),
        (
            "speedup_without_optimizer",
            lambda a, b: b["seconds_without_optimizer"] / a["seconds_without_optimizer"],
        ),
        ("speedup_in_cpu_seconds", lambda a, b: b["cpu_seconds"] / a["cpu_seconds"]),
        ("memory_ratio", lambda a, b: a["peak_memory_bytes"] / b["peak_memory_bytes"]),
    ):
        summary[key] = {arm: round(of(ours, result), 3) for arm, (ours, result) in pairs.items()}
    return summary


def _machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": names[0] if names else "unknown",
        "cores": cores,
        "threads": int(os.environ.get("OMP_NUM_THREADS", cores)),
    }


def _libraries(pythons: dict[str, Path]) -> dict[str, str]:
    """Versions of what the arms run on; those of verl's environment under its name."""
    versions: dict[str, str] = {}
    for arm, python in sorted(pythons.items(), key=lambda item: item[0] == "verl"):
        names = ["torch", "transformers", *(["verl"] if arm == "verl" else ["trl", "peft"])]
        code = (
            f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
        )
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        for name, version in json.loads(done.stdout).items():
            versions.setdefault(f"verl's {name}" if arm == "verl" and name != "verl" else name, version)
    return versions


if __name__ == "__main__":
    sys.exit(main())
