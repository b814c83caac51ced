#!/usr/bin/env bash
# Brings Apache Kafka 4.3.1 and the compiled harness to .cache/kafka of this clone.
# Idempotent; a few milliseconds when there is nothing to do. Needs Maven and a JDK 17+.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

done_already() { [ -f "$cache/stamp" ] && [ "$(cat "$cache/stamp")" = "$(sources_stamp)" ]; }
done_already && exit 0

mkdir -p "$cache"
# Test processes run side by side: one builds, the others wait and find it done.
exec 9>"$cache/lock"
command -v flock >/dev/null && flock 9
done_already && exit 0

find_java
[ -x "$java_home/bin/javac" ] || die "$java_home has no javac: a JDK is needed, not only a JRE"
command -v mvn >/dev/null || die 'Maven is missing: install it (Debian: maven); it fetches Kafka 4.3.1 from Maven Central'

echo "kafka harness: fetching Kafka 4.3.1 (about 54 MB the first time) and compiling, Java $java_major" >&2
rm -rf "$cache/stamp" "$cache/classes" "$cache/lib" "$cache/target"
if ! JAVA_HOME=$java_home mvn -B -q -f "$here/pom.xml" process-classes >"$cache/setup.log" 2>&1 9>&-; then
    grep -m 20 ERROR "$cache/setup.log" >&2 || tail -n 20 "$cache/setup.log" >&2
    die "Maven failed (above; all of it in $cache/setup.log). Without a network it needs a filled local repository."
fi
sources_stamp >"$cache/stamp"
echo "kafka harness: ready, $(ls "$cache/lib" | wc -l) jars" >&2
