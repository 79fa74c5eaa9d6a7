# What people and CI call. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO := cargo
# One profile serves tests and images, and always the whole workspace: a part
# of it would be built with fewer features of what is shared, all over again.
BUILD := $(CARGO) build --release --workspace --bins
TEST := $(CARGO) test --release --workspace --no-fail-fast
# The sidecar with guards that its tests remove; nothing else is built for it, and
# nobody waits for it.
UNGUARDED := $(CARGO) build --release --workspace --features sidecar/unguarded --bin toolward-sidecar-unguarded \
	--config profile.release.package.sidecar.opt-level=0 --config profile.release.package.sidecar.codegen-units=16
# Whose load generator must not be what is measured.
BENCH := $(BUILD) --config profile.release.package.e2e.opt-level=3
LINT := $(CARGO) clippy --release --workspace
BIN := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/release
E2E := $(BIN)/e2e
# The tests have a node of their own: a demonstration that runs is left alone.
TEST_INSTANCE := test $(CURDIR)
# How many cases a property test of `make prove` tries, how often it runs each
# fuzz target, how many messages all parsers read, and with how many calls it
# looks for tokens that leave the sidecar.
CASES ?= 100000
RUNS ?= 1000000
BODIES ?= 400000
CANARIES ?= 10000
# And of `make prove-cluster`: pods that are injected, and certificates.
PODS ?= 10000
ROTATIONS ?= 100
# How often `make bench` measures each target, and for how many seconds.
ROUNDS ?= 5
SECONDS ?= 3

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Show it all: a node, the chart, two MCP servers, a client (root)
	@$(BUILD)
	@$(E2E) demo

.PHONY: demo-down
demo-down: ## Stop the node of the demonstration; nothing stays but the cache (root)
	@[ -x $(E2E) ] || $(BUILD)
	@$(E2E) down

.PHONY: check
check: ## Format, lints, and all tests that need neither root nor a cluster
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(BUILD)
	$(LINT) --all-targets -- -D warnings
	$(LINT) --test cluster -- -D warnings
	$(UNGUARDED)
	$(TEST)
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  echo '$(CARGO) deny check licenses bans sources'; $(CARGO) deny check licenses bans sources; \
	else echo 'cargo-deny is not installed: licences and bans are not checked'; fi

.PHONY: test
test: check test-cluster ## Everything, with a node of its own that goes afterwards (root)

.PHONY: test-cluster
test-cluster: ## The tests on a real cluster (root)
	@$(BUILD)
	@export TOOLWARD_INSTANCE='$(TEST_INSTANCE)'; \
	trap 'status=$$?; if [ $$status != 0 ]; then $(E2E) logs || true; fi; $(E2E) down; exit $$status' EXIT; \
	$(E2E) up; \
	$(E2E) images --no-build; \
	$(TEST) --test cluster -- --test-threads=4 $(CLUSTER)

.PHONY: prove-cluster
prove-cluster: ## Generated pods and rotations at length on a real cluster; PODS, ROTATIONS (root)
	TOOLWARD_PODS=$(PODS) TOOLWARD_ROTATIONS=$(ROTATIONS) $(MAKE) test-cluster \
	  CLUSTER='--nocapture the_api_server_accepts no_pod_is_refused'

.PHONY: prove
prove: ## Property tests, hostile clients, fuzz targets, parsers, canaries, clients at length; CASES, RUNS, BODIES, CANARIES
	PROPTEST_CASES=$(CASES) PROPTEST_MAX_GLOBAL_REJECTS=$(CASES) $(TEST) --lib --test properties
	TOOLWARD_FUZZ_RUNS=$(RUNS) $(TEST) --test fuzz -- --nocapture
	TOOLWARD_BODIES=$(BODIES) $(TEST) --test parsers -- --nocapture
	TOOLWARD_CANARIES=$(CANARIES) $(TEST) --test identity no_token -- --nocapture
	TOOLWARD_ALL_CLIENTS=1 $(TEST) --test clients -- --nocapture
	HOSTILE_CASES=$(CASES) $(TEST) --test hostile -- --include-ignored --nocapture

.PHONY: bench
bench: ## What the sidecar costs, beside nginx; ROUNDS=5 SECONDS=3 (root, once)
	@$(BENCH)
	@$(E2E) bench --rounds $(ROUNDS) --seconds $(SECONDS)

.PHONY: bench-profile
bench-profile: ## Where the sidecar's time goes, with perf; SECONDS=3 (root)
	@$(BENCH)
	@$(E2E) bench --profile --seconds $(SECONDS)

.PHONY: manifests
manifests: ## Write what is made from the types and the chart
	@$(BUILD)
	@$(E2E) manifests

.PHONY: clean
clean: ## Remove what Cargo built; the cache of the node's programs stays
	$(CARGO) clean
