# `make train` and `make test` work on a bare machine: what they need goes into .venv first, and is not looked at
# again until the interpreter, the lock or pyproject.toml changes.
#
#   make train ARGS="gsm8k rollout.num_generations=4"     make test ARGS="tests/learner -k loss"
#   PYTHON=python3.11  another interpreter                FLAVOUR=cpu  the CPU set on a machine with a GPU

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help train test soak kills check setup lock digests
MAKEFLAGS += --no-builtin-rules

# The only place that names it; asked only where pip does not find torch's CPU build by its own configuration.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# A name on the PATH is not enough: version managers put up shims that fail, and Debian's python3 may lack venv.
usable = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
find_python = for p in python3.12 python3.11 python3; do $$p -c '$(usable)' 2>/dev/null && echo $$p && break; done
PYTHON := $(or $(PYTHON),$(shell $(find_python)))
FLAVOUR := $(or $(FLAVOUR),$(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && echo cuda || echo cpu))

LOCK := requirements-$(FLAVOUR).lock
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check $(if $(MAKE_TERMOUT),,--quiet)
digest = $(shell { $(1); } 2>&1 | sha256sum | cut -c1-16)
# A virtual environment cannot be moved, hence the folder in the first stamp.
MADE := .venv/.made-$(call digest,$(PYTHON) --version; echo $(FLAVOUR) $(CURDIR))
LOCKED := .venv/.locked-$(call digest,cat $(LOCK))
READY := .venv/.ready-$(call digest,cat $(LOCK) pyproject.toml)

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

train: setup ## the main job: `rlvr train`, with ARGS
	$(BIN)/rlvr train $(ARGS)

# A file's tests stay together, as they share engines and clusters; files go in the order of tests/conftest.py.
# mypy has one core: the other compiles the tests meanwhile, which each of pytest's processes would do for itself.
test: setup ## lint, types and every test; ARGS go to pytest
	$(BIN)/python -m pytest --collect-only --quiet $(ARGS) >/dev/null 2>&1 & $(MAKE) --no-print-directory check && wait
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

SOAK_S ?= 600
soak: setup ## ten minutes of items that hang, die and eat memory, ten of a training whose processes are killed; by hand
	@echo "make soak runs twice for $(SOAK_S) s and longer; it is started by hand only" >&2
	$(BIN)/rlvr bench reward --soak $(SOAK_S) --json
	$(BIN)/rlvr bench monkey --seconds $(SOAK_S) --json
	RLVR_SOAK=1 $(BIN)/python -m pytest tests/reward_service/pool/test_processor.py \
	  tests/orchestration/cluster/test_hosts.py

kills: setup ## a run killed or stopped at 20 random moments beside an undisturbed one, bit for bit; by hand. ARGS="--points 5"
	$(BIN)/python -m tests.orchestration.cluster.kill_points $(ARGS)

check: setup ## lint and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY) ## .venv, with exactly what the lock says

$(MADE):
	@'$(PYTHON)' -c '$(usable)' 2>/dev/null || { echo "Python 3.11 or 3.12 with venv is needed" \
	  "(Debian: apt-get install python3-venv); name one with PYTHON=…, '$(PYTHON)' is none" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version) and the $(FLAVOUR) set: some minutes, once."
	$(PYTHON) -m venv --clear .venv
	@touch $@

# torch goes first and by itself, so that PyTorch's index is never asked for anything else.
$(LOCKED): | $(MADE)
	@torch=$$(grep '^torch==' $(LOCK)); \
	if ! $(PIP) install --no-deps $$torch 2>.venv/torch.log; then \
	  if [[ $$torch != *+cpu ]]; then cat .venv/torch.log; exit 1; fi; \
	  echo "$$torch is not in pip's default index: taking it from $(TORCH_CPU_INDEX)"; \
	  $(PIP) install --no-deps --index-url $(TORCH_CPU_INDEX) $$torch; \
	fi
	$(PIP) install --no-deps --requirement $(LOCK)
	@rm -f .venv/.locked-* .venv/torch.log && touch $@

$(READY): | $(LOCKED)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@rm -f .venv/.ready-* && touch $@

# One lock serves both Pythons. Pins stay as they are unless ARGS=--upgrade. Where PyTorch's index is out of reach:
# TORCH_SOURCE="--find-links FOLDER", with the CPU wheel in it. The images get the pins tested here, and check the hashes
# of what they download.
TORCH_SOURCE ?= --torch-backend cpu
lock: ## remake the locks from pyproject.toml; ARGS=--upgrade for newer pins
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv==0.13.8
	for flavour in cpu cuda; do \
	  [[ $$flavour = cpu ]] && torch="$(TORCH_SOURCE)" || torch=; \
	  build/lock/bin/uv pip compile --quiet --no-annotate --custom-compile-command "make lock" \
	    --python-version 3.11 --python-platform x86_64-manylinux_2_28 $$torch $(ARGS) \
	    --extra $$flavour --extra dev pyproject.toml --output-file requirements-$$flavour.lock; \
	done
	build/lock/bin/uv pip compile --quiet --no-annotate --generate-hashes --custom-compile-command "make lock" \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint requirements-cpu.lock \
	  --extra audit pyproject.toml --output-file requirements-reward.lock
	build/lock/bin/uv pip compile --quiet --no-annotate --generate-hashes --custom-compile-command "make lock" \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint requirements-cuda.lock \
	  --extra cuda pyproject.toml --output-file requirements-train.lock

# By a tag alone, a registry may give another image tomorrow. A digest is asked of the registry, so it takes a network.
digests: ## write the digests of the images that docker/ builds on and runs behind their tags
	@for file in docker/*.Dockerfile docker/compose.yaml; do \
	  for image in $$(sed -nE 's/^ *(FROM|ARG BASE=|image:) *([a-z][a-z/]*:[A-Za-z0-9._-]+).*/\2/p' $$file | sort -u); do \
	    digest=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $$image); \
	    [[ $$digest =~ ^sha256:[0-9a-f]{64}$$ ]] || { echo "$$image: no digest, but '$$digest'" >&2; exit 1; }; \
	    sed -i -E "s#$$image(@sha256:[0-9a-f]{64})?#$$image@$$digest#" $$file; echo "$$file: $$image@$$digest"; \
	  done; \
	done
