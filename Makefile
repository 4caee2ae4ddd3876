# Two commands matter: `make demo` and `make test`. Each sets up everything it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MERGEKIT := .venv-mergekit/.ready
# Bytecode is made of what is imported, when it is: compiling all of torch three times takes minutes.
PIP := --quiet --disable-pip-version-check --no-compile
OLDEST := .venv-oldest
TIMM := .venv-timm
SUITE := .venv-transformers
OLDEST_TESTS := tests/anatomy tests/test_autoload.py tests/edits/test_traps.py tests/edits/test_reload.py \
  tests/edits/test_edited_decoding.py tests/calibration/test_layerwise.py tests/checkpoint/test_saving.py \
  tests/edits/test_state.py tests/edits/test_cache_state.py tests/edits/test_hf_adapters.py tests/edits/test_state_checks.py \
  tests/checkpoint/test_gguf.py tests/cost tests/surgery/test_modegpt.py tests/surgery/test_llm_drop.py
# Whole files, longest first: what a file shares is made once, and no long file is left for the end.
PARALLEL := --dist loadfile --no-loadscope-reorder
ALL_TESTS := $(BIN)/python -m pytest -q -n 2 $(PARALLEL) --doctest-modules src/modwright tests
# On the oldest transformers every family runs some cases of each test.
CASES ?= --few 2
WORKERS ?= 2
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-full mutants fast slow environments test-oldest test-timm \
  test-transformers docs lint format figures durations bench bench-vision clean help

help:
	@echo "make demo     cut a real model in two ways, heal it, report, reload it in a new process (minutes)"
	@echo "make test     what must hold before a change lands: style, types, layers, doctests, tests"
	@echo "make test-full  the same with whole products in place of covering tests, and pages on real models"
	@echo "make mutants  plant faults and see which tests find them (an hour, after the recording)"
	@echo "make fast     the quick tests; make slow: those on real models and with processes"
	@echo "make test-oldest  on the oldest transformers supported; make test-timm: ViTs of timm"
	@echo "make test-transformers  transformers' own tests of models, on edited classes of every family"
	@echo "make docs     the documentation site, in out/site"
	@echo "make lint     style, types and the direction of imports"
	@echo "make figures  measure again what docs/papers quote; SLUG=smt: write the evidence of a paper;"
	@echo "              SLUG=lab-lm: train the packaged model anew"
	@echo "make durations  keep the times of the last make test: tests that take long start first"
	@echo "make bench    timings, as ratios; make bench-vision: those of vision models"

$(READY): requirements.lock requirements-data.lock requirements-docs.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) -r requirements.lock
	$(BIN)/python -m pip install $(PIP) --no-deps -r requirements-data.lock
	$(BIN)/python -m pip install $(PIP) --no-deps -r requirements-docs.lock
	$(BIN)/python -m pip install $(PIP) --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/modwright run examples/demo.yaml -o out/demo --force
	$(BIN)/python examples/reload.py out/demo

# Doctests, fast and slow tests in one run. A paper may take 4 % of its processor time.
test: lint
	$(ALL_TESTS) --durations-file out/durations.json --paper-gate 0.04

test-full: lint
	$(ALL_TESTS) --full --durations-file out/durations-full.json
	$(MAKE) -j 2 test-oldest test-timm test-transformers WORKERS=1 CASES=--full

# Faults that are planted one by one: the tests of CI must find each of them.
mutants: $(READY)
	$(BIN)/python tests/mutants/run.py

durations:
	cp out/durations.json tests/data/durations.json

fast: $(READY)
	$(BIN)/python -m pytest -q -n 2 $(PARALLEL) -m "not slow"

slow: $(READY)
	$(BIN)/python -m pytest -q -n 2 $(PARALLEL) -m slow

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# With SLUG the acceptance tests of one paper, or of `all`, as CI runs them: tests/evidence/SLUG.jsonl.
# A packaged model is trained anew by the example that is called after it: SLUG=lab-lm.
figures: $(READY)
ifdef SLUG
	OMP_NUM_THREADS=1 $(BIN)/python $(or $(wildcard examples/$(subst -,_,$(SLUG)).py),tests/evidence.py $(SLUG))
else
	MODWRIGHT_FIGURES=$(CURDIR)/out/figures.jsonl $(BIN)/python -m pytest -q tests/acceptance -m slow
endif

bench: $(READY) $(MERGEKIT)
	$(BIN)/python -m pip install $(PIP) --no-deps -r requirements-bench.lock
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/apply_save.py --threads 2
	$(BIN)/python benchmarks/layerwise.py --threads 2
	$(BIN)/python benchmarks/image_memory.py
	$(BIN)/python benchmarks/decode_speed.py --repeats 3 --threads 2
	$(BIN)/python benchmarks/norm_error.py
	$(BIN)/python benchmarks/norm_speed.py --repeats 50 --threads 1
	$(BIN)/python benchmarks/emoe_speed.py --repeats 5 --threads 2
	$(BIN)/python benchmarks/scan_speed.py --repeats 7 --threads 1
	$(BIN)/python benchmarks/activation_speed.py --repeats 30 --threads 1
	$(BIN)/python benchmarks/peers/depth_drop.py --mergekit .venv-mergekit/bin/mergekit-yaml --threads 2
	$(BIN)/python benchmarks/peers/mlp_narrowing.py --threads 2

bench-vision: $(READY) $(TIMM)/.ready
	for threads in 1 2; do \
	  $(BIN)/python benchmarks/image_speed.py --repeats 20 --threads $$threads && \
	  $(TIMM)/bin/python benchmarks/timm_speed.py --repeats 20 --threads $$threads && \
	  $(BIN)/python benchmarks/mixer_speed.py --repeats 25 --threads $$threads && \
	  $(BIN)/python benchmarks/reparameterize_speed.py --repeats 7 --threads $$threads && \
	  $(BIN)/python benchmarks/stem_speed.py --repeats 5 --threads $$threads || exit 1; \
	done
	$(BIN)/python benchmarks/training_speed.py --repeats 8 --threads 1
	$(BIN)/python benchmarks/duoformer_speed.py --depth 1 --batch 1 --repeats 5 --threads 1
	$(BIN)/python benchmarks/upscale_speed.py --threads 1
	$(BIN)/python benchmarks/upscale_speed.py --memory

$(MERGEKIT): requirements-mergekit.lock
	$(PYTHON) -m venv .venv-mergekit
	.venv-mergekit/bin/python -m pip install $(PIP) -r requirements-mergekit.lock
	@touch $(MERGEKIT)

# The oldest transformers that is supported, in an environment of its own.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -q -n $(WORKERS) $(CASES) -m "not models" $(OLDEST_TESTS)

# Vision models of timm. A plain `pytest` leaves these tests out: they need timm.
test-timm: $(TIMM)/.ready
	$(TIMM)/bin/python -m pytest -q -n $(WORKERS) -o addopts="-ra --strict-markers" tests/with_timm

# transformers' own tests, which its source distribution holds, in the main environment. CI runs a
# share of them: SHARE=, without --full.
SHARE ?= --full
test-transformers: $(READY) $(SUITE)/.ready
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -o addopts= $(SHARE) tests/with_transformers

$(SUITE)/.ready: requirements-transformers.lock | $(READY)
	rm -rf $(SUITE) && mkdir $(SUITE)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  -r requirements-transformers.lock -d $(SUITE)
	tar -xzf $(SUITE)/transformers-*.tar.gz -C $(SUITE) --strip-components 1 --wildcards '*/tests/*'
	$(BIN)/python -m zipfile -e $(SUITE)/parameterized-*.whl $(SUITE)
	rm $(SUITE)/*.tar.gz $(SUITE)/*.whl
	@touch $@

# They differ from the main environment in a few packages; all three are made beside each other.
environments: $(READY) $(OLDEST)/.ready $(TIMM)/.ready $(SUITE)/.ready

$(OLDEST)/.ready $(TIMM)/.ready: .venv-%/.ready: requirements-%.lock pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install $(PIP) --no-deps -r requirements-$*.lock
	.venv-$*/bin/python -m pip install $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) out
