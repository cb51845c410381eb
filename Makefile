# The commands of this project. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip

# Which builds of torch and DALI: 12 for drivers that do not support CUDA 13 yet, else 13. What .venv has already stays.
# An environment variable does not count, since clusters set CUDA to a path.
ifeq ($(origin CUDA),command line)
$(if $(filter 12 13,$(CUDA)),,$(error CUDA=$(CUDA) must be 12 or 13))
else
CUDA = $(or $(patsubst .venv/cuda%,%,$(wildcard .venv/cuda1?)),$(shell \
  nvidia-smi 2>/dev/null | grep -Eq 'CUDA (UMD )?Version *: *12\.' && echo 12 || echo 13))
endif
OTHER = $(if $(filter 12,$(CUDA)),13,12)

.PHONY: help install demo check test test-all prove soak clean

help:
	@echo "make demo     draw a data set, train AlexNet on it, score it with ten crops (about 6 minutes on 2 CPU cores)"
	@echo "make install  the environment alone, in .venv; CUDA=12 or CUDA=13 chooses the builds, by default the driver does"
	@echo "make test     the fast tests: a few minutes on 2 CPU cores"
	@echo "make check    format, lint, types, fast tests: before every commit"
	@echo "make test-all fast and slow tests, what .ci/run runs: about 18 minutes"
	@echo "make prove    long proofs, by hand before a release: learning, memory, mutants, and make soak (some 3 hours)"
	@echo "make soak     200 kills and signals over many runs, whose weights must be those of undisturbed ones"

install: .venv/cuda$(CUDA)

demo: .venv/cuda$(CUDA)
	PYTHON=$(BIN)/python launch/demo.sh # make PYTHON=... demo would hand its own on

test: .venv/installed-dev
	PYTHON= $(BIN)/python -m pytest -m "not slow and not prove"

test-all: .venv/installed-dev
	PYTHON= $(BIN)/python -m pytest -m "not prove" --durations=25

prove: .venv/installed-dev
	PYTHON= $(BIN)/python -m pytest -m prove -s
	$(BIN)/python -m tests.mutation.sample
	$(BIN)/python -m tests.distributed.soak

soak: .venv/installed-dev
	$(BIN)/python -m tests.distributed.soak

check: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not prove" -q

clean:
	rm -rf .venv runs/demo data/demo data/demo-images

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old, 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/cuda$(CUDA): .venv/bin/python pyproject.toml constraints.txt constraints-cuda$(CUDA).txt
	@! $(PIP) show -q nvidia-dali-cuda$(OTHER)0 2>/dev/null || \
	  { echo "error: .venv has builds for CUDA $(OTHER), which those for CUDA $(CUDA) would overwrite in part:" \
	    "rm -r .venv, then make install CUDA=$(CUDA)" >&2; exit 2; }
	@echo "installing PyTorch, DALI, DeepSpeed and the rest into .venv, builds for CUDA $(CUDA): $(if $(filter 12,$(CUDA)),8,6.4) GB, some minutes"
	$(PIP) install --disable-pip-version-check -q -c constraints-cuda$(CUDA).txt -e '.[cuda$(CUDA)]'
	@touch $@

.venv/installed-dev: .venv/cuda$(CUDA)
	$(PIP) install --disable-pip-version-check -q -c constraints-cuda$(CUDA).txt -e '.[cuda$(CUDA),dev]'
	@touch $@
