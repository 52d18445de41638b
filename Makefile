# panoda: `make demo` goes from a fresh clone to the report; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
# Telemetry of the tools is off (also set in .dvc/config and in flows/).
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
# Bytecode is written at set-up; without it every start of torch and mlflow costs seconds.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@grep -E '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: scm $(VENV)/.ready ## create .venv from requirements.lock

# DVC asks for the Git repository of the project; a downloaded archive has none, and one around it is another's.
scm:
	@if [ -e .git ] || git ls-files --error-unmatch dvc.yaml >/dev/null 2>&1; then \
		command -v git >/dev/null || { echo "git is needed; install it first"; exit 1; }; \
		grep -qs '^ *no_scm = true' .dvc/config.local && sed -i.old '/^ *no_scm = true/d' .dvc/config.local; \
		rm -f .dvc/config.local.old; \
	else \
		echo "no Git repository: DVC works without one (.dvc/config.local), runs name no commit; for dvc exp and"; \
		echo "dvc metrics diff make one (git init, git add --all, git commit) and run make setup again"; \
		grep -qs '^ *no_scm = true' .dvc/config.local || printf '[core]\n    no_scm = true\n' >> .dvc/config.local; \
	fi

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup ## set up and run the whole pipeline on the embedded city
	$(BIN)/dvc repro
	@$(BIN)/panoda summary

REAL := real$(if $(FACADE),_facades)
demo-real: real-folders setup ## real photographs: CAMVID=FOLDER PANORAMAS=FOLDER [FACADE=FOLDER]
	$(BIN)/panoda scenario $(REAL) --set 'data.source.dataset.path=$(CAMVID)' --set 'data.target.dataset.path=$(PANORAMAS)' \
		$(if $(FACADE),--set 'data.facades.dataset.path=$(FACADE)')
	$(BIN)/dvc repro
	@$(BIN)/panoda summary
	@echo "label other panoramas: $(BIN)/panoda predict FOLDER --out labelled"

real-folders:
	@there() { [ -n "$$2" ] || { echo "say $$1=FOLDER: $$3"; exit 1; }; \
		[ -d "$$2" ] || { echo "$$1=$$2: no such folder; it is $$3"; exit 1; }; \
		for part in $$4; do [ -d "$$2/$$part" ] || { echo "$$1=$$2: no folder $$part in it; it is $$3"; exit 1; }; done; }; \
	there CAMVID '$(CAMVID)' 'CamVid with train, trainannot, val and valannot (panoda data list)' 'train trainannot val valannot' && \
	there PANORAMAS '$(PANORAMAS)' 'a folder of panoramas, 360 degrees wide, without labels' '' && \
	if [ -n '$(FACADE)' ]; then there FACADE '$(FACADE)' 'LabelMeFacade with images and labels (docs/datasets.md)' 'images labels'; fi

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: setup ## set up and run the tests of daily work
	$(PYTEST) -m "not slow"

test-slow: setup ## the other tests: many processes, whole pipelines, exports
	$(PYTEST) -m slow

lint: setup ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## reformat and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pipeline: setup ## write dvc.yaml, prefect.yaml and the flows from the table of stages
	$(BIN)/python -m panoda.pipeline.write

server: setup ## Prefect server, worker and MLflow UI on 127.0.0.1 (ctrl-C stops them)
	$(BIN)/python -m flows.server

benchmark: setup ## does it adapt? three seeds, all recipes, final looks (well over an hour on 2 cores)
	$(BIN)/python -m benchmarks.adaptation

lock: ## compile requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean: ## remove hand-made runs and resume state (DVC outputs stay)
	rm -rf runs .panoda/state

.PHONY: help setup scm demo demo-real real-folders test test-slow lint format pipeline server benchmark lock clean
