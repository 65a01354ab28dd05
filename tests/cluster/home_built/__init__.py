"""A Kubernetes of one real node where none can be had: version 1.20.2, older than the chart promises.

`binaries.sh` builds it once from Debian's packages, `images.sh` what runs on it. All of it (processes,
network, packet filter, mounts) lives in namespaces of the kernel that end with it; only files in .cache stay.
"""
