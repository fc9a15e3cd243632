# make run    sets up what is needed and answers on 127.0.0.1:10040 with the shipped rules
# make check  style, types, directions of import
# make test   the checks, then every test (ARGS="-k reload" narrows them)
# make faults every fault of docs/reliability.md, at length (some 15 minutes): ARGS="-k mail" for some of them,
#             SOAK=10000000 for the number of requests of the soak; the table goes to build/faults.md
# make fuzz   looks for inputs that break a promise (docs/fuzzing.md), each target for FUZZ_RUNS executions or
#             FUZZ_SECONDS, whichever end first; FUZZ_TARGETS="protocol rules" for some of them
# make lock   writes requirements.lock anew: what a release is built with and runs on, by hash
# make audit  asks for known holes in what requirements.lock names; fails if it cannot ask about all of it
# make bench  what a request costs, beside the floor and the peers (docs/performance.md): BENCH=quick for a short run,
#             ROWS="decision reload" for some of it, BENCH_OUT=FOLDER for the results, BENCH_PUBLISH=1 to put them in docs/

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run check test faults fuzz bench lock audit clean

run: $(VENV)/run.stamp
	$(BIN)/policyd serve -c config/policyd.yaml

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict policyd
	$(BIN)/pytest tests/test_architecture.py

test: check
	$(BIN)/pytest $(ARGS)

faults: $(VENV)/test.stamp
	mkdir -p build
	FAULTS=long SOAK='$(SOAK)' FAULTS_TABLE=build/faults.md $(BIN)/pytest tests/faults -rs $(ARGS)

fuzz: $(VENV)/fuzz.stamp
	$(BIN)/python -m tests.fuzz $(FUZZ_RUNS:%=--runs %) $(FUZZ_SECONDS:%=--seconds %) $(FUZZ_SEED:%=--seed %) $(FUZZ_TARGETS)

bench: $(VENV)/run.stamp
	$(BIN)/python -m tests.bench $(BENCH:%=--%) $(if $(BENCH_OUT),--out '$(BENCH_OUT)') $(if $(BENCH_PUBLISH),--publish) $(ROWS)

lock: $(VENV)/run.stamp
	$(BIN)/pip install --quiet pip-tools
	sed '/^#/!d; /^# The following/,$$d' requirements.lock > requirements.lock.new
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --build-deps-for wheel --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file - pyproject.toml >> requirements.lock.new
	mv requirements.lock.new requirements.lock

audit: $(VENV)/run.stamp
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The project is installed in place, so that a changed file is a changed program; only other dependencies, or
# another Makefile, call for a new installation.
$(VENV)/run.stamp: pyproject.toml Makefile | $(BIN)/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml Makefile | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/fuzz.stamp: pyproject.toml Makefile | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test,fuzz]'
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "policyd needs Python 3.11 or newer; $(PYTHON) is older: try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
