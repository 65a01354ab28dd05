#!/usr/bin/env bash
# Makes .cache/peers-venv with TRL and .cache/peers-verl-venv with verl, at the versions of their locks: the two
# cannot share one, as each refuses the other's transformers. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."

make_venv() {  # NAME LOCK MODULES
    local venv=.cache/$1 lock=benchmarks/peers/$2 torch stamp
    stamp=$venv/.lock-$(sha256sum "$lock" | cut -c1-16)
    [ -e "$stamp" ] && return
    [ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
    echo "bench-peers: installing $2 into $venv (about 1 GB; a few minutes the first time)" >&2
    # The CPU build of torch is not in the public index: take it from pip as configured, else from PyTorch's own.
    torch=$(grep '^torch==' "$lock")
    pip install --no-deps "$torch+cpu" 2>/dev/null ||
        pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch+cpu"
    pip install --no-deps -r "$lock"
    "$venv/bin/python" -c "import $3"
    rm -f "$venv"/.lock-*
    touch "$stamp"
}

make_venv peers-venv requirements.lock "torch, transformers, trl"
make_venv peers-verl-venv requirements-verl.lock "torch, transformers, verl"
