# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
SEEDS     ?= 1000
SEED_BASE ?= 0
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env demo test check format proto sim bench lock clean

help: ## Show this.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

env: $(STAMP) ## Set up .venv, once.

demo: env ## Count the words of the Bill of Rights: real processes, real text.
	@rm -rf build/demo && mkdir -p build/demo
	@$(BIN)/bettong run --plain --log-level warning --data-dir build/demo/data examples/word_count/word_count.py examples/word_count/bill_of_rights.txt build/demo/word_counts.txt
	@$(BIN)/python examples/word_count/show.py build/demo/word_counts.txt

check: env ## Format, lint, types, protocol: everything that needs no test run.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/check.py

test: check ## Everything: checks and all tests.
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS)

format: env ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: env ## Make the code generated from the protocol, and its vectors.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py
	$(BIN)/python proto/vectors/make.py
	$(BIN)/python proto/vectors/make_messages.py

sim: env ## Simulate: make sim SEEDS=100000 SEED_BASE=7.
	$(BIN)/python -m bettong_engine.sim --seeds $(SEEDS) --seed-base $(SEED_BASE)

bench: env ## Measure against Bytewax and a plain loop; writes bench/README.md's figures.
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-bench.lock
	$(BIN)/python -m bench

lock: env ## Pin the newest versions that pyproject.toml allows.
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 --extra bench -c requirements-dev.lock pyproject.toml -o requirements-bench.lock

clean: ## Remove what was made here.
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
