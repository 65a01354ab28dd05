#!/usr/bin/env bash
# What `make test` needs beyond `make setup`: fetches what package registries have and names the rest.
# Tests whose tools are missing are skipped, so this never fails.
set -uo pipefail
cd "$(dirname "$0")/../.."

# Without a network the answer is wanted soon.
export PIP_RETRIES=${PIP_RETRIES:-1} PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-20}

fetch() {  # WHAT COMMAND...
    local log what=$1
    shift
    log=$(mktemp)
    "$@" 2>"$log" || echo "test tools: no $what, so tests that need it are skipped ($(tail -n 1 "$log"))"
    rm -f "$log"
}
fetch "helm, kubectl or checkers of the chart" deploy/chart/tools.sh
fetch "S3 server" deploy/local/tools.sh deploy/object_store s3-server

missing=()
need() {  # PROGRAM PACKAGE
    command -v "$1" >/dev/null || missing+=("$2")
}
need redis-server redis-server
need redis-sentinel redis-sentinel
need redis-cli redis-tools
need chromium chromium
need promtool prometheus
need openssl openssl
need cc gcc
if [ ${#missing[@]} -gt 0 ]; then
    echo "test tools: some tests are skipped without: sudo apt-get install --no-install-recommends ${missing[*]}"
fi
exit 0
