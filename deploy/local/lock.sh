#!/usr/bin/env bash
# Resolves requirements-cpu.in into requirements-cpu.lock for Linux and macOS on every supported Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock=deploy/local/requirements-cpu.lock
tool=.cache/lock-venv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install -q uv==0.13.9; }
resolve() { $tool/bin/uv pip compile --python-version 3.11 --universal --no-annotate --no-header -q "$@"; }
resolve deploy/local/requirements-cpu.in --override deploy/local/lock-overrides.txt \
    --find-links "${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}" --no-emit-find-links \
    --no-emit-package asympo -o $lock
# Markers that can never hold on the systems we support.
sed -i -E "/sys_platform == '(never|win32|emscripten)'/d" $lock
resolve deploy/local/requirements-reasoning-gym.in -o deploy/local/requirements-reasoning-gym.all
# What the main lock pins stays as it pins it.
grep -vFf <(sed 's/==.*//; s/$/==/' $lock) deploy/local/requirements-reasoning-gym.all >deploy/local/requirements-reasoning-gym.lock
rm deploy/local/requirements-reasoning-gym.all
