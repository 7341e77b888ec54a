# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Linux, Python 3.11. CUDA's own packages follow from the torch that a machine has and are not pinned.
COMPILE := uv pip compile pyproject.toml --python-version 3.11 $(addprefix --extra ,app dev eval inject quant ray s3 train) \
	--annotation-style line --no-header --output-file constraints.txt

.PHONY: help setup demo test test-slow lint format bench docs constraints clean

help:
	@echo "make demo         set up, then in some 4 minutes: corpus, training, evaluation before and after, report"
	@echo "make test         set up, run the tests that are not marked slow: some 5 minutes"
	@echo "make test-slow    the tests that are: kills, several processes, whole trainings; with the others before a change lands"
	@echo "make lint         ruff and mypy"
	@echo "make bench        measure every target, most twice; the table goes to docs/performance.md (RELEASE=DIR: photographs)"
	@echo "make docs         write docs/configuration.md from the settings' docstrings"
	@echo "make constraints  compile constraints.txt from pyproject.toml; needs uv"

# The environment holds what the constraints file names; on a GPU machine install torch first (README).
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/sigma quickstart --out demo

# A file's tests share what they build, so a file stays together; tests/conftest.py puts the long ones first.
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow --durations 30

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/all.py --write docs/performance.md $(if $(RELEASE),--release $(RELEASE))

docs: $(READY)
	$(BIN)/python -m tools.write_configuration

constraints:
	$(COMPILE)
	sed -i -E "/^(cuda|nvidia)-|^triton=/d; 1i # $(COMPILE)" constraints.txt

clean:
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
