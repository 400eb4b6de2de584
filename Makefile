.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'torch==2.13.0'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[hub,node,ui,dev]'
	touch $@
