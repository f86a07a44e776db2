# Every target works from a fresh clone: it first installs what it needs into .venv/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MUSTER := $(BIN)/muster
READY := $(VENV)/.ready
STATE := $(or $(MUSTER_STATE_DIR),.muster)
SCANNER := $(VENV)/scanner

.DEFAULT_GOAL := help
.PHONY: help demo up down test quick check scan bench build fmt docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Broadcast to 50 clients on an embedded AWS, check every receipt, clean up
	$(MUSTER) demo

up: $(READY) ## Start the local stack and leave it running
	$(MUSTER) up

# Without a state directory no stack is up, so nothing needs to be installed.
down: $(if $(wildcard $(STATE)),$(READY)) ## Destroy and stop the local stack
	@if [ -d "$(STATE)" ]; then set -x; $(MUSTER) down; else echo "The local stack was not up."; fi

# Two processes, each with its own stack: half of the time is spent waiting for Terraform. Coverage is not measured
# against another endpoint, which may serve only some of the tests.
test: $(READY) ## Run all tests, with the local stacks that they need; require 90% branch coverage
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(if $(AWS_ENDPOINT_URL)$(LOCALSTACK_HOST),,--cov)

# Three processes on two cores: a third of the time is spent waiting.
quick: $(READY) ## Run the tests that need neither a stack nor Terraform (under a minute)
	$(BIN)/pytest --numprocesses 3 --dist worksteal -m "not slow and not stack" tests/unit tests/contract

check: export TF_DATA_DIR := $(CURDIR)/build/cache/terraform-check
check: $(READY) ## Lint, types, Terraform and contracts, without a stack
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
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . \( -name __pycache__ -o -name .terraform \) -type d -prune -exec rm -rf {} +

# Tests run with the versions that are deployed.
$(READY): pyproject.toml functions/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Muster needs Python 3.11 or newer as $(PYTHON): name another one, make PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev]' --constraint functions/requirements.txt
	@touch $@

# In its own environment: the scanner pins older versions of shared dependencies.
$(SCANNER)/.ready: .ci/scan-requirements.txt
	$(PYTHON) -m venv $(SCANNER)
	$(SCANNER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
