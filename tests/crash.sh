#!/bin/bash
# Power cuts under the real engine, of three kinds (tests/src/bin/crash-rig): on ext4 and xfs by the
# shutdown of the file system, on both by a disk that loses its write cache. One line of JSON for each
# on stdout. Before that each rig must see a planted loss.
# Reads CUTS_EXT4, CUTS_XFS, CUTS_VOLATILE, CARGO, SEED (default: the time).
set -u
cd "$(dirname "$0")/.." || exit 2
rig=target/release/crash-rig
seed=${SEED:-$(date +%s)}
# How soon a writer that acknowledges before the sync must be found out.
PLANTED_CUTS=10

skip() { echo "crash: skipped: $1" >&2; exit 0; }
[ "$(id -u)" = 0 ] || skip "it mounts file systems, so it needs root (sudo make crash)"
[ -e /dev/loop-control ] || skip "there is no /dev/loop-control (modprobe loop)"
[ -e /dev/fuse ] || skip "there is no /dev/fuse (modprobe fuse)"
command -v mkfs.ext4 >/dev/null || skip "mkfs.ext4 is missing (Debian: apt-get install e2fsprogs)"
command -v mkfs.xfs >/dev/null || skip "mkfs.xfs is missing (Debian: apt-get install xfsprogs)"

${CARGO:-cargo} build --release --quiet -p loglane-tests --bin crash-rig || exit 1

# A rig that does not see a writer which acknowledges too early sees nothing.
planted() {
  local out
  out=$($rig "$1" --fs "$2" --cuts $PLANTED_CUTS --seed "$seed" --plant ack-before-sync \
    --dir target/crash/planted 2>&1)
  if [ $? = 1 ] && ! grep -q '"lost":0,' <<<"$out"; then
    echo "crash: $1 $2 sees a planted loss" >&2
  else
    echo "crash: $1 $2 is blind: a writer that acknowledges before the sync was not found out" >&2
    echo "$out" >&2
    return 1
  fi
}

failed=0
for kind in shutdown volatile; do
  for fs in ext4 xfs; do planted $kind $fs || failed=1; done
done
rm -rf target/crash/planted
[ $failed = 0 ] || exit 1

# The long one beside the short ones: most of a cut is waiting.
$rig shutdown --fs ext4 --cuts "$CUTS_EXT4" --seed "$seed" &
long=$!
trap 'kill $long 2>/dev/null' EXIT
$rig shutdown --fs xfs --cuts "$CUTS_XFS" --seed "$seed" || failed=1
$rig volatile --fs ext4 --cuts "$CUTS_VOLATILE" --seed "$seed" || failed=1
$rig volatile --fs xfs --cuts "$CUTS_VOLATILE" --seed "$seed" || failed=1
wait $long || failed=1
exit $failed
