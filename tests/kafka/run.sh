#!/usr/bin/env bash
# Runs Apache Kafka 4.3.1 and its tools against directories. README.md says what each command promises.
# Exit codes: 0 done, 1 Kafka found a fault (or did not stop cleanly), 2 the command itself failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

start_seconds_max=60
stop_seconds_max=60

usage() {
    cat >&2 <<'USAGE'
usage: run.sh <command> [args]
  format <workdir> [server-property=value ...]
  start <workdir> | stop <workdir> | kill <workdir>
  was-recovered <workdir>
  create <workdir> <topic> <partitions> [config=value ...]
  topic-id <workdir> <topic>
  delete-topic <workdir> <topic>
  delete-records <workdir> <topic> <partition> <offset>
  produce <workdir> <topic> <partitions> <records> <seed> [config=value ...]
  consume <workdir> <topic> <out-file>
  console <workdir> <topic> <count>
  transactions <workdir> <topic> <count>
  producers <workdir> <topic>
  dump [--print] [--gaps] [--live] <file-or-partition-dir> ...
  rebuild <partition-dir> <out-dir> [config=value ...]
Commands that only need Java may share one JVM: run.sh dump DIR + rebuild DIR OUT
USAGE
    exit 2
}

# Fills `java_command`. $1 is the log4j file, the rest are options for the JVM.
java_with() {
    "$here/setup.sh"
    find_java
    local log4j=$1
    shift
    java_command=("$java_home/bin/java" -cp "$cache/classes:$cache/lib/*"
        -XX:+UseSerialGC "-Dlog4j2.configurationFile=$here/$log4j" --enable-native-access=ALL-UNNAMED "$@")
    # lz4-java still uses Unsafe; Java 24 and later warn about it on stderr otherwise.
    if [ "$java_major" -ge 24 ]; then java_command+=(--sun-misc-unsafe-memory-access=allow); fi
}

harness() {
    # A short life: the second compiler never pays for itself.
    java_with log4j2-tools.xml -XX:TieredStopAtLevel=1 -Xmx1g
    exec "${java_command[@]}" loglane.harness.Harness "$@"
}

need_workdir() {
    [ $# -ge 1 ] || usage
    [ -f "$1/server.properties" ] || die "$1 is not formatted"
    workdir=$(cd "$1" && pwd)
}

# Prints the pid if it is still our broker: a pid may have gone to another process meanwhile.
running_pid() {
    local pid
    [ -f "$workdir/pid" ] || return 1
    pid=$(cat "$workdir/pid")
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    # A zombie (its parent has not reaped it yet) has ended.
    [[ $(cat "/proc/$pid/stat" 2>/dev/null) =~ \)\ ([A-Z]) ]] && [ "${BASH_REMATCH[1]}" != Z ] || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$workdir/server.properties" || return 1
    printf '%s' "$pid"
}

start() {
    need_workdir "$@"
    if running_pid >/dev/null; then die "$workdir already runs, pid $(running_pid)"; fi
    # broker.log is always the last start's alone; older ones stay beside it, for people.
    if [ -f "$workdir/broker.log" ]; then
        local n=1
        while [ -e "$workdir/broker.log.$n" ]; do n=$((n + 1)); done
        mv "$workdir/broker.log" "$workdir/broker.log.$n"
    fi
    java_with log4j2-broker.xml -Xmx512m -XX:TieredStopAtLevel=1 "-Dloglane.log=$workdir/broker.log"
    # No stream of ours may live on in the broker, or a caller that reads to end of file waits for ever.
    (cd "$workdir" && exec setsid "${java_command[@]}" kafka.Kafka "$workdir/server.properties" \
        </dev/null >"$workdir/broker.out" 2>&1) &
    local pid=$! waited=0 port
    echo "$pid" >"$workdir/pid"
    port=$(sed -n 's/^broker=//p' "$workdir/ports")
    # "Kafka Server started" comes after the controller let the broker in; then the port must answer.
    until grep -qs 'Kafka Server started (kafka.server.KafkaRaftServer)' "$workdir/broker.log" \
        && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 40 "$workdir/broker.out" "$workdir/broker.log" >&2 || true
            rm -f "$workdir/pid"
            echo 'kafka harness: the broker ended while starting (above)' >&2
            exit 1
        fi
        if [ "$waited" -ge $((start_seconds_max * 10)) ]; then
            tail -n 40 "$workdir/broker.log" >&2 || true
            kill -9 "$pid" 2>/dev/null || true
            rm -f "$workdir/pid"
            echo "kafka harness: the broker did not start in $start_seconds_max s" >&2
            exit 1
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
    echo "started pid=$pid port=$port"
}

await_end() { # seconds
    local tenths=$(($1 * 10))
    while running_pid >/dev/null; do
        [ "$tenths" -gt 0 ] || return 1
        sleep 0.1
        tenths=$((tenths - 1))
    done
}

stop() {
    need_workdir "$@"
    local pid
    pid=$(running_pid) || die "$workdir has no running broker"
    kill -TERM "$pid"
    if ! await_end "$stop_seconds_max"; then
        kill -9 "$pid" 2>/dev/null || true
        await_end 10 || true
        rm -f "$workdir/pid"
        echo "kafka harness: no clean stop in $stop_seconds_max s; killed" >&2
        exit 1
    fi
    rm -f "$workdir/pid"
    echo stopped
}

crash() {
    need_workdir "$@"
    local pid
    pid=$(running_pid) || die "$workdir has no running broker"
    kill -9 "$pid"
    await_end 10 || die "pid $pid outlives SIGKILL"
    rm -f "$workdir/pid"
    echo killed
}

# Kafka's own lines of the last start, from LogManager.loadLogs and LogLoader. KRaft's metadata log is
# left out: KafkaRaftLog opens it as unclean every time.
was_recovered() {
    need_workdir "$@"
    local log=$workdir/broker.log
    [ -f "$log" ] || die "$workdir has no broker.log: not started yet"
    grep -q ' INFO Loading logs from log dirs ' "$log" || die 'the last start did not get as far as loading logs'
    awk '
        function partition(line) { match(line, /partition=[^,]*/); return substr(line, RSTART + 10, RLENGTH - 10) }
        / INFO Recovering [0-9]+ logs from .* since no clean shutdown file was found/ { print "unclean-start"; found = 1 }
        /\[LogLoader partition=/ {
            p = partition($0)
            if (p ~ /^__cluster_metadata-/) next
            what = ""
            if (match($0, /Recovering unflushed segment [0-9]+/))
                what = "recovered " p " segment=" substr($0, RSTART + 29, RLENGTH - 29)
            else if ($0 ~ /Could not find offset index file/) what = "rebuilt-index " p
            else if ($0 ~ /Found a corrupted index file/) what = "rebuilt-index " p
            else if ($0 ~ /Found an orphaned index file/) what = "deleted-index " p
            else if ($0 ~ /Corruption found in segment|Found invalid offset during recovery/) what = "truncated " p
            else if ($0 ~ /Deleting all segments because|Deleting segments as part of log recovery/) what = "deleted-segments " p
            else if ($0 ~ /from interrupted swap operation|that is compacted but has not been deleted yet/) what = "finished-swap " p
            if (what != "") { print what; found = 1 }
        }
        / marked stray and renamed to / { match($0, /Log in [^ ]*/); print "stray " substr($0, RSTART + 7, RLENGTH - 7); found = 1 }
        / WARN Error occurred while reading .*-offset-checkpoint file/ { print "checkpoint-unreadable"; found = 1 }
        / INFO Loaded [0-9]+ logs in / { loaded = 1 }
        / ERROR Error while loading log dir / { loaded = 0; failed = 1 }
        END {
            if (!loaded || failed) { print "load-failed"; found = 1 }
            if (!found) print "none"
        }
    ' "$log"
}

console() {
    [ $# -eq 3 ] || usage
    need_workdir "$1"
    java_with log4j2-tools.xml -XX:TieredStopAtLevel=1 -Xmx256m
    exec "${java_command[@]}" org.apache.kafka.tools.consumer.ConsoleConsumer \
        --bootstrap-server "127.0.0.1:$(sed -n 's/^broker=//p' "$workdir/ports")" \
        --topic "$2" --from-beginning --max-messages "$3" --timeout-ms 30000
}

[ $# -ge 1 ] || usage
command=$1
case $command in
    start) shift; start "$@" ;;
    stop) shift; stop "$@" ;;
    kill) shift; crash "$@" ;;
    was-recovered) shift; was_recovered "$@" ;;
    console) shift; console "$@" ;;
    format | create | topic-id | delete-topic | delete-records | produce | consume | transactions | producers | dump | rebuild) harness "$@" ;;
    *) usage ;;
esac
