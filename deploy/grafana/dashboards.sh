#!/usr/bin/env bash
# Writes helm/asympo/dashboards/*.json from deploy/grafana/dashboards.py; --check only compares.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=.cache/grafana-tools
lock=deploy/grafana/tools.lock
python=${PYTHON:-python3}

if [ "${1:-}" = --lock ]; then
    uv=.cache/lock-venv
    [ -x $uv/bin/uv ] || { "$python" -m venv $uv && $uv/bin/pip install -q uv==0.13.9; }
    exec $uv/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-annotate --no-header -q \
        deploy/grafana/tools.in -o $lock
fi

stamp=$tools/.stamp-$(cat $lock "$0" | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    rm -rf $tools
    "$python" -m venv $tools
    $tools/bin/python -m pip --disable-pip-version-check -q install --require-hashes --only-binary :all: -r $lock
    touch "$stamp"
fi
exec $tools/bin/python deploy/grafana/dashboards.py "$@"
