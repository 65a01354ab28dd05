#!/usr/bin/env bash
# Resolves requirements-{cpu,cuda}.in into the locks beside them, for every supported Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=.cache/lock-venv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install -q uv==0.13.9; }
resolve() { $tool/bin/uv pip compile --python-version 3.11 --universal --no-annotate --no-header -q "$@"; }
overrides=(--override deploy/local/lock-overrides.txt)

lock=deploy/local/requirements-cpu.lock
resolve deploy/local/requirements-cpu.in "${overrides[@]}" --override deploy/local/lock-overrides-cpu.txt \
    --find-links "${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}" --no-emit-find-links \
    --no-emit-package asympo -o $lock
# Markers that can never hold on the systems we support.
sed -i -E "/sys_platform == '(never|win32|emscripten)'/d" $lock

cuda_lock=deploy/local/requirements-cuda.lock
resolve deploy/local/requirements-cuda.in "${overrides[@]}" --no-emit-package asympo -o $cuda_lock \
    --constraint <(deploy/local/shared_pins.sh)
# Linux on x86_64 and aarch64 only.
sed -i -E "/(sys_platform == '(never|win32|emscripten)'|platform_machine == 's390x'$)/d
    s/ ; (platform_machine != 's390x'|sys_platform (== 'linux'|!= 'emscripten'))$//
    s/ ; \(platform_machine == 'aarch64' or platform_machine == 'x86_64'\) and sys_platform == 'linux'$//" $cuda_lock

resolve deploy/local/requirements-reasoning-gym.in -o deploy/local/requirements-reasoning-gym.all
# What the main lock pins stays as it pins it.
grep -vFf <(sed 's/==.*//; s/$/==/' $lock) deploy/local/requirements-reasoning-gym.all >deploy/local/requirements-reasoning-gym.lock
rm deploy/local/requirements-reasoning-gym.all
