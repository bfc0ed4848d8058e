# The front door. `make demo` and `make test` need nothing but Python >= 3.11, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := .cache/installed

.PHONY: demo test bench lint format openapi lock clean

demo: $(VENV)/.runtime
	$(BIN)/python -m syncd demo --rotations 5 --interval 500ms

test: $(VENV)/.dev
	$(BIN)/coverage run --data-file=.coverage -m pytest tests/unit -q
	$(BIN)/coverage report --fail-under=100
	$(BIN)/python -m pytest tests/integration -q -n 2

# BENCH="--effort quick" takes five minutes, BENCH="--only idle" measures one subject
bench: $(VENV)/.dev $(INSTALLED)/.syncd
	command -v inotifywait curl > /dev/null || apt-get install -qq -y inotify-tools curl
	$(BIN)/python -m benchmarks --python $(INSTALLED)/bin/python $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.dev
	$(BIN)/python -m syncd.api.openapi > docs/openapi.json

lock: $(VENV)/.dev
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "syncd needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/.dev: requirements.lock requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock -r requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $(VENV)/.runtime $@

# syncd as users have it, without what development brings along
$(INSTALLED)/.syncd: requirements.lock pyproject.toml $(shell find syncd -name '*.py') | $(VENV)/.dev
	test -x $(INSTALLED)/bin/python || $(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w $(INSTALLED) .
	$(INSTALLED)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall $(INSTALLED)/*.whl
	touch $@

clean:
	rm -rf $(VENV) .cache .coverage* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
