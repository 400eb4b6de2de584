.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
BOTH := --numprocesses 2 --dist loadfile
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) 'torch==2.13.0'
	$(PIP) --editable '.[hub,node,ui,dev]'
	touch $@

.PHONY: help demo demo-serve test test-full test-time check fix bench lock
help: ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
demo: .venv/ready ## The whole story on four real hospitals' records, then stop
	$(BIN)/coop demo --no-serve
demo-serve: .venv/ready ## The same, and the portal stays up until Ctrl-C
	$(BIN)/coop demo --serve
check: .venv/ready ## Format, lint, types, boundaries
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
test: check ## Every promise once, with small budgets
	$(BIN)/pytest $(BOTH)
test-full: check ## The same tests with full budgets
	COOP_TEST_BUDGET=full $(BIN)/pytest $(BOTH) --timeout 1800
test-time: .venv/ready ## Seconds per test suite
	$(BIN)/pytest --quiet --durations=0 --durations-min=0 | $(BIN)/python tests/seconds_per_suite.py
fix: .venv/ready ## Let the tools repair what they can, write docs/reference anew
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tests/reference_pages.py
bench: $(patsubst benchmarks/%.py,bench-%,$(filter-out benchmarks/rows.py,$(wildcard benchmarks/*.py))) ## Measure everything
bench-%: .venv/ready
	$(BIN)/python benchmarks/$*.py
lock: ## Resolve anew and rewrite constraints.txt
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet 'torch==2.13.0'
	.lock/bin/pip install --quiet --editable '.[hub,node,ui,dev]'
	.lock/bin/pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu//' > constraints.txt
	rm -rf .lock
