# `make help` lists the targets. They set up their own environment in .venv first.

PYTHON ?= python3
WORKERS ?= 2
RUN ?= runs/cpu
EXTRAS := dev,report,eval,context
# Without its dependencies, which the pins exclude and nothing here needs: one of its files is read.
CECT := cect==0.3.5

# The pinned releases need Python 3.11; on 3.10 the oldest supported ones serve.
PINS := $(shell $(PYTHON) -c 'import sys; print("dev" if sys.version_info >= (3, 11) else "floor")' 2>/dev/null || echo dev)
# Old releases warn about what newer ones changed; that is not ours to fix.
WARNINGS = $(if $(filter floor,$(PINS)),-W default)

VENV := .venv
FLOOR := .venv-floor
BIN := $(VENV)/bin
# Every value that `accelerate launch` would otherwise guess and warn about; left to itself it gives a
# process on the CPU one thread.
THREADS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 8))')
LAUNCH = $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
  --dynamo_backend no --num_cpu_threads_per_process $(THREADS)
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
# Tests run offline; one thread a worker, or the workers fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 MPLBACKEND=Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv evolve test test-slow check lint types spelling floor bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## Create or refresh .venv with the pinned versions

evolve: venv ## Main job: evolve a small connectome on this machine, then let children inherit it
	$(LAUNCH) recipes/evolve.py --config recipes/configs/cpu.yaml --output_dir $(RUN)
	$(LAUNCH) recipes/inherit.py --config recipes/configs/cpu_inherit.yaml --connectome $(RUN) --output_dir $(RUN)/inherit

test: venv ## Run the tests (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) $(WARNINGS)

test-slow: venv ## Run the tests that take long
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow

check: lint types spelling test ## Run what CI runs

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

spelling: venv
	$(BIN)/codespell

floor: $(FLOOR)/.installed ## Run the tests against the oldest supported releases
	@# Old releases warn about what newer ones changed; that is not ours to fix.
	$(TEST_ENV) $(FLOOR)/bin/python -m pytest -n $(WORKERS) -W default

bench: venv ## Run every benchmark
	@for file in $(filter-out benchmarks/hosts.py benchmarks/measuring.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$file"; $(BIN)/python "$$file" --json runs/benchmarks/$$(basename "$$file" .py).json || exit 1; done

clean: ## Remove environments, caches and builds; runs/ stays
	rm -rf $(VENV) $(FLOOR) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find hf_connectome recipes tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints/$(PINS).txt
	@$(call python_is,3,10,the library needs it)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(call install,$(VENV),constraints/$(PINS).txt,-e '.[$(EXTRAS)]')
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(CECT)

$(FLOOR)/.installed: pyproject.toml constraints/floor.txt
	@$(call python_is,3,10,the library needs it)
	@echo "Installing into $(FLOOR); the first time takes a few minutes."
	@$(call install,$(FLOOR),constraints/floor.txt,-e '.[report]' pytest pytest-xdist hypothesis)

# Stop with the reason unless $(PYTHON) is at least $(1).$(2) and can make environments.
define python_is
command -v $(PYTHON) >/dev/null || \
  { echo "'$(PYTHON)' was not found. Name another: make PYTHON=/path/to/python3" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(1), $(2)))' || \
  { echo "$$($(PYTHON) --version) is too old: Python $(1).$(2) or newer is needed ($(3))." \
         "Name another: make PYTHON=python3.12" >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
  { echo "'$(PYTHON)' cannot create environments: its venv module is missing." \
         "Install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
endef

# Environment $(1), constraints $(2), what to install $(3). torch comes first and pinned, so that no
# other package can choose a build of it.
define install
$(PYTHON) -m venv $(1) && \
$(1)/bin/python $(PIP_INSTALL) -c $(2) torch && \
$(1)/bin/python $(PIP_INSTALL) -c $(2) $(3) && \
touch $(1)/.installed
endef
