#!/usr/bin/env bash
# Puts what FOLDER/tools.lock pins into a virtual environment of its own, .cache/NAME; safe to run again.
#   deploy/local/tools.sh FOLDER NAME      or, to resolve FOLDER/tools.in anew:    deploy/local/tools.sh FOLDER --lock
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1 tools=.cache/$2 lock=$1/tools.lock python=${PYTHON:-python3}

if [ "$2" = --lock ]; then
    uv=.cache/lock-venv
    [ -x $uv/bin/uv ] || { "$python" -m venv $uv && $uv/bin/pip install -q uv==0.13.9; }
    exec $uv/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-annotate --no-header -q \
        "$folder/tools.in" -o "$lock"
fi

stamp=$tools/.stamp-$(cat "$lock" "$0" | sha256sum | cut -c1-16)
[ ! -e "$stamp" ] || exit 0
rm -rf "$tools"
# Half of the tools would fail tests that are skipped without any.
trap '[ -e "$stamp" ] || rm -rf "$tools"' EXIT
"$python" -m venv "$tools"
"$tools/bin/python" -m pip --disable-pip-version-check -q install --no-deps --require-hashes --only-binary :all: -r "$lock"
touch "$stamp"
