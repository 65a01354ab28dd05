#!/usr/bin/env bash
# Wire schema: generate the Python code, or check that what is committed is current and compatible.
#
#   deploy/local/gen_proto.sh           write services/asympo/v1/*_pb2*.py and *.pyi
#   deploy/local/gen_proto.sh --check   regenerate into a temporary folder and compare; fails when stale
#   deploy/local/gen_proto.sh --lint    buf lint, buf format and buf breaking against proto/base.binpb (offline)
#   deploy/local/gen_proto.sh --base    accept the present schema as the one later changes must not break
set -euo pipefail
cd "$(dirname "$0")/../.."
# Output of this version loads on every protobuf runtime that we allow (5.29 to 7.x); a newer one would not.
generator=grpcio-tools==1.71.2
venv=.cache/proto-venv
committed=services/asympo/v1
base=proto/base.binpb
python=${PYTHON:-python3}

fail() { echo "gen_proto: $*" >&2; exit 1; }

need_generator() {
    local stamp=$venv/.$generator
    if [ -e "$stamp" ]; then return; fi
    rm -rf "$venv"
    mkdir -p .cache
    "$python" -m venv "$venv" || fail "cannot create $venv: install python3-venv, or name another Python with PYTHON="
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary grpcio,grpcio-tools "$generator" ||
        fail "$generator cannot be installed for $("$python" --version): name Python 3.11 to 3.13 with PYTHON="
    touch "$stamp"
}

# generate FOLDER: FOLDER becomes an import root that holds asympo/v1.
generate() {
    need_generator
    mkdir -p "$1"
    (cd proto && "../$venv/bin/python" -m grpc_tools.protoc -I. \
        --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" asympo/v1/*.proto)
    local package=$1/asympo/v1
    # Messages need no service stub: keep only those of files that define a service.
    for stub in "$package"/*_pb2_grpc.py; do
        grep -q 'class .*Stub' "$stub" || rm "$stub"
    done
    echo '"""Generated from proto/asympo/v1 by deploy/local/gen_proto.sh; never edited."""' >"$package/__init__.py"
}

# The set-up puts buf beside the package; any other on the PATH will do.
find_buf() {
    if [ -x .venv/bin/buf ]; then echo "$PWD/.venv/bin/buf"
    else command -v buf || fail "buf is not installed: run make setup"; fi
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

case "${1:-}" in
"")
    generate "$temporary"
    mkdir -p $committed
    rm -f $committed/*.py $committed/*.pyi
    cp "$temporary"/asympo/v1/* $committed/
    echo "gen_proto: wrote $committed"
    ;;
--check)
    generate "$temporary"
    diff -ru -x __pycache__ $committed "$temporary/asympo/v1" ||
        fail "$committed is stale; repair with: deploy/local/gen_proto.sh"
    echo "gen_proto: $committed is current"
    ;;
--lint)
    buf=$(find_buf)
    "$buf" lint proto || fail "the schema breaks a lint rule of proto/buf.yaml"
    "$buf" format proto -d --exit-code || fail "repair with: buf format -w proto"
    "$buf" breaking proto --against "$base" ||
        fail "producers in use would break: add fields and messages, reserve removed numbers, or start asympo.v2"
    echo "gen_proto: the schema is clean and breaks nothing"
    ;;
--base)
    "$(find_buf)" build proto --exclude-source-info -o "$base"
    echo "gen_proto: wrote $base; commit it together with the schema"
    ;;
*)
    fail "unknown argument $1: give nothing, --check, --lint or --base"
    ;;
esac
