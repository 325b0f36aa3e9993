# `make run` (live exchange) and `make demo` (built-in simulator) need only Python and make; `make help` lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first interpreter that is 3.11 or later; set PYTHON to choose another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: help run demo prepared pages pictures test faults fuzz bench lint format sdl lock sbom

help:
	@echo "make run     collect from the live exchange and serve GraphQL on http://127.0.0.1:8000/graphql"
	@echo "make demo    the same with simulated prices; needs no network once the packages are installed"
	@echo "make pages   build the dashboard and GraphiQL (run and demo build them too)"
	@echo "make pictures  take the README's pictures of the dashboard from the demo, five minutes (needs Chromium)"
	@echo "make test    the whole test suite; it starts its own PostgreSQL and Valkey"
	@echo "make faults  the fault tests in full, about ten minutes"
	@echo "make fuzz    the fuzz tests in full, about three minutes"
	@echo "make bench   the benchmark beside other servers, half an hour; with QUICK=1 three minutes and rough figures"
	@echo "make lint    check with ruff and mypy"
	@echo "make format  format with ruff and apply its fixes"
	@echo "make sdl     write server/schema/schema.graphql after a change of the schema"
	@echo "make lock    resolve requirements.lock again (needs uv)"
	@echo "make sbom    write the image's bill of materials to sbom/ (needs npm for the pages)"
	@echo
	@echo "The first start installs packages into .venv, so it needs the Python package index; later starts do not."

.venv/installed: requirements.lock
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; install it, or name it: make $(or $(GOAL),$(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python cannot make virtual environments; install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Installing the locked packages into .venv (once, from the Python package index)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		-r requirements.lock >.venv/install.log 2>&1 || { echo "The packages could not be installed: the first start \
	needs access to the Python package index (pip's output: $(CURDIR)/.venv/install.log)" >&2; exit 1; }
	@touch $@

# Builds only if server/web has changed. If something is missing, it says so, and everything else starts without the pages.
pages:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || exit 0; \
		exec $(PYTHON) -m shared.local.pages

pictures: prepared
	@$(BIN)/python -m tests.browser.pictures

# In parallel, because both mostly wait for the network.
prepared:
	@$(MAKE) -s -j 2 GOAL="$(MAKECMDGOALS)" .venv/installed pages

run: prepared
	@exec $(BIN)/python -m shared.local run

demo: prepared
	@exec $(BIN)/python -m shared.local demo

# The fault tests mostly wait, so four run at a time. They come last, so that they do not slow down the others.
test: prepared
	@# The longest files first.
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests/browser tests/integration/local tests/integration tests/unit tests/fuzz
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

# Through a temporary file, so that an error leaves the old schema in place.
sdl: .venv/installed
	@$(BIN)/python -c 'from server.schema.root import schema; print(schema.as_str())' >server/schema/schema.graphql.new \
		|| { rm server/schema/schema.graphql.new; exit 1; }
	@mv server/schema/schema.graphql.new server/schema/schema.graphql

lock:
	uv pip compile --quiet --generate-hashes --universal --no-header --all-extras --python-version 3.11 \
		pyproject.toml --output-file requirements.lock

# What the image installs, from the lock files alone. The tools are temporary, and the output is reproducible.
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
