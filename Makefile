# The front door. Each target builds what it needs first; nothing is needed beforehand but python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
# Where make is killed, what it runs is told; for the servers that this has started, see blocks/local/processes.py.
WITH_MAKE := exec $(shell setpriv --pdeathsig TERM true 2> /dev/null && echo setpriv --pdeathsig TERM)

.PHONY: demo up down status test live check format lock lock-engines install clean

demo: install ## Watch releases go to users under live traffic: the main job, on this machine
	$(WITH_MAKE) $(BIN)/skyferry demo $(ARGS)

up: install ## Start the embedded stack and leave it running
	$(BIN)/skyferry up $(ARGS)

down: install ## End everything that `make up` started
	$(BIN)/skyferry down $(ARGS)

status: install ## Say what of the stack is running
	$(BIN)/skyferry status $(ARGS)

test: install ## Every test that needs no root
	@# Three at a time on two cores: a third of the time a test waits for a server.
	$(WITH_MAKE) $(BIN)/pytest -n 3 --no-loadscope-reorder $(ARGS)

live: install ## The tests on real clusters: needs root, and Slurm, munge, sshd and rsync from Debian (minutes)
	$(WITH_MAKE) $(BIN)/pytest -m live -n 2 --no-loadscope-reorder $(ARGS)

check: install ## What people, pre-commit and CI share: format, lint, types, import rules, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(WITH_MAKE) $(BIN)/pytest -q -m "not server and not live" $(ARGS)

format: install ## Put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(BIN)/uv ## Resolve all dependencies anew, into the one lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' --upgrade -q -o requirements.lock

lock-engines: $(BIN)/uv ## What rented machines install, each package by its hash
	for engine in vllm llama_cpp; do \
		$(BIN)/uv pip compile deployments/engines/$$engine.in --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-annotate --custom-compile-command 'make lock-engines' --upgrade -q \
			-o deployments/engines/$$engine.txt || exit 1; done

install: $(INSTALLED)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	awk '/^uv==/ {on = 1; print; next} /^[^ ]/ {on = 0} on' requirements.lock > $(VENV)/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt

$(INSTALLED): requirements.lock pyproject.toml $(BIN)/uv
	@# Compiled at once: where Python writes no bytecode, each process would compile Prefect for seconds.
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

clean: ## Remove the environment
	rm -rf $(VENV)
