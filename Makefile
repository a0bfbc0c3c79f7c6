# Everything runs in .venv, made from constraints.txt on first use: `make demo` works in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-unit test-distributed test-all pipelines lint clean

help:
	@echo "make demo       one scene with both embedded models on one and on two ranks (CPU is enough)"
	@echo "make test       linters, type checker and the tests that are not slow"
	@echo "make test-all   the same with the slow tests"
	@echo "make pipelines  every pipeline of the zoo on two ranks; writes docs/pipelines.md"
	@echo "make lint       linters and type checker only"
	@echo "make clean      remove .venv, caches and out/"
	@echo "PYTHON=python3.12 make ... chooses the interpreter that .venv is made with (3.11 or newer)"

# Pinned packages first, then the project itself against the pinned setuptools: no unpinned build environment.
$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("the pinned versions need Python 3.11 or newer, $(PYTHON) is %d.%d; use PYTHON=python3.11 make ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) with the pinned versions (torch included: this takes a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/hybridiff demo --output out/demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# `make -j2 test` runs those that need one core beside those that start ranks.
test: lint test-unit test-distributed

test-unit: $(INSTALLED)
	$(BIN)/pytest tests/unit

test-distributed: $(INSTALLED)
	$(BIN)/pytest tests/distributed

test-all: lint
	$(BIN)/pytest -m ""

pipelines: $(INSTALLED)
	$(BIN)/pytest -m "" --write-pipelines tests/unit/zoo tests/unit/test_every_pipeline.py tests/distributed/test_every_pipeline.py

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
