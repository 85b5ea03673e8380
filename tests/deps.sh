#!/bin/sh
# deps.sh: installs the Debian packages of packages.txt that are missing.
#
#   deps.sh demo | check | all | bench
#
# Each set but bench includes the ones before it; bench is check and what `make bench` needs. The
# section of this architecture comes with each. Nothing missing: silent and quick. Where packages
# can not be installed from here, says what to run, and fails.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
case "$#${1:-all}" in
  1demo) sections=" demo " ;;
  1check) sections=" demo check " ;;
  [01]all) sections=" demo check develop " ;;
  1bench) sections=" demo check bench " ;;
  *) echo "usage: deps.sh demo|check|all|bench" >&2; exit 2 ;;
esac
sections="$sections$(dpkg --print-architecture 2>/dev/null || true) "

wanted=$(awk -v sections="$sections" '
  /^# \[[a-z]+\]/ { name = $2; gsub(/[][]/, "", name); on = index(sections, " " name " "); next }
  /^#/ || NF == 0 { next }
  on { print $1 }' "$here/packages.txt")

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  if [ -z "${TDE_DEPS_TOLD:-}" ]; then
    echo "deps: no apt here; install what corresponds to these Debian packages:" $wanted
  fi
  exit 0
fi

missing=""
have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null | sed -n 's/ installed$//p')
for p in $wanted; do
  # Node's own packages bring it, too, and keep Debian's out.
  [ "$p" != npm ] || ! command -v npm >/dev/null 2>&1 || continue
  case "
$have
" in
    *"
$p
"*) ;;
    *) missing="$missing $p" ;;
  esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root="env"
elif command -v sudo >/dev/null 2>&1; then
  as_root="sudo"
  [ -t 0 ] || as_root="sudo -n"
else
  echo "deps: missing packages; as root, run: apt-get install -y$missing" >&2
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >>"$log" 2>&1; }
echo "deps: installing$missing"
# Package lists may be absent or older than the mirror.
apt install -y --no-install-recommends $missing ||
  { apt update && apt install -y --no-install-recommends $missing; } ||
  { tail -n 20 "$log" >&2
    echo "deps: failed; run, as root or with sudo: apt-get update && apt-get install -y$missing" >&2
    exit 1; }
