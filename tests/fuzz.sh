#!/usr/bin/env bash
# Fuzzes each target for the given number of seconds. Says what it skips, and why.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}

if ! cargo fuzz --version >/dev/null 2>&1 || ! cargo +nightly --version >/dev/null 2>&1; then
    if [[ -n ${CI:-} ]] && cargo +nightly --version >/dev/null 2>&1; then
        echo "fuzz: installing cargo-fuzz"
        cargo install cargo-fuzz --locked --quiet
    else
        echo "fuzz: SKIPPED: needs a nightly toolchain (rustup toolchain install nightly)" \
            "and cargo-fuzz (cargo install cargo-fuzz --locked)"
        exit 0
    fi
fi
# The run-time of the sanitizer finds its way only with a nightly of its own.
unset RUSTFLAGS
for target in batch codec directory; do
    echo "fuzz: $target for $seconds s"
    log=$(mktemp)
    if ! cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=65536 \
        -rss_limit_mb=4096 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        exit 1
    fi
    grep -E "stat::(number_of_executed_units|peak_rss_mb)" "$log"
    rm -f "$log"
done
