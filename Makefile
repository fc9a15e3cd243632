# make run    installs the packages that policyd needs, and answers on 127.0.0.1:10040 with the shipped rules
# make check  style, types (also of the tests), and quick tests of the source: imports, lock files, plain English
# make test   the checks, then every test (ARGS="-k reload" selects some)
# make unit   the quick tests, which need no root, in less than 30 s; run them after every edit
# make matrix `make run` and `make test` in clean roots of Debian 12 and 13; needs root and debootstrap
#             (RELEASES="trixie" for one of them; .ci/matrix says more)
# make newest the tests that need no Postfix, with the newest versions that pyproject.toml allows instead of the locked ones
# make faults every fault test of docs/reliability.md at full length (some 20 minutes): ARGS="-k mail" for some of them,
#             SOAK=10000000 for the number of requests of the soak; the table goes to build/faults.md
# make fuzz   looks for inputs that break a promise (docs/fuzzing.md), each target for FUZZ_RUNS executions or
#             FUZZ_SECONDS, whichever end first; FUZZ_TARGETS="protocol rules" for some of them
# make man    the manual pages, into build/man; needs pandoc
# make completions   completion for bash, zsh and fish, into build/completions. For both, POLICYD_PYTHON names an
#             interpreter that has the packages of requirements.lock, to build without a virtual environment
# make lock   writes the three lock files, with each package by hash: requirements.lock to run policyd,
#             requirements-test.lock and requirements-fuzz.lock
# make deb    the Debian package for the Debian release of this machine, in build/ (needs build-essential, debhelper, pandoc
#             and python3-venv)
# make deb-test  builds the package in clean roots of Debian 12 and 13, and tests install, upgrade, remove and purge on a
#             host with systemd (RELEASES="trixie" for one of them; .ci/deb says more); needs root and debootstrap
# make audit  checks the packages of requirements.lock for known vulnerabilities; also fails if it cannot check all of them
# make bench  compares policyd with a minimal server and with other policy services (docs/performance.md): BENCH=quick for
#             a short run, ROWS="decision reload" for some of it, BENCH_OUT=FOLDER for the results, BENCH_PUBLISH=1 to put
#             the results in docs/
# make clean  removes .venv, build and the caches

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Number of processes that run tests. JOBS=0: no process beside pytest (for --pdb).
JOBS ?= 2
PARALLEL = -n $(JOBS)

.PHONY: run check test unit matrix newest faults fuzz bench man completions lock deb deb-test audit clean

run: $(VENV)/run.stamp
	@echo 'The command policyd is $(BIN)/policyd; to find it as policyd: . $(BIN)/activate' >&2
	$(BIN)/policyd serve -c config/policyd.yaml

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py tests/test_lock.py tests/test_no_code.py tests/test_prose.py tests/test_reasons.py

test: check
	$(BIN)/pytest $(PARALLEL) $(ARGS)

unit: $(VENV)/test.stamp
	UNIT=1 $(BIN)/pytest $(PARALLEL) -m 'not slow' $(ARGS)

matrix:
	ARGS='$(ARGS)' .ci/matrix $(RELEASES)

newest:
	$(PYTHON) .ci/newest.py $(ARGS)

faults: $(VENV)/test.stamp
	mkdir -p build
	FAULTS=long SOAK='$(SOAK)' FAULTS_TABLE=build/faults.md $(BIN)/pytest tests/faults -rs $(ARGS)

fuzz: $(VENV)/fuzz.stamp
	$(BIN)/python -m tests.fuzz $(FUZZ_RUNS:%=--runs %) $(FUZZ_SECONDS:%=--seconds %) $(FUZZ_SEED:%=--seed %) $(FUZZ_TARGETS)

bench: $(VENV)/run.stamp
	$(BIN)/python -m tests.bench $(BENCH:%=--%) $(if $(BENCH_OUT),--out '$(BENCH_OUT)') $(if $(BENCH_PUBLISH),--publish) $(ROWS)

POLICYD_PYTHON ?= $(BIN)/python
# The prerequisite of `man` and `completions`: none if POLICYD_PYTHON names another interpreter.
RUNNABLE = $(if $(filter $(BIN)/python,$(POLICYD_PYTHON)),$(VENV)/run.stamp)

man: $(RUNNABLE)
	packaging/man/build build/man $(POLICYD_PYTHON)

completions: $(RUNNABLE)
	mkdir -p build/completions
	_POLICYD_COMPLETE=bash_source $(POLICYD_PYTHON) -m policyd >build/completions/policyd.bash
	_POLICYD_COMPLETE=zsh_source $(POLICYD_PYTHON) -m policyd >build/completions/_policyd
	_POLICYD_COMPLETE=fish_source $(POLICYD_PYTHON) -m policyd >build/completions/policyd.fish

# One lock file serves every supported Python: a marker limits a package to the versions of Python that need it. The
# comment at the head of each file is kept. requirements-test.lock has the same versions as requirements.lock.
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
  --no-emit-package colorama
# Prints the requirements under a key of pyproject.toml, one a line: $(call requirements,["build-system"]["requires"]).
requirements = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))$(1), sep="\n")'
new_lock = sed '/^\#/!d' $(1) > $(1).new && $(2) >> $(1).new && mv $(1).new $(1)

lock: $(VENV)/run.stamp
	$(BIN)/pip install --quiet uv
	$(call new_lock,requirements.lock,$(call requirements,["build-system"]["requires"]) | $(UV_COMPILE) pyproject.toml -)
	$(call new_lock,requirements-test.lock,$(call requirements,["build-system"]["requires"]) | \
	  $(UV_COMPILE) --extra test --constraint requirements.lock pyproject.toml -)
	$(call new_lock,requirements-fuzz.lock,$(call requirements,["project"]["optional-dependencies"]["fuzz"]) | \
	  $(UV_COMPILE) -)

deb:
	packaging/deb

deb-test:
	.ci/deb $(RELEASES)

audit: $(VENV)/run.stamp
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Only the versions in a lock file are installed, by hash. The project itself is installed in place, so that an edit takes
# effect at once; only a changed lock file or Makefile causes a new installation.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes
IN_PLACE = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

$(VENV)/run.stamp: requirements.lock pyproject.toml Makefile | $(BIN)/pip
	$(INSTALL) -r requirements.lock
	$(IN_PLACE)
	touch $@

$(VENV)/test.stamp: requirements-test.lock pyproject.toml Makefile | $(BIN)/pip
	$(INSTALL) -r requirements-test.lock
	$(IN_PLACE)
	touch $@

$(VENV)/fuzz.stamp: requirements-fuzz.lock $(VENV)/test.stamp
	$(INSTALL) -r requirements-fuzz.lock
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "policyd needs Python 3.11 or newer; $(PYTHON) is older: try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
