#!/usr/bin/env bash
# The main job on real input: ingest a text corpus, read it back through a socket by sendfile, compare
# byte for byte, and print what it took. INPUT=path names another corpus than the machine's own text.
set -euo pipefail
cd "$(dirname "$0")/.."
loglane=target/release/loglane
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -n ${INPUT:-} ]]; then
    [[ -r $INPUT ]] || { echo "demo: cannot read INPUT=$INPUT" >&2; exit 1; }
    cp -- "$INPUT" "$work/corpus"
    echo "demo: corpus is $INPUT"
else
    # Licences, headers and Perl's modules are on every Debian; repeated up to the size of a demo.
    find /usr/share/common-licenses /usr/include /usr/share/perl* /usr/share/doc -type f \
        \( -name '*.h' -o -name '*.p[lm]' -o -name 'copyright' -o -path '*common-licenses*' \) \
        2>/dev/null | LC_ALL=C sort | head -n 20000 | tr '\n' '\0' |
        xargs -0 cat 2>/dev/null >"$work/once" || true
    [[ -s $work/once ]] || { echo "demo: no text found; name a file with INPUT=path" >&2; exit 1; }
    # A record is a line: the corpus ends with one.
    [[ -z $(tail -c 1 "$work/once") ]] || echo >>"$work/once"
    while (($(stat -c %s "$work/corpus" 2>/dev/null || echo 0) < 200000000)); do
        cat "$work/once" >>"$work/corpus"
    done
    echo "demo: corpus is the text of this machine's headers, modules and licences"
fi
# Lines are records; an unfinished last line would come back with an end.
[[ -z $(tail -c 1 "$work/corpus") ]] || echo >>"$work/corpus"
bytes=$(stat -c %s "$work/corpus")
lines=$(wc -l <"$work/corpus")

now() { date +%s.%N; }
rate() { awk -v n="$1" -v a="$2" -v b="$3" 'BEGIN { printf "%.1f", n / 1e6 / (b - a) }'; }

export LOGLANE_DIR=$work/data
start=$(now)
"$loglane" produce --topic corpus --quiet <"$work/corpus"
ingested=$(now)
"$loglane" verify "$LOGLANE_DIR" --quiet
verified=$(now)
target/release/sendfile-reader "$LOGLANE_DIR" corpus "$work/back"
read_back=$(now)
cmp "$work/corpus" "$work/back"
"$loglane" consume --topic corpus --from-beginning --quiet | cmp - "$work/corpus"

echo
echo "demo: $lines records, $bytes bytes went in and came back the same, twice"
printf '  %-44s %8s MB/s\n' \
    "produce: stdin, batches, page cache, close" "$(rate "$bytes" "$start" "$ingested")" \
    "verify: every CRC, record and index entry" "$(rate "$bytes" "$ingested" "$verified")" \
    "read back: sendfile, TCP, decode, write" "$(rate "$bytes" "$verified" "$read_back")"
echo
echo "demo: the engine beside the bare limit of this machine (2 s each)"
"$loglane" bench append --seconds 2
"$loglane" bench append --seconds 2 --partitions 1000
"$loglane" bench append --seconds 2 --class durable
"$loglane" bench fetch --seconds 2
