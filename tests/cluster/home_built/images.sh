#!/usr/bin/env bash
# The images of the home-built node as archives in .cache/k8s/images: the learner's, built by deploy/docker/try_build.sh, with what
# gateway and player need beside it (one_image.Dockerfile), and a Debian with its Redis for the broker and for the pause of every pod.
#   tests/cluster/home_built/images.sh BROKER
set -euo pipefail
cd "$(dirname "$0")/../../.."
broker=$1
export IMAGE_WORK=${IMAGE_WORK:-.cache/images}
archives=.cache/k8s/images
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
base=$(sed -n 's/^FROM \(python:[^ ]*\) AS packages/\1/p' deploy/docker/learner.Dockerfile)

build() {
    buildah bud -q --layers --format docker --isolation chroot --pull-never --signature-policy "$IMAGE_WORK/policy.json" "$@"
}

deploy/docker/try_build.sh learner
build --build-arg "LEARNER=asympo-learner:$version-cpu" -f tests/cluster/one_image.Dockerfile -t asympo-e2e-one deploy/docker
mkdir -p $archives
cat >$archives/broker.Dockerfile <<EOF
FROM docker.io/library/$base
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server
USER 10001:10001
ENTRYPOINT []
CMD ["sleep", "infinity"]
EOF
build -f $archives/broker.Dockerfile -t asympo-e2e-broker $archives
rm -f $archives/*.tar
pack() {  # ARCHIVE IMAGE NAME
    buildah push -q --signature-policy "$IMAGE_WORK/policy.json" "$2" "docker-archive:$archives/$1.tar:$3"
}
pack learner asympo-e2e-one "docker.io/library/asympo-learner:$version-cpu"
pack broker asympo-e2e-broker "$broker"
