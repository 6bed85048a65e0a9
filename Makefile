# dpool: everything runs in a virtual environment of its own, made here on first use.
#
#   make demo     analyse the standard library: serially, with ProcessPoolExecutor and with dpool
#   make test     the whole test suite                     (make test ARGS="-k crash")
#   make compat   the own test suite of each Python found here, with dpool's pools, and programs that use pools
#   make bench    the benchmarks, peers in the same run    (make bench ARGS="round_trip --quick")
#   make check    ruff, mypy --strict, the import walls
#   make clean    remove the environment and every cache
#
# PYTHON chooses the interpreter (make demo PYTHON=python3.12), VENV the environment's directory.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
# Test files that run at a time; most of them wait most of the time. JOBS=0: all in one process.
JOBS   ?= 3

bin    := $(VENV)/bin
python := $(bin)/python

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test compat environments bench check format clean

help:
	@sed -n 's/^#  *\(make [a-z]*  .*\)/  \1/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.with-progress
	@$(python) examples/stdlib_report.py $(ARGS)

test: $(VENV)/.with-test
	@$(python) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

compat: $(VENV)/.with-test
	@$(python) -m compat_tests $(ARGS)

# What CI makes first, so that nothing is installed while something is measured or tested.
environments: $(VENV)/.with-dev $(VENV)/.with-test

bench: $(VENV)/.with-bench
	@$(python) -m benchmarks $(ARGS)

check: $(VENV)/.with-dev
	@$(bin)/ruff check --quiet .
	@$(bin)/ruff format --check --quiet . || { $(bin)/ruff format --check . ; echo >&2 "run: make format"; exit 1; }
	@$(python) -m mypy
	@$(bin)/lint-imports --no-cache >$(VENV)/lint-imports.log 2>&1 || { cat >&2 $(VENV)/lint-imports.log; exit 1; }
	@echo "import walls: kept"

format: $(VENV)/.with-dev
	@$(bin)/ruff check --quiet --fix .
	@$(bin)/ruff format --quiet .

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis htmlcov .coverage .coverage.*
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# dpool, editable, with the extra named after `.with-`; again whenever the metadata changes.
$(VENV)/.with-%: setup.cfg pyproject.toml | $(python)
	@echo "installing dpool[$*] into $(VENV) ..."
	@$(python) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.PRECIOUS: $(VENV)/.with-%

$(python):
	@"$(PYTHON)" -c '' 2>/dev/null || { \
	    echo >&2 "make: '$(PYTHON)' does not start; name an interpreter: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo >&2 "make: dpool needs Python 3.10 or newer, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1);" \
	             "name another: make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo >&2 "make: '$(PYTHON)' cannot make virtual environments: its modules venv and ensurepip are missing" \
	             "(on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "creating $(VENV) with $$("$(PYTHON)" -V 2>&1) ..."
	@"$(PYTHON)" -m venv --clear "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }
