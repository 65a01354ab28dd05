#!/usr/bin/env bash
# Two answers to one question, written by a shell script: curl.sh [GATEWAY]. With a token: TOKEN=… curl.sh
set -euo pipefail
gateway=${1:-http://127.0.0.1:8090}

curl --fail-with-body -sS "$gateway/v1/rollouts" -H "Authorization: Bearer ${TOKEN:-none}" -d @- <<JSON
{
  "group_id": "$(date +%s%3N)-$$",
  "prompt": [{"role": "user", "content": "Which planet is the largest?"}],
  "responses": [
    {"text": "Jupiter.", "reward": 1},
    {"text": "The Sun.", "reward": 0}
  ]
}
JSON
echo
