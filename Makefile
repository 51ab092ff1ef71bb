# `make` lists what there is to make. Each target sets up all it needs in $(VENV) and reuses it the next time.
PYTHON ?= python3
VENV ?= .venv
FAISS ?= cpu
ROUNDS ?= 1000
CUDA_INCLUDE ?= $(wildcard /usr/local/cuda/include)
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)
# Everything runs from what is on disk: no hub is asked for anything.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help demo test sanitize soak mutants lint bench clean

help:
	@echo 'make demo      trains a dense retriever with ANCE beside its rivals, then lets you search it'
	@echo 'make test      the test suite'
	@echo 'make sanitize  the threaded parts of the engine under the thread and address sanitizers'
	@echo 'make soak      encoding, indexing and each way to refresh, killed at twenty random moments'
	@echo 'make mutants   breaks each kernel on purpose; fails if the suite does not notice'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make bench     this package beside its rivals, in one process'
	@echo 'make clean     removes the virtual environment and everything that was built or measured'
	@echo 'Options: ARGS="..." is handed on (demo, test, soak, mutants); PYTHON=python3.12; VENV=.venv; FAISS=cpu|gpu|cuvs.'

demo: $(VENV)/.ready-demo
	ANCE_FAST_STRICT=1 $(BIN)/ance-fast demo $(ARGS)

test: $(VENV)/.ready-test
	ANCE_FAST_STRICT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

# The parts of the engine that threads share, without Python: what a sanitizer reports is ours. Where CUDA's headers are,
# the ring's code for CUDA runs on a stand-in for its runtime.
SANITIZERS := thread address,undefined
sanitize: $(SANITIZERS:%=build/sanitize/ring-%) $(if $(CUDA_INCLUDE),$(SANITIZERS:%=build/sanitize/cuda-ring-%))
	@for program in $^; do echo $$program; $$program $(ROUNDS) || exit 1; done

RING := csrc/embedding_ring.cpp tests/native/embedding_ring_stress.cpp
CUDA_RING := csrc/cuda/ring_copies.cpp tests/native/host_cuda_runtime.cpp
RING_HEADERS := $(wildcard csrc/*.h csrc/cuda/ring_*.h tests/native/*.h)
SANITIZE = @mkdir -p $(@D); $(CXX) -std=c++17 -O1 -g -Wall -Wextra -fsanitize=$* -fno-sanitize-recover=all -pthread -Icsrc

build/sanitize/ring-%: $(RING) $(RING_HEADERS)
	$(SANITIZE) $(RING) -o $@

build/sanitize/cuda-ring-%: $(RING) $(CUDA_RING) $(RING_HEADERS)
	$(SANITIZE) -DANCE_FAST_WITH_CUDA=1 -isystem $(CUDA_INCLUDE) $(RING) $(CUDA_RING) -o $@

# Encoding, indexing and training with each way to refresh, killed at twenty random moments: the result has to be that of
# an undisturbed run (ARGS="--parts sync,rolling" for some of it).
soak: $(VENV)/.ready-demo
	ANCE_FAST_STRICT=1 $(BIN)/python -m benchmarks.soak --out bench-out/soak $(ARGS)

mutants: $(VENV)/.ready-test
	ANCE_FAST_STRICT=1 $(BIN)/python tests/mutants/run.py $(ARGS)

lint: $(VENV)/.ready-test $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready-demo $(VENV)/.ready-bench
	for suite in ops encode ring topk index pipeline; do \
	  ANCE_FAST_STRICT=1 $(BIN)/python -m benchmarks.run --suite $$suite --out bench-out/$$suite-cpu || exit 1; done

# torch goes first and alone, so that the resolver takes the build that fits this machine's index settings.
$(VENV)/.ready-%: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ance_fast needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { echo "could not create $(VENV): install the venv module of $(PYTHON) (Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(FAISS),$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-run bench-out *.egg-info ance_fast/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
