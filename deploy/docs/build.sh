#!/usr/bin/env bash
# Builds the documentation site into site/; a link or an anchor that leads nowhere is an error. --serve shows it instead.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=.cache/docs-tools
lock=deploy/docs/tools.lock
python=${PYTHON:-python3}

if [ "${1:-}" = --lock ]; then
    uv=.cache/lock-venv
    [ -x $uv/bin/uv ] || { "$python" -m venv $uv && $uv/bin/pip install -q uv==0.13.9; }
    exec $uv/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-annotate --no-header -q \
        deploy/docs/tools.in -o $lock
fi

stamp=$tools/.stamp-$(cat $lock "$0" | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    rm -rf $tools
    "$python" -m venv $tools
    $tools/bin/python -m pip --disable-pip-version-check -q install --no-deps --require-hashes --only-binary :all: -r $lock
    touch "$stamp"
fi
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = --serve ]; then
    exec $tools/bin/mkdocs serve -q --strict -f deploy/docs/mkdocs.yml
fi
$tools/bin/mkdocs build -q --strict -f deploy/docs/mkdocs.yml
echo "docs: site/index.html"
