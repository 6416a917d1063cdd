# `make test` and `make demo` are the two commands: each installs what it needs (Debian packages
# too, when root) and runs on a fresh Debian 12 machine. `make check` is the quick one.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where the caller's environment forbids Python to keep what it compiled (as container images like
# to), each test process would compile and rewrite every test anew: a fifth of the time.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What the tests and the demo run; nothing of it is needed on a server that runs bootd.
APT_PACKAGES := python3-venv make iproute2 tcpdump cpio curl zstd procps \
	qemu-system-x86 ipxe-qemu ipxe ovmf dnsmasq-base busybox-static \
	systemd-container mmdebstrap squashfs-tools openssl openssh-client tftp-hpa atftp wget shellcheck \
	skopeo umoci

.PHONY: help setup apt check format lint types unit integration firmware container test demo bench \
	lock install uninstall clean

help: ## show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: apt $(STAMP) ## install the Debian packages (as root) and the virtual environment

apt:
	@tests/apt.sh $(APT_PACKAGES)

$(STAMP): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Side by side, each printed in one piece when it ends; all of them are told, also when one fails.
check: $(STAMP) ## format, lint, types, unit tests: before every commit
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target --keep-going lint types unit

format: $(STAMP) ## put the code into the project's format
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

lint: $(STAMP)
	@$(BIN)/ruff format --check -q . && $(BIN)/ruff check -q . && $(BIN)/lint-imports --no-cache >/dev/null \
		|| { $(BIN)/ruff format --check . ; $(BIN)/ruff check . ; $(BIN)/lint-imports --no-cache; exit 1; }

types: $(STAMP)
	@$(BIN)/mypy

# In two processes: while one waits for a timer or a server, the other works. Of the generated cases,
# which are the same on every run, about a third: `make test` takes all.
unit: export BOOTD_EXAMPLES ?= 30
unit: $(STAMP)
	@$(BIN)/pytest -q -n 2 --dist worksteal -m "not integration and not firmware and not container"

integration: setup ## the whole daemon and other servers, in network namespaces (root)
	@$(BIN)/pytest -q -m "integration and not firmware and not container"

container: setup ## the unit under a real systemd (root)
	@$(BIN)/pytest -q -m "container and not firmware"

firmware: setup ## machines in QEMU, from power-on to the node that is up (root)
	@$(BIN)/pytest -q -m firmware

test: setup lint types ## everything: installs what it needs, then lint, types, unit, integration, firmware
	@test "$$(id -u)" = 0 || { echo "make test: run it as root: it makes network namespaces and a container" >&2; exit 2; }
	@$(BIN)/pytest -q

demo: setup ## boot a virtual diskless machine by PXE, live (IMAGE=debian: a whole Debian)
	@test "$$(id -u)" = 0 || { echo "make demo: run it as root: it makes network namespaces and taps" >&2; exit 2; }
	@$(BIN)/python -m tests.lab.demo $(if $(IMAGE),--image $(IMAGE)) $(DEMO_ARGS)

bench: setup ## every figure in docs/performance.md (root; minutes)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

lock: ## renew requirements/*.txt from pyproject.toml
	@tests/lock.sh

install: ## install daemon, unit, user, folders and example files (root)
	@sh systemd/install.sh

uninstall: ## take them away; /etc/bootd and /var/lib/bootd stay
	@sh systemd/uninstall.sh

clean: ## remove what was built here
	@rm -rf $(VENV) build .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench -name __pycache__ -prune -exec rm -rf {} +
