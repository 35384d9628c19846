# make demo    the main job, end to end, on this machine
# make test    the tests
# make e2e     those of whole services: the clients, the README, the demo, kills, upgrades, and the page in a browser
# make soak    ten minutes of jobs while everything around them fails; MINUTES=480 for a night, SEED=number, OUT=folder
# make check   lint and types
# make faults  processes killed, servers restarted, connections cut, disks full; SEED=number repeats a run's choices
# make sabotage  each protection taken out of a copy of the tree, which must turn tests red
# make serve   the service in the foreground; HOME_DIR=folder and PORT=number to choose
# make bench   how fast training is, against other trainers, how fast the service is, and the ledger; QUICK=1 for four minutes
# make verifier  dist/tether-verify.pyz, the offline verifier as one file that needs Python and cryptography alone
# make prove   every attack against every method, over many seeds; QUICK=1 for three minutes, FULL=1 for everything
# make conformance   openai clients of three generations, curl and generated requests against a server
# make screenshots   the pictures of docs/dashboard.md, by a browser on a service with real jobs
# make setup   .venv with everything in it; TORCH_INDEX=url chooses another build of torch

PYTHON ?= python3
HOME_DIR ?= .tether
PORT ?= 8000
BIN := .venv/bin

# On Linux PyPI's torch brings several GB of CUDA. Without an NVIDIA driver, PyTorch's index of CPU builds is
# asked as well; where it cannot be reached, pip goes on without it.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && echo https://download.pytorch.org/whl/cpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test e2e faults sabotage soak check serve bench verifier prove conformance screenshots clean

setup: .venv/complete

.venv/complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tether needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --editable ".[worker,charts,demo,dev]"
	touch $@

demo: setup
	$(BIN)/python -m worker.miniature.demo

# Two processes share the tests by files, in order, so that what takes long comes first. One thread each, so that they leave
# each other a core. The many processes that tests start find the code compiled, whatever is preferred elsewhere.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --dist loadfile

test: setup
	$(PYTEST) --numprocesses 2 --no-loadscope-reorder --ignore tests/e2e

e2e: setup
	$(PYTEST) --numprocesses 2 --no-loadscope-reorder tests/e2e

# Much of it is waiting for leases, so that more than two processes share the cores.
faults: setup
	$(if $(SEED),TETHER_TEST_FAULTS_SEED=$(SEED)) $(PYTEST) --numprocesses 4 --faults tests/faults \
		--deselect tests/faults/test_sabotage.py

sabotage: setup
	$(PYTEST) --faults tests/faults/test_sabotage.py

soak: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.soak \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: setup
	$(BIN)/tether serve --home $(HOME_DIR) --port $(PORT)

bench: setup
	$(PIP) --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.service $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.ledger $(if $(QUICK),--quick)

verifier: setup
	$(BIN)/python -m app.build_verifier dist/tether-verify.pyz

prove: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.proving_ground

conformance: setup
	$(BIN)/python -m tests.conformance

screenshots: setup
	$(BIN)/python -m tests.e2e.dashboard.screenshots docs/dashboard

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache demo-output dist
