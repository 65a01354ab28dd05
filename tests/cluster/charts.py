"""The chart of this working tree, and that of the release before as git has it."""

import io
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from asympo.common.rollout_log.broker.users import key_rules

from deploy.chart import rendering

_CHART = "helm/asympo"
_RECORD = "tests/compat/v0.1/values.yaml"
"""Recorded with the release before, in the commit that is its chart."""


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Folders for `helm install`."""

    now: Path
    before: Path
    """That of the release before."""


def write_charts(directory: Path, *, revision: str = "", on_any_version: bool = False) -> Charts:
    """Copies; on any version of Kubernetes they do not say which they need.

    `revision`: of git, with the chart of the release before; where that was recorded when empty.
    """
    now, before = directory / "now" / _CHART, directory / "before"
    shutil.copytree(rendering.ROOT / _CHART, now)
    revision = revision or _git("log", "-1", "--format=%H", "--", _RECORD).decode().strip()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", revision, _CHART))) as archive:
        archive.extractall(before, filter="data")
    charts = Charts(now=now, before=before / _CHART)
    _give_keys(charts.before / "templates/redis/_users.tpl")
    if on_any_version:
        for path in (charts.now / "Chart.yaml", charts.before / "Chart.yaml"):
            path.write_text(re.sub(r"(?m)^kubeVersion:.*\n", "", path.read_text()))
    return charts


def _give_keys(path: Path) -> None:
    """To generators of the release before, which run the image of this one: its scripts touch more keys."""
    user, text = "user generator on #@generator@ ", path.read_text()
    if user not in text:
        raise ValueError(f"{path} has no line `{user}`")
    path.write_text(text.replace(user, user + " ".join(key_rules("generator", "*")) + " "))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=rendering.ROOT, check=True, stdout=subprocess.PIPE).stdout
