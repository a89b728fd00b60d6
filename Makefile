# Two commands: `make serve` installs everything and serves, `make test` installs everything and runs all checks.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
HOST ?= 127.0.0.1
PORT ?= 8000
PROXIES := $(VENV)/proxies

NATIVE := $(wildcard _speedups/*.pyx _speedups/*.h _speedups/*.hpp)

.PHONY: serve setup test inside outside reading lint types imports stubs pytest chaos compat fuzz lock wheel clean

serve: setup
	$(BIN)/hypercorn trioserve.app:app --bind $(HOST):$(PORT)

# Two at a time, of about the same length: what reads the code and then the tests that compute, and those that run servers.
INSIDE := $(addprefix tests/,benchmarks builtin core emu examiner grammars kernels model openapi output parsers prompt protocol \
	sampling scheduler settings speedups worker)

test: setup $(PROXIES)/.unpacked
	@$(MAKE) --no-print-directory --jobs=2 inside outside

inside: reading
	$(BIN)/python -m pytest $(INSIDE)

outside: setup $(PROXIES)/.unpacked
	$(BIN)/python -m pytest $(INSIDE:%=--ignore=%)

reading: setup
	@for check in lint types imports stubs; do $(MAKE) --no-print-directory $$check || exit 1; done

setup: $(VENV)/.built

# Dependencies first, pinned with their hashes; torch without, which is another build on each kind of machine; then the package itself, whose Cython modules are compiled in place.
$(VENV)/.installed: requirements.lock constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) is too old, 3.11 is needed: make PYTHON=python3.11"; exit 1; }
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed: install gcc and g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (a few minutes the first time)"
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install -c constraints.txt torch==2.13.0
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	@echo "compiling the Cython modules"
	@rm -rf build trioserve/_speedups/*.so
	$(PIP) install --no-build-isolation --no-deps --force-reinstall -e .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --config setup.cfg

stubs: setup
	$(BIN)/python -m mypy.stubtest $(patsubst _speedups/%.pyx,trioserve._speedups.%,$(wildcard _speedups/*.pyx))

pytest: setup $(PROXIES)/.unpacked
	$(BIN)/python -m pytest

# What the tests of deploy/ run in front of servers: Debian's packages, unpacked and not installed. Without them, those of
# the machine are used, and tests of what it has not are left out.
PACKAGES := nginx nginx-common haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1

$(PROXIES)/.unpacked: $(VENV)/.installed
	@rm -rf $(PROXIES) && mkdir -p $(PROXIES)/packages
	@cd $(PROXIES)/packages && { apt-get -qq download $(PACKAGES) || { apt-get -qq update && apt-get -qq download $(PACKAGES); }; } \
		>/dev/null 2>&1 || echo "nginx and HAProxy cannot be fetched here"
	@for package in $(PROXIES)/packages/*.deb; do test ! -e "$$package" || dpkg -x "$$package" $(PROXIES); done
	@touch $@

# Not part of `test`: clients in environments of their own, one for each major version of the openai package that they
# want, some 600 MB together. Needs Java.
COMPAT := $(VENV)/compat

compat: setup $(COMPAT)/openai2/.installed $(COMPAT)/openai3/.installed
	$(BIN)/python -m tests.compat $(COMPAT)/openai2/bin/python $(COMPAT)/openai3/bin/python

$(COMPAT)/%/.installed: tests/compat/%.txt
	test -x $(COMPAT)/$*/bin/python || $(PYTHON) -m venv $(COMPAT)/$*
	$(COMPAT)/$*/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

# Not part of `test`, which has short runs of both: schemathesis against the server for FUZZ_SECONDS, then each target of
# tests/fuzz/targets for FUZZ_TARGET_SECONDS, led by coverage: make fuzz FUZZ_SECONDS=3600 FUZZ_TARGET_SECONDS=600
FUZZ_SECONDS ?= 600
FUZZ_TARGET_SECONDS ?= 60
FUZZ_TARGETS ?= $(patsubst tests/fuzz/targets/%.py,%,$(filter-out %/__init__.py,$(wildcard tests/fuzz/targets/*.py)))

fuzz: setup $(VENV)/.atheris
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)
	@for target in $(FUZZ_TARGETS); do echo "fuzzing $$target"; \
		$(BIN)/python -m tests.fuzz.guided $$target $(VENV)/fuzz/$$target $(FUZZ_TARGET_SECONDS) || exit 1; done

$(VENV)/.atheris: $(VENV)/.installed
	$(PIP) install atheris==3.0.0
	@touch $@

# Not part of `test`, which has a short form of it: make chaos CHAOS_ROUNDS=5
CHAOS_ROUNDS ?= 1

chaos: setup
	$(BIN)/python -m tests.chaos --rounds $(CHAOS_ROUNDS)

# After a change of constraints.txt. torch is left out: see above.
lock:
	test -x $(VENV)/lock/bin/pip-compile || { $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip install --quiet pip-tools; }
	grep -v '^torch==' constraints.txt | sed -E "s/^(cuda|cupy|nvidia)-.*/& ; sys_platform == 'linux'/" > $(VENV)/requirements.in
	@echo "# What constraints.txt pins, but torch, with the hashes of what may be installed for it: made by \`make lock\`." > requirements.lock
	$(VENV)/lock/bin/pip-compile --quiet --generate-hashes --no-annotate --no-header --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-options -o - $(VENV)/requirements.in >> requirements.lock

wheel: setup
	$(PIP) wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf $(VENV) build dist *.egg-info trioserve/_speedups/*.so _speedups/*.c _speedups/*.cpp
