# RFSS: set-up, demo, tests. Needs make and Python 3.11 or later; all else goes into a virtual environment of its own.
#
#   VENV=folder      the virtual environment (default .venv)
#   PYTHON=command   the Python that makes it (default: python3.11, else a python3 of 3.11 or later)
#   PIP_ARGS="..."   more arguments for pip, for example --find-links of a folder of wheels, or --no-index with it
#   RFSS_DATA=folder real labelled images for the tests that want them (default ../shared/data; they skip without)
#   PYTEST_ARGS=...  more arguments for pytest, for example -k phantom
#   TEST_WORKERS=n   processes that share the tests (default 2; each needs about 1.5 GB; 0: none, for a debugger)
#   RFSS_KILLS=n     kills of each soak (default 20); RFSS_KILL_SEED=n draws other moments

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
DEMO ?= demo
SAM2 := sam2==1.1.0
# Their metadata ask for torchvision; what nnU-Net's check of a data set really imports is in the dev extra.
NNUNET := nnunetv2 acvl-utils batchgenerators

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
# Written last: a set-up that was interrupted has no stamp and is gone over again by the next call.
STAMP := $(VENV)/.rfss-ready

.PHONY: help setup demo test test-invariants test-slow soak lint types format clean distclean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make the virtual environment and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for each in python3.11 python3 python; do \
	    if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$each"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11 or later found; install python3.11 (with venv), or name one: make setup PYTHON=/path/to/python" >&2; \
	  exit 2; \
	fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "make: '$$python' is not a Python 3.11 or later; name another: make setup PYTHON=/path/to/python" >&2; exit 2; \
	fi; \
	if ! "$(BIN)/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "set-up 1/4: virtual environment $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear "$(VENV)" || { \
	    echo "make: '$$python -m venv' failed; on Debian and Ubuntu install the package python3.11-venv" >&2; exit 2; }; \
	fi
	@trap 'status=$$?; [ $$status = 0 ] || echo "make: set-up failed; mend what pip names above and call make again. Offline? Put wheels into a folder and call make PIP_ARGS=\"--no-index --find-links FOLDER\" (docs/install.md)" >&2' EXIT; \
	echo "set-up 2/4: torch (large; minutes on a slow line)"; \
	$(PIP) setuptools wheel torch; \
	echo "set-up 3/4: RFSS and what it needs"; \
	$(PIP) --no-build-isolation --editable '.[dev]'; \
	echo "set-up 4/4: Meta's sam2 package (the oracle of the parity tests), nnU-Net's check of exports"; \
	SAM2_BUILD_CUDA=0 $(PIP) --no-deps --no-build-isolation $(SAM2); \
	$(PIP) --no-deps --no-build-isolation $(NNUNET)
	@touch $@
	@echo "set-up done: $(VENV)"

$(DEMO)/.cohort: Makefile $(wildcard rfss_core/phantom/*.py) | $(STAMP)
	@$(BIN)/python -m rfss_core.phantom "$(DEMO)" --patients 14 --labelled 10 --seed 0
	@printf '%s\n' 'held_out: 0.5  # five patients: the fewest that predicting quality takes' \
	  'quality: {min_dice: 0.5}  # what the tiny models can do on phantoms; the default is 0.7' \
	  'imaging:' '  classes: {1: RV, 2: Myo, 3: LV}' > "$(DEMO)/settings.yaml"
	@touch $@

demo: $(STAMP) $(DEMO)/.cohort  ## Label a cohort of cardiac phantoms, end to end, in under three minutes
	@status=0; \
	$(BIN)/rfss label "$(DEMO)/images" --labels "$(DEMO)/labels" --workspace "$(DEMO)/workspace" \
	  --config "$(DEMO)/settings.yaml" --preset tiny --dataset phantom-demo --seed 0 || status=$$?; \
	case $$status in \
	  0) echo; echo "The quality gate passed (the demo asks for a mean Dice of 0.5; the default is 0.7): the pseudo-labels are"; \
	     echo "registered as a data set, version and alias included." ;; \
	  3) echo; echo "The run is complete, but the quality gate said no (exit code 3): on held-out patients the mean Dice is"; \
	     echo "below the threshold, so the data set is recorded and not promoted. The gate works; look at the report to see why." ;; \
	  *) echo "make: rfss label failed with exit code $$status" >&2; exit $$status ;; \
	esac
	@echo "Report:         $(DEMO)/workspace/report/index.html"
	@echo "Pseudo-labels:  $(DEMO)/workspace/pseudo_labels/"
	@echo "Figures:        $(DEMO)/workspace/summary.json"
	@echo
	@echo "On your own data (file names pair up; images without a label are the ones to label):"
	@echo "  $(BIN)/rfss label IMAGES --labels LABELS --workspace DIR"

# The processes share the cores: without these each one's numeric libraries take all of them, and spin while they wait.
test test-invariants test-slow: export OMP_NUM_THREADS ?= 1
test test-invariants test-slow: export OMP_WAIT_POLICY ?= PASSIVE

test: $(STAMP)  ## Run the tests, but for the slow ones
	@$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP)  ## Run the slow tests, but for the soak
	@$(BIN)/python -m pytest -m "slow and not soak" -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

test-invariants: $(STAMP)  ## Run the slow tests that CI runs, too
	@$(BIN)/python -m pytest -m "slow and invariant" -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

soak: $(STAMP)  ## Kill driver, workers and scheduler of real runs again and again
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style and docstrings (ruff)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(STAMP)  ## Check types (mypy, strict)
	@$(BIN)/mypy

format: $(STAMP)  ## Rewrite the code as `make lint` wants it
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## Remove the demo and all caches
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove the virtual environment as well
	rm -rf "$(VENV)" rfss.egg-info
