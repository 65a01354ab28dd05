"""A cluster as kubectl and helm reach it, and the claims made about a release on it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from deploy.chart import rendering

_POLL_SECONDS = 0.2


class ClusterFault(Exception):
    """Something on the cluster is not as it should be."""


class Cluster:
    """One namespace of the cluster that the environment's KUBECONFIG names."""

    def __init__(
        self,
        *,
        namespace: str,
        environment: Mapping[str, str] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """`check` raises ClusterFault when the cluster itself has failed."""
        self.namespace, self._check = namespace, check
        self._environment = {**os.environ, **(environment or {})}
        self._environment["PATH"] += f"{os.pathsep}{rendering.TOOLS / 'bin'}"

    def run(self, *command: str, given: str = "", seconds: float = 60.0) -> str:
        """What a program says; ClusterFault when it fails."""
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterFault(f"{' '.join(command)}: not done within {seconds:g} s") from error
        if done.returncode != 0:
            raise ClusterFault(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def kubectl(self, *arguments: str, given: str = "", seconds: float = 60.0) -> str:
        """Within the namespace."""
        return self.run("kubectl", f"--namespace={self.namespace}", *arguments, given=given, seconds=seconds)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get` as an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found

    def helm(self, verb: str, *arguments: str) -> str:
        """Within the namespace."""
        return self.run("helm4", verb, *arguments, f"--namespace={self.namespace}", seconds=600.0)

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """A program that goes on."""
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)

    def until(self, what: str, condition: Callable[[], object], *, seconds: float = 600.0) -> None:
        """Waits until a condition holds; a ClusterFault or a refused connection means not yet."""
        deadline, last = time.monotonic() + seconds, ""
        while True:
            self._check()
            try:
                if condition():
                    return
            except (ClusterFault, OSError) as error:
                last = str(error)
            if time.monotonic() > deadline:
                raise ClusterFault(f"{what}: not within {seconds:g} s; last: {last}")
            time.sleep(_POLL_SECONDS)


class Report:
    """Pass or fail of each claim, printed as it is known."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.failed: list[str] = []

    def tell(self, text: str) -> None:
        """A line with the seconds since the start."""
        sys.stdout.write(f"{time.monotonic() - self._begun:5.1f} s  {text}\n")
        sys.stdout.flush()

    def claim(self, sentence: str, problem: str = "") -> bool:
        """One claim; `problem` says why it does not hold."""
        self.tell(f"{'fail' if problem else 'pass'}  {sentence}{': ' + problem if problem else ''}")
        if problem:
            self.failed.append(sentence)
        return not problem

    def end(self) -> int:
        """The last line, and the exit code."""
        num = len(self.failed)
        sys.stdout.write(f"\n{num} claims failed\n" if num else "\nAll claims hold.\n")
        return 1 if num else 0
