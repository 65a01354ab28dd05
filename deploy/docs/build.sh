#!/usr/bin/env bash
# Builds the documentation site into site/; a link or an anchor that leads nowhere is an error. --serve shows it instead.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=.cache/docs-tools
deploy/local/tools.sh deploy/docs docs-tools
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = --serve ]; then
    exec $tools/bin/mkdocs serve -q --strict -f deploy/docs/mkdocs.yml
fi
$tools/bin/mkdocs build -q --strict -f deploy/docs/mkdocs.yml
echo "docs: site/index.html"
