"""The claims: installed, scaled, broken, upgraded, uninstalled; from the release before on, to every part."""

import json
import re
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asympo.local.ports import free_port

from deploy.chart import rendering
from tests.cluster.charts import Charts
from tests.cluster.cluster import Cluster, ClusterFault, Report

CHART = rendering.ROOT / "helm/asympo"
LAPTOP = CHART / "examples/laptop-cpu/values.yaml"
OVERLAY = Path(__file__).with_name("values.yaml")
POOLS = Path(__file__).with_name("pools.yaml")
PARTS = Path(__file__).with_name("parts.yaml")
ENVIRONMENT = Path(__file__).with_name("environment.yaml")
ONE_IMAGE = Path(__file__).with_name("one_image.yaml")
NAMESPACE = "asympo-e2e"
_RELEASE = rendering.RELEASE
_LEARNER, _GENERATOR = "statefulset/asympo-learner", "deployment/asympo-generator"
_GATEWAY = "deployment/asympo-gateway"
_GAME = [Path(__file__).with_name(name) for name in ("game.py", "game_rows.jsonl")]
_DOOR = Path(__file__).with_name("game_door.py")
_ABSENT = "absent"
_TOKEN = "of-the-agents-of-the-try"
_PRODUCERS = f'[[producers]]\nname = "agents"\ntoken = "{_TOKEN}"\n'
_HAND_IN = f"""
import json, urllib.request as r
body = {{"group_id": 1, "prompt": "What is 2 + 2?",
        "responses": [{{"text": "4", "reward": 1}}, {{"text": "5", "reward": 0}}]}}
headers = {{"authorization": "Bearer {_TOKEN}", "content-type": "application/json"}}
request = r.Request("http://127.0.0.1:8090/v1/rollouts", json.dumps(body).encode(), headers)
print(r.urlopen(request, timeout=30).read().decode())
"""
_ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"


def try_chart(cluster: Cluster, report: Report, *, charts: Charts, values: Sequence[Path]) -> None:
    """Every claim, in a namespace that is made for it and deleted with all that is in it."""
    cluster.run("kubectl", "create", "namespace", cluster.namespace)
    try:
        Scenario(cluster=cluster, report=report, charts=charts, values=[LAPTOP, OVERLAY, *values]).run()
    finally:
        cluster.run("kubectl", "delete", "namespace", cluster.namespace, "--wait=false")


class Scenario:
    """One release from nothing to nothing and back."""

    def __init__(self, *, cluster: Cluster, report: Report, charts: Charts, values: Sequence[Path]) -> None:
        self._cluster, self._report, self._charts = cluster, report, charts
        self._values = [f"--values={path}" for path in values]

    def run(self) -> None:
        """Every claim in order; what later ones build on ends it when it fails."""
        if not self._claim("helm install --wait: every pod is ready", self._install):
            return
        self._claim(
            "the model was fetched by the init container, onto the checkpoints volume", self._check_model
        )
        self._claim(
            "containers are user 10001 with a read-only root and within their memory limit",
            self._check_security,
        )
        self._claim("generators cannot write to the checkpoints", self._check_read_only)
        self._claim("helm test: the learner answers by its Service's name and has generators", self._test)
        self._claim("kubectl port-forward: the status page answers on this side", self._forward)
        self._claim("kubectl scale: three generators are ready and report to the run", lambda: self._scale(3))
        self._claim("a generator's pod deleted: another takes its place", self._delete_generator)
        self._claim(
            "the learner's pod deleted: the next one goes on from the last commit", self._delete_learner
        )
        self._claim("an upgrade to an image that does not exist fails and is rolled back", self._fail_upgrade)
        self._claim("with the image of before the run goes on", self._check_progress)
        self._claim("an upgrade of the learner's settings reaches its pod", self._upgrade)
        self._claim("helm uninstall leaves the claims of the volumes", self._uninstall)
        if self._claim(
            "the release before installed on the claims that were left: the run goes on from its last step",
            self._reinstall,
        ):
            self._claim(
                "helm upgrade from the release before: the run goes on, with two pools", self._move_on
            )
            self._claim("kubectl scale of both pools: all four report to the run", self._scale_pools)
            if self._claim(
                "a gateway and an evaluator join: a group handed in is in the log, and a policy is measured",
                self._add_parts,
            ):
                self._claim(
                    "an environment joins, with a run of its own: what it plays is rewarded and trained",
                    self._play,
                )

    def _claim(self, sentence: str, check: Callable[[], str | None]) -> bool:
        """A check returns what is worth telling, or raises."""
        try:
            told = check()
        except (ClusterFault, OSError, AssertionError) as fault:
            return self._report.claim(sentence, f"{fault}\n{self._pods()}")
        return self._report.claim(f"{sentence}: {told}" if told else sentence)

    # --- the claims ------------------------------------------------------------------------------------

    def _install(self) -> None:
        self._install_chart(self._charts.now)

    def _install_chart(self, chart: Path) -> None:
        self._cluster.helm("install", _RELEASE, str(chart), *self._values, "--wait", "--timeout=8m")

    def _upgrade_to(self, *arguments: str) -> None:
        """With the values of before and those given, until every pod is ready."""
        kept = ("--reset-then-reuse-values", "--wait")
        self._cluster.helm("upgrade", _RELEASE, str(self._charts.now), *kept, *arguments)

    def _check_model(self) -> str:
        log = self._kubectl("logs", _LEARNER, "--container=fetch-model").strip()
        _expect("fetched" in log, log)
        return log.splitlines()[-1]

    def _check_security(self) -> None:
        for name in (_LEARNER, _GENERATOR):
            _expect(self._inside(name, "id -u; id -g").split() == ["10001", "10001"], f"{name}: another user")
            _expect(
                "Read-only file system" in self._inside(name, "touch /x 2>&1 || true"),
                f"{name}: / is writable",
            )
            _expect(
                self._inside(name, "grep CapEff /proc/1/status").split()[1] == "0" * 16,
                f"{name}: capabilities",
            )
            _expect(
                self._inside(name, "grep Seccomp: /proc/1/status").split()[1] == "2", f"{name}: no seccomp"
            )
            pod = self._kubectl(
                "get", name, "--output=jsonpath={.spec.template.spec.containers[0].resources.limits.memory}"
            )
            limit = (
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
            )
            _expect(
                int(self._inside(name, limit)) == int(pod.removesuffix("Gi")) * 2**30,
                f"{name}: another limit",
            )

    def _check_read_only(self) -> None:
        said = self._inside(_GENERATOR, "touch /checkpoints/x 2>&1 || true")
        _expect("Read-only file system" in said, said)

    def _test(self) -> str:
        said = self._cluster.helm("test", _RELEASE, "--logs", "--timeout=3m")
        return said[said.index("run addition") :].splitlines()[0]

    def _forward(self) -> None:
        port, space = free_port(), f"--namespace={self._cluster.namespace}"
        command = ("kubectl", space, "port-forward", "service/asympo-learner", f"{port}:8080")
        with self._cluster.start(*command) as forwarding:
            try:
                page = f"http://127.0.0.1:{port}/"
                self._until("the page", lambda: urllib.request.urlopen(page, timeout=10).status == 200)
            finally:
                forwarding.terminate()

    def _scale(self, num: int) -> None:
        self._kubectl("scale", _GENERATOR, f"--replicas={num}")
        self._rolled_out(_GENERATOR)
        self._until(f"{num} generators report", lambda: len(self._status()["generators"]) == num)

    def _delete_generator(self) -> None:
        names = self._pod_names("generator")
        self._kubectl("delete", "pod", names[0], "--timeout=120s", limit_seconds=130)
        self._rolled_out(_GENERATOR)
        _expect(names[0] not in self._pod_names("generator"), f"{names[0]} is still there")

    def _delete_learner(self) -> str:
        before = self._status()["step"]
        self._kubectl("delete", "pod", "asympo-learner-0", "--timeout=240s", limit_seconds=250)
        self._rolled_out(_LEARNER)
        self._until("a step of the next learner", lambda: self._status()["step"] > before)
        rows = self._ask("/v1/history")["rows"]
        steps = [row["step"] for row in rows]
        _expect(steps == list(range(1, len(steps) + 1)), f"steps of its history: {steps}")
        return f"at step {before}, then {steps[-1]}"

    def _fail_upgrade(self) -> str:
        learner = self._uid("asympo-learner-0")
        try:
            absent = f"--set-string=generator.image.tag={_ABSENT}"
            self._upgrade_to(absent, "--rollback-on-failure", "--timeout=40s")
        except ClusterFault as fault:
            said = str(fault)
        else:
            raise ClusterFault("helm upgrade succeeded")
        history = json.loads(self._cluster.helm("history", _RELEASE, "--output=json"))
        states = [each["status"] for each in history]
        _expect(states[-3:] == ["superseded", "failed", "deployed"], f"revisions: {states}\n{said}")
        events = self._kubectl("get", "events", "--field-selector=type=Warning")
        _expect(f":{_ABSENT}" in events, f"it failed for another reason: {said}")
        image = self._kubectl(
            "get", _GENERATOR, "--output=jsonpath={.spec.template.spec.containers[0].image}"
        )
        _expect(not image.endswith(_ABSENT), f"the image is still {image}")
        self._rolled_out(_GENERATOR)
        _expect(self._uid("asympo-learner-0") == learner, "the learner was restarted as well")
        return f"revisions {', '.join(states)}"

    def _check_progress(self) -> str:
        before = self._status()["step"]
        self._until("two more steps", lambda: self._status()["step"] >= before + 2)
        return f"step {before}, then {self._status()['step']}"

    def _upgrade(self) -> str:
        wanted = int(self._status()["step"]) + 20
        self._upgrade_to(f"--set=learner.settings.total_steps={wanted}", "--timeout=5m")
        self._rolled_out(_LEARNER)
        self._until("the end of the run", lambda: self._status()["state"] == "finished")
        _expect(self._status()["step"] == wanted, f"it ended at step {self._status()['step']}, not {wanted}")
        return f"total_steps={wanted}, finished at step {wanted}"

    def _uninstall(self) -> None:
        self._last_step = int(self._status()["step"])
        self._kubectl("scale", _LEARNER, "--replicas=0")
        self._until("the learner to end", lambda: not self._pod_names("learner"))
        self._cluster.helm("uninstall", _RELEASE, "--wait", "--timeout=3m")
        self._until("the pods to end", lambda: not self._pod_names())
        claims = self._cluster.get("persistentvolumeclaims")["items"]
        left = {each["metadata"]["name"]: each["status"]["phase"] for each in claims}
        _expect(left == {"asympo-checkpoints": "Bound", "data-asympo-redis-0": "Bound"}, f"claims: {left}")

    def _reinstall(self) -> str:
        self._install_chart(self._charts.before)
        self._until("another step", lambda: self._status()["step"] > self._last_step)
        rows = self._ask("/v1/history")["rows"]
        _expect([row["step"] for row in rows] == list(range(1, len(rows) + 1)), "its history has a gap")
        return f"from step {self._last_step} to {self._status()['step']}"

    def _move_on(self) -> str:
        before = self._status()["step"]
        self._upgrade_to(f"--values={POOLS}", "--timeout=5m")
        self._until("another step", lambda: self._status()["step"] > before)
        self._until("both pools to report", lambda: self._num_reporting() == {"near": 1, "far": 1})
        return f"from step {before} to {self._status()['step']}"

    def _scale_pools(self) -> None:
        for pool in ("near", "far"):
            self._kubectl("scale", f"{_GENERATOR}-{pool}", "--replicas=2")
        for pool in ("near", "far"):
            self._rolled_out(f"{_GENERATOR}-{pool}")
        self._until("four generators", lambda: self._num_reporting() == {"near": 2, "far": 2})

    def _add_parts(self) -> str:
        literals = (f"--from-literal=producers.toml={_PRODUCERS}", f"--from-literal=player={_TOKEN}")
        self._kubectl("create", "secret", "generic", "producers", *literals)
        self._upgrade_to(f"--values={PARTS}", *self._image_for("gateway", "evaluator"), "--timeout=5m")
        answer = self._kubectl("exec", _GATEWAY, "--", "python", "-c", _HAND_IN)
        _expect('"outcome":"appended"' in answer, answer)

        def results() -> Any:
            url = "http://127.0.0.1:8083/v1/status"
            said = self._kubectl("exec", "deployment/asympo-evaluator", "--", "python", "-c", _ASK, url)
            return json.loads(said)["evals"]

        self._until("a result of the evaluator", results)
        return f"policy {results()[0]['policy_step']} measured"

    def _play(self) -> str:
        self._kubectl("create", "configmap", "game", *(f"--from-file={path}" for path in _GAME))
        path = "{.spec.template.spec.containers[0].image}"
        image = self._kubectl("get", _GATEWAY, f"--output=jsonpath={path}")
        door = ("--command", "--", "python", "-c", _DOOR.read_text())
        self._kubectl("run", "door", f"--image={image}", "--port=8000", "--expose", *door)
        self._upgrade_to(f"--values={ENVIRONMENT}", *self._image_for("environment"), "--timeout=5m")

        def has_steps() -> bool:
            status = self._status()
            return status["run"] == "game" and status["step"] >= 2

        self._until("two steps", has_steps)
        url = "http://127.0.0.1:8090/metrics"
        metrics = self._kubectl("exec", _GATEWAY, "--", "python", "-c", _ASK, url)
        counted = re.findall(r'(?m)^asympo_gateway_sessions_total\{outcome="(\w+)"\} (\S+)$', metrics)
        ended = {outcome: int(float(number)) for outcome, number in counted if float(number)}
        _expect(set(ended) == {"rewarded"}, f"sessions: {ended}")
        _expect("asympo_gateway_refused_calls_total 0.0" in metrics, "the gateway refused calls")
        return f"step {self._status()['step']}, {ended['rewarded']} sessions rewarded"

    def _image_for(self, *services: str) -> list[str]:
        """That of the generators for others that need no engine."""
        given = json.loads(self._cluster.helm("get", "values", _RELEASE, "--output=json"))
        image = json.dumps(given["generator"].get("image", {}))
        return [f"--set-json={service}.image={image}" for service in services]

    # --- looking ---------------------------------------------------------------------------------------

    def _kubectl(self, *arguments: str, limit_seconds: float = 60.0) -> str:
        return self._cluster.kubectl(*arguments, seconds=limit_seconds)

    def _inside(self, workload: str, script: str) -> str:
        return self._kubectl("exec", workload, "--", "sh", "-c", script)

    def _rolled_out(self, workload: str) -> None:
        self._kubectl("rollout", "status", workload, "--timeout=240s", limit_seconds=250)

    def _pod_names(self, component: str = "") -> list[str]:
        chosen = (
            f"--selector=app.kubernetes.io/component={component}"
            if component
            else "--selector=app.kubernetes.io/component"
        )
        pods = self._cluster.get("pods", chosen)["items"]
        return [
            each["metadata"]["name"]
            for each in pods
            if each["metadata"]["labels"]["app.kubernetes.io/component"] != "test"
        ]

    def _uid(self, pod: str) -> str:
        return self._kubectl("get", "pod", pod, "--output=jsonpath={.metadata.uid}")

    def _ask(self, path: str) -> dict[str, Any]:
        """The page's JSON, asked for in the learner's own pod."""
        url = f"http://127.0.0.1:8080{path}"
        found: dict[str, Any] = json.loads(self._kubectl("exec", _LEARNER, "--", "python", "-c", _ASK, url))
        return found

    def _status(self) -> dict[str, Any]:
        return self._ask("/v1/status")

    def _num_reporting(self) -> dict[str, int]:
        """Generators that the run knows, by their pool."""
        names = [each["holder"] for each in self._status()["generators"]]
        return {pool: sum(f"-generator-{pool}-" in name for name in names) for pool in ("near", "far")}

    def _until(self, what: str, condition: Callable[[], object]) -> None:
        self._cluster.until(what, condition)

    def _pods(self) -> str:
        """What is not well, for people."""
        try:
            events = self._kubectl(
                "get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"
            )
            pods = self._kubectl("get", "pods", "--output=wide")
            waiting = [line.split()[0] for line in pods.splitlines()[1:] if " 0/" in line]
        except ClusterFault as fault:
            return str(fault)
        return "\n".join([pods, *map(self._said, waiting), *events.splitlines()[-10:]])

    def _said(self, pod: str) -> str:
        try:
            return f"{pod}: {self._kubectl('logs', pod, '--tail=3')}"
        except ClusterFault as fault:
            return str(fault)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ClusterFault(otherwise)
