# Every target works from a fresh clone: whatever it needs is installed into .venv/ first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MUSTER := $(BIN)/muster
READY := $(VENV)/.ready
STATE := $(or $(MUSTER_STATE_DIR),.muster)
SCANNER := $(VENV)/scanner

.DEFAULT_GOAL := help
.PHONY: help demo up down test check scan bench build fmt docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Show the whole pipeline at work on an embedded AWS, check every receipt, clean up
	$(MUSTER) demo

up: $(READY) ## Start the local stack and leave it running
	$(MUSTER) up

# Without a state directory nothing is up, and nothing has to be installed to say so.
down: $(if $(wildcard $(STATE)),$(READY)) ## Destroy and stop the local stack
	@if [ -d "$(STATE)" ]; then set -x; $(MUSTER) down; else echo "The local stack was not up."; fi

# Two processes, each with a stack of its own: half of the time is spent waiting for Terraform.
test: $(READY) ## Run all tests; the local stacks they need start and end with them
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: export TF_DATA_DIR := $(CURDIR)/build/cache/terraform-check
check: $(READY) ## Lint, types, Terraform and contracts: fast, and nothing is started
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MUSTER) terraform fmt -check -diff -recursive
	$(MUSTER) terraform init -backend=false -input=false
	$(MUSTER) terraform validate
	$(MUSTER) terraform test
	@if command -v tflint >/dev/null; then set -x; tflint --recursive; \
	  else echo "tflint is not installed: .tflint.hcl was not checked"; fi
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .
	$(BIN)/pytest tests/contract

scan: $(SCANNER)/.ready ## Look for insecure settings with Checkov; .checkov.yaml gives the reason for each exception
	$(SCANNER)/bin/checkov --config-file .checkov.yaml

bench: $(READY) ## Measure delivery and whole broadcasts, and compare (needs nginx, wrk and h2load)
	$(BIN)/python -m bench.delivery --svg docs/delivery.svg
	$(BIN)/python -m bench.broadcast
	$(BIN)/python -m bench.imports
	-$(BIN)/python -m bench.cold  # misses its target on the emulator: docs/delivery.md has the parts

build: $(READY) ## Build the Lambda bundle for AWS into build/
	$(MUSTER) build

fmt: $(READY) ## Format Python and Terraform
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(MUSTER) terraform fmt -recursive

docs: $(READY) ## Write the tables of terraform/README.md and docs/cost.md
	$(BIN)/python -m tools.terraform_tables
	$(BIN)/python -m bench.cost --write

clean: ## Stop the local stack; remove .venv/, build/, caches and downloaded providers; keep Terraform's state
	@if [ -x $(MUSTER) ]; then $(MUSTER) down; fi
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -name __pycache__ -o -name .terraform \) -type d -prune -exec rm -rf {} +

# The functions' own pins are constraints, so that tests run with what is deployed.
$(READY): pyproject.toml functions/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Muster needs Python 3.11 or newer as $(PYTHON): name another one, make PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev]' --constraint functions/requirements.txt
	@touch $@

# Apart from the rest: the scanner pins older versions of what everything else uses.
$(SCANNER)/.ready: .ci/scan-requirements.txt
	$(PYTHON) -m venv $(SCANNER)
	$(SCANNER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
