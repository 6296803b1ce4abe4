# `make up` and `make test` are all that a fresh machine needs; both install what is missing and say so.
# The virtual environment is .venv; a stamp in it tells for which set-up it was made.

BIN := .venv/bin
MOUNTPOINT ?= mnt
# Where `make bench` works, and what else it compares: PEERS="gluster=/mnt/g moosefs=/mnt/m".
BENCH_DIR ?= .bench
PEERS ?=
PARTS := setup.cfg pyproject.toml tools/setup.sh

.DEFAULT_GOAL := help
.PHONY: help up down status test test-long soak fault-sweep chaos sim sim-mutants programs posix xfstests ltp demo transcript story-xml evaluate bench bench-micro bench-curves lint format types imports clean distclean

help:
	@echo 'make up     start a local cluster and mount it on ./$(MOUNTPOINT)'
	@echo 'make down   unmount and stop it; the files stay for the next make up'
	@echo 'make test   run all tests but the longest'
	@echo 'make demo   play the story of the README on a throwaway cluster'
	@echo 'make sim    simulate SEEDS=1000 lives of a whole cluster with faults'
	@echo 'others:     status test-long soak fault-sweep chaos sim-mutants evaluate bench bench-micro bench-curves programs posix xfstests ltp transcript story-xml lint format types clean distclean'

up: .venv/run.stamp
	@$(BIN)/quorumfs up $(if $(filter command line environment,$(origin MOUNTPOINT)),"$(MOUNTPOINT)")

down: .venv/run.stamp
	@$(BIN)/quorumfs down

status: .venv/run.stamp
	@$(BIN)/quorumfs status

demo: .venv/run.stamp
	@$(BIN)/python -m tools.demo

# The README's story is what the demo printed last.
transcript: .venv/run.stamp
	@$(BIN)/python -m tools.demo --readme README.md

# The whole gibibyte by XML as well, which takes minutes.
story-xml: .venv/test.stamp
	@QUORUMFS_STORY_FULL=1 $(BIN)/python -m pytest tests/mount/test_story.py -k xml -m 'long or not long'

evaluate: .venv/run.stamp
	@$(BIN)/quorumfs evaluate

# A local directory, the peers that are mounted, and a fresh cluster; all but the peers on one disk.
bench: .venv/run.stamp
	@mkdir -p $(BENCH_DIR)
	@$(BIN)/quorumfs bench --cluster $(BENCH_DIR) local=$(BENCH_DIR) $(PEERS) $(BENCH_OPTIONS)

bench-micro: .venv/run.stamp
	@mkdir -p $(BENCH_DIR)
	@$(BIN)/quorumfs bench --micro --cluster $(BENCH_DIR) $(BENCH_OPTIONS)

bench-curves: .venv/run.stamp
	@mkdir -p $(BENCH_DIR) docs/performance
	@$(BIN)/quorumfs bench --curves docs/performance --cluster $(BENCH_DIR) $(BENCH_OPTIONS)

# So many at a time, since most of them wait; each module stays together, as do the clusters that its tests share.
TEST_JOBS ?= 3
test: .venv/test.stamp
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadscope $(TESTS)

# The tests that `make test` leaves out for their time; `make programs` has those of programs.
test-long: .venv/test.stamp
	@$(BIN)/python -m pytest -m long tests --ignore tests/programs

# Long random sequences of calls against a local directory; QUORUMFS_SEED plays one again, QUORUMFS_SOAK sets how many.
soak: .venv/test.stamp
	@QUORUMFS_SOAK=$${QUORUMFS_SOAK:-300} $(BIN)/python -m pytest -s --timeout 0 tests/cluster/test_library_twins.py tests/mount/test_mount_twins.py

# The whole cluster in one process, with virtual time: SEEDS of them from FIRST on; see docs/simulation.md.
SEEDS ?= 1000
FIRST ?= 1
sim: .venv/test.stamp
	@$(BIN)/python -m tests.sim --seeds $(SEEDS) --first $(FIRST)

# Bugs put in on purpose, and how many seeds it takes to find each.
sim-mutants: .venv/test.stamp
	@$(BIN)/python -m tests.sim --mutants --seeds $(SEEDS) --first $(FIRST)

# git, compilers, databases, stress-ng and so on, on a mount with five servers: takes many minutes.
programs: .venv/programs.stamp
	@$(BIN)/python -m pytest tests/programs -m 'long or not long'

# One fault at a time, on disk and on the way; makes the tables of docs/reliability.md. PART=files, messages, disks or metadata: only that.
fault-sweep: .venv/test.stamp
	@$(BIN)/python -m tests.fault_sweep $(if $(PART),--part $(PART)) --update docs/reliability.md

# A real cluster and two mounts under load for MINUTES, while processes, disks and the network are broken; by root.
# CHAOS_OPTIONS="--mounts 1": with one mount, which tells its changes without a call.
MINUTES ?= 10
chaos: .venv/test.stamp
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(CHAOS_OPTIONS)

# pjdfstest, whose sources are in the directory that PJDFSTEST names: see docs/posix.md. KILL_EVERY=20 kills servers.
posix: .venv/test.stamp
	@$(BIN)/python -m tests.posix $(PJDFSTEST) $(if $(KILL_EVERY),--kill-every $(KILL_EVERY))

# xfstests, built in the directory that XFSTESTS names: see docs/posix.md. TESTS="generic/001 ...": only these.
xfstests: .venv/test.stamp
	@$(BIN)/python -m tests.xfstests $(XFSTESTS) $(TESTS)

# The Linux Test Project's tests of files, built in the directory that LTP names: see docs/posix.md. TESTS="lseek01 fs": only these.
ltp: .venv/test.stamp
	@$(BIN)/python -m tests.ltp $(LTP) $(TESTS)

lint: .venv/test.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/test.stamp
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: .venv/test.stamp
	@$(BIN)/mypy

imports: .venv/test.stamp
	@$(BIN)/python -m pytest -q tests/unit/test_imports.py

.venv/run.stamp: $(PARTS)
	@tools/setup.sh run

.venv/test.stamp: $(PARTS)
	@tools/setup.sh test

.venv/programs.stamp: $(PARTS)
	@tools/setup.sh programs

# clean leaves the cluster's files alone; distclean takes the environment away too.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -xdev -name __pycache__ -not -path './.venv/*' -not -path './mnt/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
