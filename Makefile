# Two commands do everything: `make prune` and `make test`. They need only make and Python 3.11+.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -qq --constraint constraints.txt

OUT    ?= runs/digits
LIMITS ?= --max-accuracy-drop 2 --gate bound
JOBS   ?= 2

.PHONY: prune test check quick install lint types pytest format clean
.DEFAULT_GOAL := prune

# A network this small is slower on several threads than on one.
prune: $(VENV)/.installed  ## Prune the bundled digits model and say where the result lies.
	OMP_NUM_THREADS=1 $(BIN)/primesvt prune sdt_v2_digits --data digits --batch-size 450 $(LIMITS) --out $(OUT)

test: lint types pytest  ## Every check: style, types, tests, doctests, README.

check: lint types quick  ## For every edit: style, types and the tests marked quick.

install: $(VENV)/.installed-dev

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m quick tests

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PrimeSVT needs Python 3.11 or newer; choose one with: make PYTHON=/path/to/python3")'
	@echo "Installing PrimeSVT into $(VENV) (once; PyTorch is large, this takes some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@
