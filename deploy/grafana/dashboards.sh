#!/usr/bin/env bash
# Writes helm/asympo/dashboards/*.json from deploy/grafana/dashboards.py; --check only compares.
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/local/tools.sh deploy/grafana grafana-tools
exec .cache/grafana-tools/bin/python deploy/grafana/dashboards.py "$@"
