#!/usr/bin/env bash
# Tries the harness itself, end to end, on 100,000 records: each check passes on Kafka's own directory, and each
# is shown to fail when it should. The engine's tests may then trust the commands. Prints how long each step took.
# usage: selftest.sh [work-directory]      (default: a new one, removed at the end)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=$here/run.sh
records=${LOGLANE_KAFKA_RECORDS:-100000}
partitions=3

if [ $# -ge 1 ]; then top=$1; mkdir -p "$top"; else top=$(mktemp -d); fi
work=$top/broker
cleanup() {
    "$run" kill "$work" >/dev/null 2>&1 || true
    if [ $# -eq 0 ]; then rm -rf "$top"; fi
}
trap 'cleanup '"${1:+keep}" EXIT

fail() { echo "selftest: $*" >&2; exit 1; }
step() { # name, command...
    local name=$1 from=$EPOCHREALTIME to rc=0
    shift
    "$@" >"$top/step.out" 2>"$top/step.err" || rc=$?
    to=$EPOCHREALTIME
    printf '%6d ms  %s\n' $(((${to/./} - ${from/./}) / 1000)) "$name"
    if [ "$rc" -ne 0 ]; then cat "$top/step.out" "$top/step.err" >&2; fail "$name: exit $rc"; fi
}
must_fault() { # name, directory
    local rc=0
    "$run" dump "$2" >"$top/step.out" 2>&1 || rc=$?
    [ "$rc" -eq 1 ] || { cat "$top/step.out" >&2; fail "dump of $1: exit $rc, not 1"; }
    printf '%9s  dump refuses %s\n' '' "$1"
}
recovered() { "$run" was-recovered "$work"; }

all=$EPOCHREALTIME
step 'set-up' "$here/setup.sh"
step 'format' "$run" format "$work"
step 'start' "$run" start "$work"
step "produce $records" "$run" produce "$work" t $partitions "$records" 7
step "produce $records again, same seed" "$run" produce "$work" again $partitions "$records" 7
cmp "$work/expected-t.txt" "$work/expected-again.txt" || fail 'the same seed gave other records'
step 'consume' "$run" consume "$work" t "$top/consumed.txt"
cmp "$work/expected-t.txt" "$top/consumed.txt" || fail 'Kafka did not give back what it was given'
[ "$(wc -l <"$top/consumed.txt")" -eq "$records" ] || fail 'a record is missing'
step 'create' "$run" create "$work" empty 1
created=$(tail -n1 "$top/step.out")
step 'topic-id' "$run" topic-id "$work" empty
[ "$(cat "$top/step.out")" = "$created" ] || fail 'topic-id differs from create'
step 'console' "$run" console "$work" t 5
grep -q 'Processed a total of 5 messages' "$top/step.err" || fail 'console did not print 5 values' # values may hold newlines: not countable
step 'stop' "$run" stop "$work"
grep -qx "topic_id: $created" "$work/data/empty-0/partition.metadata" || fail 'partition.metadata has another id'

dirs=() rebuilds=()
for ((p = 0; p < partitions; p++)); do
    dirs+=("$work/data/t-$p")
    rebuilds+=(+ rebuild "$work/data/t-$p" "$top/rebuilt-$p")
done
step 'dump of every file' "$run" dump "${dirs[@]}" "$work/data/empty-0"
cp "$top/step.out" "$top/dump.out"
for codec in none gzip snappy lz4 zstd; do
    grep -q "codecs=.*\b$codec:" "$top/dump.out" || fail "no batch with codec $codec"
done
[ "$(grep -c '\.log offsets' "$top/dump.out")" -gt $((3 * partitions)) ] || fail 'too few segments'
step 'rebuild of every segment' "$run" "${rebuilds[@]:1}"
compared=0
for ((p = 0; p < partitions; p++)); do
    for file in "$work/data/t-$p"/*.{log,index,timeindex,snapshot} "$work/data/t-$p/leader-epoch-checkpoint"; do
        cmp "$file" "$top/rebuilt-$p/${file##*/}" || fail 'a rebuilt file differs from the one Kafka wrote'
        compared=$((compared + 1))
    done
done
printf '%9s  %d files identical, sealed and last segments\n' '' "$compared"

base=$(basename "$(find "$work/data/t-0" -name '*.log' | sort | sed -n 2p)" .log)
broken() { rm -rf "$top/broken-0"; mkdir "$top/broken-0"; cp "$work/data/t-0/$base".* "$top/broken-0"; }
poke() { printf "$3" | dd of="$top/broken-0/$base.$1" bs=1 seek="$2" conv=notrunc status=none; }
broken; poke log 500000 '\x55\xaa\x55'; must_fault 'a changed byte in .log' "$top/broken-0"
broken; truncate -s -10 "$top/broken-0/$base.log"; must_fault 'a torn tail' "$top/broken-0"
broken; poke index 3 '\x01'; must_fault 'a wrong offset in .index' "$top/broken-0"
broken; poke timeindex 7 '\x01'; must_fault 'a wrong time in .timeindex' "$top/broken-0"
broken; truncate -s +80 "$top/broken-0/$base.index"; must_fault 'an untrimmed .index' "$top/broken-0"
broken; poke snapshot 30 '\x99'; must_fault 'a changed byte in .snapshot' "$top/broken-0"

step 'start after clean stop' "$run" start "$work"
[ "$(recovered)" = none ] || fail "recovered after a clean stop: $(recovered)"
step 'kill' "$run" kill "$work"
last=$(find "$work/data/t-0" -name '*.log' | sort | tail -n1)
head -c 100 /dev/zero >>"$last" # as an append torn by the crash
step 'start after kill -9' "$run" start "$work"
recovered | grep -q '^recovered t-0 segment=' || fail 'a crash went unseen by was-recovered'
recovered | grep -qx 'truncated t-0' || fail 'a cut tail went unseen by was-recovered'
step 'consume after kill -9' "$run" consume "$work" t "$top/consumed.txt"
cmp "$work/expected-t.txt" "$top/consumed.txt" || fail 'Kafka lost records over the crash'
step 'stop' "$run" stop "$work"
to=$EPOCHREALTIME
printf '%6d ms  all\n' $(((${to/./} - ${all/./}) / 1000))
