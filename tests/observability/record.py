"""`python -m tests.observability.record [NAME ...]` makes failures and writes recorded/failures.jsonl.gz."""

import gzip
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

from deploy.prometheus.server import Prometheus
from tests.cluster.home_built import machine
from tests.observability.failures import FAILURES, pods
from tests.observability.failures.scene import Failure, Scene
from tests.observability.queries import FOREIGN, rules, selectors
from tests.observability.tools import promql

PATH = Path(__file__).with_name("recorded") / "failures.jsonl.gz"


class Recorded(Protocol):
    """What a failure happens to."""

    targets: list[str]
    labels: dict[str, str]
    """That scraping adds."""
    begun: float
    """When the recording begins."""
    healthy_seconds: float
    """How long nothing had failed by then; 0 if that is nothing to look at."""

    def stop(self) -> None: ...


RecordedT = TypeVar("RecordedT", bound=Recorded)


def asked_series() -> list[str]:
    """Those that rules ask for and do not make themselves."""
    parser = promql()
    asked = {name for rule in rules() for name, _ in selectors(parser.parse(rule["expr"]))}
    return sorted(name for name in asked if name.startswith("asympo_") or name in FOREIGN)


def record(name: str, failure: Failure[RecordedT], begin: Callable[[Path], RecordedT]) -> dict[str, Any]:
    """One failure: its series by their labels, a value a second, None where there was none."""
    # In memory: how full this machine's disk is, is no part of what is recorded.
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as folder:
        prometheus = Prometheus(Path(folder) / "prometheus")
        scene = begin(Path(folder))
        is_over = threading.Event()
        telling = threading.Thread(target=_tell_targets, args=(scene, prometheus, is_over))
        telling.start()
        try:
            failure.make(scene)
            series = dict(_series(prometheus, scene.begun, time.time()))
        finally:
            is_over.set()
            telling.join()
            scene.stop()
            prometheus.stop()
    return {"name": name, "healthy_seconds": int(scene.healthy_seconds), "series": series}


def _tell_targets(scene: Recorded, prometheus: Prometheus, is_over: threading.Event) -> None:
    told: list[str] = []
    while not is_over.wait(0.1):
        if told != scene.targets:
            told = list(scene.targets)
            path = prometheus.targets / "run.json"
            new = path.with_suffix(".new")
            new.write_text(json.dumps([{"targets": told, "labels": scene.labels}]))
            new.rename(path)


def _series(prometheus: Prometheus, begun: float, ended: float) -> Iterator[tuple[str, str]]:
    times = [begun + second for second in range(math.ceil(ended - begun))]
    for metric in asked_series():
        query = {"query": metric, "start": times[0], "end": times[-1], "step": 1}
        for found in prometheus.ask("query_range", **query)["result"]:
            labels = {key: value for key, value in found["metric"].items() if key not in ("__name__", "job")}
            values = {round(at - begun): float(value) for at, value in found["values"]}
            text = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(labels.items()))
            yield (
                f"{metric}{{{text}}}",
                short([values.get(second) for second in range(len(times))], metric, begun),
            )


def short(values: Sequence[float | None], metric: str, begun: float) -> str:
    """Values in promtool's words; moments count from the first sample."""
    is_moment = metric.endswith("_timestamp_seconds")
    texts = [
        "_" if value is None else f"{value - begun if is_moment and value else value:.7g}" for value in values
    ]
    runs = [(text, len(list(same))) for text, same in groupby(texts)]
    return " ".join(text if num == 1 else f"{text}x{num - 1}" for text, num in runs)


def played(series: dict[str, str], pace: int) -> list[dict[str, str]]:
    """For promtool, at `pace` seconds a sample.

    What counts seconds or is a moment grows by as much; the end of a certificate stays as far ahead.
    """
    return [
        {
            "series": name if "namespace=" in name else f'{name[:-1]},namespace="n"}}',
            "values": " ".join(_words(name, values, pace)),
        }
        for name, values in series.items()
    ]


def _words(name: str, values: str, pace: int) -> Iterator[str]:
    metric = name.partition("{")[0]
    is_stretched = metric.endswith(("_seconds_total", "_timestamp_seconds"))
    times = pace if is_stretched and not metric.endswith("_expires_timestamp_seconds") else 1
    was_there = False
    for word in values.split():
        text, x, num = word.partition("x")
        if text != "_":
            yield f"{float(text) * times:.7g}{x}{num}"
        elif was_there:
            # As Prometheus marks a series at the first scrape that fails.
            yield "stale"
            if num:
                yield f"_x{int(num) - 1}"
        else:
            yield word
        was_there = text != "_"


def keep(made: dict[str, Any]) -> None:
    """In place of the recording of the same failure, if there is one."""
    kept = {each["name"]: each for each in recorded()} if PATH.exists() else {}
    kept[made["name"]] = made
    text = "".join(json.dumps(kept[each], sort_keys=True) + "\n" for each in FAILURES if each in kept)
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


def main(names: Sequence[str]) -> int:
    for name in names or FAILURES:
        sys.stderr.write(f"{name} …\n")
        if name not in pods.FAILURES:
            keep(record(name, FAILURES[name], Scene))
        elif code := machine.run(None, "tests.cluster.home_built.release", name):
            return code
    return 0


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(PATH.read_bytes()).splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
