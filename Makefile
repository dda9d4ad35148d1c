# Everything runs in .venv, which is made on demand and renewed when what it is built from changes.
#   make demo PYTHON=python3.12                     another interpreter
#   make demo PIP_ARGS="--index-url URL"            another build of torch (read when .venv is made)
#   make test PYTEST_ARGS="-k softmax -m 'not slow'"
#   make docs DOCS_ARGS="-D nb_execution_mode=off"   without running the notebooks
#   make bench BENCH_ARGS="--only layers"           see python -m benchmarks graph --help

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
DOCS_ARGS ?=
OLDEST_PYTHON ?= 3.10
NEWEST_PYTHON ?= 3.13
FUZZ_MINUTES ?= 10
FUZZ_SEED ?=

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SANITIZED := build/sanitize/venv
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal
KERNEL_TESTS := $(addprefix tests/,$(addsuffix .py,attn_core/test_additive \
  attn_core/test_cpu_arguments attn_core/test_cpu_kernels attn_core/test_edge_entmax \
  attn_core/test_edge_sums attn_core/test_entmax attn_core/test_known attn_core/test_lean_edges \
  gat/test_dropout gat/test_one_step gat/test_sparse))
OTHER_SETS := from attn_core import compiled; print(*compiled.module.instruction_sets()[1:] if compiled.module else [])
SOURCES := pyproject.toml constraints.txt $(wildcard CMakeLists.txt attn_core/backends/cpu/*)

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions lint docs docs-links wheel sanitize fuzz bench clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# Threads that wait asleep: on a busy machine, spinning ones hold each other up.
demo: export OMP_WAIT_POLICY = passive
demo: $(INSTALLED) ## install, train a graph attention network on the digits graph, draw it to runs/demo (goes on where it was interrupted)
	$(PY) -m examples.node_classification --out runs/demo $(if $(wildcard runs/demo/checkpoint.pt),--resume)

test: lint ## lint, then every test and doctest (PYTEST_ARGS="-k name" chooses)
# Two workers with one thread each: on small tensors more threads cost more than they give.
	$(PYTEST) $(PYTEST_ARGS)
# Once more without the compiled kernels, as on a machine without a compiler.
	GAT_KERNELS=0 $(PYTEST) tests/attn_core/test_kernels.py tests/attn_core/test_edge_scores.py \
	  tests/attn_core/test_supports.py tests/gat/test_gat_conv.py
# And the kernels with every other instruction set that the processor has, as on an older one.
	sets=$$($(PY) -c '$(OTHER_SETS)') && for set in $$sets; do \
	  GAT_INSTRUCTION_SET=$$set $(PYTEST) $(KERNEL_TESTS) tests/attn_core/test_edge_scores.py \
	  -k "not every_instruction_set and not what_attention_dropout_would and not million and not compile" \
	  || exit 1; done

# One thread each, as above: the two run beside each other.
test-versions: ## the layers' tests with the oldest and the newest torch, from a wheel (OLDEST_PYTHON, NEWEST_PYTHON)
	OLDEST_PYTHON="$(OLDEST_PYTHON)" NEWEST_PYTHON="$(NEWEST_PYTHON)" PYTHON="$(PYTHON)" \
	  tools/versions.sh test

wheel: ## build sdist and wheels to dist/, check them, try them with the oldest and the newest torch
	PYTHON="$(PYTHON)" tools/versions.sh wheel

lint: $(INSTALLED) ## style, types and the rules of who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

# An installation of its own, which finds all but gat in .venv. GCC's runtimes come before Python's
# memory is there; what CPython never frees is no leak of ours.
sanitize: export GAT_REQUIRE_KERNELS = 1
sanitize: $(INSTALLED) ## the tests of the compiled kernels under GCC's address and undefined-behaviour sanitizers
	$(PY) -m venv --without-pip --clear $(SANITIZED)
	$(PY) -m pip --python $(SANITIZED) install --no-deps -C build-dir=build/sanitize/cmake \
	  -C cmake.define.GAT_SANITIZE=address,undefined -C cmake.define.CMAKE_CXX_COMPILER=g++ .
	$(PY) -c '$(PURELIB)' > $$($(SANITIZED)/bin/python -c '$(PURELIB)')/dependencies.pth
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
	  HYPOTHESIS_PROFILE=ci OMP_NUM_THREADS=2 $(SANITIZED)/bin/python -P -m pytest -o pythonpath= \
	  -p no:cacheprovider -k "not million and not compile" $(PYTEST_ARGS) $(KERNEL_TESTS)

fuzz: $(INSTALLED) ## draw calls of attend for FUZZ_MINUTES and compare every backend with float64 (FUZZ_SEED draws one again)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m tests.fuzz --minutes $(FUZZ_MINUTES) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

docs: $(INSTALLED) ## build the documentation site to build/site; a warning is an error
	$(PY) -m pip install -q -r docs/requirements.txt -c constraints.txt
	$(PY) -m sphinx -W --keep-going -q -b html $(DOCS_ARGS) docs build/site

docs-links: $(INSTALLED) ## ask the network whether the links of the documentation and of the README lead anywhere
	$(PY) -m pip install -q -r docs/requirements.txt -c constraints.txt
	$(PY) -m sphinx -q -b linkcheck -D nb_execution_mode=off docs build/links

bench: $(INSTALLED) ## measure graph attention against its peers, to runs/benchmarks
	$(PY) -m benchmarks graph $(BENCH_ARGS)

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamp goes first and comes back last, so that an interrupted installation is done again.
$(INSTALLED): $(SOURCES)
	@rm -f $@
	@$(PY) -m pip --version >/dev/null 2>&1 || { $(CHECK_PYTHON) && $(PYTHON) -m venv --clear $(VENV); }
	$(PY) -m pip install -e ".[dev]" -c constraints.txt $(PIP_ARGS)
	@touch $@

define CHECK_PYTHON
{ $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
  echo "gat needs Python 3.10 or newer, which '$(PYTHON)' is not; name one: make PYTHON=python3.12" >&2; \
  exit 1; }; } && \
{ $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
  echo "'$(PYTHON)' cannot make virtual environments: it lacks venv or ensurepip." >&2; \
  echo "Install them (Debian, Ubuntu: apt-get install python3-venv) or name another: make PYTHON=..." >&2; \
  exit 1; }; }
endef
