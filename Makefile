# `make` alone prints what there is.
PYTHON ?= python3
READY := .venv/.ready
BIN := .venv/bin

export MPLBACKEND := Agg
export HF_HUB_OFFLINE := 1

.PHONY: help install demo slurm-demo test test-slurm fuzz soak lint format docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "One run: $(BIN)/python train.py     Everything it takes: $(BIN)/python train.py --help"

install: $(READY)  ## makes .venv with everything that the tests need

demo: $(READY)  ## seven methods, two seeds, on the tiny world; then the table and the plots (3 minutes on two cores)
	$(BIN)/python train.py -m sweeps=demo
	$(BIN)/python -m analysis.report runs/demo

slurm-demo: $(READY)  ## the same through a private Slurm cluster, which preempts one run on the way (four minutes; Debian, as root)
	$(BIN)/python tools/slurm_demo

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slurm"

# Two workers have a cluster each and overlap their waiting; what fills the machine comes after them.
test-slurm: $(READY)  ## the tests on a Slurm cluster of one's own, a quarter of an hour (first, as root: tools/dev_cluster install)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slurm and not alone"
	$(BIN)/python -m pytest -m "slurm and alone"

fuzz: $(READY)  ## the fuzzers of the tests with thousands of examples (FUZZ_EXAMPLES=5000)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -n 2 tests/fuzz

soak: $(READY)  ## 200 slow senders at a reward server; 300 iterations and 500 evaluations of a run: memory and descriptors flat
	$(BIN)/python tests/rewards/reward_soak.py
	$(BIN)/python tests/run/run_soak.py

lint: $(READY)  ## style, likely mistakes and types; `make format` mends most of it
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)  ## formats the code, and fixes what ruff can fix safely
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)  ## the documentation as a site, in site/ (two minutes; runs the notebooks on the committed study)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --clean

clean:  ## removes .venv, caches and the site, leaves runs/ alone
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache site

# Made anew where the dependencies changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/to_read --upgrade hpsv3==1.0.0  # its source, for a test
	touch $@
