# One command from a fresh machine: `make run` (live exchange) or `make demo` (built-in simulator).
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The newest suitable interpreter is not needed, only one that is 3.11 or later; set PYTHON to choose.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: help run demo prepared pages pictures test faults fuzz bench lint format lock sbom

help:
	@echo "make run     collect from the live exchange and serve GraphQL on http://127.0.0.1:8000/graphql"
	@echo "make demo    the same with the built-in exchange simulator; once installed it needs no network"
	@echo "make pages   build the dashboard and GraphiQL; run, demo and test include it"
	@echo "make pictures  take the README's pictures of the dashboard from the demo, five minutes (needs Chromium)"
	@echo "make test    the whole suite, on the PostgreSQL and Valkey it starts itself"
	@echo "make faults  the long form of the faults' tests, about ten minutes"
	@echo "make fuzz    the long form of the bad inputs' tests, some three minutes"
	@echo "make bench   this project beside its peers, half an hour; with QUICK=1 three minutes and rougher figures"
	@echo "make lint    ruff and mypy"
	@echo "make lock    resolve requirements.lock again (needs uv)"
	@echo "make sbom    the bill of materials of the image, in sbom/ (needs npm for the pages' part)"

.venv/installed: requirements.lock
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; install it, or name it: make $(or $(GOAL),$(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python cannot make virtual environments; install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Installing the locked packages into .venv (once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@touch $@

# Made anew when server/web has changed. What is missing for that is said, and keeps nothing from starting.
pages:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || exit 0; \
		exec $(PYTHON) -m shared.local.pages

pictures: prepared
	@$(BIN)/python -m tests.browser.pictures

# One mostly waits for the network while the other does.
prepared:
	@$(MAKE) -s -j 2 GOAL="$(MAKECMDGOALS)" .venv/installed pages

run: prepared
	@exec $(BIN)/python -m shared.local run

demo: prepared
	@exec $(BIN)/python -m shared.local demo

# The faults' tests mostly wait, so four run at a time, after the others have had the machine to themselves.
test: prepared
	@$(BIN)/python -m pytest -n 3 --dist loadfile tests/unit tests/integration tests/browser tests/fuzz
	@$(BIN)/python -m pytest -n 4 tests/faults

faults: .venv/installed
	@FAULTS=long $(BIN)/python -m pytest -n 3 tests/faults

fuzz: .venv/installed
	@FAULTS=long $(BIN)/python -m pytest tests/fuzz

bench: .venv/installed
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick)

lint: .venv/installed
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: .venv/installed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock:
	uv pip compile --quiet --generate-hashes --universal --no-header --all-extras --python-version 3.11 \
		pyproject.toml --output-file requirements.lock

# What the image's build installs, from the lock files alone, by tools that are gone afterwards; the same every time.
sbom:
	@set -e; made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; mkdir -p sbom; \
	$(PYTHON) -m venv "$$made/tools"; $(PYTHON) -m venv --without-pip "$$made/runtime"; \
	"$$made/tools/bin/python" -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 uv==0.13.9; \
	"$$made/tools/bin/uv" pip install --quiet --python "$$made/runtime/bin/python" --only-binary :all: \
		--require-hashes --constraints requirements.lock --requirements pyproject.toml --extra traces; \
	"$$made/tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
		--output-file sbom/python.cdx.json "$$made/runtime/bin/python"; \
	mkdir "$$made/pages"; cp server/web/package.json server/web/package-lock.json "$$made/pages"; cd "$$made/pages"; \
	npm pkg set version="$$(sed -n 's/^version = "\(.*\)"/\1/p' "$(CURDIR)/pyproject.toml")"; \
	npm sbom --package-lock-only --omit dev --sbom-format cyclonedx --sbom-type application >sbom.json; \
	sed '/^  "serialNumber": /d; /^    "timestamp": /d' sbom.json >"$(CURDIR)/sbom/pages.cdx.json"
