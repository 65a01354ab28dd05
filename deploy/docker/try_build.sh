#!/usr/bin/env bash
# Builds the CPU images with buildah on a machine that reaches Debian's and Python's packages but no image registry:
# a Debian made by debootstrap stands in for the Python base image. Needs root, buildah and debootstrap.
#   deploy/docker/try_build.sh [learner] [generator]
set -euo pipefail
cd "$(dirname "$0")/../.."
services=("$@"); [ $# -gt 0 ] || services=(learner generator)
work=${IMAGE_WORK:-.cache/images}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
base=$(sed -n 's/^FROM \(python:[^ ]*\) AS packages/\1/p' deploy/docker/learner.Dockerfile)

for tool in buildah debootstrap; do
    command -v $tool >/dev/null || { echo "images are not built: $tool is missing (apt-get install $tool)"; exit 0; }
done
mkdir -p "$work"
printf '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
# OCI images have no HEALTHCHECK.
build() { buildah bud -q --layers --format docker --isolation chroot --pull-never --signature-policy "$work/policy.json" "$@"; }

if ! buildah inspect --type image "docker.io/library/$base" >/dev/null 2>&1; then
    packages=ca-certificates,python3,python3-venv,python3-dev,python3-pip,python-is-python3
    if [ ! -d "$work/base" ]; then
        debootstrap --variant=minbase --include=$packages bookworm "$work/partial" >"$work/debootstrap.log"
        mv "$work/partial" "$work/base"
    fi
    # What this machine trusts and how its pip finds packages holds inside as well.
    cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
    if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$work/base/etc/"; fi
    if [ -n "${PIP_FIND_LINKS:-}" ]; then printf '[install]\nfind-links = %s\n' "$PIP_FIND_LINKS" >>"$work/base/etc/pip.conf"; fi
    if [ -f /etc/apt/apt.conf.d/90proxy ]; then cp /etc/apt/apt.conf.d/90proxy "$work/base/etc/apt/apt.conf.d/"; fi
    tar --one-file-system -C "$work/base" -cf "$work/base.tar" .
    printf 'FROM scratch\nADD base.tar /\n' >"$work/base.Dockerfile"
    build -f "$work/base.Dockerfile" -t "docker.io/library/$base" "$work"
    rm "$work/base.tar"
fi

mounts=()
if [ -n "${PIP_FIND_LINKS:-}" ]; then mounts+=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro"); fi
for service in "${services[@]}"; do
    image=asympo-$service:$version-cpu
    build --build-arg VARIANT=cpu ${TORCH_CPU_INDEX:+--build-arg "TORCH_CPU_INDEX=$TORCH_CPU_INDEX"} "${mounts[@]}" \
        -f "deploy/docker/$service.Dockerfile" -t "$image" . >"$work/$service.log" 2>&1 ||
        { tail -30 "$work/$service.log"; exit 1; }
    container=$(buildah from --pull-never --signature-policy "$work/policy.json" "$image")
    inside() { buildah run --isolation chroot "$container" -- "$@"; }
    echo "$image: $(buildah images --format '{{.Size}}' "$image"), user $(inside id -u), $(inside tini -- asympo --version)"
    inside tini -- asympo "$service" --check-config >/dev/null
    buildah rm "$container" >/dev/null
done
