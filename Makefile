# Every target sets up what it needs: a virtual environment in .venv, this package and its tools inside.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-metaunlearn
# The first of these that is Python 3.11 to 3.13 makes the environment; or: make PYTHON=/path/to/python3.12
PYTHON ?= python3 python3.13 python3.12 python3.11
# Passed on: make demo ARGS='--concept clown --out runs/clown'; make test ARGS='-k erase'; make demo PIP_ARGS='--index-url ...'
ARGS ?=
PIP_ARGS ?=
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The others take an hour (make results, end_to_end_scores.py), read what bench or tune has made (resistance.py, ladder.py, frontier.py, every_attack.py, figures.py, tables.py), want a GPU
# (full_size.py), or are none (architectures.py, grids.py, official_loop.py, rivals.py).
OTHERS = $(addprefix benchmarks/,stories.py resistance.py ladder.py frontier.py every_attack.py figures.py tables.py architectures.py grids.py official_loop.py end_to_end_scores.py full_size.py rivals.py)
BENCHMARKS = $(filter-out $(OTHERS),$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench canvas results package docs docs-check

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## Make .venv and install into it

demo: $(STAMP)  ## Erase, attack, evaluate and report on the embedded model
	$(BIN)/metaunlearn demo --resume $(ARGS)

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

bench: $(STAMP)  ## Run the benchmarks
	@set -e; for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python "$$script" $(ARGS); done

canvas: $(STAMP)  ## Train the embedded model again, from the npm packages
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[canvas]'
	$(BIN)/python -m metaunlearn.canvas.build $(ARGS)

results: $(STAMP)  ## Tell the stories of docs/stories.md again
	$(BIN)/python benchmarks/stories.py $(ARGS)

package: $(STAMP)  ## Build, check and try out what is published, into dist/
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[release]'
	$(BIN)/python release/package.py --pip-args='$(PIP_ARGS)' $(ARGS)

docs: $(STAMP)  ## Build the documentation, into site/
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict $(ARGS)

docs-check: $(STAMP)  ## Run the slow commands of README and docs
	DOCS_CHECK=1 $(BIN)/python -m pytest tests/test_docs.py tests/test_readers_commands.py -k slow $(ARGS)

$(BIN)/python:
	@for python in $(PYTHON); do \
	  if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "metaunlearn needs Python 3.11, 3.12 or 3.13 with its venv module (Debian: apt-get install python3-venv)." >&2; \
	echo "Tried: $(PYTHON). Name another with: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
