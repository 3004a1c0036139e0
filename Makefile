# Two commands do it all: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# a module's tests stay together, with what they share, until a process is idle
SHARED := -n $(WORKERS) --dist worksteal

.PHONY: demo docs site bench test test-full reliability lint types format clean
.DEFAULT_GOAL := test

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.ready ## train both workloads in both frameworks, and show them side by side
	$(BIN)/noether-parity demo

docs: .venv/.ready ## run every example again, for the pages' outputs and pictures
	$(BIN)/python docs/make.py

site: .venv/.docs ## build docs/ into site/, where a warning is an error; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

.venv/.docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

bench: .venv/.ready ## measure what tracking costs, beside what people use for it
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks

test: .venv/.ready lint types ## every check
	$(BIN)/pytest $(SHARED)

test-full: .venv/.docs lint types ## the same with the bigger sweeps
	PARITY_SCHEDULES=600 PARITY_FUSED=16 $(BIN)/pytest $(SHARED) --full

reliability: .venv/.ready ## inject every fault at its full size (hours), and write docs/reliability.md
	$(BIN)/python -m tests.reliability

lint: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: .venv/.ready
	$(BIN)/mypy

format: .venv/.ready ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build dist site *.egg-info
