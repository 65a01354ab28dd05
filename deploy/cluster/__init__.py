"""A Kubernetes of one real node on this machine, and the chart installed on it.

    deploy/cluster/binaries.sh        builds it, once
    python -m deploy.cluster          runs it, and helm against it

Everything of it (processes, network, packet filter, mounts) lives in namespaces of the kernel that end
with it (`inside.py`); on the machine it leaves nothing but files in .cache/k8s.
"""
