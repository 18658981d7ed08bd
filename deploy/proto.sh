#!/bin/sh
# Rewrites skep/v1 from proto/, or with --check fails when the committed code differs from a fresh generation.
set -eu
cd "$(dirname "$0")/.."
PY=${PY:-.venv/bin/python}
PATH="$(dirname "$PY"):$PATH"
out=.
[ "${1:-}" = --check ] && out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT
"$PY" -m grpc_tools.protoc -Iproto --python_out="$out" --mypy_out=quiet:"$out" proto/skep/v1/*.proto
"$PY" -m grpc_tools.protoc -Iproto --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
  proto/skep/v1/raft.proto proto/skep/v1/dispatcher.proto proto/skep/v1/ca.proto
if [ "$out" != . ]; then
  if ! diff -rq --exclude=__init__.py --exclude=__pycache__ "$out/skep/v1" skep/v1; then
    echo "skep/v1 is not what proto/ generates: run 'make proto' and commit the result" >&2
    exit 1
  fi
fi
