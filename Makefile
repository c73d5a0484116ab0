PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint tables test-slow clean

demo: $(READY)                ## the main job on bundled data, in under three minutes
	$(BIN)/sparseirm demo --out out/demo

test: lint                    ## everything CI checks
	$(BIN)/pytest -n 2 -m "not slow"

lint: $(READY)                ## style, types, import layers, docstrings
	$(BIN)/ruff format --check src tests examples
	$(BIN)/ruff check src tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(VENV)/pydoclint/bin/pydoclint --quiet src

tables: $(READY)              ## fill the documentation's tables from results/
	$(BIN)/python -m sparseirm.experiments.pages README.md docs/*.md

test-slow: $(READY)           ## checks that take minutes
	$(BIN)/pytest -n 2 -m slow

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(PYTHON) -m venv $(VENV)/pydoclint
	$(VENV)/pydoclint/bin/pip install --quiet "pydoclint>=0.6"
	touch $(READY)

clean:                        ## remove the environment and all outputs
	rm -rf $(VENV) out
