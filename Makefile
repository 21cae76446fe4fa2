# Everything a fresh machine with Python 3.11+ needs is set up by the targets themselves.
PYTHON ?= python3
# Training needs torch. Its CPU build will do; where pip finds that with GPU libraries only, it is several gigabytes.
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo test test-all lint bench clean
help:
	@echo "make demo      rerank real text with the embedded model"
	@echo "make test      the tests (under 10 minutes)"
	@echo "make test-all  the tests, the long ones too"
	@echo "make lint      ruff and mypy"
	@echo "make bench     the figures of the documentation"

$(BIN)/.user: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rank-K needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,data,eval]'
	@touch $@

$(BIN)/.dev: pyproject.toml $(BIN)/.user
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BIN)/.train: pyproject.toml $(BIN)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

demo: $(BIN)/.user
	$(BIN)/rank-k fetch
	$(BIN)/rank-k demo

test: $(BIN)/.dev
	$(BIN)/rank-k fetch
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(BIN)/.train
	$(BIN)/rank-k fetch
	$(BIN)/python -m pytest -q

lint: $(BIN)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(BIN)/.dev
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
