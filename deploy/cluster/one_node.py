"""One node of Kubernetes 1.20 from its parts: etcd, the control plane, containerd, kubelet, kube-proxy.

Meant for namespaces of its own: ports and addresses are fixed, and whoever reaches the API server may do
anything.
"""

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from deploy.cluster.processes import ClusterFault, Processes
from deploy.cluster.stand_in_images import PAUSE

NODE = "node"
GATEWAY = "10.244.77.1"
"""Address of the node on the bridge of its pods."""
POD_NETWORK = "10.244.77.0/24"
SERVICE_NETWORK = "10.245.0.0/24"
API = "https://127.0.0.1:6443"
_TOKEN = "administrator"
_CONTAINERD = "/run/asympo-containerd.sock"


class OneNode:
    """The cluster, from the network up."""

    def __init__(self, *, cache: Path, directory: Path, kubectl: Path) -> None:
        self._cache, self._directory = cache, directory
        self.kubeconfig = directory / "kubeconfig.yaml"
        root = cache / "root/usr"
        self.processes = Processes(
            directory / "logs",
            path=[cache / "bin", root / "bin", root / "sbin", kubectl.parent],
            environment={"KUBECONFIG": str(self.kubeconfig)}
            | {
                name: str(directory / "helm")
                for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR")
            },
        )

    def start(self, images: Path) -> str:
        """Everything up to a node that is ready; its version."""
        self._network()
        self._private_folders()
        self._write_kubeconfig()
        key = self._start_api_server()
        self._containers(images)
        self._start_controllers(key)
        self._node()
        return self.kubectl("get", "nodes", "--output=jsonpath={.items[0].status.nodeInfo.kubeletVersion}")

    def kubectl(self, *arguments: str, given: object = None, timeout_seconds: float = 60.0) -> str:
        """What kubectl says; `given` goes to its standard input as JSON."""
        sent = json.dumps(given).encode() if given is not None else b""
        return self.processes.run("kubectl", *arguments, given=sent, timeout_seconds=timeout_seconds)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get` as an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found

    def addresses_of(self, service: str, namespace: str) -> list[str] | None:
        """Where a Service is, as name service tells it; None when there is none."""
        path = f"/api/v1/namespaces/{namespace}"
        found = self._ask(f"{path}/services/{service}")
        if found is None:
            return None
        if found["spec"]["clusterIP"] != "None":
            return [found["spec"]["clusterIP"]]
        endpoints = self._ask(f"{path}/endpoints/{service}") or {}
        subsets = endpoints.get("subsets", [])
        return [each["ip"] for subset in subsets for each in subset.get("addresses", [])]

    def _ask(self, path: str) -> dict[str, Any] | None:
        """One object of the API server; None when it does not exist."""
        request = urllib.request.Request(API + path, headers={"Authorization": f"Bearer {_TOKEN}"})
        # It made its certificate itself, and nobody else is in this network.
        context = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as reply:
                found: dict[str, Any] = json.load(reply)
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def add_volume(self, name: str, *, size: str) -> Path:
        """A volume on the node's disk, which the next claim that fits takes; its directory."""
        path = self._directory / "volumes" / name
        path.mkdir(parents=True)
        on_this_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_this_node]}]}},
            },
        }
        self.kubectl("create", "--filename=-", given=volume)
        return path

    # --- parts -----------------------------------------------------------------------------------------

    def _network(self) -> None:
        run = self.processes.run
        run("ip", "link", "set", "lo", "up")
        # Made beforehand, so that name service and hub can listen on it before the first pod.
        run("ip", "link", "add", "pods0", "type", "bridge")
        run("ip", "address", "add", f"{GATEWAY}/24", "dev", "pods0")
        run("ip", "link", "set", "pods0", "up")
        # So that this side, too, reaches Services: a packet needs a way before it gets another target.
        run("ip", "route", "add", SERVICE_NETWORK, "dev", "pods0")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        plugin = {
            "type": "bridge",
            "bridge": "pods0",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._directory / "addresses"),
                "ranges": [[{"subnet": POD_NETWORK, "gateway": GATEWAY}]],
            },
        }
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}
        path = self._directory / "cni/pods.conflist"
        path.parent.mkdir()
        path.write_text(json.dumps(network))

    def _private_folders(self) -> None:
        """Where the programs insist on writing outside the folder of the cluster."""
        for path in ("/run", "/var/log", "/var/lib"):
            own = self._directory / "private" / path.strip("/")
            own.mkdir(parents=True)
            self.processes.run("mount", "--bind", str(own), path)

    def _write_kubeconfig(self) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": API, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "administrator", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "administrator"}}],
            "current-context": "here",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.kubeconfig.chmod(0o600)

    def _start_api_server(self) -> Path:
        """With its etcd; the key of service accounts."""
        directory, start = self._directory, self.processes.start
        key = directory / "service-accounts.key"
        self.processes.run("openssl", "genrsa", "-out", str(key), "2048")
        tokens = directory / "tokens.csv"
        tokens.write_text(f'{_TOKEN},administrator,administrator,"system:masters"\n')
        start("etcd", f"--data-dir={directory}/etcd", "--unsafe-no-fsync")
        start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--cert-dir={directory}/certificates",
            f"--advertise-address={GATEWAY}",
            "--endpoint-reconciler-type=none",
            f"--token-auth-file={tokens}",
            "--authorization-mode=AlwaysAllow",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
        )
        return key

    def _start_controllers(self, key: Path) -> None:
        directory, start = self._directory, self.processes.start
        self.processes.until("the API server", lambda: self.kubectl("get", "--raw=/readyz") == "ok")
        start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--cert-dir={directory}/certificates",
            "--leader-elect=false",
            f"--service-account-private-key-file={key}",
            f"--flex-volume-plugin-dir={directory}/plugins",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig}",
            f"--cert-dir={directory}/certificates",
            "--leader-elect=false",
        )

    def _containers(self, images: Path) -> None:
        root = self._cache / "root/usr"
        runtime = {
            "runtime_type": "io.containerd.runc.v2",
            "options": {"BinaryName": str(root / "sbin/runc")},
        }
        plugins = {
            "sandbox_image": PAUSE,
            # Not every machine lets a container have the score and the profile that containerd asks for.
            "restrict_oom_score_adj": True,
            "disable_apparmor": True,
            "cni": {"bin_dir": str(root / "lib/cni"), "conf_dir": str(self._directory / "cni")},
            "containerd": {"default_runtime_name": "runc", "runtimes": {"runc": runtime}},
        }
        config = {
            "version": 2,
            "root": str(self._directory / "containerd"),
            "state": "/run/asympo-containerd",
            "grpc": {"address": _CONTAINERD},
            "plugins": {
                "io.containerd.grpc.v1.cri": plugins,
                "io.containerd.internal.v1.opt": {"path": str(self._directory / "opt")},
            },
        }
        path = self._directory / "containerd.toml"
        path.write_text(_toml(config))
        self.processes.start("containerd", f"--config={path}")
        ctr = ("ctr", f"--address={_CONTAINERD}", "--namespace=k8s.io")
        self.processes.until("containerd", lambda: self.processes.run(*ctr, "version"))
        with subprocess.Popen(["tar", "-C", str(images), "-c", "."], stdout=subprocess.PIPE) as packed:
            done = subprocess.run(
                [*ctr, "images", "import", "-"],
                stdin=packed.stdout,
                env=self.processes.environment,
                capture_output=True,
                check=False,
            )
        if done.returncode != 0:
            raise ClusterFault(f"the images are not imported: {done.stderr.decode().strip()}")

    def _node(self) -> None:
        resolver = self._directory / "resolv.conf"
        resolver.write_text(f"nameserver {GATEWAY}\n")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "clusterDNS": [GATEWAY],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False,
            # The disk of this machine is not the cluster's to judge.
            "evictionHard": {"memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
        }
        path = self._directory / "kubelet.yaml"
        path.write_text(yaml.safe_dump(config))
        self.processes.start(
            "kubelet",
            f"--config={path}",
            f"--kubeconfig={self.kubeconfig}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{_CONTAINERD}",
            f"--hostname-override={NODE}",
            f"--node-ip={GATEWAY}",
            f"--volume-plugin-dir={self._directory}/plugins",
        )
        self.processes.start(
            "kube-proxy",
            f"--kubeconfig={self.kubeconfig}",
            f"--hostname-override={NODE}",
            f"--bind-address={GATEWAY}",
            f"--cluster-cidr={POD_NETWORK}",
            # An answer between two pods of one bridge would else go past the packet filter.
            "--masquerade-all",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        self.processes.until("the node", self._is_ready)

    def _is_ready(self) -> bool:
        conditions = self.get("node", NODE)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _toml(table: dict[str, Any], prefix: str = "") -> str:
    """TOML of nested tables of strings, numbers and truth values."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            name = f"{prefix}.{json.dumps(key)}" if prefix else json.dumps(key)
            lines += [f"[{name}]", _toml(value, name)]
    return "\n".join(lines)
