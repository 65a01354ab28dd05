"""curves.png: how the run went, in four panels. Drawn in a process of its own, at the end."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.local.heap import large_imports
from asympo.run.audit import effective_steps, read_rows
from asympo.run.processes.status import number


def draw_curves(rows: Sequence[Mapping[str, Any]], out: Path, *, title: str) -> None:
    """Reward, NLL by advantage sign, staleness and gradient norm over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 6.5), constrained_layout=True, sharex=True)
    figure.suptitle(title)
    layout: list[tuple[str, str, dict[str, str]]] = [
        ("mean reward", "reward", {"reward_mean": "sampled responses"}),
        (
            "mean NLL by advantage sign",
            "nats a token",
            {"nll_positive": "better than their group", "nll_negative": "worse than their group"},
        ),
        (
            "staleness",
            "policies",
            {
                "queue_staleness_mean": "queue, mean",
                "queue_staleness_max": "queue, largest",
                "generation_staleness_mean": "generation, mean",
            },
        ),
        ("gradient norm before clipping", "norm", {"grad_norm": "all parameters"}),
    ]
    for panel, (heading, unit, lines) in zip(panels.flat, layout, strict=True):
        for key, label in lines.items():
            points = [(row["step"], number(row.get(key))) for row in rows]
            known = [(step, value) for step, value in points if value is not None]
            if known:
                panel.plot(*zip(*known, strict=True), marker=".", markersize=4, linewidth=1.3, label=label)
        panel.set_title(heading, fontsize=10)
        panel.set_ylabel(unit)
        panel.grid(visible=True, alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    for panel in panels[1]:
        panel.set_xlabel("step")
    panels[0][0].set_ylim(bottom=0)
    panels[1][1].set_ylim(bottom=0)
    panels[1][0].set_ylim(bottom=0)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    """`python -m asympo.run.report.curves METRICS.jsonl OUT.png TITLE`."""
    history = effective_steps(read_rows(Path(argv[0])))
    draw_curves([history[step] for step in sorted(history)], Path(argv[1]), title=argv[2])
    return 0


if __name__ == "__main__":
    with large_imports():
        sys.exit(main(sys.argv[1:]))
