# Every command a user needs; `make help` lists them.
# The first that runs: pyenv leaves commands of versions that are not active.
PYTHON ?= $(firstword $(foreach one,python3.11 python3.12,$(shell $(one) -c "" 2>/dev/null && echo $(one))))
VENV ?= .venv
PRESET ?= demo
RUN ?= $(PRESET)
DATA ?=
ARGS ?=
ONLY ?=
ENGINE ?= local
RAY_ADDRESS ?=

PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
RAY := $(VENV)/.ray-installed
# As one word of the shell, whatever is in it; ARGS alone is split into words.
quoted = '$(subst ','\'',$(1))'
PIPELINE = $(PY) -m pipeline stages --preset=$(call quoted,$(PRESET)) --run=$(call quoted,$(RUN)) $(if $(DATA),--data=$(call quoted,$(DATA))) $(ENGINE_OPTIONS)
ENGINE_OPTIONS = --engine.kind=$(call quoted,$(ENGINE)) $(if $(RAY_ADDRESS),--engine.address=$(call quoted,$(RAY_ADDRESS)))
ENGINE_INSTALLED = $(if $(filter ray,$(ENGINE)),$(RAY))
STAGES := traffic tokenize pretrain finetune selfplay sample evaluate package validate report

.PHONY: help setup setup-dev setup-ray stages $(STAGES) planners claims test mutate lint bench gpu-check lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "one stage (and what it needs): make $(STAGES)"
	@echo "variables: PRESET=smoke|demo|scratch|womd|gpu|node|leaderboard|paper  RUN=name  DATA=folder, glob or URL  ENGINE=local|ray  RAY_ADDRESS=host:port  ARGS=\"--pretrain.fit.steps 100\""

setup: $(RUNTIME) ## virtual environment with everything pinned

setup-dev: $(DEV) ## the same with the tools of tests and checks

setup-ray: $(RAY) ## the same with Ray, for many machines

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: neither python3.11 nor python3.12 found: install one of them (with venv), or give PYTHON=/path/to/python3.12" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or 3.12, or give PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { echo "error: $(PYTHON) is not Python 3.11 or 3.12, for which the pins are: give PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(VENV)/bin/python requirements.txt requirements-waymo.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -r requirements-waymo.txt
	@touch $@

$(DEV): $(RUNTIME) $(RAY) requirements-dev.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(RAY): $(RUNTIME) requirements-ray.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-ray.txt
	@touch $@

stages: $(RUNTIME) $(ENGINE_INSTALLED) ## the whole pipeline, from data (generated unless DATA is given) to a validated submission.tar.gz
	$(PIPELINE) $(ARGS)

$(STAGES): $(RUNTIME) $(ENGINE_INSTALLED)
	$(PIPELINE) --target $@ $(ARGS)

planners: $(RUNTIME) $(ENGINE_INSTALLED) ## behind stages: planners in the AV among logs, reference and policy, to RUN's planners/
	$(PY) -m pipeline planners --preset=$(call quoted,$(PRESET)) --run=$(call quoted,runs/$(RUN)) $(ENGINE_OPTIONS) $(ARGS)

test: $(DEV) ## all tests
	$(PY) -m pytest -n 2 $(ARGS)

mutate: $(DEV) ## do the tests notice changes of the code? a sample, going on where it was; ARGS="--sample 200", --mistakes, --all
	$(PY) scripts/checks/mutate.py $(ARGS)

lint: $(DEV) ## formatting, style, types, import directions
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(RUNTIME) ## speed figures to a table and runs/bench.json; ONLY=name for one of them
	$(PY) -m pipeline.bench $(if $(ONLY),--only=$(call quoted,$(ONLY))) $(ARGS)

gpu-check: $(RUNTIME) ## what this machine's GPU computes, how fast, where it waits: a table and runs/gpu-check/gpu_check.json
	$(PY) scripts/gpu_check.py $(ARGS)

claims: $(RUNTIME) ## the paper's claims as experiments on a finished RUN: tables, figures, verdicts; ONLY="names" for some
	$(PY) -m pipeline claims --preset=$(call quoted,$(PRESET)) --run=$(call quoted,runs/$(RUN)) --out=$(call quoted,runs/$(RUN)/claims) $(if $(ONLY),--only=$(call quoted,$(ONLY))) $(ARGS)

COMPILE = $(PY) -m uv pip compile -q --python-version 3.11 --no-annotate --custom-compile-command "make lock"

lock: $(DEV) ## requirements*.in to the pinned requirements*.txt; ARGS=--upgrade for newer versions
	$(COMPILE) $(ARGS) requirements.in -o requirements.txt
	@# CUDA libraries belong to a build of torch: pip takes them with it.
	sed -i -E '/^(nvidia|cuda|triton)/d' requirements.txt
	for part in ray dev; do \
	  $(COMPILE) $(ARGS) -c requirements.txt requirements-$$part.in -o requirements-$$part.txt && \
	  grep -v '^#' requirements.txt | grep -vxFf - requirements-$$part.txt > requirements-$$part.new && \
	  mv requirements-$$part.new requirements-$$part.txt || exit 1; \
	done

clean: ## remove the virtual environment and caches; runs/ is kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
