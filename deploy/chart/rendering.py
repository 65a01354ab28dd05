"""Renders the chart with the helm of .cache/chart-tools."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache/chart-tools"
RELEASE, NAMESPACE = "asympo", "training"
KUBE_VERSION = "1.31.0"
OPERATOR_KINDS = (
    *(f"monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")),
    "keda.sh/v1alpha1/ScaledObject",
    "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet",
)


def template(
    chart: Path,
    *,
    values: Sequence[Path] = (),
    sets: Sequence[str] = (),
    helm: str = "helm4",
    kube_version: str = KUBE_VERSION,
    api_versions: Sequence[str] | None = None,
    release: str = RELEASE,
    more: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """`helm template` of one values file or several; the caller looks at the exit code."""
    if api_versions is None:
        api_versions = OPERATOR_KINDS
    command = [str(TOOLS / "bin" / helm), "template", release, str(chart), "--namespace", NAMESPACE]
    command += ["--kube-version", kube_version]
    command += [part for path in values for part in ("--values", str(path))]
    command += [part for pair in sets for part in ("--set", pair)]
    command += [part for name in api_versions for part in ("--api-versions", name)]
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)


def example_values(chart: Path) -> list[Path]:
    """The values file of every example."""
    return sorted((chart / "examples").glob("*/values.yaml"))


class _OnceLoader(yaml.CSafeLoader):
    """Takes no key twice: YAML would keep one of the values, and Kubernetes' parsers differ in which."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            raise yaml.YAMLError(f"a key is given twice{node.start_mark}: {keys}")
        return mapping


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a rendering, in its order."""
    return [each for each in yaml.load_all(text, Loader=_OnceLoader) if each]


def rendered_examples(chart: Path) -> dict[Path, str]:
    """What each example renders to, by the path of its committed copy."""
    rendered = {}
    for values in example_values(chart):
        result = template(chart, values=[values])
        if result.returncode != 0:
            raise SystemExit(f"{values} does not render: {result.stderr.strip()}")
        command = f"helm template {RELEASE} helm/asympo --namespace {NAMESPACE} --values"
        header = f"# {command} {values.relative_to(ROOT)}\n"
        rendered[values.with_name("rendered.yaml")] = header + result.stdout
    return rendered
