"""Probes executed as written: HTTP, exec or TCP, with their periods, limits and thresholds."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.pods.manifests import ChartFault, Object, container_port


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe of one container."""

    spec: Object
    address: str
    container: Object
    environment: Mapping[str, str]

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
        for kind in ("httpGet", "tcpSocket"):
            if kind in self.spec:
                container_port(self.container, self.spec[kind]["port"], wanted_by=f"a probe ({kind})")
                return
        if "exec" not in self.spec:
            raise ChartFault(f"a probe of the container {self.container['name']} is of no kind known here")

    async def ask(self) -> str:
        """Empty when the probe succeeds, else what went wrong."""
        limit = float(self.spec.get("timeoutSeconds", 1))
        try:
            async with asyncio.timeout(limit):
                return await self._ask()
        except TimeoutError:
            return f"no answer within {limit:g} s"
        except OSError as error:
            return error.strerror or str(error)

    async def _ask(self) -> str:
        if "httpGet" in self.spec:
            return await self._get()
        if "tcpSocket" in self.spec:
            port = container_port(self.container, self.spec["tcpSocket"]["port"], wanted_by="a probe")
            _, writer = await asyncio.open_connection(self.address, port)
            writer.close()
            return ""
        return await self._execute()

    async def _get(self) -> str:
        get = self.spec["httpGet"]
        port = container_port(self.container, get["port"], wanted_by="a probe")
        reader, writer = await asyncio.open_connection(self.address, port)
        try:
            head = f"GET {get.get('path', '/')} HTTP/1.1\r\nHost: {self.address}:{port}\r\n"
            writer.write(f"{head}User-Agent: kube-probe/1.31\r\nConnection: close\r\n\r\n".encode())
            status_line, _, rest = (await reader.read()).partition(b"\r\n")
        finally:
            writer.close()
        words = status_line.split()
        if len(words) > 1 and words[1].isdigit() and 200 <= int(words[1]) < 400:
            return ""
        return f"{status_line.decode()}: {rest.rpartition(bytes([13, 10, 13, 10]))[2].decode()[:200]}"

    async def _execute(self) -> str:
        process = await asyncio.create_subprocess_exec(
            *self.spec["exec"]["command"],
            env=dict(self.environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        return "" if process.returncode == 0 else f"exit {process.returncode}: {output.decode()[:200]}"
