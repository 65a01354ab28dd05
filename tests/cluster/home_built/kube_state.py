"""In place of kube-state-metrics, which the node has not: what alerts ask of it, by its names and labels.

https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics/workload
"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cluster.home_built.node import OneNode

_CONTAINERS = {"container": "containerStatuses", "init_container": "initContainerStatuses"}


def serve(node: OneNode, namespace: str) -> str:
    """The address on loopback at which each scrape asks the API server anew."""

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sets = node.ask(f"/apis/apps/v1/namespaces/{namespace}/statefulsets") or {"items": []}
            pods = node.ask(f"/api/v1/namespaces/{namespace}/pods") or {"items": []}
            lines = [*_stateful_sets(sets["items"]), *_pods(pods["items"])]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write("".join(f"{line}\n" for line in lines).encode())

        def log_message(self, *_: object) -> None:
            """A scrape each second is nothing to tell."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def _stateful_sets(found: list[dict[str, Any]]) -> Iterator[str]:
    for each in found:
        labels = f'{{namespace="{each["metadata"]["namespace"]}",statefulset="{each["metadata"]["name"]}"}}'
        yield f"kube_statefulset_replicas{labels} {each['spec']['replicas']}"
        yield f"kube_statefulset_status_replicas_ready{labels} {each['status'].get('readyReplicas', 0)}"


def _pods(found: list[dict[str, Any]]) -> Iterator[str]:
    for each in found:
        of = each["metadata"]
        pod = f'namespace="{of["namespace"]}",pod="{of["name"]}",uid="{of["uid"]}"'
        for kind, statuses in _CONTAINERS.items():
            for status in each["status"].get(statuses, []):
                labels = f'{{{pod},container="{status["name"]}"}}'
                yield f"kube_pod_{kind}_status_restarts_total{labels} {status['restartCount']}"
