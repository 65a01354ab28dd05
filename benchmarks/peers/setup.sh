#!/usr/bin/env bash
# Makes .cache/peers-venv with TRL at the versions of requirements.lock; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.cache/peers-venv
lock=benchmarks/peers/requirements.lock
stamp=$venv/.lock-$(sha256sum "$lock" | cut -c1-16)
[ -e "$stamp" ] && exit 0

[ -x $venv/bin/pip ] || "${PYTHON:-python3}" -m venv $venv
pip() { $venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
echo "bench-peers: installing TRL and its torch into $venv (about 1 GB; a few minutes the first time)" >&2
# The CPU build of torch is not in the public index: take it from pip as configured, else from PyTorch's own.
torch=$(grep '^torch==' $lock)
pip install --no-deps "$torch+cpu" 2>/dev/null ||
    pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch+cpu"
pip install --no-deps -r $lock
$venv/bin/python -c 'import torch, transformers, trl'
rm -f $venv/.lock-*
touch "$stamp"
