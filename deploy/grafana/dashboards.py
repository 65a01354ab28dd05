"""Writes the chart's dashboards; `--check` says whether the committed ones are current."""

import json
import sys
from pathlib import Path
from typing import Any

from fleet import FLEET
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)
from panels import Board, Panel
from rollout_log import ROLLOUT_LOG
from training import TRAINING

BOARDS = (TRAINING, FLEET, ROLLOUT_LOG)
FOLDER = Path(__file__).parents[2] / "helm/asympo/dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _WIDTH = 8, 8
"""Grafana's grid is 24 wide: three panels beside each other."""


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


def _panel(panel: Panel) -> Any:
    builder: Any = stat.Panel() if panel.is_number else timeseries.Panel()
    builder.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit)
    builder.height(_HEIGHT).span(_WIDTH)
    if panel.min is not None:
        builder.min(panel.min)
    if panel.max is not None:
        builder.max(panel.max)
    if not panel.is_number:
        builder.fill_opacity(40 if panel.is_stacked else 8).line_width(1)
        builder.legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if panel.is_stacked:
            builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        builder.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
        )
    return builder


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
        for panel in panels:
            builder.with_panel(_panel(panel))
    tree = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    for number, panel in enumerate(tree["panels"], start=1):
        panel["id"] = number
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
        sys.stderr.write(f"{', '.join(stale)} not current: mend with deploy/grafana/dashboards.sh\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
