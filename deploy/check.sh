#!/bin/sh
# The quick checks, side by side: style, types, layers, generated code, unit tests.
set -eu
cd "$(dirname "$0")/.."
bin=.venv/bin
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
run() { # name command..
  name=$1; shift
  ( if "$@" >"$out/$name" 2>&1; then echo ok; else echo failed; fi >"$out/$name.rc" ) &
}
only="not cluster and not engine and not simulation"
run mypy $bin/mypy
# Three at a time: much of what they do is waiting. Each takes about as long; what is new and named nowhere is in the last.
deciders="tests/manager/orchestrator tests/manager/planning tests/manager/scheduler"
without=$(printf -- '--ignore=%s ' $deciders)
run deciders $bin/python -m pytest -q -m "$only" -p no:cacheprovider $deciders tests/conformance
run managers $bin/python -m pytest -q -m "$only" -p no:cacheprovider $without tests/manager tests/skep/cli
run others $bin/python -m pytest -q -m "$only" -p no:cacheprovider --ignore=tests/manager --ignore=tests/conformance \
  --ignore=tests/skep/cli
wait_light() {
  for step in "ruff $bin/ruff check ." "format $bin/ruff format --check ." "layers $bin/lint-imports" \
              "proto ./deploy/proto.sh --check"; do
    set -- $step
    name=$1; shift
    if "$@" >"$out/$name" 2>&1; then echo ok >"$out/$name.rc"; else echo failed >"$out/$name.rc"; fi
  done
}
wait_light
wait
status=0
for name in ruff format mypy layers proto deciders managers others; do
  result=$(cat "$out/$name.rc")
  printf '%-8s %s\n' "$name" "$result"
  if [ "$result" != ok ]; then status=1; tail -n 60 "$out/$name"; fi
done
tail -q -n 1 "$out/deciders" "$out/managers" "$out/others"
exit $status
