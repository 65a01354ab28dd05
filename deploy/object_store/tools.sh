#!/usr/bin/env bash
# Puts the tests' S3 server into .cache/s3-server; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=.cache/s3-server
lock=deploy/object_store/tools.lock
python=${PYTHON:-python3}

if [ "${1:-}" = --lock ]; then
    uv=.cache/lock-venv
    [ -x $uv/bin/uv ] || { "$python" -m venv $uv && $uv/bin/pip install -q uv==0.13.9; }
    exec $uv/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-annotate --no-header -q \
        deploy/object_store/tools.in -o $lock
fi

stamp=$tools/.stamp-$(cat $lock "$0" | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then exit 0; fi
rm -rf $tools
# Half of the tools would fail tests that are skipped without any.
trap '[ -e "$stamp" ] || rm -rf $tools' EXIT
"$python" -m venv $tools
$tools/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes --only-binary :all: -r $lock
touch "$stamp"
echo "S3 server for tests: $tools/bin/moto_server"
