"""One node of Kubernetes 1.20 from its parts: etcd, the control plane, containerd, kubelet, kube-proxy.

Meant for namespaces of its own: ports and addresses are fixed, and whoever reaches the API server may do
anything.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from asympo.local.process import Process

from tests.cluster.cluster import Cluster, ClusterFault

NODE = "node"
GATEWAY = "10.244.77.1"
"""Address of the node on the bridge of its pods."""
POD_NETWORK = "10.244.77.0/24"
SERVICE_NETWORK = "10.245.0.0/24"
API = "https://127.0.0.1:6443"
KUBELET_PORT = 10255
"""Of its metrics, without TLS."""
_TOKEN = "administrator"
_CONTAINERD = "/run/asympo-containerd.sock"


class OneNode:
    """The cluster, from the network up."""

    def __init__(self, *, cache: Path, directory: Path, kubectl: Path) -> None:
        self._cache, self._directory = cache, directory
        self._kubeconfig = directory / "kubeconfig.yaml"
        root = cache / "root/usr"
        path = [cache / "bin", root / "bin", root / "sbin", kubectl.parent, os.environ["PATH"]]
        own = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR")
        self._environment = {name: str(directory / "helm") for name in own} | {
            "KUBECONFIG": str(self._kubeconfig),
            "PATH": os.pathsep.join(map(str, path)),
        }
        self._programs: dict[str, Process] = {}
        self._here = self.cluster("default")

    def cluster(self, namespace: str) -> Cluster:
        """For kubectl and helm."""
        return Cluster(namespace=namespace, environment=self._environment, check=self._check)

    def start(self, pause: str) -> str:
        """Everything up to a node that is ready; its version. `pause`: the image of every pod's sandbox."""
        self._network()
        self._private_folders()
        self._write_kubeconfig()
        key = self._start_api_server()
        self._containers(pause)
        self._start_controllers(key)
        self._node()
        found: str = self._here.get("node", NODE)["status"]["nodeInfo"]["kubeletVersion"]
        return found.removeprefix("v")

    def stop(self) -> None:
        """Ends the programs, the last started first."""
        for program in reversed(self._programs.values()):
            program.stop(deadline_seconds=10)

    def _start(self, name: str, *arguments: str) -> None:
        self._programs[name] = Process(
            command=[name, *arguments],
            log_path=self._directory / f"logs/{name}.log",
            environment=self._environment,
        ).start()

    def _check(self) -> None:
        for name, program in self._programs.items():
            if not program.is_running:
                raise ClusterFault(f"{name} ended{program.last_words()}")

    def addresses_of(self, service: str, namespace: str) -> list[str] | None:
        """Where a Service is, as name service tells it; None when there is none."""
        path = f"/api/v1/namespaces/{namespace}"
        found = self.ask(f"{path}/services/{service}")
        if found is None:
            return None
        if found["spec"]["clusterIP"] != "None":
            return [found["spec"]["clusterIP"]]
        endpoints = self.ask(f"{path}/endpoints/{service}") or {}
        subsets = endpoints.get("subsets", [])
        return [each["ip"] for subset in subsets for each in subset.get("addresses", [])]

    def ask(self, path: str) -> dict[str, Any] | None:
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

    def add_volume(self, name: str, *, size: str, in_memory: str = "") -> None:
        """A volume on the node's disk or in so much of its memory, which the next claim that fits takes."""
        path = self._directory / "volumes" / name
        path.mkdir(parents=True)
        if in_memory:
            self._here.run("mount", "-t", "tmpfs", "-o", f"size={in_memory}", "tmpfs", str(path))
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
        self._here.kubectl("create", "--filename=-", given=json.dumps(volume))

    # --- parts -----------------------------------------------------------------------------------------

    def _network(self) -> None:
        run = self._here.run
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
            self._here.run("mount", "--bind", str(own), path)

    def _write_kubeconfig(self) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": API, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "administrator", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "administrator"}}],
            "current-context": "here",
        }
        self._kubeconfig.write_text(yaml.safe_dump(config))
        self._kubeconfig.chmod(0o600)

    def _start_api_server(self) -> Path:
        """With its etcd; the key of service accounts."""
        directory, start = self._directory, self._start
        key = directory / "service-accounts.key"
        self._here.run("openssl", "genrsa", "-out", str(key), "2048")
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
        directory, start = self._directory, self._start
        self._here.until("the API server", lambda: self._here.kubectl("get", "--raw=/readyz") == "ok")
        start(
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig}",
            f"--cert-dir={directory}/certificates",
            "--leader-elect=false",
            f"--service-account-private-key-file={key}",
            f"--flex-volume-plugin-dir={directory}/plugins",
        )
        start(
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig}",
            f"--cert-dir={directory}/certificates",
            "--leader-elect=false",
        )

    def _containers(self, pause: str) -> None:
        root = self._cache / "root/usr"
        runtime = {
            "runtime_type": "io.containerd.runc.v2",
            "options": {"BinaryName": str(root / "sbin/runc")},
        }
        plugins = {
            "sandbox_image": pause,
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
        path.write_text(tomli_w.dumps(config))
        self._start("containerd", f"--config={path}")
        ctr = ("ctr", f"--address={_CONTAINERD}", "--namespace=k8s.io")
        self._here.until("containerd", lambda: self._here.run(*ctr, "version"))
        for archive in (self._cache / "images").glob("*.tar"):
            self._here.run(*ctr, "images", "import", str(archive), seconds=300)

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
            "readOnlyPort": KUBELET_PORT,
            # The disk of this machine is not the cluster's to judge.
            "evictionHard": {"memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
        }
        path = self._directory / "kubelet.yaml"
        path.write_text(yaml.safe_dump(config))
        self._start(
            "kubelet",
            f"--config={path}",
            f"--kubeconfig={self._kubeconfig}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{_CONTAINERD}",
            f"--hostname-override={NODE}",
            f"--node-ip={GATEWAY}",
            f"--volume-plugin-dir={self._directory}/plugins",
        )
        self._start(
            "kube-proxy",
            f"--kubeconfig={self._kubeconfig}",
            f"--hostname-override={NODE}",
            f"--bind-address={GATEWAY}",
            f"--cluster-cidr={POD_NETWORK}",
            # An answer between two pods of one bridge would else go past the packet filter.
            "--masquerade-all",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        self._here.until("the node", self._is_ready)

    def _is_ready(self) -> bool:
        conditions = self._here.get("node", NODE)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
