"""One container as a process: started, probed, restarted, stopped as a kubelet would."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.pods.images import image_of
from deploy.pods.layout import Layout
from deploy.pods.manifests import Object
from deploy.pods.probes import Probe

_RESTART_SECONDS = (0.0, 2.0, 5.0, 10.0)


class Container:
    """Runs in its pod until the pod stops."""

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
        self.log = log
        self._tell = tell
        image = image_of(container)
        self._command = [*(layout.command or image.entrypoint), *layout.arguments]
        self.environment: Mapping[str, str] = {
            "PATH": f"{path}:/usr/local/bin:/usr/bin:/bin",
            **base_environment,
            **image.environment,
            **layout.environment,
        }
        self._probes = {
            name: Probe(
                spec=_moved_probe(container[name], layout),
                address=address,
                container=container,
                environment=self.environment,
            )
            for name in ("startupProbe", "livenessProbe", "readinessProbe")
            if name in container
        }
        for probe in self._probes.values():
            probe.check()
        self._pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    async def run_to_end(self) -> int:
        """An init container, or one of a test: its exit code."""
        process = await self._spawn()
        code = await process.wait()
        self.exit_codes.append(code)
        return code

    async def keep_running(self) -> None:
        """Runs it again whenever it ends, until stopped."""
        while not self._is_stopping:
            process = await self._spawn()
            probing = asyncio.ensure_future(self._probe(process))
            try:
                code = await process.wait()
            finally:
                probing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await probing
                self.is_ready = False
            self.exit_codes.append(code)
            if self._is_stopping:
                return
            self.num_restarts += 1
            self._tell(f"{self.name} ended with {code} and is started again")
            await asyncio.sleep(_RESTART_SECONDS[min(self.num_restarts, len(_RESTART_SECONDS)) - 1])

    async def stop(self, grace_seconds: float) -> str:
        """preStop, SIGTERM, and SIGKILL when the time is over; empty when it then ended well by itself."""
        self._is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return ""
        deadline = asyncio.get_running_loop().time() + grace_seconds
        if self._pre_stop:
            hook = await asyncio.create_subprocess_exec(*self._pre_stop, env=self.environment)
            async with asyncio.timeout(grace_seconds):
                await hook.wait()
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout_at(deadline):
                code = await process.wait()
        except TimeoutError:
            self.kill()
            return f"{self.name} was killed after {grace_seconds:g} s"
        return f"{self.name} ended with {code}" if code else ""

    def kill(self) -> None:
        """SIGKILL to everything that the container started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def last_lines(self, num: int = 15) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-num:])

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self.environment,
                cwd=self.environment.get("TMPDIR", "/"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    # --- probes ----------------------------------------------------------------------------------------

    async def _probe(self, process: asyncio.subprocess.Process) -> None:
        if not await self._has_started(process):
            return
        await asyncio.gather(self._watch_readiness(), self._watch_life(process))

    async def _has_started(self, process: asyncio.subprocess.Process) -> bool:
        probe = self._probes.get("startupProbe")
        if probe is None:
            return True
        await asyncio.sleep(probe.initial_delay_seconds)
        problem = ""
        for _ in range(probe.failure_threshold):
            if not (problem := await probe.ask()):
                return True
            await asyncio.sleep(probe.period_seconds)
        self._tell(f"{self.name} is killed: its startup probe failed: {problem}")
        process.send_signal(signal.SIGTERM)
        return False

    async def _watch_readiness(self) -> None:
        probe = self._probes.get("readinessProbe")
        if probe is None:
            self.is_ready = True
            return
        await asyncio.sleep(probe.initial_delay_seconds)
        num_failures = 0
        while True:
            if not await probe.ask():
                num_failures, self.is_ready = 0, True
            else:
                num_failures += 1
                if num_failures >= probe.failure_threshold:
                    self.is_ready = False
            await asyncio.sleep(probe.period_seconds)

    async def _watch_life(self, process: asyncio.subprocess.Process) -> None:
        probe = self._probes.get("livenessProbe")
        if probe is None:
            return
        await asyncio.sleep(probe.initial_delay_seconds)
        num_failures = 0
        while True:
            problem = await probe.ask()
            num_failures = num_failures + 1 if problem else 0
            if num_failures >= probe.failure_threshold:
                self._tell(f"{self.name} is killed: its liveness probe failed: {problem}")
                process.send_signal(signal.SIGTERM)
                return
            await asyncio.sleep(probe.period_seconds)


def _moved_probe(spec: Object, layout: Layout) -> Object:
    if "exec" not in spec:
        return spec
    command = [layout.given(part, what="argument of a probe") for part in spec["exec"]["command"]]
    return {**spec, "exec": {"command": command}}
