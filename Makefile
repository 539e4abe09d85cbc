# make demo and make test need nothing before them: they make .venv and build what is missing or out of date.
# make gpu takes PYTHON as it is, with the torch and Triton that it has, and no network.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OTHER_TRITON ?= triton==3.7.1
DEVICE ?= auto
BIN := .venv/bin
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: setup build test test-isa gate gate-triton gpu gpu-test gpu-tune gpu-bench demo lint bench bench-compare format clean
.DELETE_ON_ERROR:

setup: .venv/installed
build: .venv/built

# torch first and pinned, then no build isolation: otherwise pip would build against another torch.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel ninja numpy "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@ .venv/built
	$(BIN)/python -m fastfuse info

.venv/built: .venv/installed $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

test: build
	$(BIN)/python -m pytest -n 2 -p no:benchmark --durations=15

# AVX-512 and AMX on a machine without them, in plain C++.
test-isa: build
	PYTHONPATH=tests $(BIN)/python -m pytest -n 2 -p no:benchmark -p emulated_isa -k "avx512 or amx"

gate: setup
	$(BIN)/python -m bench.gate --write

# The same with another Triton, in an environment that sees everything else of .venv.
gate-triton: .venv-triton/installed
	.venv-triton/bin/python -m bench.gate

.venv-triton/installed: .venv/installed
	$(BIN)/python -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --no-deps "$(OTHER_TRITON)"
	realpath .venv/lib/python*/site-packages > $$(echo .venv-triton/lib/python*/site-packages)/venv.pth
	touch $@

gpu:
	$(PYTHON) -m bench.gpu --device $(DEVICE)

gpu-test gpu-tune gpu-bench:
	$(PYTHON) -m bench.gpu --device $(DEVICE) $(@:gpu-%=%)

demo: build
	$(BIN)/python -m fastfuse.demo

bench: build
	$(BIN)/python -m bench

bench-compare: build
	$(BIN)/python -m bench compare

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CSRC),$(BIN)/clang-format --dry-run --Werror $(CSRC))

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CSRC),$(BIN)/clang-format -i $(CSRC))

clean:
	rm -rf build dist *.egg-info fastfuse/_C.*.so fastfuse/_cuda.*.so
