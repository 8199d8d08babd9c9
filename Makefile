# `make demo` and `make test` need nothing but Python >= 3.10; everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo lint format type test test-all bench experiment notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flatkit needs Python >= 3.10: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## make .venv and install flatkit with everything that its tests need

demo: $(READY) ## train SGD, SAM and GAM on digits over 3 seeds, analyze and compare them (demo/)
	$(BIN)/flatkit demo --out demo --overwrite

lint: $(READY) ## ruff: check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## pyright
	$(BIN)/pyright

test: $(READY) ## the everyday tests
	$(BIN)/python -m pytest -q -n auto

test-all: $(READY) ## also the slow experiments
	$(BIN)/python -m pytest -q -n auto -m 'not gpu'

bench: $(READY) ## measure speed against peers, in pairs
	$(BIN)/python -m benchmarks.main_job

experiment: $(READY) ## train SGD, SAM, GAM, GAM+SAM on CIFAR-10 in FLATKIT_DATA_ROOT or data; about an hour
	nice $(BIN)/python -m benchmarks.experiment

notebooks: $(READY) ## execute the notebooks in place
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean: ## remove what the targets made
	rm -rf $(VENV) demo dist build .pytest_cache .ruff_cache
