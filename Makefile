# Most users need `make demo` or `make test`. Both create an environment in .venv first if needed.
# To use another Python or torch: make test PYTHON=python3.12 TORCH=torch==2.11.0
PYTHON ?= python3
# Pinned because on Linux the newest build installs several gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0
VENV ?= .venv
# Number of parallel test processes. Each uses one thread.
JOBS ?= 2

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.PHONY: install demo test test-all test-upstream pytest docs lint style types format clean

install: $(VENV)/.installed

# Runs again when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -c "open('$(VENV)/.installed', 'w').close()"

demo: $(VENV)/.installed
	$(BIN)/python training/demo.py

# mypy is one of the tests of these targets, so that it runs beside the others.
test test-all: export CHECK_TYPES = 1
test: style
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow"

test-all: style
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --durations=10

# The common tests of transformers on the model, see tests/upstream. UPSTREAM=FOLDER uses a checkout of transformers.
test-upstream: $(VENV)/.installed
	UPSTREAM="$(UPSTREAM)" $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests/upstream

# Tests without lint: make pytest ARGS="tests/models -k loss"
pytest: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

# Build the documentation site in site/.
docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs build --strict --site-dir site

lint: style types

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_output outputs site
