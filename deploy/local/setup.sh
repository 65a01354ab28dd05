#!/usr/bin/env bash
# Makes .venv with everything a laptop without a GPU needs, at pinned versions; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv
lock=deploy/local/requirements-cpu.lock
python=${PYTHON:-python3}
torch_cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "setup: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11"
stamp=$venv/.lock-$(cat "$lock" pyproject.toml "$0" | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then exit 0; fi

[ -x $venv/bin/pip ] || "$python" -m venv $venv ||
    fail "cannot create $venv: on Debian and Ubuntu install python3-venv, or name another Python with PYTHON="
pip() { $venv/bin/python -m pip --disable-pip-version-check "$@"; }

echo "setup: installing pinned packages into $venv (about 3 GB; some minutes the first time)"
# The CPU build of torch is not in the public index: take it from pip as configured, else from PyTorch's own.
torch=$(grep '^torch==' $lock)
pip install -q --no-deps "$torch" 2>/dev/null ||
    pip install -q --no-deps --index-url "$torch_cpu_index" "$torch" ||
    fail "$torch was found neither by pip as configured nor at $torch_cpu_index"
# --no-deps: the lock is complete, and lacks on purpose what breaks a CPU install (lock-overrides.txt).
pip install -q --no-deps -r $lock
pip install -q --no-deps --no-build-isolation -e .
# Optional: builds a C extension.
pip install -q --no-deps -r deploy/local/requirements-reasoning-gym.lock >/dev/null 2>&1 ||
    echo "setup: reasoning-gym tasks are left out (one of their packages needs a C compiler and Python's headers)"
$venv/bin/python -c 'import torch, transformers, vllm' >/dev/null 2>&1 ||
    fail "torch, transformers or vllm does not import; see: $venv/bin/python -c 'import torch, transformers, vllm'"
rm -f $venv/.lock-*
touch "$stamp"
echo "setup: done; $venv/bin/asympo --help"
