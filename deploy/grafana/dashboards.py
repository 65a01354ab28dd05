"""Writes the chart's dashboards; `--check` says whether the committed ones are current."""

import json
import sys
from pathlib import Path
from typing import Any

from fleet import FLEET
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from panels import RUNBOOKS, SELECTOR, Board, Panel
from rollout_log import ROLLOUT_LOG
from training import TRAINING

BOARDS = (TRAINING, FLEET, ROLLOUT_LOG)
FOLDER = Path(__file__).parents[2] / "helm/asympo/dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
EVENTS = (
    ("Publish", "changes(asympo_learner_last_publish_timestamp_seconds{$s}[30s]) > 0", "blue", False),
    (
        "Take-over",
        # The new owner may be another pod, and the run may have been without one.
        "max by (run) (asympo_learner_fence{$s})"
        " > (max by (run) (max_over_time(asympo_learner_fence{$s}[1h] offset 1m)) > 0)",
        "orange",
        True,
    ),
    (
        "Learner falls back to a slower way",
        "(asympo_learner_slow_path{$s} == 1 unless asympo_learner_slow_path{$s} offset 1m == 1)"
        " or (asympo_learner_row_tokens{$s} > 0) < (asympo_learner_row_tokens{$s} offset 1m)",
        "yellow",
        True,
    ),
    (
        "Generator falls back: a reload failed",
        'sum by (run) (increase(asympo_generator_reloads_total{$s,verdict="failed"}[1m])) > 0',
        "red",
        True,
    ),
)
"""Name, when it happened, colour, and whether it is shown unasked."""
_HEIGHT, _NUM_BESIDE = 8, 3
_GRID_WIDTH = 24


def _variables(builder: dashboard.Dashboard) -> None:
    builder.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, query in (
        ("namespace", "label_values(asympo_build_info, namespace)"),
        ("run", 'label_values(asympo_build_info{namespace=~"$namespace"}, run)'),
    ):
        builder.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query(query)
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            # Outside Kubernetes, series have no namespace: an empty label must match as well.
            .all_value(".*")
            .current({"text": "All", "value": "$__all", "selected": True})
        )


def _widths(num_panels: int) -> list[int]:
    """Of a section's panels: three beside each other; those of the last line share its room."""
    num_last = num_panels % _NUM_BESIDE
    full = [_GRID_WIDTH // _NUM_BESIDE] * (num_panels - num_last)
    return full + [_GRID_WIDTH // num_last] * num_last if num_last else full


def _number(builder: stat.Panel, panel: Panel) -> None:
    builder.color_mode(BigValueColorMode.VALUE if panel.colours else BigValueColorMode.NONE)
    if panel.colours:
        # Grafana wants the first one without a value.
        steps = [Threshold(value=value or None, color=colour) for value, colour in panel.colours]
        builder.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.words:
        words = {str(value): ValueMappingResult(text=word) for value, word in panel.words}
        builder.mappings([ValueMap(options=words)])


def _panel(panel: Panel, *, width: int) -> Any:
    builder: Any = stat.Panel() if panel.is_number else timeseries.Panel()
    builder.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit)
    builder.height(_HEIGHT).span(width)
    if panel.min is not None:
        builder.min(panel.min)
    if panel.max is not None:
        builder.max(panel.max)
    if panel.is_number:
        _number(builder, panel)
    else:
        builder.fill_opacity(40 if panel.is_stacked else 8).line_width(1)
        builder.legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if panel.is_stacked:
            builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    builder.links(
        [
            dashboard.DashboardLink(f"Runbook: {alert}")
            .type(DashboardLinkType.LINK)
            .url(f"{RUNBOOKS}#{alert.lower()}")
            .target_blank(True)
            for alert in panel.alerts
        ]
    )
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        builder.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        )
    return builder


def _annotation(name: str, expr: str, colour: str, is_shown: bool) -> dict[str, Any]:
    """Marks of what happened, on every panel."""
    return {
        "name": name,
        "datasource": {"type": SOURCE.type_val, "uid": SOURCE.uid},
        "enable": is_shown,
        "iconColor": colour,
        "expr": expr.replace("$s", SELECTOR),
        "step": "15s",
        "titleFormat": name,
        "textFormat": "run {{run}}",
    }


def build(board: Board) -> str:
    """The dashboard as JSON text."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(f"asympo-{board.name}")
        .description(board.description)
        .tags(["asympo"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    _variables(builder)
    for title, panels in board.rows:
        builder.with_row(dashboard.Row(title))
        for panel, width in zip(panels, _widths(len(panels)), strict=True):
            builder.with_panel(_panel(panel, width=width))
    tree = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    for number, panel in enumerate(tree["panels"], start=1):
        panel["id"] = number
    tree["annotations"] = {"list": [_annotation(*each) for each in EVENTS]}
    for variable in tree["templating"]["list"]:
        # Keys of ad-hoc intervals that Grafana's own schema does not know here.
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def main() -> int:
    stale = []
    for board in BOARDS:
        path, text = FOLDER / f"{board.name}.json", build(board)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        sys.stderr.write(f"{', '.join(stale)} not current: repair: deploy/grafana/dashboards.sh\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
