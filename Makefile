# Headwater's commands; `make help` lists them. Everything is set up in .venv, once, and again when pyproject.toml changes.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.set-up
PORT ?= 8080

.PHONY: help setup demo test test-backends test-clients chaos gpu-test e2e lint format bench-engine bench-router bench-gpu docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP) ## make .venv with everything in it; TORCH_INDEX=URL for CPU builds of torch

$(STAMP): pyproject.toml
	@PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) ./setup.sh
	@touch $@

demo: $(STAMP) ## two engine replicas on CPU, the router, one conversation; KEEP=1 leaves it up, PORT=8080
	@$(BIN)/python examples/demo.py --port $(PORT) $(if $(KEEP),--keep)

lint: $(STAMP) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## everything that CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore tests/system --ignore tests/engine/test_smollm2.py
	# Real models on both cores, one thing at a time.
	$(BIN)/python -m pytest -q tests/system tests/engine/test_smollm2.py

test-backends: $(STAMP) ## the real servers behind our router, one contract over all; VLLM=recipe SGLANG=recipe TGI=recipe
	$(BIN)/python -m tests.backends headwater transformers $(if $(VLLM),vllm=$(VLLM)) $(if $(SGLANG),sglang=$(SGLANG)) $(if $(TGI),tgi=$(TGI))

test-clients: $(STAMP) ## published clients through the gateway, in an environment of their own (500 MB); node's, if it is there
	test -x .venv/clients/bin/python || $(PYTHON) -m venv .venv/clients
	.venv/clients/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	! command -v npm >/dev/null || xargs npm install --silent --no-save --no-package-lock --prefix .venv/clients <tests/clients/node-requirements.txt
	$(BIN)/python -m tests.clients .venv/clients/bin/python $$(! command -v npm >/dev/null || echo .venv/clients/node_modules)

gpu-test: $(STAMP) ## on a machine with an NVIDIA GPU: kernels against references, greedy tokens, serving
	PYTHON=$(BIN)/python benchmarks/gpu/run tests smollm2

chaos: $(STAMP) ## damaged input, then random faults under load; CASES=50000 SEED=7 FAULTS=1000 DURATION=120
	$(BIN)/python -m tests.chaos.fuzz --count $(or $(CASES),50000)
	$(BIN)/python -m tests.chaos.run --seed $(or $(SEED),7) --faults $(or $(FAULTS),1000) --seconds $(or $(DURATION),120)

e2e: $(STAMP) ## the whole product on a real cluster: KUBECONFIG's, or one of its own; TESTS=e2e/test_chat.py
	@e2e/run $(TESTS)

docs: $(STAMP) ## the documentation as a site, in site/, and the pictures in it
	$(BIN)/python -m docs.pictures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: $(STAMP) ## put the code into shape
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

bench-engine: $(STAMP) ## our engine against vLLM on CPU; FOLDER=model, PEER=command
	$(BIN)/python benchmarks/engine_cpu.py $(FOLDER) $(if $(PEER),--peer "$(PEER)")

bench-router: $(STAMP) ## our token path against the Rust routers
	$(BIN)/python benchmarks/router_path.py

bench-gpu: $(STAMP) ## kernels, steps and serving on an NVIDIA GPU, beside its ceilings
	PYTHON=$(BIN)/python benchmarks/gpu/run kernels step serve

clean: ## remove .venv and what runs left behind
	rm -rf .venv .headwater site .pytest_cache .mypy_cache .ruff_cache .hypothesis
