# make demo        set up, then train, evaluate and report (ARGS="--name first" passes flags on)
# make test        the tests that take seconds each; make test-all adds the slow ones
# make lint        format, lint and types, changing nothing
# make size        lines of code against the budgets
# make clean       remove .venv and caches; runs/ is left alone

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamps: set-up runs again only when one of these is older than what it installed from.
CORE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint size setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(CORE)
	$(BIN)/nalar demo $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-all: $(DEV)
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

size:
	@$(PYTHON) scripts/size.py

setup: $(DEV)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing nalar into $(VENV) (sizes: docs/dependencies.md) ..."
	@$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing nalar and the development tools into $(VENV) (sizes: docs/dependencies.md) ..."
	@$(INSTALL) -e '.[dev]'
	@touch $(CORE) $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here. nalar needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "nalar needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module is incomplete; Debian and Ubuntu ship it in the package python3-venv." >&2; exit 2; }
