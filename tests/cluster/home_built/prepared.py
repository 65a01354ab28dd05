"""The node with all that the chart needs there: name service, volumes, a hub to fetch the model from."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from asympo.testing import hub
from asympo.testing.tiny_model import write_tiny_model

from deploy.chart import rendering
from tests.cluster.charts import Charts, write_charts
from tests.cluster.home_built.machine import CACHE, broker_image
from tests.cluster.home_built.names import NameServer
from tests.cluster.home_built.node import GATEWAY, OneNode
from tests.cluster.scenario import LAPTOP, ONE_IMAGE


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The node, and what is installed on it."""

    node: OneNode
    version: str
    """Of Kubernetes."""
    charts: Charts
    values: Sequence[Path]
    """On top of the scenario's."""


@contextlib.contextmanager
def prepared_node(directory: Path, *, broker_room: str = "") -> Iterator[Prepared]:
    """Until the end of the block. `broker_room`: of a volume in memory, as mount takes it; else on disk."""
    node = OneNode(cache=CACHE, directory=directory, kubectl=rendering.TOOLS / "bin/kubectl")
    try:
        version = node.start(broker_image())
        NameServer(GATEWAY, addresses_of=node.addresses_of)
        node.add_volume("checkpoints", size="10Gi")
        node.add_volume("broker", size="2Gi", in_memory=broker_room)
        wanted = yaml.safe_load(LAPTOP.read_text())["model"]["download"]
        model = write_tiny_model(directory / "hub")
        place = {"repository": wanted["repository"], "revision": wanted["revision"], "address": GATEWAY}
        with hub.serve(model, **place) as url:
            environment = [
                {"name": "HF_HUB_DISABLE_XET", "value": "1"},
                {"name": "HF_ENDPOINT", "value": url},
            ]
            overlay = directory / "hub.yaml"
            overlay.write_text(yaml.safe_dump({"learner": {"extraEnv": environment}}))
            # The node is older than the chart promises to work on.
            charts = write_charts(directory / "charts", on_any_version=True)
            yield Prepared(node=node, version=version, charts=charts, values=[ONE_IMAGE, overlay])
    finally:
        node.stop()
