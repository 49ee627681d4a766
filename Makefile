# The two commands of the README are `make run` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup run test lint types check bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(STAMP)  ## start the demo: the proxy before stand-in services, and a guided tour
	$(BIN)/reliability-proxy demo

lint: $(STAMP)  ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

test: lint types  ## lint, types, tests
	$(BIN)/pytest

check: $(STAMP)  ## validate the ready configs
	$(BIN)/reliability-proxy check --config config/demo.yaml
	$(BIN)/reliability-proxy check --config config/make-video.yaml

bench: $(STAMP)  ## side by side with nginx, HAProxy, Envoy and plain aiohttp; writes a table
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.bench

clean:  ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
