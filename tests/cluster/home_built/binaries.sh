#!/usr/bin/env bash
# Builds a Kubernetes to try the chart on, into .cache/k8s, from Debian 12's packages alone: no image registry, no download
# site, nothing installed on this machine. Kubernetes 1.20 is compiled from Debian's source package, which holds its vendored
# modules (about 11 minutes of one core and 4 GB of disk while it runs, 0.7 GB afterwards); etcd, containerd, runc and the
# network plugins are taken from their packages. A second call does nothing.
#   tests/cluster/home_built/binaries.sh
set -euo pipefail
cd "$(dirname "$0")/../../.."
cache=.cache/k8s
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
packages=(etcd-server containerd runc containernetworking-plugins)
build_packages=(golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev rsync libpopt0)
version=1.20.2

if [ -f "$cache/complete" ]; then
    echo "Kubernetes $version and what it needs are in $cache."
    exit 0
fi
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get >/dev/null || [ ! -f /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    echo "The cluster is not built: it needs apt-get and Debian's archive keys on Linux x86_64."
    exit 0
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
apt=$cache/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$cache/bin"

# A list of its own: the machine's sources stay as they are.
for kind in deb deb-src; do
    echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm main"
done >"$apt/sources.list"
apt_get() {
    apt-get -qq -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$apt/lists" \
        -o Dir::Cache="$apt" -o APT::Sandbox::User="$(id -un)" "$@"
}
unpack() {  # DIRECTORY PACKAGE...
    local into=$1
    shift
    mkdir -p "$into" "$apt/debs"
    (cd "$apt/debs" && rm -f ./*.deb && apt_get download "$@" && for deb in *.deb; do dpkg-deb -x "$deb" "$into"; done)
}

echo "Debian's packages ..."
apt_get update
unpack "$cache/root" "${packages[@]}"
unpack "$cache/build" "${build_packages[@]}"

source=$cache/build/kubernetes
if [ ! -d "$source" ]; then
    echo "Kubernetes' source ..."
    (cd "$apt" && apt_get source --download-only kubernetes)
    mkdir -p "$source.partial"
    tar -xf "$apt"/kubernetes_*.orig.tar.gz -C "$source.partial" --strip-components=1
    # Its own reflect2 corrupts the iteration of maps under Go 1.18 and later: the API server dies at the first custom resource.
    rm -rf "$source.partial/vendor/github.com/modern-go/reflect2"
    cp -r "$cache/build/usr/share/gocode/src/github.com/modern-go/reflect2" "$source.partial/vendor/github.com/modern-go/"
    mv "$source.partial" "$source"
fi
cat >"$cache/build/version" <<EOF
KUBE_GIT_COMMIT='unknown'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='v$version'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
EOF
workspace=$cache/build/go/src/k8s.io
mkdir -p "$workspace"
ln -sfn "$source" "$workspace/kubernetes"

export PATH=$cache/build/usr/lib/go-1.19/bin:$cache/build/usr/bin:$PATH
export GOROOT=$cache/build/usr/lib/go-1.19 GOPATH=$cache/build/go GOCACHE=$cache/build/gocache
export LD_LIBRARY_PATH=$cache/build/usr/lib/x86_64-linux-gnu
export GO111MODULE=off GOFLAGS= CGO_ENABLED=0 KUBE_GIT_VERSION_FILE=$cache/build/version
for program in "${programs[@]}"; do
    [ ! -x "$cache/bin/$program" ] || continue
    echo "compiling $program ..."
    (cd "$workspace/kubernetes" && make --no-print-directory WHAT="cmd/$program") >"$cache/$program.log" 2>&1 ||
        { tail -20 "$cache/$program.log"; exit 1; }
    cp "$source/_output/local/go/bin/$program" "$cache/bin/$program"
done
rm -rf "$cache/build" "$apt"
touch "$cache/complete"
echo "Kubernetes $version and what it needs are in $cache."
