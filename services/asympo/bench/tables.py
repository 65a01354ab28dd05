"""The tables of docs/performance.md and docs/models.md, made from the files that the benchmarks wrote.

`python -m asympo.bench.tables` writes them between their markers; a test checks that they are current.
"""

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "docs/performance.md", ROOT / "docs/models.md")
_PARTS = {
    "chunked_head": "chunked head",
    "fused_optimizer": "fused AdamW",
    "fused_layers": "fused layers",
    "packing": "packing (among separate sequences)",
}


def peers_table(results: dict[str, Any]) -> str:
    """One optimizer step of every learner, by shape."""
    lines = [
        "| prompt / response / groups | learner | tokens/s | s a step | without optimizer | processor s "
        "| peak memory | ours is faster | our memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    loads = []
    for shape, measured in results["shapes"].items():
        for arm, result in measured["arms"].items():
            speedup, memory = measured["speedup"].get(arm), measured["memory_ratio"].get(arm)
            loads += [turn["load_average"] for turn in result["turns"]]
            cells = [
                shape,
                arm,
                f"{result['tokens_per_second']:.0f}",
                f"{result['seconds']:.2f}",
                f"{result['seconds_without_optimizer']:.2f}",
                f"{result['cpu_seconds']:.1f}",
                f"{result['peak_memory_bytes'] / 1e9:.1f} GB",
                _times(speedup),
                _times(memory),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        for arm in measured.get("out_of_memory", ()):
            lines.append(f"| {shape} | {arm} | out of memory" + " |" * 7)
    machine = results["machine"]
    words = [
        f"{machine['processor']}, {machine['cores']} cores, threads of each learner: {machine['threads']}",
        f"load average {min(loads):.1f} to {max(loads):.1f} at the end of the turns, the arms' own included",
        ", ".join(f"{name} {version}" for name, version in results["libraries"].items()),
        f"{results['rounds']} rounds of {results['steps_per_round']} timed steps, medians",
        results["started_at"][:10],
    ]
    lines += ["", "; ".join(words) + "."]
    return "\n".join(lines)


def peers_summary(results: dict[str, Any]) -> str:
    """How much longer the others take, and our share of TRL's memory."""
    lines = [
        "| prompt / response / groups | TRL's GRPO trainer | verl's engine | a plain loop | our memory |",
        "|---|---|---|---|---|",
    ]
    for shape, measured in results["shapes"].items():
        trl, words = "trl", ""
        if trl in measured.get("out_of_memory", ()):
            trl, words = "trl_by_group", " (by group: its whole batch did not fit into memory)"
        cells = [shape, f"{measured['speedup'][trl]:.1f}×{words}"]
        cells += [f"{measured['speedup'][arm]:.1f}×" for arm in ("verl", "plain")]
        lines.append("| " + " | ".join([*cells, _times(measured["memory_ratio"][trl])]) + " |")
    return "\n".join(lines)


def learner_table(report: dict[str, Any]) -> str:
    """What `asympo bench learner --json` wrote, by shape; parts that were not measured are left out."""
    columns: dict[str, Callable[[str], str]] = {}
    if "tokens_per_second" in report:
        columns["tokens/s"] = lambda shape: f"{report['tokens_per_second'][shape]:.0f}"
        columns["peak memory"] = lambda shape: f"{report['peak_memory_bytes'][shape] / 1e9:.1f} GB"
        columns["share of matmul peak"] = lambda shape: f"{report['matmul_peak_share'][shape]:.0%}"
        if isinstance(report["matmul_peak_flops"], dict):
            columns["matmul peak"] = lambda shape: f"{report['matmul_peak_flops'][shape] / 1e9:.0f} GFLOP/s"
    if "forward_backward_peak_share" in report:
        columns["in forward and backward"] = lambda shape: (
            f"{report['forward_backward_peak_share'][shape]:.0%}"
        )
    if "shared_prompt_speedup" in report:
        columns["shared prompts"] = lambda shape: _times(report["shared_prompt_speedup"][shape])
    for part, words in _PARTS.items():
        if any(part in gains for gains in report.get("gain", {}).values()):
            columns[words] = functools.partial(_gain, report, part)
    measured = [name for name in ("tokens_per_second", "gain", "shared_prompt_speedup") if name in report]
    lines = ["| " + " | ".join(["prompt / response / groups", *columns]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for shape in report[measured[0]]:
        lines.append("| " + " | ".join([shape, *(cell(shape) for cell in columns.values())]) + " |")
    machine, model = report["machine"], report["model"]
    facts = [f"{model['name']} ({model['parameters'] / 1e6:.0f} M parameters)", str(machine["processor"])]
    facts.append(f"{report['num_threads']} threads, {report['compute_dtype']}")
    scope = ""
    if isinstance(report.get("matmul_peak_flops"), float):
        # Such a file keeps peak and load of its last shape alone.
        scope = " (of the last shape)" if len(report["tokens_per_second"]) > 1 else ""
        facts.append(f"matmul peak {report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s{scope}")
    facts.append(f"torch {machine['torch']}, load average {machine['load_average']:.1f} at the start{scope}")
    lines += ["", "; ".join(facts) + "."]
    if "loss_time_ratio" in report:
        loss = report["loss"]
        lines[-1] += (
            f" Loss stage, {loss['num_tokens']} tokens and {loss['vocab_size']} words, chunked (in rows of "
            f"{loss['row_tokens']} tokens) over whole: "
            f"{report['loss_memory_ratio']:.2f}× the memory, {report['loss_time_ratio']:.2f}× the time."
        )
    return "\n".join(lines)


def families_table(report: dict[str, Any]) -> str:
    """How each family of models is computed."""
    lines = [
        "| family | computed | largest NLL error | largest gradient error | checkpointing | bfloat16 "
        "| why not faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["families"]:
        errors = [_power_of_ten(row[name]) for name in ("nll_error", "gradient_error")]
        words = {True: "yes", False: "no", None: ""}
        switches = [words[row[name]] for name in ("gradient_checkpointing", "bfloat16")]
        reason = row["reason"].replace("|", "/").replace("\n", " ")
        cells = [row["family"], row["path"], *errors, *switches, reason]
        lines.append("| " + " | ".join(cells) + " |")
    counts = ", ".join(f"{number} {path}" for path, number in sorted(report["counts"].items()))
    return "\n".join([*lines, "", f"transformers {report['transformers']}: {counts}."])


def _power_of_ten(value: float | None) -> str:
    """Rounded up to a power of ten: the digits are those of rounding."""
    if value is None:
        return ""
    return "0" if value == 0 else f"< 1e{math.floor(math.log10(value)) + 1}"


def _gain(report: dict[str, Any], part: str, shape: str) -> str:
    return _times(report["gain"][shape].get(part))


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "peers": ("benchmarks/peers/results.json", peers_table),
    "peers-summary": ("benchmarks/peers/results.json", peers_summary),
    "peers-bf16": ("benchmarks/peers/results-bf16.json", peers_table),
    "peers-summary-bf16": ("benchmarks/peers/results-bf16.json", peers_summary),
    "learner": ("benchmarks/learner.json", learner_table),
    "learner-bf16": ("benchmarks/learner-bf16.json", learner_table),
    "families": ("benchmarks/families.json", families_table),
    "learner-large": ("benchmarks/learner-large.json", learner_table),
    "learner-large-bf16": ("benchmarks/learner-large-bf16.json", learner_table),
}
"""Marker in a page: file, and what makes the table of it."""


def rendered(page: str) -> str:
    """The page with every table made again; ValueError names a marker without its file."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        path, make = TABLES[name]
        if not (ROOT / path).exists():
            raise ValueError(f"the page has a table {name} and there is no {path}")
        report = json.loads((ROOT / path).read_text())
        return f"<!-- table: {name} -->\n\n{make(report)}\n\n<!-- end: {name} -->"

    marks = r"<!-- table: (?P<name>[a-z0-9-]+) -->.*?<!-- end: (?P=name) -->"
    return re.sub(marks, table, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
