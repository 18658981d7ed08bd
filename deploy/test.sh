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
# The simulation takes what the tests leave: much of their time they wait for real clusters and engines.
out=$(mktemp -d)
nice -n 10 .venv/bin/python -m tests.simulation --ci >"$out/simulation" 2>&1 &
simulation=$!
trap 'kill "$simulation" 2>/dev/null || true; rm -rf "$out"' EXIT
trap 'exit 130' INT TERM
{ if .venv/bin/python -m pytest -q; then echo ok >"$out/rc"; else echo failed >"$out/rc"; fi; } | tee "$out/tests"
tests=$(cat "$out/rc")
if wait "$simulation"; then simulated=ok; else simulated=failed; fi
cat "$out/simulation"
tail -n 2 "$out/tests"
[ "$simulated $tests" = "ok ok" ] || { echo "failed: simulation $simulated, tests $tests"; exit 1; }
