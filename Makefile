# Needs Python 3.11 or newer and make; everything else is set up in .venv on first use.

# The first interpreter that is new enough and can make a virtual environment; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for candidate in python3.12 python3.11 python3.13 python3.14 python3 python; do \
	if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$candidate; break; fi; done)
# Test processes that run side by side, each on one thread.
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --durations=5

.DEFAULT_GOAL := help
.PHONY: help env test test-all demo check format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY)  ## create or update .venv with the package (editable) and its test tools

test: $(READY)  ## run the tests and doctests that take seconds
	$(PYTEST)

test-all: $(READY)  ## run every test, the slow ones too
	$(PYTEST) -m "slow or not slow" --timeout=1800

demo: $(READY)  ## search and train on embedded data, in minutes on a laptop
	$(BIN)/detkds demo

check: $(READY)  ## formatting, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST)

format: $(READY)  ## format the code and fix what the linter can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .pyright
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew only when pyproject.toml changes. uv installs several times faster than pip; where it cannot be had, pip does.
$(READY): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { \
			echo "make: no Python >= 3.11 with venv found; install one, or name it: make $(or $(MAKECMDGOALS),env) PYTHON=/path/to/python" >&2; \
			exit 1; }; \
		echo "creating .venv with $(PYTHON)"; \
		$(PYTHON) -m venv .venv; }
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv \
		|| echo "uv cannot be installed; pip will do its work"
	@echo "installing detkds and its dependencies into .venv (some minutes the first time)"
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; \
	then $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'; \
	else $(BIN)/python -m pip install --quiet --editable '.[dev]'; fi
	@touch $@
