# Everything runs in the checkout's own .venv; every target prepares what it needs and is quick the second time.
PYTHON := .venv/bin/python
ARGS ?=
SECONDS ?= 60
# What tests need beside what a server needs: fault injection, container tools, a registry and what it serves.
TESTED_WITH := strace runc runsc skopeo docker-registry busybox-static openssl nftables iproute2 curl nodejs microsocks tinyproxy-bin

# Set in many container images. Here hundreds of interpreters are started, and each would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench fuzz compat test-cgroup-v2 clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup:  ## Install what is missing, make .venv, build the templates
	@tools/setup.sh

demo: setup  ## See it work: a data job, then a tour of attacks
	@.venv/bin/ringfence demo $(ARGS)

# The template that only tests need is built while what only tests need is installed.
test: setup  ## Run all tests; ARGS="-k name" chooses
	@.venv/bin/ringfence templates build code-interpreter-v1 >/dev/null & built=$$!; \
	    tools/setup.sh $(TESTED_WITH); ready=$$?; wait $$built && exit $$ready
ifeq ($(strip $(ARGS)),)
	@tools/test.sh
else
	@$(PYTHON) -m pytest $(ARGS)
endif

check: setup  ## Lint, format, types, architecture
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest -q tests/test_architecture.py

bench:  ## Measure this machine, beside bubblewrap and runc, into out/bench.*
	@tools/setup.sh bubblewrap runc runsc || tools/setup.sh
	@.venv/bin/ringfence templates build code-interpreter-v1 >/dev/null
	@.venv/bin/ringfence bench --save out/bench.json --plot out/bench.png $(ARGS)

fuzz: setup  ## Feed the frame parser what nobody expects, for SECONDS=60
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check atheris
	@mkdir -p build/fuzz
	@cd build/fuzz && for target in ../../tests/fuzz/fuzz_*.py; do \
	    ../../$(PYTHON) $$target -max_total_time=$(SECONDS) . ../../tests/fuzz/corpus || exit 1; done

compat: setup  ## Compare 600 programs on the host and in every sandbox, into docs/compatibility.md (half an hour)
	@tools/setup.sh runc runsc
	@$(PYTHON) -m tests.compat.run $(ARGS)

test-cgroup-v2:  ## Run the limit tests in a small virtual machine that has only cgroup v2
	@tools/setup.sh qemu-system-x86
	@$(PYTHON) -m tests.cgroup_v2.run --jail $(ARGS)

clean:  ## Remove .venv and caches; templates and state stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
