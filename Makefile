PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint tables test-slow clean

demo: $(READY)                ## the main job on bundled data, in under three minutes
	$(BIN)/sparseirm demo --out out/demo

test: lint                    ## everything CI checks
	$(BIN)/pytest -n 2 -m "not slow"

lint: $(READY)                ## style, types, import layers, docstrings
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	.venv/pydoclint/bin/pydoclint --quiet src

tables: $(READY)              ## fill the documentation's tables from results/
	$(BIN)/python -m sparseirm.experiments.pages README.md docs/*.md

test-slow: $(READY)           ## checks that take minutes
	$(BIN)/pytest -n 2 -m slow

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(PYTHON) -m venv .venv/pydoclint
	.venv/pydoclint/bin/pip install --quiet "pydoclint>=0.6"
	touch $(READY)

clean:                        ## remove the environment and all outputs
	rm -rf .venv out
