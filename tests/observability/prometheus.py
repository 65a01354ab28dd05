"""A Prometheus of our own, scraping every second."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import free_port
from tests.observability.tools import ROOT, program


class Prometheus:
    """Runs the shipped configuration with its own folder of targets and quicker clocks."""

    def __init__(self, directory: Path) -> None:
        self.targets = directory / "targets"
        self.targets.mkdir()
        self._log = directory / "prometheus.log"
        self._address = f"127.0.0.1:{free_port()}"
        source = ROOT / "deploy/prometheus/prometheus.yml"
        config = yaml.safe_load(source.read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (discovery,) = config["scrape_configs"][0]["file_sd_configs"]
        discovery |= {"files": [str(self.targets / "*.json")], "refresh_interval": "1s"}
        rules = []
        for path in sorted((source.parent / config["rule_files"][0]).parent.resolve().glob("*.yaml")):
            groups = yaml.safe_load(path.read_text())
            for group in groups["groups"]:
                group["interval"] = "1s"
            rules.append(directory / path.name)
            rules[-1].write_text(yaml.safe_dump(groups))
        config["rule_files"] = [str(path) for path in rules]
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(program("prometheus"), f"--config.file={path}"),
                    *(f"--storage.tsdb.path={directory}/data", f"--web.listen-address={self._address}"),
                ],
                stdout=output,
                stderr=output,
            )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its HTTP API, waiting for its start."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
            except OSError:
                assert self._process.poll() is None, self._log.read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
