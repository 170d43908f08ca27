# Every target does its own set-up in $(VENV), once; nothing needs root or a terminal.
# `make help` lists the targets and what can be set, e.g. `make up PREFILL=2 DECODE=2 HTTP_PORT=9000`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# -- The environment ---------------------------------------------------------------------------------------------------
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
SYSTEM_TORCH ?=
override SYSTEM_TORCH := $(filter-out 0,$(SYSTEM_TORCH))
MIN_PYTHON := 3.11

# -- The cluster (empty: the default of `diptych up`, see `diptych up --help`) --------------------------------------------
MODEL ?=
CONFIG ?=
PREFILL ?=
DECODE ?=
HOST ?=
HTTP_PORT ?=
GRPC_PORT ?=
REDIS_URL ?=
RAY_ADDRESS ?=
KV_CACHE_MB ?=
THREADS ?=
PROMPT ?=
MAX_TOKENS ?=
ONCE ?=

# -- Benchmarks (e.g. BENCH_ARGS='--rounds 5 --record --gguf model.gguf') -------------------------------------------------
BENCH_ARGS ?=

# -- Tests -------------------------------------------------------------------------------------------------------------
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STEP := deploy/step.sh
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet
# A stamp's name holds what was asked for, so asking for something else installs again.
FLAVOUR := $(if $(SYSTEM_TORCH),system,own)
VENV_STAMP := $(VENV)/stamp-venv-$(FLAVOUR)
TORCH_STAMP := $(VENV)/stamp-torch-$(shell printf '%s' '$(FLAVOUR) $(TORCH)' | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/stamp-run
DEV_STAMP := $(VENV)/stamp-dev

PROTO := diptych/v1/inference.proto
GENERATED := diptych/v1/inference_pb2.py diptych/v1/inference_pb2.pyi diptych/v1/inference_pb2_grpc.py

# $(call option,name,value): `--name value` for a value that was given. Values reach the shell only inside single quotes.
quote = '$(subst ','\'',$(1))'
option = $(if $(2),--$(1) $(call quote,$(2)))
UP_OPTIONS = $(strip \
    $(call option,config,$(CONFIG)) $(call option,model,$(MODEL)) $(call option,prefill,$(PREFILL)) $(call option,decode,$(DECODE)) \
    $(call option,host,$(HOST)) $(call option,http-port,$(HTTP_PORT)) $(call option,grpc-port,$(GRPC_PORT)) \
    $(call option,redis-url,$(REDIS_URL)) $(call option,ray-address,$(RAY_ADDRESS)) \
    $(call option,kv-cache-mb,$(KV_CACHE_MB)) $(call option,threads,$(THREADS)) \
    $(call option,prompt,$(PROMPT)) $(call option,max-tokens,$(MAX_TOKENS)) $(if $(filter-out 0,$(ONCE)),--once))

.PHONY: help up test test-slow check bench-engine bench-transfer bench-index bench-sim bench-autoscale chaos-transfer chaos-drain format proto clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo 'Set for `up`: CONFIG PREFILL DECODE MODEL HOST HTTP_PORT GRPC_PORT REDIS_URL RAY_ADDRESS KV_CACHE_MB THREADS PROMPT'
	@echo '              MAX_TOKENS ONCE=1     for set-up: PYTHON VENV TORCH SYSTEM_TORCH=1     for tests: PYTEST_ARGS'

up: $(RUN_STAMP)  ## start the whole cluster, ask it one question, stay until Ctrl-C
	@exec $(BIN)/diptych up $(UP_OPTIONS)

test: $(DEV_STAMP)  ## the tests, without the slow ones
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(DEV_STAMP)  ## all tests
	$(BIN)/python -m pytest -m 'slow or not slow' $(PYTEST_ARGS)

check: $(DEV_STAMP)  ## lint, types, import rules, and generated code against its source
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
	    && $(call generate,"$$fresh") \
	    && for file in $(GENERATED); do \
	        diff -u "$$file" "$$fresh/$$file" || { echo "$$file is not what $(PROTO) generates: run make proto" >&2; exit 1; }; \
	    done \
	    && echo 'generated code is what the .proto files generate'

bench-engine: $(DEV_STAMP)  ## the engine's speed, against this machine's limits and installed peers
	@OMP_NUM_THREADS=$(or $(THREADS),1) $(BIN)/python -m benchmarks.engine \
	    $(if $(MODEL),$(call quote,$(MODEL))) --threads $(or $(THREADS),1) $(BENCH_ARGS)

bench-transfer: $(DEV_STAMP)  ## what moving KV costs: against NIXL alone, memcpy, and in the time to first token
	@OMP_NUM_THREADS=$(or $(THREADS),1) $(BIN)/python -m benchmarks.transfer \
	    $(if $(MODEL),$(call quote,$(MODEL))) --threads $(or $(THREADS),1) $(BENCH_ARGS)

bench-index: $(DEV_STAMP)  ## the prefix index: matching, applying, hashing, memory, restart, against its targets
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.index $(BENCH_ARGS)

bench-sim: $(DEV_STAMP)  ## the simulator: speed, validation, placement policies (needs Mooncake traces, see --help)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sim $(BENCH_ARGS)

bench-autoscale: $(DEV_STAMP)  ## autoscaling against fixed fleets, in virtual time
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.autoscale $(BENCH_ARGS)

chaos-transfer: $(DEV_STAMP)  ## kill, freeze, cancel and corrupt transfers, hundreds of times; ends with one JSON line
	@OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support $(BIN)/python -m tests.chaos.transfer $(BENCH_ARGS)

chaos-drain: $(DEV_STAMP)  ## drains, scaling, role changes and replacements under load; ends with one JSON line
	@OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/drain.py --operations $(or $(OPERATIONS),100)

format: $(DEV_STAMP)  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(DEV_STAMP)  ## generate diptych/v1 from proto/
	$(call generate,.)

generate = $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTO)

clean:  ## remove the environment and every cache of this folder (converted models stay in the user's cache)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- Set-up --------------------------------------------------------------------------------------------------------------
# torch comes first and on its own: nixl would otherwise take the newest one, whatever the machine.

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))' 2>/dev/null || { \
	    echo "Diptych needs Python $(MIN_PYTHON) or newer, $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing): make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: the package python3-venv) or use another: make PYTHON=..." >&2; exit 1; }
	@rm -rf $(VENV)
	@$(STEP) 'Creating $(VENV)' $(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	@touch $@

ifdef SYSTEM_TORCH
$(TORCH_STAMP): $(VENV_STAMP)
	@$(BIN)/python -c 'import torch; print("Using the installed torch", torch.__version__); assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)' || { \
	    echo "SYSTEM_TORCH=1 was given, but $(PYTHON) has no torch, or one older than 2.6" >&2; exit 1; }
	@touch $@
else
$(TORCH_STAMP): $(VENV_STAMP)
	@$(STEP) 'Installing $(TORCH) (the largest download)' $(INSTALL) $(call quote,$(TORCH))
	@rm -f $(VENV)/stamp-torch-*
	@touch $@
endif

$(RUN_STAMP): $(TORCH_STAMP) pyproject.toml constraints.txt
	@$(STEP) 'Installing Diptych and what it runs on' $(INSTALL) -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@$(STEP) 'Installing what the tests and checks need' $(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@
