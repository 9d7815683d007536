# make quickstart   install, then turn the bundled decoder into an embedding model on real text
# make test         lint, types, import contract, tests
# make bench        the small set of benchmarks, under ten minutes on a quiet machine

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test install lint types imports tests bench clean

quickstart: $(VENV)/.installed
	$(BIN)/embedforge quickstart

test: lint types imports tests

install: $(VENV)/.installed

# torch first and pinned: where the index offers a CPU build of that version, it is the one installed.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/encode.py --passages 200 --int8
	$(BIN)/python benchmarks/cold.py
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
