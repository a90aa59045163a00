# `make test` installs what it needs into .venv and runs the whole suite.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check

.PHONY: test lint clean

$(PYTHON):
	python3 -m venv $(VENV)

$(VENV)/.test: setup.cfg pyproject.toml | $(PYTHON)
	$(PIP) --editable '.[test,dev]'
	touch $@

test: $(VENV)/.test
	TF_CPP_MIN_LOG_LEVEL=2 $(PYTHON) -m pytest -q

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
