# Everything starts here. PYTHON is any Python from 3.11 on; the environment is made in .venv.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo ui test test-cluster lint ci clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed ## make .venv with the pinned versions

demo: .venv/installed ## prepare, train, evaluate and draw the digits on two workers; minutes on two cores
	@$(BIN)/python -m jobs.demo digits

ui: .venv/installed ## open MLflow's UI on http://127.0.0.1:5000
	@$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" --host 127.0.0.1 --port 5000

lint: .venv/installed-dev ## ruff, mypy and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, types, import law and the tests, in minutes
	$(BIN)/python -m pytest -q -m "not cluster"

test-cluster: .venv/installed-dev ## the slow tests: kills of workers and drivers
	$(BIN)/python -m pytest -q -m cluster

ci: ## what CI runs
	.ci/run

clean: ## remove the demo's data, runs and MLflow files (not .venv)
	rm -rf data runs mlflow.db mlartifacts
