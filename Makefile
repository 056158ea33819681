# What people do with this repository; `make` alone lists it.
#
# Everything runs in a virtual environment that is made once from requirements.txt and again when that file
# changes. PYTHON=/path/to/python takes an environment of your own instead.

VENV ?= .venv

# Threads that wait for one another sleep instead of spinning: where another program holds a core, spinning made a
# training step 15 times slower on two cores.
export OMP_WAIT_POLICY ?= PASSIVE

ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
endif

# MONAI Label wants older packages than the bundle does: it has an environment of its own.
LABEL_VENV ?= .venv-label
ifeq ($(origin LABEL_PYTHON), undefined)
LABEL_PYTHON := $(LABEL_VENV)/bin/python
LABEL_INSTALLED := $(LABEL_VENV)/.installed
endif

# NVFlare brings servers and their packages, which nothing else needs.
FEDERATED_VENV ?= .venv-federated
ifeq ($(origin FEDERATED_PYTHON), undefined)
FEDERATED_PYTHON := $(FEDERATED_VENV)/bin/python
FEDERATED_INSTALLED := $(FEDERATED_VENV)/.installed
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest fuzz soak lint bench gpu-check label-env label-demo test-label federated-demo \
    test-federated clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## train on synthetic hearts with few labels, evaluate, segment
	$(PYTHON) -m bundle demo

test: $(INSTALLED)  ## run the tests (SEMSIM_DATA=folder adds those on real data, SEMSIM_SLOW=1 the longest)
	$(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# uv resolves to the lower bounds of pyproject.toml, extras included. Two are not tested here: PyTorch is the one of
# requirements.txt, as each of its releases is gigabytes, and numpy is 2.0, which the extra for DICOM needs (MONAI
# Label's environment has 1.26). What PyTorch brings along, filelock and jinja2, is put back to its lower bound.
OLDEST_VENV ?= .venv-oldest
test-oldest:  ## run the tests with the oldest packages that pyproject.toml allows
	python3 -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv \
	    $$(grep '^torch==' requirements.txt)
	$(OLDEST_VENV)/bin/uv pip install --quiet --python $(OLDEST_VENV)/bin/python --resolution lowest-direct \
	    $$(grep '^torch==' requirements.txt) --requirement pyproject.toml --all-extras \
	    --reinstall-package filelock --reinstall-package jinja2
	$(OLDEST_VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

fuzz: $(INSTALLED)  ## spoil lists, records, weights, archives and images at random, EXAMPLES=2000 of each kind
	SEMSIM_FUZZ=$(or $(EXAMPLES),2000) $(PYTHON) -m pytest tests/test_fuzz.py --capture=no --quiet

soak: $(INSTALLED)  ## random runs with kills, damaged files, wrong options and full disks, MINUTES=30
	$(PYTHON) -m tests.soak --minutes $(or $(MINUTES),30)

lint: $(INSTALLED)  ## check style, types and JSON
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	@find configs -name '*.json' | while read -r config; do \
	    $(PYTHON) -m json.tool "$$config" /dev/null || { echo "$$config is not valid JSON"; exit 1; }; \
	done

bench: $(INSTALLED)  ## time training steps, inference, input pipeline and metrics on this machine
	$(PYTHON) -m bundle bench

gpu-check: $(INSTALLED)  ## tests, step times, protocol and inference on a CUDA device, DATA=folder of ACDC, 12 minutes
	$(PYTHON) -m bundle.bench.gpu_check $(if $(DATA),--dataset_dir "$(DATA)")

label-env: $(LABEL_INSTALLED)  ## the environment of a MONAI Label server

label-demo: $(LABEL_INSTALLED)  ## a MONAI Label server on synthetic studies: segment, annotate, train, segment
	$(LABEL_PYTHON) -m bundle.label.demo

test-label: $(LABEL_INSTALLED)  ## test the bundle in a real MONAI Label server
	$(LABEL_PYTHON) -m pytest tests/bundle/label

federated-demo: $(FEDERATED_INSTALLED)  ## two synthetic hospitals, one without labels, in NVFlare's simulator
	$(FEDERATED_PYTHON) -m bundle.federated.demo

test-federated: $(FEDERATED_INSTALLED)  ## test the bundle under NVFlare
	$(FEDERATED_PYTHON) -m pytest tests/bundle/federated

clean:  ## remove the environments, the tools' caches and what the demos made; leave output/, eval/ and models/ alone
	rm -rf $(VENV) $(LABEL_VENV) $(FEDERATED_VENV) $(OLDEST_VENV) demo label-demo label-round federated-demo \
	    .pytest_cache .mypy_cache .ruff_cache
	find bundle scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt
	@python3 -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"the pinned packages need Python 3.11 or newer, python3 is {sys.version.split()[0]}")'
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

# PyTorch first and no build isolation: sam2, which MONAI Label needs, would download another one (5.4 GB) to be built.
# Beside a CPU-only PyTorch, pip's torchvision is importable with bundle/label/torchvision_ops.py alone: it says why.
$(LABEL_VENV)/.installed: requirements-label.txt bundle/label/torchvision_ops.py
	@python3 -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else \
	    f"the pinned packages need Python 3.11 or 3.12, python3 is {sys.version.split()[0]}")'
	python3 -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar on \
	    setuptools wheel $$(grep '^torch==' requirements-label.txt)
	$(LABEL_VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar on --no-build-isolation \
	    --requirement requirements-label.txt
	@site=$$($(LABEL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    cp bundle/label/torchvision_ops.py "$$site" && echo 'import torchvision_ops' > "$$site/torchvision_ops.pth"
	@touch $@

$(FEDERATED_VENV)/.installed: requirements-federated.txt requirements.txt
	@python3 -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"the pinned packages need Python 3.11 or newer, python3 is {sys.version.split()[0]}")'
	python3 -m venv $(FEDERATED_VENV)
	$(FEDERATED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-federated.txt
	@touch $@
