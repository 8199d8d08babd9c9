# `make demo` and `make test` need nothing but Python >= 3.10; everything lives in .venv. The demo
# installs what it needs alone, the other targets add the rest.
PYTHON ?= python3
OLDEST ?= python3.10
TORCH ?= torch
N ?= 20
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo lint format type quick test test-ci test-all test-oldest test-newest coverage mutate \
	docs bench faults architectures fuzz-models real-weights experiment notebooks clean
PYTEST := -m pytest -q -n auto --dist worksteal
OF_CI := -m 'not slow and not gpu'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "flatkit needs Python >= 3.10: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[demo]'
	@# pip would compile on one core, and the tests of all packages too.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
	@touch $@

$(READY): $(RUNS)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## make .venv and install flatkit with everything that its tests need

demo: $(RUNS) ## train SGD, SAM and GAM on digits over 3 seeds, analyze and compare them (demo/)
	$(BIN)/flatkit demo --out demo

lint: $(READY) ## ruff: check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## pyright
	$(BIN)/pyright

quick: $(READY) ## doctests and the tests of the rooms that differ from main; under a minute
	$(BIN)/python $(PYTEST) $$($(BIN)/python tests/changed.py)

test: $(READY) ## the everyday tests
	$(BIN)/python $(PYTEST)

test-ci: $(READY) ## also notebooks, the demo, studies, jobs of several processes, many seeds: all that CI runs
	$(BIN)/python $(PYTEST) $(OF_CI)

test-all: $(READY) ## also the slow experiments
	$(BIN)/python $(PYTEST) -m 'not gpu'

test-oldest: ## the tests with the oldest versions that pyproject accepts (OLDEST=python3.10)
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[test]'
	.venv-oldest/bin/python $(PYTEST) $(OF_CI)

test-newest: ## the tests with the newest versions that pip finds (TORCH=torch==2.13.0 keeps that one)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade '$(TORCH)' -e '.[test]'
	.venv-newest/bin/python $(PYTEST) $(OF_CI)

coverage: $(READY) ## all tests that CI runs, and which lines they reach; fails below the floor
	$(BIN)/python $(PYTEST) $(OF_CI) --cov --cov-report=term:skip-covered

mutate: $(READY) ## break N seeded places of the mathematics, see which faults the tests miss
	nice $(BIN)/python -m benchmarks.mutation --count $(N)

docs: $(READY) ## build the documentation into site/, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY) ## measure speed against peers, in pairs
	$(BIN)/python -m benchmarks.main_job

faults: $(READY) ## run known faults of the peers again, in an environment with them, beside flatkit
	test -e .venv-peers || $(BIN)/python -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt -e '.[demo,bench]'
	.venv-peers/bin/python -m benchmarks.faults

architectures: $(READY) ## how many published architectures the layer-wise engine takes
	nice $(BIN)/python -m benchmarks.architectures

fuzz-models: $(READY) ## hold 2,000 tasks put together from parts against dense references; goes on where it stopped
	nice $(BIN)/python -m benchmarks.fuzz_models

real-weights: $(READY) ## hold trained weights that packages on PyPI carry against ARPACK in float64
	nice $(BIN)/python -m benchmarks.real_weights

experiment: $(READY) ## train SGD, SAM, GAM, GAM+SAM on CIFAR-10 in FLATKIT_DATA_ROOT or data; about an hour
	nice $(BIN)/python -m benchmarks.experiment

notebooks: $(READY) ## execute the notebooks in place
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-oldest .venv-newest demo dist build site .pytest_cache .ruff_cache
