# The front door. `make demo` and `make test` need nothing but Python >= 3.11, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := .cache/installed
RELEASE := .cache/release
DOCKER ?= docker

# Where `make install` puts things; packagers set DESTDIR, and then nothing else is touched.
DESTDIR ?=
prefix ?= /usr
sysconfdir ?= /etc
ROOT := $(DESTDIR)$(prefix)
UNITS := syncd.service syncd.socket syncd-credentials.socket
STAGE ?= build/install
AS_INSTALLED ?= PYTHONPATH=$(STAGE)/syncd $(STAGE)/venv/bin/python -B
DOC := $(ROOT)/share/doc/syncd
BASH_COMPLETION := share/bash-completion/completions/syncd
ZSH_COMPLETION ?= share/zsh/site-functions/_syncd
FISH_COMPLETION := share/fish/vendor_completions.d/syncd.fish

# what only `make soak` needs
SOAK := 'atheris>=3,<4'

.PHONY: demo test bench soak test-system test-cluster lint format openapi lock dist image audit install install-files uninstall clean

demo: $(VENV)/.runtime
	$(BIN)/python -m syncd demo --rotations 5 --interval 500ms

test: $(VENV)/.dev
	$(BIN)/coverage run --data-file=.coverage -m pytest tests/unit/core -q
	$(BIN)/coverage report --fail-under=100
	$(BIN)/python -m pytest tests/unit --ignore=tests/unit/core -q -n 2
	$(BIN)/python -m pytest tests/integration -q -n 3 --dist worksteal
	$(BIN)/python -m pytest tests/faults -q -n 3 --dist worksteal

# the tests of faults at full size, which takes an hour or more; as root, for mounts and other users
soak: $(VENV)/.dev
	$(BIN)/pip install -q --disable-pip-version-check $(SOAK)
	SYNCD_SOAK=1 $(BIN)/python -m pytest tests/faults -q -p no:cacheprovider $(ARGS)

# Boots systemd, builds and runs the image: needs root, and installs what it needs (Debian).
test-system: $(VENV)/.system
	tests/system/prepare
	$(BIN)/python -m pytest tests/system -v -s -rs --durations=10 --timeout=600

# Builds Kubernetes (10 minutes, once) and runs the manifests in it: needs root, Go and Debian. What it
# builds is kept in ~/.cache/syncd-test (5 GB with Go's own caches).
test-cluster: $(VENV)/.system
	tests/cluster/prepare
	PYTHONPATH=tests:. $(BIN)/python -m support.cluster.binaries
	$(BIN)/python -m pytest tests/cluster -v -s -rs --durations=10 --timeout=300

# BENCH="--effort quick" takes five minutes, BENCH="--only idle" measures one subject
bench: $(VENV)/.dev $(INSTALLED)/.syncd
	command -v inotifywait curl > /dev/null || apt-get install -qq -y inotify-tools curl
	$(BIN)/python -m benchmarks --python $(INSTALLED)/bin/python $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.dev
	$(BIN)/python docs/openapi.py > docs/openapi.json

lock: $(VENV)/.dev
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --group pyproject.toml:system -c requirements-dev.lock -o requirements-system.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --no-annotate --group pyproject.toml:release -c requirements-dev.lock -o requirements-release.lock

# A release with SBOM, provenance and checksums, from a commit: see SECURITY.md.
dist: $(RELEASE)/.tools
	$(RELEASE)/bin/python release/build.py

# The image and its SBOM, with DOCKER=docker or podman: see SECURITY.md.
image: $(RELEASE)/.tools
	DOCKER=$(DOCKER) $(RELEASE)/bin/python release/image.py

# asks the PyPI for known vulnerabilities of what requirements.lock pins
audit: $(RELEASE)/.tools
	$(RELEASE)/bin/pip-audit --disable-pip --require-hashes -r requirements.lock $(ARGS)

$(RELEASE)/.tools: requirements-release.lock
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements-release.lock
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "syncd needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/.dev: requirements.lock requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock -r requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $(VENV)/.runtime $@

# A directory of its own with all that syncd imports, for the interpreter that PYTHON is.
install:
	rm -rf $(STAGE)
	$(PYTHON) -m venv $(STAGE)/venv
	$(STAGE)/venv/bin/python -c 'import sys; print(sys._base_executable)' > $(STAGE)/interpreter
	@! grep -E '^/(home|root)/' $(STAGE)/interpreter || { \
	  echo "syncd's user cannot run this Python; try make install PYTHON=/usr/bin/python3" >&2; exit 1; }
	$(STAGE)/venv/bin/pip install -q --disable-pip-version-check --require-hashes --no-compile \
	  --only-binary :all: --target $(STAGE)/syncd -r requirements.lock
	cp -R syncd $(STAGE)/syncd/
	rm -rf $(STAGE)/syncd/bin
	find $(STAGE)/syncd -name __pycache__ -prune -exec rm -rf {} +
	$(STAGE)/venv/bin/python -m compileall -q -s $(STAGE) -p $(prefix)/lib $(STAGE)/syncd
	install -d $(ROOT)/lib
	rm -rf $(ROOT)/lib/syncd
	cp -R $(STAGE)/syncd $(ROOT)/lib/
	$(MAKE) --no-print-directory install-files INTERPRETER="$$(cat $(STAGE)/interpreter)"
	test -e $(DESTDIR)$(sysconfdir)/syncd/syncd.yaml || \
	  install -D -m 0644 systemd/syncd.yaml $(DESTDIR)$(sysconfdir)/syncd/syncd.yaml
ifeq ($(DESTDIR),)
	systemd-sysusers syncd.conf
	systemd-tmpfiles --create syncd.conf
	systemctl daemon-reload
endif

# All but that directory and the configuration: also what the packages of `make dist` install.
# AS_INSTALLED is a Python that can import syncd, INTERPRETER the one of the users.
install-files:
	install -d $(STAGE) $(ROOT)/bin $(ROOT)/lib/systemd/system $(DOC)/docs $(DOC)/examples
	printf '#!%s -I\nimport sys\n\nsys.path.insert(0, "$(prefix)/lib/syncd")\n\nfrom syncd.commands.main import main\n\nmain()\n' \
	  "$(INTERPRETER)" > $(STAGE)/command
	install -m 0755 $(STAGE)/command $(ROOT)/bin/syncd
	for unit in $(UNITS); do \
	  sed 's|=/usr/|=$(prefix)/|' systemd/$$unit > $(STAGE)/$$unit && \
	  install -m 0644 $(STAGE)/$$unit $(ROOT)/lib/systemd/system/ || exit 1; done
	install -D -m 0644 systemd/sysusers.conf $(ROOT)/lib/sysusers.d/syncd.conf
	install -D -m 0644 systemd/tmpfiles.conf $(ROOT)/lib/tmpfiles.d/syncd.conf
	rm -rf $(STAGE)/manual
	$(AS_INSTALLED) release/manual.py $(STAGE)/manual
	gzip -9n $(STAGE)/manual/man?/*
	install -d $(ROOT)/share/man/man1 $(ROOT)/share/man/man5
	install -m 0644 $(STAGE)/manual/man1/* $(ROOT)/share/man/man1/
	install -m 0644 $(STAGE)/manual/man5/* $(ROOT)/share/man/man5/
	install -D -m 0644 $(STAGE)/manual/completions/bash $(ROOT)/$(BASH_COMPLETION)
	install -D -m 0644 $(STAGE)/manual/completions/zsh $(ROOT)/$(ZSH_COMPLETION)
	install -D -m 0644 $(STAGE)/manual/completions/fish $(ROOT)/$(FISH_COMPLETION)
	install -m 0644 README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE $(DOC)/
	install -m 0644 $(filter-out %.py,$(wildcard docs/*.*)) $(DOC)/docs/
	rm -rf $(DOC)/docs/examples $(DOC)/kubernetes $(DOC)/observability
	cp -R docs/examples $(DOC)/docs/
	cp -R kubernetes observability $(DOC)/
	chmod -R u=rwX,go=rX $(DOC)
	install -m 0644 systemd/syncd.yaml systemd/provision-owner.conf $(DOC)/examples/

# Leaves the configuration, the ledger and the user: remove /etc/syncd and /var/lib/syncd yourself.
uninstall:
ifeq ($(DESTDIR),)
	systemctl disable --now $(UNITS)
endif
	rm -rf $(ROOT)/lib/syncd $(DOC)
	rm -f $(ROOT)/bin/syncd $(ROOT)/lib/sysusers.d/syncd.conf $(ROOT)/lib/tmpfiles.d/syncd.conf
	rm -f $(ROOT)/share/man/man1/syncd.1.gz $(ROOT)/share/man/man1/syncd-*.1.gz
	rm -f $(ROOT)/share/man/man5/syncd.yaml.5.gz
	rm -f $(addprefix $(ROOT)/,$(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION))
	rm -f $(addprefix $(ROOT)/lib/systemd/system/,$(UNITS))
ifeq ($(DESTDIR),)
	systemctl daemon-reload
endif

$(VENV)/.system: requirements-system.lock $(VENV)/.dev
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-system.lock
	touch $@

# syncd as users have it, without what development brings along
$(INSTALLED)/.syncd: requirements.lock pyproject.toml $(shell find syncd -name '*.py') | $(VENV)/.dev
	test -x $(INSTALLED)/bin/python || $(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w $(INSTALLED) .
	$(INSTALLED)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall $(INSTALLED)/*.whl
	touch $@

clean:
	rm -rf $(VENV) build .cache .coverage* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
