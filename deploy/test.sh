#!/bin/sh
# Everything. Ends with pytest's own summary; tests on the engine must run, not skip, when CI is set.
set -eu
cd "$(dirname "$0")/.."
if ./deploy/engine.sh; then
  [ -z "${CI:-}" ] || export SKEP_REQUIRE_ENGINE=1
elif [ -n "${CI:-}" ]; then
  echo "CI must run the tests on an engine" >&2
  exit 1
fi
for step in ".venv/bin/ruff check ." ".venv/bin/ruff format --check ." ".venv/bin/mypy" ".venv/bin/lint-imports" \
            "./deploy/proto.sh --check"; do
  if out=$($step 2>&1); then echo "ok: $step"; else echo "$out"; echo "failed: $step"; exit 1; fi
done
.venv/bin/python -m tests.simulation --ci
exec .venv/bin/python -m pytest -q
