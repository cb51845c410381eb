# The commands of this project. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test check clean

help:
	@echo "make demo     draw a data set, train AlexNet on it, score it with ten crops (about 6 minutes on 2 CPU cores)"
	@echo "make install  the environment alone, in .venv"
	@echo "make test     all tests that this machine can run"
	@echo "make check    format, lint, types, fast tests: before every commit"

install: .venv/installed

demo: .venv/installed
	PYTHON=$(BIN)/python launch/demo.sh # make PYTHON=... demo would hand its own on

test: .venv/installed-dev
	PYTHON= $(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -q

clean:
	rm -rf .venv runs/demo data/demo data/demo-images

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old, 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing PyTorch, DALI, DeepSpeed and the rest into .venv: 6.4 GB, some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@
