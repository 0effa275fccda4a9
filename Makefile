# make run | check | test | test-gpu | test-slurm | test-wheel | lint | docs | report | lock | upgrade | clean. Everything is installed into .venv from two lock files.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= # of pytest, each 1.5 GB; otherwise as many as keep two cores busy
PYTEST = $(BIN)/pytest --numprocesses $(or $(strip $(WORKERS)),$(1)) --dist loadfile

.PHONY: run check test test-inside test-gpu test-slurm test-wheel lint docs report lock upgrade clean

run: .venv/installed ## run the default study, from nothing to tables, figures and a page (results/quick)
	$(BIN)/snakemake
	@cat results/quick/tables/costs.txt
	@echo "Tables, figures and the page (report.html): results/quick/"
	@$(BIN)/isp compare results/quick docs/results/quick --summary || true # differing bits or an edited study are not a failure

check: .venv/installed ## before every commit: lint, in parallel with the tests that start no other process
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint test-inside

test: .venv/installed ## all tests except those on Slurm, some of which wait for other processes
	$(call PYTEST,3)

test-inside: .venv/installed
	$(call PYTEST,2) -m "not process and not slurm"

test-gpu: .venv/installed ## the tests that need a GPU, some minutes; without a GPU they are skipped with a message
	$(BIN)/pytest -m gpu -rs

test-slurm: .venv/installed ## the tests on a real Slurm, which tests/slurm/cluster.sh installs and starts on this machine as root
	$(BIN)/pytest -m slurm tests/slurm

test-wheel: ## a wheel in fresh environments, without extras and with each, from the package index: make test-wheel EXTRAS="none trainer"
	$(PYTHON) tools/wheel.py $(EXTRAS)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

docs: .venv/installed ## the documentation site (build/docs/index.html), without a network; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict # --quiet would not count warnings

report: results/quick/snakemake_report.html ## Snakemake's own report of the results of make run

results/quick/snakemake_report.html: $(wildcard results/quick/*.csv results/quick/tables/* results/quick/figures/*) | .venv/installed
	$(BIN)/snakemake --report $@

.venv/installed: requirements.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'isp needs Python 3.11 or later; select one by make PYTHON=…')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What results depend on, to the bit, is in requirements.lock; environment.yml contains the same. requirements-dev.lock adds the tools
# of tests, lint and documentation. Requirements of pyproject.toml that are missing are added, for all platforms; existing versions are kept.
lock: ## add new requirements to requirements.lock and requirements-dev.lock
upgrade: ## raise every version in them to the newest that pyproject.toml allows
upgrade: UPGRADE := --upgrade
lock upgrade: COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-header --quiet $(UPGRADE)
lock upgrade:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(COMPILE) --extra workflow --extra slurm --output-file requirements.lock
	$(COMPILE) --extra docs --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	grep -vxFf requirements.lock requirements-dev.lock > .venv/dev.lock && mv .venv/dev.lock requirements-dev.lock
	{ printf 'name: isp\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; \
		sed 's/.*/      - "&"/' requirements.lock; } > environment.yml

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
