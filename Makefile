# `make demo` and `make test` each work alone on a fresh clone with only Python >= 3.11, pip, make and git.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet

# More options for the tools: make test PYTEST_ARGS="-k repair", make demo DEMO_ARGS="--help"
# Four on two cores: many tests wait for a real server or a worker.
PYTEST_WORKERS ?= 4
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
MUTANTS_ARGS ?=
TORTURE_MINUTES ?= 1
TORTURE_ARGS ?=
PROOF_ARGS ?=
RELEASE_ARGS ?=

# Each worker begins with its own half in order, so that a file's fixtures are made once, and takes from the other at the end.
PYTEST = $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal
TYPED := src tests checks examples

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv which-python test test-deep test-all nightly fault-table mutants mutants-page mutants-lua mutants-lua-page torture check tree lint mypy pyright ty layers workflows format demo bench bench-day proof proof-page build docs release-check api-check clean ci

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(VENV)/.stamp-test ## Make .venv and install the package for the tests

test: $(VENV)/.stamp-test ## Run the tests, in under two minutes; their servers come from wheels
	$(PYTEST) -m "not deep and not system_redis" tests $(PYTEST_ARGS)

test-deep: $(VENV)/.stamp-deep ## What test-all has beyond test; needs redis-server, redis-sentinel and prometheus
	HYPOTHESIS_PROFILE=ci $(PYTEST) -m "deep or drawn or system_redis" tests checks/tests $(PYTEST_ARGS)

test-all: test test-deep ## Run every test there is

nightly: $(VENV)/.stamp-deep ## Look for hours: each property on thousands of examples, new ones each time
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "(drawn or deep) and not system_redis" tests checks/tests $(PYTEST_ARGS)

fault-table: $(VENV)/.stamp-deep ## Measure every fault on real servers, into docs/evidence/faults.md
	WRITE_FAULT_TABLE=1 $(BIN)/python -m pytest checks/tests/test_fault_table.py -k "page and valkey"
	$(BIN)/python -m pytest checks/tests/test_fault_table.py

torture: $(VENV)/.stamp-test ## Workers under faults for TORTURE_MINUTES (1), checked against the promise
	$(BIN)/python -m checks.torture --minutes $(TORTURE_MINUTES) $(TORTURE_ARGS)

mutants: $(VENV)/.stamp-mutants ## Break the core in each way that mutmut finds: a test must notice
	$(BIN)/python -m checks.mutation.core $(MUTANTS_ARGS)

mutants-page: $(VENV)/.stamp-mutants ## The same, with what came out put into docs/evidence/mutation.md
	$(BIN)/python -m checks.mutation.core --write docs/evidence/mutation.md

mutants-lua: $(VENV)/.stamp-test ## Break every line of bucket.lua that can be broken by a slip: a test must notice
	$(BIN)/python -m checks.mutation.bucket_lua $(MUTANTS_ARGS)

mutants-lua-page: $(VENV)/.stamp-test ## The same, with what came out put into docs/evidence/mutation.md
	$(BIN)/python -m checks.mutation.bucket_lua --write docs/evidence/mutation.md

check: tree lint mypy pyright ty layers workflows ## What is tracked, lint, format, types, layers and workflows

tree: $(BIN)/python ## No tracked file that is ignored, link out of the tree or path of a machine
	$(BIN)/python -m checks.tree

lint: $(VENV)/.stamp-check ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(VENV)/.stamp-check ## Types, by mypy
	$(BIN)/mypy $(TYPED)

pyright: $(VENV)/.stamp-check ## Types, by pyright
	$(BIN)/pyright --pythonpath $(BIN)/python $(TYPED)

ty: $(VENV)/.stamp-check ## The use of each public name, by a third type checker
	$(BIN)/ty check --quiet --python $(VENV) tests/typed_api.py

layers: $(VENV)/.stamp-check ## Who may import whom
	$(BIN)/lint-imports --no-logo

workflows: $(VENV)/.stamp-check ## The workflows: actions pinned by hash, no right that nobody needs
	$(BIN)/zizmor --offline --quiet .github/workflows

format: $(VENV)/.stamp-check ## Format the code, and mend what ruff can mend safely
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Only a REDIS_URL that was given to make counts: one in the environment is some other program's.
ifeq ($(origin REDIS_URL),command line)
demo: $(VENV)/.stamp-demo-redis
demo: DEMO_REDIS := --redis-url '$(REDIS_URL)'
endif

demo: $(VENV)/.stamp-demo ## Run the demo; options in DEMO_ARGS, a Redis for its bucket in REDIS_URL
	$(BIN)/keepa-tokens demo $(DEMO_REDIS) $(DEMO_ARGS)

bench: $(VENV)/.stamp-deep ## Measure what a step costs beside peers and floors, into docs/evidence/speed.md
	$(BIN)/python -m checks.benchmarks.bench --write docs/evidence/speed.md

bench-day: $(VENV)/.stamp-bench ## Simulate a day beside the peers, into docs/evidence/benchmark.md, .svg
	$(BIN)/python -m checks.benchmarks.day --write docs/evidence $(BENCH_ARGS)

proof: $(VENV)/.stamp-proof ## Prove the promise: solver, small worlds, planted faults
	$(BIN)/python -m checks.proof $(PROOF_ARGS)

proof-page: $(VENV)/.stamp-proof ## The same, with what came out put into docs/evidence/proof.md
	$(BIN)/python -m checks.proof --write docs/evidence/proof.md

build: $(VENV)/.stamp-check ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m build

docs: $(VENV)/.stamp-docs ## Build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -b html docs docs/_build/html

release-check: $(VENV)/.stamp-release ## Build wheel and sdist twice, compare, and install both from an index of its own
	$(BIN)/python -m checks.release $(RELEASE_ARGS)

api-check: $(VENV)/.stamp-release ## What of the public names the last release's users would miss
	@if released="$$(git describe --tags --abbrev=0 2>/dev/null)"; \
	  then $(BIN)/griffecli check keepa_tokens --search src --against "$$released"; \
	  else echo "There is no release here to compare with."; fi

clean: ## Remove .venv and all that was built or cached
	rm -rf $(VENV) build dist docs/_build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests checks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

ci: check test-all ## What has to pass before a change lands

# The virtual environment. Stamps make a repeated call quick; each is renewed when pyproject.toml changes.

# Names in $$python the first that will do, or ends the recipe.
define FIND_PYTHON
find() { \
  for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14; do \
    "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return; \
  done; \
  echo "keepa_tokens needs Python 3.11 or newer, with its venv module (on Debian and Ubuntu: python3-venv)." >&2; \
  echo "None was found as python3 or python3.11 to python3.14; name one: make PYTHON=/path/to/python3" >&2; \
  exit 1; \
}; find
endef

which-python: ## Say which Python .venv is made with
	@$(FIND_PYTHON); "$$python" -c 'import sys; print(sys.executable, sys.version)'

$(BIN)/python:
	@$(FIND_PYTHON); echo "$$python -m venv $(VENV)"; "$$python" -m venv $(VENV)

# Dependency groups need pip >= 25.1.
$(VENV)/.stamp-pip: | $(BIN)/python
	$(INSTALL) "pip>=25.1"
	@touch $@

# The package and a dependency group of pyproject.toml: .stamp-test installs the group test.
$(VENV)/.stamp-%: pyproject.toml $(VENV)/.stamp-pip
	$(INSTALL) --editable . --group $*
	@touch $@
