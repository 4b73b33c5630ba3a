# Everything sets itself up: a virtual environment in .venv, pinned by constraints.txt. A second call is instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test cluster-test soak strange bench gpu gpu-long gpu-wheels gpu-fake docs lint clean

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
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not perf and not cluster and not gpu' --durations=15

# On a real Slurm of two nodes on loopback, and on Ray where it is installed: what is lost of a run there. It starts and
# ends all of it, as root; where it cannot, it says why. On Debian: apt-get install slurmctld slurmd slurm-client munge
cluster-test: setup
	$(BIN)/python -m pytest -p no:xdist -m 'cluster and not soak' -rs --durations=0 --durations-min=1 tests/cluster

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

# What a real NVIDIA card does, in at most eight minutes: JSON and a page in reports/gpu/<card>, or in OUT. It uses the
# python3 that has torch (GPU_PYTHON) as it stands, with the wheels of a folder in front where WHEELS names one, so that
# it runs from a copy of this tree on a machine without a network. GPU_ARGUMENTS go to pytest: -k counter
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	GPU_PYTHON='$(GPU_PYTHON)' OUT='$(OUT)' WHEELS='$(WHEELS)' sh tests/gpu/run.sh $(GPU_ARGUMENTS)

# With trials in turns, whose parts span 20 s on such sensors, and four times the time.
gpu-long:
	GPU_PYTHON='$(GPU_PYTHON)' OUT='$(OUT)' WHEELS='$(WHEELS)' sh tests/gpu/run.sh --gpu-long $(GPU_ARGUMENTS)

# What such a machine lacks beside torch, as wheels in WHEELS: for Python 3.12 on x86-64, at the versions pinned here.
gpu-wheels: WHEELS := wheels
gpu-wheels: setup
	$(BIN)/python tests/gpu/wheels.py '$(WHEELS)' $(PYTHON_VERSION)

# The same script to its end against a made-up driver, on this processor: into OUT, or a temporary folder.
gpu-fake: setup
	GPU_PYTHON=$(BIN)/python OUT='$(OUT)' WHEELS='$(WHEELS)' sh tests/gpu/run.sh --gpu-fake $(GPU_ARGUMENTS)

# Repetitions of tests that also stand in `test`: so many cases for each file of tests/fuzz, so many kills of a run, so
# many losses of what runs on a cluster, at a seed that is printed. What fails is printed as a test to add:
#   make soak CASES=500 KILLS=10 LOSSES=5 SEED=7
CASES ?= 10000
KILLS ?= 100
LOSSES ?= 50
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
soak: setup
	@echo "seed $(SEED); the same again: make soak CASES=$(CASES) KILLS=$(KILLS) LOSSES=$(LOSSES) SEED=$(SEED)"
	ENERGYBENCH_FUZZ_SEED=$(SEED) ENERGYBENCH_FUZZ_CASES=$(CASES) ENERGYBENCH_FUZZ_KILLS=$(KILLS) \
	  ENERGYBENCH_FUZZ_LOSSES=$(LOSSES) $(BIN)/python -m pytest -m soak -rs --durations=0 --durations-min=1 \
	  tests/fuzz tests/run/test_faults.py tests/cluster/test_losses.py

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
