# Everything a developer types. `make demo` and `make test` need only python3 (3.11 or newer) and make.
PY := .venv/bin/python
# Compiled once for all the processes that a target starts, wherever the machine keeps Python from it. Not in the tree.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/bytecode
export PYTHONDONTWRITEBYTECODE :=
BENCH ?= cli
SEEDS ?= 20
SEED ?=
KIND ?=
FAULT ?=
ROUNDS ?= 200
POWER ?=

.PHONY: demo test check unit proto simulate crash bench clean setup setup-dev

setup:                ## the environment that skep runs in
	@./deploy/setup.sh
setup-dev:            ## the same plus linters, type checker, test tools
	@./deploy/setup.sh dev

demo: setup           ## a whole cluster on this machine, shown working (DEMO_RUNTIME=docker|process to force)
	@$(PY) deploy/demo/demo.py

test: setup-dev       ## everything: checks, unit, property, simulation, cluster and engine tests
	@./deploy/test.sh

check: setup-dev      ## ruff, mypy, import-linter, generated code, unit tests; under a minute
	@./deploy/check.sh

unit: setup-dev
	@$(PY) -m pytest -q -m "not cluster and not engine"

proto: setup-dev      ## rewrite skep/v1 from proto/
	@./deploy/proto.sh

simulate: setup-dev   ## deterministic simulation: SEEDS=1000 for many, SEED=4711 to replay one (KIND=consensus|cluster|engines, FAULT="..")
	@PYTHONHASHSEED=0 $(PY) -m tests.simulation --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(if $(KIND),--kind $(KIND)) \
	  $(if $(FAULT),--fault "$(FAULT)")

crash: setup-dev      ## managers killed at random moments under load: ROUNDS=200, POWER=power to lose what was not synced
	@$(PY) -m tests.manager.raft.raft_crashes $(ROUNDS) $(or $(SEED),$(shell date +%s)) $(POWER)

bench: setup-dev      ## make bench BENCH=NAME runs tests/bench/NAME.py: one "figure: value unit" a line
	@$(PY) -m tests.bench $(BENCH)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
