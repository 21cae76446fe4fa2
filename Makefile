# Everything a fresh machine with Python 3.11+ needs is set up by the targets themselves.
PYTHON ?= python3
# Training needs torch. Its CPU build will do; where pip finds that with GPU libraries only, it is several gigabytes.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Test files run in parallel processes, one per core. The markers are explained in pyproject.toml.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile
SLOW   := slow or training or live

.PHONY: help demo test-fast test test-slow lint docs golden count call-path bench verify-scale clean
help:
	@echo "make demo       rerank real text with the embedded model"
	@echo "make test       the tests (up to 8 minutes on 2 cores)"
	@echo "make test-fast  the quickest of them, for the inner loop (up to 1 minute)"
	@echo "make test-slow  the tests that make test leaves out: training, whole runs, other frameworks"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation site in docs/_build, with llms.txt"
	@echo "make golden     record request bodies, rankings and tables again (see tests/golden)"
	@echo "make count      statements and files per package, and the largest files"
	@echo "make verify-scale  several servers, Ray and Slurm (installs Ray into .venv-ray)"
	@echo "make call-path  the classes between the command and the HTTP request"
	@echo "make bench      the figures of the documentation"

$(BIN)/.user: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rank-K needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[embedded,data,eval]'
	@touch $@

$(BIN)/.dev: pyproject.toml $(BIN)/.user
	$(PIP) -e '.[dev]'
	@touch $@

$(BIN)/.train: pyproject.toml $(BIN)/.dev
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[train]'
	@touch $@

demo: $(BIN)/.user
	$(BIN)/rank-k fetch
	$(BIN)/rank-k demo

test-fast: $(BIN)/.dev
	$(PYTEST) -m "not (slow or browser or embedded or training or integration or live)"

test: $(BIN)/.dev
	$(BIN)/rank-k fetch
	$(PYTEST) -m "not ($(SLOW))"

test-slow: $(BIN)/.train
	$(BIN)/rank-k fetch
	$(PYTEST) -m "$(SLOW)"

lint: $(BIN)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Warnings are errors, so a link to a page or section that does not exist fails.
docs: $(BIN)/.dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

golden: $(BIN)/.dev
	$(BIN)/python -m tests.golden.record

count: $(BIN)/.user
	@$(BIN)/python -m benchmarks.code_size

call-path: $(BIN)/.user
	@$(BIN)/python -m benchmarks.call_path

bench: $(BIN)/.dev
	$(BIN)/python -m benchmarks.run

# Ray is tested in an environment of its own, because it pins many packages.
.venv-ray/.installed: pyproject.toml
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -e '.[ray]' hypothesis psutil pytest
	@touch $@

verify-scale: $(BIN)/.dev .venv-ray/.installed
	$(BIN)/python -m benchmarks.several_servers
	.venv-ray/bin/python -m pytest -q tests/scale/test_ray.py
	$(BIN)/python -m pytest -q tests/scale/test_slurm.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist docs/_build
