# Everything sets itself up: a virtual environment in .venv, pinned by constraints.txt. A second call is instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test soak strange bench docs lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no '$(PYTHON)'; install Python 3.11 or newer, or: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup
	@$(BIN)/energybench run suites/quick.toml

# All tests, over two processes. No clock decides: what is measured is a benchmark, what simulates clocks is a test.
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not perf' --durations=15

# The same on a strange machine (tests/strange.py), most of it as root alone: make strange TESTS=tests/meter
strange: setup
	$(BIN)/python tests/strange.py $(TESTS)

# Speed ratios against named peers, alone on the machine. A missed goal is told; STRICT=1 fails on it, an error always.
#   make bench TESTS=tests/perf/test_onion.py JSON=onion.json STRICT=1
bench: TESTS := tests/perf
bench: JSON := .benchmarks/$(shell date -u +%Y-%m-%d-%H%M%S).json
bench: setup
	@mkdir -p '$(dir $(JSON))'
	$(BIN)/python -m pytest $(TESTS) -p no:xdist -m perf -rs --benchmark-enable --benchmark-quiet --benchmark-json='$(JSON)' $(if $(filter-out 0,$(STRICT)),--strict-goals)

# Repetitions of tests that also stand in `test`: so many cases for each file of tests/fuzz, so many kills of a run, at a
# seed that is printed. What fails is printed as a test to add: make soak CASES=500 KILLS=10 SEED=7
CASES ?= 10000
KILLS ?= 100
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
soak: setup
	@echo "seed $(SEED); the same again: make soak CASES=$(CASES) KILLS=$(KILLS) SEED=$(SEED)"
	ENERGYBENCH_FUZZ_SEED=$(SEED) ENERGYBENCH_FUZZ_CASES=$(CASES) ENERGYBENCH_FUZZ_KILLS=$(KILLS) \
	  $(BIN)/python -m pytest -m soak --durations=0 --durations-min=1 tests/fuzz tests/run/test_faults.py

# The docs as a site in site/, with a card for each method; a dead link fails.
docs: setup
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 energybench methods  # a file is opened in an encoding that is named
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
