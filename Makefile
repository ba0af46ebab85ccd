# Each target does its own set-up, on a machine with Python 3.11+, make, and apt or Docker.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/installed
RIVALS := $(VENV)/installed-bench
WITH_SERVERS := tests/servers/with_servers.sh
# The tests wait more than they work: three of them at a time keep two cores half busy.
PYTEST_ARGS ?= --numprocesses 3 --dist worksteal
BENCH_ARGS ?=

.PHONY: install test long soak demo bench bench-peers bench-guardian simulate mutants check clean
.DEFAULT_GOAL := test

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "leadership needs Python 3.11 or later as $(PYTHON): make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: install
	$(WITH_SERVERS) $(RUN)/python -m pytest $(PYTEST_ARGS)

# What needs minutes: a server's default times, which cannot be made shorter, and large rounds.
long: install
	$(WITH_SERVERS) $(RUN)/python -m pytest -m long $(PYTEST_ARGS)

# make soak MINUTES=60 [STORE=etcd] [SEED=n]: faults for so long, on one store or on each in turn.
# Those that there are: .venv/bin/python -m tests.faults --kinds
soak: install
	$(WITH_SERVERS) $(RUN)/python -m tests.faults play --minutes $(or $(MINUTES),5) \
	    --seed $(or $(SEED),1) $(addprefix --store=,$(STORE))

demo: install
	$(RUN)/leadership demo

# make bench QUICK=1 is a small round of all; the real one needs a machine of its own.
bench: $(RIVALS)
	$(WITH_SERVERS) $(RUN)/python -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

# What the benchmark compares with, which nothing else needs.
$(RIVALS): $(INSTALLED)
	$(RUN)/python -m pip install --quiet --editable '.[dev,bench]'
	@touch $@

# The cuts need root on Linux; half an hour on an idle machine.
bench-peers: install
	$(RUN)/python -m bench.peers_failover
	$(RUN)/python -m bench.peers_keys
	$(RUN)/python -m bench.peers_attacks
	$(RUN)/python -m bench.peers_faults

bench-guardian: install
	$(WITH_SERVERS) $(RUN)/python -m bench.guardian $(BENCH_ARGS)

# make simulate SEEDS=100000 [FROM=0] plays many schedules of the peers core; SEED=n plays one, to read.
simulate: install
	@$(RUN)/python -m tests.simulate SEEDS=$(SEEDS) FROM=$(FROM) SEED=$(SEED)

# The peers core with each rule taken out: by how many seeds it is caught.
mutants: install
	@$(RUN)/python -m tests.quorum_mutant_table

check: install
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy

clean:
	@if docker info >/dev/null 2>&1; then docker compose down --volumes; fi
	rm -rf $(VENV) .servers soak build dist *.egg-info
	rm -rf .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
