# Every verb of the project. `make` alone prints them.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export LOCAL_DIR ?= .local

.DEFAULT_GOAL := help
.PHONY: help run token test test-failed test-fast test-browser pictures coverage-keys check format rotate-master-key master-key-in-use verify-access-log reconcile purge documents nats-permissions compatibility bench drill soak lock install-hooks clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

# The lock holds the exact versions and hashes of everything; the project itself is used from this folder.
$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make run PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

run: $(INSTALLED) ## Start everything on this machine and print a curl that works (Ctrl-C stops it)
	@exec $(BIN)/python -m deploy.local run

token: $(INSTALLED) ## Print a token of the running stack: make token USER=alice [ADMIN=1]
	@$(BIN)/python -m deploy.local token $(if $(filter command line,$(origin USER)),--user $(USER)) $(if $(ADMIN),--admin)

test: $(INSTALLED) ## Run all tests, on a real NATS, a real Postgres and real processes
	@$(BIN)/python -m pytest -p tests.together -n 3 --dist loadfile --no-loadscope-reorder

test-failed: $(INSTALLED) ## Run what failed in the last run once more, one test at a time
	@$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none

test-fast: $(INSTALLED) ## Run the tests that need no servers
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/unit tests/contract

# SCREENSHOTS=folder keeps a picture of every page there.
test-browser: $(INSTALLED) ## Run the tests of the console in the system's Chromium; make test does too: [SCREENSHOTS=folder]
	@$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile tests/browser

pictures: $(INSTALLED) ## Make the pictures of the console in README.md anew
	@$(BIN)/python -m tests.browser.pictures

coverage-keys: $(INSTALLED) ## Show that every line that decides about a secret is run by a test
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest tests/integration/keys tests/unit/test_keys_*.py tests/unit/test_sealing.py
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

check: $(INSTALLED) ## Lint, types, and whether the generated documents are up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy contracts services deploy tests
	@$(BIN)/python -m contracts.document --check

format: $(INSTALLED) ## Format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# With POSTGRES_URL (the role x402_keys) and MASTER_KEYS_FILE in the environment these work on that deployment, without them on
# the stack that runs in LOCAL_DIR.
rotate-master-key: $(INSTALLED) ## Put all keys under a new master key while everything runs; goes on where it was interrupted
	@$(BIN)/python -m $(if $(POSTGRES_URL),services.keys.rotate,deploy.local rotate-master-key)

master-key-in-use: $(INSTALLED) ## Say whether a master key is still needed: make master-key-in-use ID=k1
	@$(BIN)/python -m $(if $(POSTGRES_URL),services.keys.rotate --in-use,deploy.local master-key-in-use) $(ID)

verify-access-log: $(INSTALLED) ## Walk every owner's access log and name broken links: make verify-access-log [HEADS=file]
	@$(BIN)/python -m $(if $(POSTGRES_URL),services.keys.audit $(if $(HEADS),--heads $(HEADS)),deploy.local verify-access-log)

# With POSTGRES_URL (the role x402_executor) in the environment these work on that deployment.
reconcile: $(INSTALLED) ## Compare the receipts of the last day with what OpenRouter charged, now: make reconcile [DAYS=2]
	@$(BIN)/python -m $(if $(POSTGRES_URL),services.executor.reconcile,deploy.local reconcile) $(if $(DAYS),--days $(DAYS))

purge: $(INSTALLED) ## Say what is past its time, or all that USER sent and got; YES=1 deletes it: make purge [USER=alice] [YES=1]
	@$(BIN)/python -m $(if $(POSTGRES_URL),services.executor.purge,deploy.local purge) \
		$(if $(filter command line,$(origin USER)),--user '$(USER)') $(if $(YES),--yes)

documents: $(INSTALLED) ## Write contracts/schemas and contracts/asyncapi.json from the registry, the fault matrix and the Grafana board
	@$(BIN)/python -m contracts.document
	@$(BIN)/python -m tests.matrix.page
	@$(BIN)/python -m deploy.grafana.board

nats-permissions: $(INSTALLED) ## Write deploy/nats.conf from the registry: make nats-permissions [PUBLISHERS="demo other"]
	@$(BIN)/python -m contracts.permissions $(foreach name,$(PUBLISHERS),--publisher $(name))

compatibility: $(INSTALLED) ## Say what the current contracts break against BASE (default HEAD), and what to deploy first
	@$(BIN)/python -m contracts.compatibility --base $(or $(BASE),HEAD)

bench: $(INSTALLED) ## Measure calls per second, overhead, first token, CPU per token and searches, against the bare upstream
	@$(BIN)/python -m tests.bench

drill: $(INSTALLED) ## Kill everything with -9 under fifty executions at once, and check the books: make drill [ROUNDS=3] [SEED=1] [MINUTES=10]
	@$(BIN)/python -m tests.drill $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

soak: $(INSTALLED) ## Make N=100000 executions, and show what every process holds before, meanwhile and after: make soak [N=…] [MINUTES=12]
	@$(BIN)/python -m tests.drill.soak $(if $(N),--executions $(N)) $(if $(MINUTES),--minutes $(MINUTES))

lock: $(INSTALLED) ## Resolve pyproject.toml anew into requirements.lock (needs uv)
	@uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@! grep -nE 'https?://' requirements.lock

install-hooks: $(INSTALLED) ## Install the git hook that refuses a commit with something like a key in it
	@$(BIN)/pre-commit install

clean: ## Delete the virtual environment, caches and the local stack's data
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis $(LOCAL_DIR)
