# make run | test | lint | lock | clean. Everything is installed into .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint lock clean

run: .venv/installed ## the core methods on digits, from nothing to a table (results/core_digits)
	$(BIN)/isp study config/core_digits.yaml

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'isp needs Python 3.11 or later; name one by make PYTHON=…')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Newest versions that pyproject.toml allows, for all platforms; environment.yml holds the same.
lock:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--no-annotate --no-header --upgrade --quiet --output-file requirements.lock
	{ printf 'name: isp\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; \
		sed 's/.*/      - "&"/' requirements.lock; } > environment.yml

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
