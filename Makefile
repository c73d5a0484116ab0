PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint tables test-slow lowest bench docs package mutants audit clean

demo: $(READY)                ## the main job on bundled data, in under three minutes
	$(BIN)/sparseirm demo --out out/demo

test: lint                    ## everything CI checks
	$(BIN)/pytest -n 2 -m "not slow"

lint: $(READY)                ## style, types, import layers, docstrings
	$(BIN)/ruff format --check src tests examples docs/site_hooks.py
	$(BIN)/ruff check src tests examples docs/site_hooks.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(VENV)/pydoclint/bin/pydoclint --quiet src

tables: $(READY)              ## the documentation's tables and figures from results/
	$(BIN)/python -m sparseirm.experiments.pages README.md docs/*.md
	$(BIN)/python -m sparseirm.experiments.illustrations

test-slow: $(READY)           ## checks that take minutes
	$(BIN)/pytest -n 2 -m slow

lowest: $(READY)              ## the tests with the lowest versions that pyproject.toml allows
	$(BIN)/pip install --quiet "uv>=0.5"
	$(BIN)/uv venv --quiet --clear $(VENV)/lowest
	VIRTUAL_ENV=$(VENV)/lowest $(BIN)/uv pip install --quiet --resolution lowest-direct --editable ".[dev]"
	$(VENV)/lowest/bin/pytest -n 2 -m "not slow" -W default

bench: $(READY)               ## how fast it is here, on an idle machine, into results/bench; 25 minutes
	$(BIN)/sparseirm bench --curves --out results/bench

docs: $(READY)                ## the documentation as a website in site/
	$(BIN)/mkdocs build --strict --quiet

package: $(READY)             ## source archive and wheel in dist/
	$(BIN)/python -m hatchling build

mutants: $(READY)             ## how many changes of the mathematics no test notices; ten minutes
	$(BIN)/pip install --quiet "mutmut>=3.8"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 1
	$(BIN)/mutmut export-cicd-stats
	cp mutants/mutmut-cicd-stats.json results/mutants/stats.json
	$(BIN)/mutmut results

audit: $(READY)               ## known vulnerabilities of what is installed; asks PyPI
	$(BIN)/pip install --quiet "pip-audit>=2.7"
	$(BIN)/pip-audit --skip-editable

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(PYTHON) -m venv $(VENV)/pydoclint
	$(VENV)/pydoclint/bin/pip install --quiet "pydoclint>=0.6"
	touch $(READY)

clean:                        ## remove the environment and all outputs
	rm -rf $(VENV) out site dist mutants
