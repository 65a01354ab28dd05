"""The claims: pods come up, learn, scale, lose one, and end, all as their manifests say."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.cluster.cluster import Report
from tests.pods.manifests import Manifests
from tests.pods.node import Node, Pod

_POLL_SECONDS = 0.2


class Scenario:
    """One run of the release, from nothing to nothing."""

    def __init__(
        self,
        *,
        node: Node,
        render: Callable[[int, int | None], Manifests],
        report: Report,
        limit_seconds: float,
    ) -> None:
        """`render` gives the objects for a number of generators and, from some time on, of steps."""
        self._node, self._render, self._report = node, render, report
        self._limit_seconds = limit_seconds
        names = list(node.pods)
        [self._learner] = [name for name in names if name.endswith("-learner")]
        [self._broker] = [name for name in names if name.endswith("-redis")]
        [self._generator] = [name for name in names if name.endswith("-generator")]

    def run(self, *, min_steps: int) -> None:
        """Every claim in order; the first that fails ends it."""
        report = self._report
        manifests = self._render(1, None)
        self._node.apply(manifests)
        if not report.claim("every pod starts and its probes turn green", self._until(self._all_ready)):
            return
        codes = {name: code for pod in self._pods() for name, code in pod.init_codes.items()}
        bad = {name: each for name, each in codes.items() if each != [0]}
        report.claim(f"init containers ended well: {', '.join(codes) or 'none'}", str(bad) if bad else "")
        self._test_hooks(manifests)
        self._scale()
        self._kill()
        self._shrink()
        problem = self._until(lambda: self._is_at_step(min_steps))
        report.claim(f"the learner has made {min_steps} steps on what the generators sent", problem)
        self._replace_learner()
        bad = {
            pod.identity.name: c.exit_codes for pod in self._pods() for c in pod.containers if c.exit_codes
        }
        killed = self._node.pods[self._generator][0].identity.name
        unexpected = {name: each for name, each in bad.items() if name != killed}
        report.claim("no container ended that nobody killed", str(unexpected) if unexpected else "")
        report.claim(
            "at the end every pod stops well within its grace period",
            self._node.stop(last=self._broker),
        )

    def _test_hooks(self, manifests: Manifests) -> None:
        for test in manifests.tests:
            name = test["metadata"]["name"]
            pod = self._node.pod(name, test, {})
            code = pod.containers[0].run_to_end(seconds=self._limit_seconds)
            lines = pod.containers[0].last_lines(3)
            self._report.claim(f"helm test: {name}: {lines}", f"exit {code}" if code else "")

    def _scale(self) -> None:
        self._node.apply(self._render(3, None))
        problem = self._until(self._all_ready) or self._until(lambda: self._num_reporting() == 3)
        self._report.claim("generators scaled from 1 to 3: all are ready and report to the run", problem)

    def _kill(self) -> None:
        container = self._node.pods[self._generator][0].containers[0]
        before = container.num_restarts
        container.kill()

        def is_back() -> bool:
            return container.num_restarts == before + 1 and container.is_ready

        problem = self._until(is_back)
        self._report.claim("a generator killed with SIGKILL is started again and turns ready", problem)

    def _shrink(self) -> None:
        problem = self._node.apply(self._render(1, None)) or self._until(lambda: self._num_reporting() == 1)
        self._report.claim("generators scaled from 3 to 1: two drain within their grace period", problem)

    def _replace_learner(self) -> None:
        before = self._status()["step"]
        self._node.apply(self._render(1, before + 3))
        problem = self._node.replace(self._learner)
        problem = problem or self._until(lambda: self._status()["state"] == "finished")
        problem = problem or self._until(self._all_ready)
        if not problem:
            steps = [row["step"] for row in self._ask("/v1/history")["rows"]]
            problem = "" if steps == list(range(1, before + 4)) else f"steps of the history: {steps}"
        sentence = (
            f"the learner deleted after step {before}: the next one goes on to the end, step {before + 3}"
        )
        self._report.claim(f"{sentence}, and stays", problem)

    # --- looking ---------------------------------------------------------------------------------------

    def _pods(self) -> list[Pod]:
        return [pod for pods in self._node.pods.values() for pod in pods]

    def _all_ready(self) -> bool:
        return all(pod.is_ready for pod in self._pods())

    def _ask(self, path: str) -> dict[str, Any]:
        """The page's JSON, asked for by the name that the Service gives it."""
        address = self._node.pods[self._learner][0].identity.address
        host = {"Host": f"{self._learner}:8080"}
        request = urllib.request.Request(f"http://{address}:8080{path}", headers=host)
        with urllib.request.urlopen(request, timeout=5) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer

    def _status(self) -> dict[str, Any]:
        return self._ask("/v1/status")

    def _num_reporting(self) -> int:
        return len(self._status()["generators"])

    def _is_at_step(self, step: int) -> bool:
        return bool(self._status()["step"] >= step)

    def _until(self, condition: Callable[[], bool]) -> str:
        """Empty once it holds; who is not ready, and its last lines, when the time is over."""
        deadline = time.monotonic() + self._limit_seconds
        while not _holds(condition):
            if time.monotonic() > deadline:
                late = [pod for pod in self._pods() if not pod.is_ready]
                told = "\n".join(f"{p.identity.name}:\n{c.last_lines()}" for p in late for c in p.containers)
                names = [pod.identity.name for pod in late]
                return f"not within {self._limit_seconds:g} s; not ready: {names}\n{told}"
            time.sleep(_POLL_SECONDS)
        return ""


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except OSError:
        return False
