# Two commands on a fresh machine: `make quickstart` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
# What to install beside this package, e.g. TORCH="torch==2.9.1 torchvision==0.24.1".
TORCH ?= torch
BIN := $(VENV)/bin

.PHONY: help install quickstart test lint clean

help:
	@echo "make install     create $(VENV) with the package and what rendering needs"
	@echo "make quickstart  demonstrations, SFT, RIPT, evaluation on one LIBERO task"
	@echo "make test        lint and tests"
	@echo "make lint        ruff and mypy"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) --editable '.[dev,tensorboard,wandb]'
	bash scripts/install_gl.sh
	touch $@

quickstart: install
	$(BIN)/python scripts/quickstart.py

test: install lint
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
