"""python -m deploy.chart.package --repository URL --revision TAG [--images FILE ...] --out DIRECTORY

The chart as it is published: with the pages that its README links to, and what Artifact Hub shows of it.
"""

import argparse
import os.path
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from deploy.chart import rendering

CHART = rendering.ROOT / "helm/asympo"
PAGES = ("README.md", "UPGRADING.md")
_LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
_LEFT_OUT = "# What only the repository needs.\n.*\n*.orig\n*.tgz\nci/\nrendered.yaml\n"


def package(out: Path, *, repository: str, revision: str, images: Sequence[str]) -> None:
    """Writes asympo-VERSION.tgz. `images`: name:tag@digest of each."""
    with tempfile.TemporaryDirectory() as directory:
        chart = Path(directory) / "asympo"
        shutil.copytree(CHART, chart)
        (chart / ".helmignore").write_text(_LEFT_OUT)
        for page in PAGES:
            _bring_linked_pages(chart, page, f"{repository}/blob/{revision}")
        path = chart / "Chart.yaml"
        described = _described(yaml.safe_load(path.read_text()), repository, revision, images)
        path.write_text(yaml.safe_dump(described, sort_keys=False))
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run([rendering.TOOLS / "bin/helm4", "package", chart, "--destination", out], check=True)


def _bring_linked_pages(chart: Path, page: str, elsewhere: str) -> None:
    """Pages of docs that this one links to come along; their own links lead to the repository."""

    def within(match: re.Match[str]) -> str:
        source = (CHART / match[1]).resolve()
        if source.is_relative_to(CHART):
            return match[0]
        copy = chart / "docs" / source.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(_LINK.sub(lambda link: _outside(link, source.parent, elsewhere), source.read_text()))
        return f"](docs/{source.name}{match[2] or ''})"

    path = chart / page
    path.write_text(_LINK.sub(within, path.read_text()))


def _outside(match: re.Match[str], folder: Path, elsewhere: str) -> str:
    target = os.path.relpath((folder / match[1]).resolve(), rendering.ROOT)
    return f"]({elsewhere}/{PurePosixPath(target)}{match[2] or ''})"


def _described(
    chart: dict[str, Any], repository: str, revision: str, images: Sequence[str]
) -> dict[str, Any]:
    notes = {"artifacthub.io/links": yaml.safe_dump([{"name": "Paper", "url": chart["home"]}])}
    if images:
        named = [{"name": re.sub(r".*/|@.*", "", each).replace(":", "-"), "image": each} for each in images]
        notes["artifacthub.io/images"] = yaml.safe_dump(named)
    return {
        **chart,
        "home": repository,
        "sources": [repository],
        "icon": f"{repository}/raw/{revision}/docs/images/icon.svg",
        "maintainers": [{"name": "ASymPO", "url": repository}],
        "annotations": chart["annotations"] | notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument(
        "--repository", required=True, help="where the sources are, as https://host/owner/name"
    )
    parser.add_argument("--revision", required=True, help="tag or commit that links lead to")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="files with name:tag@digest each")
    parser.add_argument("--out", type=Path, required=True, help="folder for the package")
    arguments = parser.parse_args()
    images = [path.read_text().strip() for path in arguments.images]
    package(arguments.out, repository=arguments.repository, revision=arguments.revision, images=images)


if __name__ == "__main__":
    main()
