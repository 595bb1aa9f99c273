# make sweep [ARGS="workload=kill out=/tmp/kill"]   install what it needs, run the main job
# make report [ARGS="..."]                          the same, all short studies, then a report
# make test                                         install what it needs, run every check
# make constraints                                  pin the newest versions that fit pyproject.toml
# Uses uv where it is installed, python3's venv and pip elsewhere.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv)
ARGS ?=
RESULTS = results/seed_table
nocachesim = no C compiler, so no pycachesim (source only): what compares with it skips

ifdef UV
venv = $(UV) venv --quiet --allow-existing $(VENV)
install = $(UV) pip install --quiet --python $(BIN)/python --constraints constraints.txt
else
venv = $(PYTHON) -m venv $(VENV)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

.PHONY: sweep report test constraints
.DEFAULT_GOAL := sweep

sweep: $(VENV)/.sweep
	@$(BIN)/python -m numarep.sweep $(ARGS)

report: $(VENV)/.report
	@$(BIN)/python -m numarep.sweep out=$(RESULTS) $(ARGS)
	@echo "== what else the report asks for"
	@$(BIN)/python -m numarep.sweep study=report out=$(RESULTS) > /dev/null
	@$(BIN)/python -m analysis.design | $(BIN)/python -m numarep.sweep study=sensitivity \
	  workload=kill cache_state=cold points=- out=$(RESULTS) > /dev/null
	@$(BIN)/python -m tests.agreement $(RESULTS)
	@$(BIN)/python -m analysis.report $(RESULTS)

test: $(VENV)/.test
	@echo "== ruff format"; $(BIN)/ruff format --check .
	@echo "== ruff check"; $(BIN)/ruff check .
	@echo "== mypy"; $(BIN)/mypy
	@echo "== import contracts"; said=$$($(BIN)/lint-imports --no-cache) || \
	{ echo "$$said"; exit 1; }
	@echo "== tests, compiled"; $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)
	@echo "== the core as plain Python, every RuntimeWarning an error"; \
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n 2 -W error::RuntimeWarning tests/memory
	@echo "== the core with bounds checks"; \
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest -n 2 tests/memory

constraints:
	uv pip compile --quiet --no-header --no-annotate --no-emit-index-url \
	  --python-version 3.11 --all-extras --upgrade pyproject.toml -o constraints.txt

$(VENV)/.sweep: pyproject.toml constraints.txt
	@echo "== installing into $(VENV)"
	@$(venv)
	@$(install) -e .
	@touch $@

$(VENV)/.report: $(VENV)/.sweep
	@echo "== installing what reports need"
	@$(install) -e '.[report]'
	@$(install) -e '.[bench]' 2> /dev/null || echo "$(nocachesim)"
	@touch $@

$(VENV)/.test: $(VENV)/.sweep
	@echo "== installing the checks"
	@$(install) -e '.[test]'
	@$(install) -e '.[bench]' 2> /dev/null || echo "$(nocachesim)"
	@touch $@
