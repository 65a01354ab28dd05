"""python -m tests.pods [--values FILE ...] [--keep DIRECTORY]: see the package."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from asympo.testing import hub
from asympo.testing.tiny_model import write_tiny_model

from deploy.chart import rendering
from tests.cluster.cluster import Report
from tests.cluster.scenario import CHART, LAPTOP, OVERLAY
from tests.pods.images import missing_programs
from tests.pods.manifests import ChartFault, Manifests, broker_users
from tests.pods.node import Node
from tests.pods.scenario import Scenario


def render(values: list[Path], *, num_generators: int, total_steps: int | None) -> Manifests:
    """The chart's objects for so many generators, and for a run that ends where it is said."""
    sets = [f"generator.replicas={num_generators}"]
    sets += [f"learner.settings.total_steps={total_steps}"] if total_steps else []
    result = rendering.template(CHART, values=values, sets=sets)
    if result.returncode != 0:
        raise ChartFault(result.stderr.strip())
    return Manifests(objects=(*rendering.objects(result.stdout), broker_users()))


def overlay(path: Path, *, hub_url: str) -> Path:
    """The values on top of all others, with the hub that the learner's pod fetches its model from."""
    values = yaml.safe_load(OVERLAY.read_text())
    environment = {"HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub_url}
    values["learner"]["extraEnv"] = [{"name": name, "value": value} for name, value in environment.items()]
    path.write_text(yaml.safe_dump(values))
    return path


@contextlib.contextmanager
def model_hub(values: list[Path], directory: Path) -> Iterator[str]:
    """A hub that has the model which the values ask for, in a tiny version."""
    models = [yaml.safe_load(path.read_text()).get("model", {}) for path in values]
    wanted = next((each["download"] for each in reversed(models) if "download" in each), None)
    if wanted is None:
        raise ChartFault("the values name no model.download: the pods would have no model")
    write_tiny_model(directory)
    with hub.serve(directory, repository=wanted["repository"], revision=wanted["revision"]) as url:
        yield url


def run(values: list[Path], directory: Path, *, min_steps: int, limit_seconds: float) -> int:
    """The exit code."""
    report = Report()
    with model_hub(values, directory / "hub") as url:
        values = [*values, overlay(directory / "overlay.yaml", hub_url=url)]
        first = render(values, num_generators=1, total_steps=None)

        def rendered(num_generators: int, total_steps: int | None) -> Manifests:
            return render(values, num_generators=num_generators, total_steps=total_steps)

        node = Node(manifests=first, directory=directory, namespace=rendering.NAMESPACE, tell=report.tell)
        try:
            Scenario(node=node, render=rendered, report=report, limit_seconds=limit_seconds).run(
                min_steps=min_steps
            )
        except ChartFault as fault:
            report.claim("the rendered objects fit together", str(fault))
        finally:
            node.kill()
    return report.end()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pods", description=__doc__)
    parser.add_argument("--values", type=Path, action="append", help="values files (default: the laptop's)")
    parser.add_argument("--steps", type=int, default=5, help="steps to wait for")
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="limit of each wait")
    parser.add_argument("--keep", type=Path, help="leave files and logs in this new directory")
    arguments = parser.parse_args()
    if missing := missing_programs():
        sys.stderr.write(f"pods are not run: {', '.join(missing)} is missing\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="asympo-pods-") as temporary:
        directory = (arguments.keep or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        values = arguments.values or [LAPTOP]
        return run(values, directory, min_steps=arguments.steps, limit_seconds=arguments.limit_seconds)


if __name__ == "__main__":
    sys.exit(main())
