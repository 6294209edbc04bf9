# make demo        set up, then train, evaluate and report (ARGS="--run first" passes flags on)
# make test        the tests that take seconds each; make test-all adds the slow ones
# make clients     LiteLLM, lm-eval and inspect_ai in an environment of their own, for tests of the server
# make lint        format, lint and types, changing nothing
# make bench       figures of this CPU; make bench-gpu those of its GPU (docs/performance.md)
# make size        lines of code against the budgets
# make clean       remove .venv, .venv-clients and caches; runs/ is left alone

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Stamps: set-up runs again only when one of these is older than what it installed from.
CORE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
CLIENTS := .venv-clients/.installed
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# Not over the repository's own figures, unless told so: RESULTS=bench/results
RESULTS ?= build/bench
# Another Python that has torch and transformers can be named, and nothing is installed: BENCH_PYTHON=python3
BENCH_PYTHON ?= $(BIN)/python
BENCH := GOMP_SPINCOUNT=2000 PYTHONPATH=src $(BENCH_PYTHON) bench
BENCH_DEV := $(if $(filter $(BIN)/python,$(BENCH_PYTHON)),$(DEV))
NAME_1 := one-thread
NAME_2 := two-cores
# Without TRL beside it: GRPO=--peers
GRPO ?=
GPU = $(shell nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr 'A-Z ' 'a-z-')

# Without what Python keeps of a file that it has read, every process that a test starts compiles all of nalar again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all clients lint size setup clean help bench bench-gpu
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(CORE)
	$(BIN)/nalar demo $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: $(DEV) $(CLIENTS)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

clients: $(CLIENTS)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(addprefix bench-,engine-1 engine-2 train-1 train-2 load stability serving)

bench-engine-%: $(BENCH_DEV)
	$(BENCH)/engine.py --threads $* --out $(RESULTS)/engine-$(NAME_$*).json

bench-train-%: $(BENCH_DEV)
	$(BENCH)/train_cpu.py --threads $* --out $(RESULTS)/train-$(NAME_$*).json

bench-load: $(BENCH_DEV)
	$(BENCH)/load.py --out $(RESULTS)/load-$(NAME_2).json

bench-stability: $(BENCH_DEV)
	mkdir -p $(RESULTS)
	$(BENCH)/stability.py --plots $(RESULTS) --out $(RESULTS)/stability-$(NAME_2).json

bench-serving: $(BENCH_DEV)
	$(BENCH)/serving.py --out $(RESULTS)/serving-$(NAME_2).json

bench-gpu: $(addprefix bench-gpu-,kernels engine agreement train parity memory grpo)

bench-gpu-kernels: $(BENCH_DEV)
	$(BENCH)/kernels.py --device cuda --out $(RESULTS)/kernels-$(GPU).json

bench-gpu-engine: $(BENCH_DEV)
	$(BENCH)/engine.py --device cuda --out $(RESULTS)/engine-$(GPU).json

bench-gpu-agreement: $(BENCH_DEV)
	$(BENCH)/agreement.py --out $(RESULTS)/agreement-$(GPU).json

bench-gpu-train: $(BENCH_DEV)
	$(BENCH)/train_gpu.py --out $(RESULTS)/train-$(GPU).json

bench-gpu-parity: $(BENCH_DEV)
	$(BENCH)/train_gpu.py --parity --out $(RESULTS)/parity-$(GPU).json

bench-gpu-memory: $(BENCH_DEV)
	$(BENCH)/memory.py --out $(RESULTS)/memory-$(GPU).json

bench-gpu-grpo: $(BENCH_DEV)
	$(BENCH)/grpo_step.py $(GRPO) --out $(RESULTS)/grpo-$(GPU).json

size:
	@$(PYTHON) scripts/size.py

setup: $(DEV)

clean:
	rm -rf $(VENV) .venv-clients build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing nalar into $(VENV) (sizes: docs/dependencies.md) ..."
	@$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing nalar and the development tools into $(VENV) (sizes: docs/dependencies.md) ..."
	@$(INSTALL) -e '.[dev]'
	@touch $(CORE) $@

$(CLIENTS): constraints-clients.txt | $(BIN)/pip
	@echo "Installing clients for tests of the server into .venv-clients (sizes: docs/dependencies.md) ..."
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --disable-pip-version-check -c constraints-clients.txt \
		'lm_eval[api]' litellm inspect_ai openai
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here. nalar needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "nalar needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module is incomplete; Debian and Ubuntu ship it in the package python3-venv." >&2; exit 2; }
