# make help lists what there is. Everything runs in .venv, which `make env` makes and keeps up to date.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help env demo test lab bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
NOTEBOOK := 01_chain_of_parities.ipynb
# JupyterLab asks nothing of the network, and says its address and what goes wrong
LAB := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly --log-level=WARN

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 12

env: $(VENV)/.made  ## make .venv, or bring it up to date

# The stamp is newer than the files that say what is installed; without it, or after a change to them, pip runs again.
$(VENV)/.made: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or name one, as in: make env PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$("$(PYTHON)" --version 2>&1) is too old: adaback-lite needs Python 3.11 or newer. Name one, as in: make env PYTHON=python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv), then run make again." >&2; exit 2; }
	@"$(BIN)/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Making $(VENV) ..."; "$(PYTHON)" -m venv --clear "$(VENV)"; }
	@echo "Installing into $(VENV): 2 GB on disk (with torch's CPU build), some minutes the first time ..."
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[test,dask,trl]' -c constraints.txt
	@touch $@; echo "$(VENV) is ready: source $(BIN)/activate, or call $(BIN)/adaback."

demo: env  ## run notebook 01 in full and leave it, and an HTML of it, under runs/demo (minutes)
	@mkdir -p $(DEMO)
	$(BIN)/python -m papermill notebooks/$(NOTEBOOK) $(DEMO)/$(NOTEBOOK) -p profile full -p out $(DEMO)/runs
	@$(BIN)/python -m adaback_lite.report $(DEMO)/$(NOTEBOOK) $(DEMO)/$(NOTEBOOK:.ipynb=.html) $(DEMO)/runs

test: env  ## run every test, the slow ones too (those in a browser where there is one)
	@$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest -q -m "slow or not slow"

lab: env  ## open JupyterLab on the notebooks
	$(BIN)/python -m jupyterlab --notebook-dir=notebooks $(LAB)

bench: env  ## measure a training step against TRL
	$(BIN)/python -m tests.benchmarks.step

clean:  ## remove .venv, runs/demo and what tools left behind; other runs stay
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .hypothesis .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
