# The two commands of the README are `make run` and `make test`; `make help` lists the rest.
# Neither needs root or anything by hand. `make PYTHON=python3.12 ...` chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed, by extra: `demo` is enough to run, `dev` is what the tests need beyond it.
RUN := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup run test lint types matrix coverage mutants fuzz check generated image-requirements pin-base \
  image-test bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

setup: $(DEV)  ## make the virtual environment with everything that developers need

$(RUN): pyproject.toml constraints.txt scripts/venv.sh
	@scripts/venv.sh "$(PYTHON)" $(VENV)
	@echo "Installing what the proxy and its demo need (about 35 packages, once)"
	@$(INSTALL) --editable '.[demo]'
	@touch $@

$(DEV): $(RUN)
	@echo "Installing what the tests need beyond that (about 85 packages, once)"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

run: $(RUN)  ## start the demo: stand-in services, the proxy, a guided tour; ONCE=1: the tour only
	$(BIN)/reliability-proxy demo $(if $(ONCE),--once)

lint: $(DEV)  ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

test: lint types  ## lint, types, tests; ARGS="-k codec" for some of them
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

matrix:  ## the tests on every Python from 3.11 to 3.14 that is here, each in an environment of its own
	@for version in 3.11 3.12 3.13 3.14; do \
	  if "python$$version" --version >/dev/null 2>&1; then \
	    echo "== Python $$version"; \
	    $(MAKE) --no-print-directory PYTHON="python$$version" VENV=".venv-$$version" test || exit 1; \
	  else \
	    echo "== Python $$version is not here: skipped"; \
	  fi; \
	done

coverage: $(DEV)  ## which lines no test runs, in unit and integration tests
	$(INSTALL) --quiet --editable '.[coverage]'
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --cov=proxy --cov-branch \
	  --cov-report=term:skip-covered --cov-report=html tests/unit tests/integration $(ARGS)

mutants: $(DEV)  ## change a sample of lines, and list the changes that no test notices
	$(INSTALL) --quiet --editable '.[coverage]'
	$(BIN)/python -m tests.mutants $(ARGS)

fuzz: $(DEV)  ## search for bytes that break a parser; ARGS="form --seconds 600" for one of them
	$(INSTALL) --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

check: $(RUN)  ## validate the ready configs
	$(BIN)/reliability-proxy check --config config/demo.yaml
	$(BIN)/reliability-proxy check --config config/make-video.yaml

generated: $(DEV)  ## write anew what is generated: config schema, Grafana dashboard, manifests
	$(BIN)/reliability-proxy schema > config/schema.json
	$(BIN)/python deploy/grafana/generate.py
	$(BIN)/python deploy/kubernetes/generate.py

image-requirements: $(DEV)  ## write anew the hashes of what the image installs (asks the package index)
	$(BIN)/python scripts/image_requirements.py

pin-base:  ## write today's digest of the image's base into the Dockerfile (docker, with its registry)
	scripts/pin_base.sh

image-test: $(DEV)  ## build and run the image's steps on a bare Debian (root and debootstrap)
	IMAGE_TEST=1 $(BIN)/pytest tests/acceptance/test_image.py $(ARGS)

bench: $(DEV)  ## side by side with nginx, HAProxy, Envoy and plain aiohttp; writes a table
	$(INSTALL) --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-3.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants .fuzz .coverage* htmlcov build \
	  dist *.egg-info
