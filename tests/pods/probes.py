"""Probes executed as written: HTTP, exec or TCP, with their periods, limits and thresholds."""

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.pods.manifests import ChartFault, Object, container_port

_KINDS = ("httpGet", "tcpSocket", "exec")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe of one container."""

    spec: Object
    address: str
    container: Object
    within: Callable[[Sequence[str]], list[str]]
    """Makes of a command one that runs in the container."""

    @property
    def period_seconds(self) -> float:
        return float(self.spec.get("periodSeconds", 10))

    @property
    def failure_threshold(self) -> int:
        return int(self.spec.get("failureThreshold", 3))

    @property
    def initial_delay_seconds(self) -> float:
        return float(self.spec.get("initialDelaySeconds", 0))

    def check(self) -> None:
        """Raises ChartFault when the probe can never succeed."""
        kinds = [kind for kind in _KINDS if kind in self.spec]
        if not kinds:
            raise ChartFault(f"a probe of the container {self.container['name']} is of no kind known here")
        if kinds[0] != "exec":
            self._port(kinds[0])

    def _port(self, kind: str) -> int:
        return container_port(self.container, self.spec[kind]["port"], wanted_by=f"a probe ({kind})")

    def ask(self) -> str:
        """Empty when the probe succeeds, else what went wrong."""
        limit = float(self.spec.get("timeoutSeconds", 1))
        try:
            if "httpGet" in self.spec:
                url = f"http://{self.address}:{self._port('httpGet')}{self.spec['httpGet'].get('path', '/')}"
                urllib.request.urlopen(url, timeout=limit).close()
            elif "tcpSocket" in self.spec:
                socket.create_connection((self.address, self._port("tcpSocket")), timeout=limit).close()
            else:
                command = self.within(self.spec["exec"]["command"])
                subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        except urllib.error.HTTPError as error:
            return f"{error}: {error.read().decode()[:200]}"
        except subprocess.CalledProcessError as error:
            return f"exit {error.returncode}: {(error.stdout + error.stderr)[:200]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return ""
