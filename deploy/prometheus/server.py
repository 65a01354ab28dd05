"""A Prometheus of our own on loopback: the shipped configuration and rules, with quicker clocks."""

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from asympo.local.ports import free_port
from asympo.local.process import Process

CONFIG = Path(__file__).with_name("prometheus.yml")
_START_SECONDS = 20.0


class QueryFault(Exception):
    """Prometheus refuses what it was asked, or is gone."""


class Prometheus:
    """Scrapes the targets in its own folder `targets`; ends with `stop`."""

    def __init__(self, directory: Path, *, interval: str = "1s") -> None:
        program = shutil.which("prometheus")
        if program is None:
            raise FileNotFoundError(
                "there is no prometheus: apt-get install --no-install-recommends prometheus"
            )
        self.targets = directory / "targets"
        self.targets.mkdir(parents=True)
        config = directory / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config(directory, interval)))
        self._address = f"127.0.0.1:{free_port()}"
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
        command.append(f"--web.listen-address={self._address}")
        self._process = Process(command=command, log_path=directory / "prometheus.log").start()

    def _config(self, directory: Path, interval: str) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
        (discovery,) = config["scrape_configs"][0]["file_sd_configs"]
        discovery |= {"files": [str(self.targets / "*.json")], "refresh_interval": "1s"}
        rules = []
        for path in sorted((CONFIG.parent / config["rule_files"][0]).parent.resolve().glob("*.yaml")):
            groups = yaml.safe_load(path.read_text())
            for group in groups["groups"]:
                group["interval"] = interval
            rules.append(directory / path.name)
            rules[-1].write_text(yaml.safe_dump(groups))
        config["rule_files"] = [str(path) for path in rules]
        return config

    def stop(self) -> None:
        self._process.stop(deadline_seconds=20)

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its HTTP API, waiting for its start. Raises QueryFault."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise QueryFault(f"{parameters}: {error.read().decode()}") from error
            except OSError as error:
                if not self._process.is_running or time.monotonic() > deadline:
                    raise QueryFault(f"no answer: {self._process.log[-2000:]}") from error
                time.sleep(0.1)
