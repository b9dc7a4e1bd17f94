# `make demo` and `make test` are the only commands a fresh machine needs.
PYTHON := .venv/bin/python

.PHONY: setup demo test check sanitize fuzz mutants docs reference-model

setup:
	@bash scripts/setup.sh

demo: setup
	@$(PYTHON) scripts/demo.py

# A worker for each processor, 4 at most; tests/conftest.py says what goes together.
test: setup
	$(PYTHON) -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder

check: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) scripts/generate_cli_docs.py --check
	$(PYTHON) scripts/generate_families_table.py --check

sanitize: setup
	$(PYTHON) -m pytest tests/kernels/test_native_checks.py

# The commands on damaged inputs (docs/fuzzing.md), then the kernels, which need clang++ with its fuzzing runtime.
CASES := 10000
SEED := 0
SECONDS := 60
fuzz: setup
	PYTHONPATH=tests $(PYTHON) -m fuzz --cases $(CASES) --seed $(SEED)
	$(PYTHON) tests/kernels/fuzz_kernels.py --seconds $(SECONDS)

# Small faults planted in a package, to see whether its tests notice (docs/mutants.md). A package takes 10 to 30 minutes.
PACKAGES := checkpoint deploy gptq quantize
MUTANTS := 40
FOLDER := /tmp/moe4-mutants
mutants: setup
	$(PYTHON) -m pip install -q 'coverage>=7.10,<8'
	for package in $(PACKAGES); do \
	  $(PYTHON) scripts/mutants $$package --count $(MUTANTS) --seed $(SEED) --folder $(FOLDER)/$$package || exit; \
	done

# The site, in build/site; a broken link or anchor is an error.
docs: setup
	$(PYTHON) -m pip install -q -r docs/requirements.txt
	$(PYTHON) -m mkdocs build

reference-model: setup
	$(PYTHON) -m k2tiny.train --publish
