# `make help` lists the targets. Everything happens in .venv; nothing is installed elsewhere.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format sdk h2spec bench soak lock proto changelog clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.setup ## make .venv from the lock and install Tieline into it, editable

# A stamp: made again only when the lock, the build settings or the version changed.
$(VENV)/.setup: requirements/dev.txt pyproject.toml src/tieline/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Tieline needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing the locked packages into $(VENV) …'
	@$(PIP) install --require-hashes --no-deps -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.setup-bench: requirements/bench.txt $(VENV)/.setup
	@$(PIP) install --require-hashes --no-deps -r requirements/bench.txt
	@touch $@

demo: setup ## two apps, their sidecars and a caller's, some calls, explained
	@$(BIN)/tieline demo

test: check ## all checks, then all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## style, types and import direction
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

sdk: setup ## test with Dapr's SDKs for Python, Node, Java and Go, installed into your cache
	$(BIN)/python -m tests.support.foreign python node java go
	$(BIN)/python -m pytest tests/e2e/sdk $(PYTEST_ARGS)

h2spec: setup ## test with h2spec, the conformance suite for HTTP/2, built into your cache
	$(BIN)/python -m tests.support.foreign h2spec
	$(BIN)/python -m pytest tests/e2e/test_h2spec.py $(PYTEST_ARGS)

bench: $(VENV)/.setup-bench ## measure a pair of sidecars beside a pair of Envoys
	$(BIN)/python -m bench $(BENCH_ARGS)

soak: setup ## let a sidecar live long in some minutes, and see that nothing grows
	$(BIN)/python -m bench.soak $(SOAK_ARGS)

lock: ## write requirements/*.txt anew; `tools/lock.sh --sdk` does it for what other languages' tests use
	PYTHON=$(PYTHON) tools/lock.sh

proto: ## generate the code for the messages of gRPC anew
	PYTHON=$(PYTHON) tools/proto.sh

changelog: setup ## show what the next release's changelog would say
	$(BIN)/towncrier build --draft

clean: ## remove .venv and all caches
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
