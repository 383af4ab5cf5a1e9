# `make help` lists what there is. Everything runs inside .venv, which `make setup` builds.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CORPUS := data/raw/shakespeare
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

# What `make pipeline-local` runs: PARAMS is a file, PRESET a name from configs/, SET is `key=value key=value`, RUNNER
# is host or docker, FROM a step to compute anew.
PARAMS ?= params.yaml
RUNNER ?= host
# How many processes share the quick tests.
JOBS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))

# What the user gives is text: neither make nor a shell may read `$`, quotes, `;` or line breaks in it. So make takes it
# unexpanded, and recipes have it from their environment, as "$$NAME".
GIVEN := PYTHON PARAMS PRESET SET RUNNER FROM JOBS TARGET HOST DATA_URI SUBMIT UPGRADE
define take
$(if $(filter command environment,$(origin $1)),override $1 := $$(value $1),$1 := $$($1))
$(if $(value $1),export $1)
endef
$(foreach name,$(GIVEN),$(eval $(call take,$(name))))
PIPELINE_FLAGS = $(if $(PARAMS),--params "$$PARAMS") $(if $(PRESET),--set "preset=$$PRESET") $(if $(SET),--settings "$$SET")

.PHONY: help setup lock data test test-all lint repro images pipeline-local pipeline-compile pipeline-submit services services-stop services-logs mlflow-ui bench bench-model bench-quality bench-losses bench-pipeline bench-inference bench-alignment bench-retrieval clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(STAMP) ## build .venv with the pinned packages; CPU torch where there is no GPU

# Of a checkout that was copied or moved, .venv names another folder: it is mended (requirements/environment.py).
ifneq ($(shell head -n 1 $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: elsewhere
$(STAMP): elsewhere
endif

$(STAMP): pyproject.toml hatch_build.py $(wildcard requirements/*.txt)
	@command -v "$$PYTHON" >/dev/null || { echo "make: no Python $$PYTHON: install 3.11 to 3.13, or give PYTHON=..." >&2; exit 2; }
	@"$$PYTHON" requirements/environment.py

lock: ## pin anew what pyproject.toml asks for, with hashes: make lock UPGRADE=all, or names of packages
	@$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade $$UPGRADE)

data: $(CORPUS)/.complete ## fetch the Shakespeare corpus and check its digest

$(CORPUS)/.complete: | $(STAMP)
	@$(BIN)/python -m ava_core.data.fetch --output data/raw
	@# into DVC's cache, so that `dvc push` carries it
	@$(BIN)/dvc commit --quiet --force data/raw/shakespeare.dvc || echo "data: no git checkout: DVC won't carry the corpus"

test: setup data lint ## run the linters, the type checker and the quick tests
	@$(BIN)/python -m pytest -m "not slow" -n "$$JOBS" --dist loadfile

test-all: setup data ## run the slow tests too
	@$(BIN)/python -m pytest

lint: setup ## style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

repro: setup data ## run what changed, with DVC
	@line="$$($(BIN)/python -m pipelines.mlflow_server ensure --export)" && eval "$$line" \
	  && $(BIN)/python -m ava_core.tracking.ready --params params.yaml && $(BIN)/dvc repro

pipeline-local: setup data ## run the KFP pipeline on this machine; RUNNER=docker: each step in a container
	@$(BIN)/python -m pipelines.local $(if $(RUNNER),--runner "$$RUNNER") $(if $(FROM),--from "$$FROM") $(PIPELINE_FLAGS)

images: setup ## build the image that the steps run in, check and record it: make images TARGET=gpu
	@$(BIN)/python -m pipelines.images $(if $(TARGET),--target "$$TARGET")

pipeline-compile: setup ## write the pipeline's IR to build/pipeline.yaml
	@$(BIN)/python -m pipelines.compile --output build/pipeline.yaml

pipeline-submit: setup ## submit to Kubeflow Pipelines: make pipeline-submit HOST=http://... DATA_URI=s3://... SUBMIT=--wait
	@$(BIN)/python -m pipelines.submit $(if $(HOST),--host "$$HOST") $(if $(DATA_URI),--data-uri "$$DATA_URI") $(PIPELINE_FLAGS) \
	  $(if $(SUBMIT),--flags="$$SUBMIT")

COMPOSE = DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 \
  $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) \
  --env-file .ava/services/services.env -f docker/compose.yaml

services: ## MLflow on PostgreSQL with an object store, in containers (docs/compose.md)
	@python3 docker/compose/first_start.py
	@$(COMPOSE) up --detach
	@python3 docker/compose/wait.py

services-stop: ## stop them; the volumes keep everything
	@$(COMPOSE) down

services-logs: ## what they say
	@$(COMPOSE) logs --tail 100

mlflow-ui: setup ## start the local MLflow server if none answers, and print its address
	@$(BIN)/python -m pipelines.mlflow_server ensure

bench: setup ## time the parts of a training step against their alternatives
	@$(BIN)/python -m benchmarks.layers

bench-model: setup ## time training steps against HF OLMoE, Llama and our own dense model (minutes)
	@$(BIN)/python -m benchmarks.model

bench-quality: setup ## train from scratch against a plain GPT, dense models and AdamW, in the same time (an hour)
	@$(BIN)/python -m benchmarks.quality

bench-losses: setup ## what each optional part of the loss does to bits per byte and repetition (an hour)
	@$(BIN)/python -m benchmarks.losses

bench-pipeline: setup data ## what the pipeline costs beside its steps' work, and a run with nothing to do
	@$(BIN)/python -m benchmarks.pipeline $(if $(RUNNER),--runner "$$RUNNER") $(PIPELINE_FLAGS)

bench-alignment: setup ## all methods of alignment, with TRL's fine-tuning beside; about an hour, after make pipeline-local
	@$(BIN)/python -m benchmarks.alignment

bench-retrieval: setup ## recall by each way to search, stores of vectors, and 100,000 passages against bm25s and FAISS by hand
	@$(BIN)/python -m benchmarks.retrieval_quality
	@$(BIN)/python -m benchmarks.retrieval_stores
	@$(BIN)/python -m benchmarks.retrieval_scale

bench-inference: setup ## size, quality and speed of quantised models, and the server's start; targets in the script
	@$(BIN)/python -m benchmarks.inference

clean: ## remove build products and old work; outputs/, the registry and .venv stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@if test -x $(BIN)/ava; then $(BIN)/python -m ava_core.cli.main show --prune --max-age-days 7 --max-gigabytes 5; fi
