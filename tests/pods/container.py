"""One container as a process: started, probed, restarted, stopped as a kubelet would."""

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asympo.local.process import Process

from tests.pods.images import image_of
from tests.pods.layout import Layout
from tests.pods.manifests import Object
from tests.pods.probes import Probe

_RESTART_SECONDS = (0.0, 2.0, 5.0, 10.0)
_POLL_SECONDS = 0.05
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class Container:
    """Runs in its pod until the pod stops; a thread of its own looks after it."""

    def __init__(
        self,
        *,
        container: Object,
        layout: Layout,
        address: str,
        path: Path,
        log: Path,
        base_environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self.name = container["name"]
        self.is_ready = False
        self.num_restarts = 0
        self.exit_codes: list[int] = []
        """How each of its processes ended; negative: by that signal."""
        self._tell = tell
        image = image_of(container)
        self.environment: Mapping[str, str] = {
            "PATH": f"{path}:/usr/local/bin:/usr/bin:/bin",
            **base_environment,
            **image.environment,
            **layout.environment,
        }
        command = [*(layout.command or image.entrypoint), *layout.arguments]
        # Its thread may end before it.
        self._process = Process(command=self._within(command), log_path=log, outlives_parent=True)
        self._probes = {
            name: Probe(
                spec=_moved_probe(container[name], layout),
                address=address,
                container=container,
                within=self._within,
            )
            for name in _PROBES
            if name in container
        }
        for probe in self._probes.values():
            probe.check()
        self._pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        self._thread = threading.Thread(target=self._keep_running, daemon=True)
        self._is_stopping = threading.Event()

    def _within(self, command: Sequence[str]) -> list[str]:
        """With nothing of this machine's own environment."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", "-i", "-C", self.environment.get("TMPDIR", "/"), *variables, *command]

    def run_to_end(self, *, seconds: float) -> int:
        """An init container, or one of a test: its exit code."""
        self._process.start()
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = -signal.SIGKILL
        self.exit_codes.append(code)
        return code

    def start(self) -> None:
        """Runs it again whenever it ends, until stopped."""
        self._thread.start()

    def stop(self, grace_seconds: float) -> str:
        """preStop, SIGTERM, and SIGKILL when the time is over; empty when it then ended well by itself."""
        self._is_stopping.set()
        if not self._process.is_running:
            return ""
        deadline = time.monotonic() + grace_seconds
        if self._pre_stop:
            subprocess.run(self._within(self._pre_stop), timeout=grace_seconds, check=False)
        self._process.send(signal.SIGTERM)
        self._thread.join(deadline - time.monotonic())
        if self._thread.is_alive():
            self._process.kill_at_once()
            return f"{self.name} was killed after {grace_seconds:g} s"
        return f"{self.name} ended with {self.exit_codes[-1]}" if self.exit_codes[-1] else ""

    def kill(self) -> None:
        """SIGKILL to everything that the container started."""
        self._process.kill_at_once()

    def last_lines(self, num: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self._process.log.splitlines()[-num:])

    def _keep_running(self) -> None:
        while not self._is_stopping.is_set():
            self._process.start()
            self._probe()
            while self._process.is_running:
                time.sleep(_POLL_SECONDS)
            self.is_ready = False
            self.exit_codes.append(self._process.wait(1))
            if not self._is_stopping.is_set():
                self.num_restarts += 1
                self._tell(f"{self.name} ended with {self.exit_codes[-1]} and is started again")
                self._is_stopping.wait(_RESTART_SECONDS[min(self.num_restarts, len(_RESTART_SECONDS)) - 1])

    def _probe(self) -> None:
        """Until the process ends, or is to end because a probe failed too often."""
        due = self._due(["startupProbe"] if "startupProbe" in self._probes else self._others())
        failures: Counter[str] = Counter()
        while self._process.is_running:
            for name in [name for name in due if due[name] <= time.monotonic()]:
                probe = self._probes[name]
                due[name] = time.monotonic() + probe.period_seconds
                problem = probe.ask()
                failures[name] = failures[name] + 1 if problem else 0
                if not problem and name == "startupProbe":
                    due = self._due(self._others())
                elif not problem and name == "readinessProbe":
                    self.is_ready = True
                elif failures[name] >= probe.failure_threshold:
                    if name != "readinessProbe":
                        kind = name.removesuffix("Probe")
                        self._tell(f"{self.name} is killed: its {kind} probe failed: {problem}")
                        self._process.send(signal.SIGTERM)
                        return
                    self.is_ready = False
            time.sleep(_POLL_SECONDS)

    def _others(self) -> list[str]:
        """The probes after the start; without one of readiness it is ready."""
        self.is_ready = "readinessProbe" not in self._probes
        return [name for name in self._probes if name != "startupProbe"]

    def _due(self, names: Sequence[str]) -> dict[str, float]:
        return {name: time.monotonic() + self._probes[name].initial_delay_seconds for name in names}


def _moved_probe(spec: Object, layout: Layout) -> Object:
    if "exec" not in spec:
        return spec
    command = [layout.given(part, what="argument of a probe") for part in spec["exec"]["command"]]
    return {**spec, "exec": {"command": command}}
