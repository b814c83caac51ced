# The words that people and CI use. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo

help: ## list these words
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: ## ingest a text corpus, read it back by sendfile, compare, print the throughput (INPUT=path)
	$(CARGO) build --release --quiet -p loglane-cli -p loglane-tests
	@tests/demo.sh

PLOT_SECONDS ?= 5
plot: ## measure and draw docs/img/throughput.svg (run it on a quiet machine)
	$(CARGO) build --release --quiet -p loglane-cli -p loglane-tests
	@mkdir -p docs/img target
	@set -e; l="target/release/loglane bench"; s="--seconds $(PLOT_SECONDS) --json"; \
	{ $$l append $$s; $$l append --partitions 1000 $$s; $$l fetch $$s; \
	  $$l fetch --mode splice $$s; $$l fetch --mode copy $$s; } | tee target/plot.jsonl
	@target/release/plot bars <target/plot.jsonl >docs/img/throughput.svg

plot-durable: ## a minute of durable appends and restarts of up to 16 GB, drawn (needs 40 GB and 10 minutes)
	$(CARGO) build --release --quiet -p loglane-cli -p loglane-tests
	@mkdir -p docs/img target
	@set -eo pipefail; l="target/release/loglane bench --quiet"; \
	$$l append --class durable --in-flight 16 --seconds 60 --json | tee target/seconds.jsonl; \
	for run in "1G 1" "4G 1" "16G 1" "4G 1000" "4G 20000"; do set -- $$run; \
	  $$l restart --bytes $$1 --partitions $$2 --json; done | tee target/restart.jsonl
	@target/release/plot seconds <target/seconds.jsonl >docs/img/durable.svg
	@target/release/plot restart <target/restart.jsonl >docs/img/restart.svg

test: check unit loom fuzz-slice ## every test: lints, units, guarantees, Kafka, loom, a slice of fuzzing

check: ## formatting, lints and docs, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

unit: ## unit tests, guarantees, the real Kafka (skips with a message without Java 17+ and Maven)
	$(CARGO) test --workspace --no-fail-fast

loom: ## every interleaving of the lock-free index and the mailbox, with a planted bug for each guard
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test -p loglane --lib --release loom_

FUZZ_SECONDS ?= 20
fuzz-slice: ## fuzz each decoder for FUZZ_SECONDS (needs cargo-fuzz and a nightly toolchain)
	@tests/fuzz.sh $(FUZZ_SECONDS)

fuzz: ## fuzz each decoder for ten minutes
	@tests/fuzz.sh 600

CRASHES ?= 1000000
sim: ## a million simulated crashes, every fault at every I/O, planted bugs (SEED=n runs one life again)
	LOGLANE_SIM_CRASHES=$(CRASHES) $(CARGO) test --release -p loglane --lib sim:: -- --nocapture

CUTS_EXT4 ?= 10000
CUTS_XFS ?= 1000
CUTS_VOLATILE ?= 500
crash: ## cut the power under a running engine, thousands of times (root; skips with a message otherwise)
	@CARGO="$(CARGO)" CUTS_EXT4=$(CUTS_EXT4) CUTS_XFS=$(CUTS_XFS) CUTS_VOLATILE=$(CUTS_VOLATILE) \
		tests/crash.sh

header: ## write include/loglane.h anew from the documented Rust of ffi/
	UPDATE_HEADER=1 $(CARGO) test -p loglane-ffi --test header

clean: ## remove what was built
	rm -rf target .cache fuzz/target

.PHONY: help demo plot plot-durable test check unit loom fuzz-slice fuzz sim crash header clean
