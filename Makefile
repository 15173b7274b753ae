# The habits: `make demo`, `make test`, `make lint`, `make bench`, `make matrix`,
# `make mutants`, `make fresh`. Each makes .venv first if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format bench matrix mutants fresh clean

demo: $(VENV)/installed
	$(BIN)/ppl-vae train --data digits --prior Gaussian --likelihood Binomial --latent 16 \
		--epochs 200 --batch_size 64 --out runs/demo --overwrite

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Twenty minutes or so on a quiet machine; what it prints is worth nothing on a busy one.
bench: $(VENV)/installed
	for name in step_time epoch_time scaling cold_start likelihood; do $(BIN)/python benchmarks/$$name.py --save || exit 1; done

# Every prior under every likelihood, encoder and objective: half an hour on two cores.
matrix: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/matrix.py

# The library broken in one place at a time: some minutes.
mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants.py

# Every test that involves chance, 200 times with another seed: an hour.
fresh: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/fresh.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Again whenever the dependencies change. The editable install serves a checkout; it is not needed to use the package.
$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/installed $@

# What can be made again; trained models, in runs/, cannot.
clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .coverage htmlcov
