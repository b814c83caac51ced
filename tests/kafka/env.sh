# Sourced by setup.sh and run.sh: where things are, and which Java to use.
# Sets: here, cache, java_home, java_major; defines: die, find_java, sources_stamp.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache/kafka

die() { printf 'kafka harness: %s\n' "$*" >&2; exit 2; }

# Prints the major version of the Java in directory $1, nothing if there is none. Reads its
# `release` file: starting a JVM to ask would cost every command a third of a second.
java_major_of() {
    local line
    [ -x "$1/bin/java" ] || return 0
    if [ -r "$1/release" ]; then
        line=$(grep -m1 '^JAVA_VERSION=' "$1/release" || true)
    else
        line=$("$1/bin/java" -version 2>&1 | head -n1)
    fi
    [[ $line =~ \"([0-9]+) ]] && printf '%s' "${BASH_REMATCH[1]}" || true
}

# Kafka 4.3.1 needs Java 17. JAVA_HOME if it will do; else the newest known one; else the PATH's.
find_java() {
    local candidate major on_path
    java_home='' java_major=0
    if [ -n "${JAVA_HOME:-}" ]; then
        major=$(java_major_of "$JAVA_HOME")
        if [ "${major:-0}" -ge 17 ]; then java_home=$JAVA_HOME java_major=$major; return; fi
    fi
    for candidate in /usr/lib/jvm/* /usr/java/* /opt/java/* /Library/Java/JavaVirtualMachines/*/Contents/Home; do
        major=$(java_major_of "$candidate")
        if [ "${major:-0}" -ge 17 ] && [ "$major" -gt "$java_major" ]; then
            java_home=$candidate java_major=$major
        fi
    done
    if [ -z "$java_home" ] && on_path=$(command -v java); then
        candidate=$(dirname "$(dirname "$(readlink -f "$on_path")")")
        major=$(java_major_of "$candidate")
        if [ "${major:-0}" -ge 17 ]; then java_home=$candidate java_major=$major; fi
    fi
    [ -n "$java_home" ] || die 'no Java 17 or newer found: set JAVA_HOME, or install a JDK 17+ (Debian: openjdk-17-jdk-headless)'
}

# What .cache/kafka was built from. A change of any of these builds it again.
sources_stamp() {
    (cd "$here" && { cat pom.xml; find src -name '*.java' | LC_ALL=C sort | xargs cat; } | cksum)
}
