#!/bin/sh
# build.sh SERIES_DIR OUT TCL_DIR JOBS: configures SQLite's source in OUT and
# builds the two test programs there (fixture.mk). The source tree itself stays
# as it was unpacked. A source of another version starts OUT anew.
set -eu

src=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
tcl=$3
jobs=$4
here=$(cd "$(dirname "$0")" && pwd)
product=$(cd "$here/../.." && pwd)

if [ -z "$tcl" ]; then
  echo "Tcl's development files are missing (package tcl-dev)" >&2
  exit 1
fi
cd "$out"
if ! cmp -s "$src/version" version; then
  rm -rf -- "$out"/*
  if ! "$src/tree/configure" --enable-all --with-tcl="$tcl" >configure.log 2>&1; then
    tail -n 20 configure.log >&2
    exit 1
  fi
  if ! make sqlite3.c shell.c >generate.log 2>&1; then
    tail -n 20 generate.log >&2
    exit 1
  fi
  cp "$src/version" version
fi
# SQLite's own Makefile takes no part of the caller's flags.
unset MAKEFLAGS MFLAGS CFLAGS LDFLAGS
if ! make -j"$jobs" -f Makefile -f "$here/fixture.mk" PRODUCT="$product" suite >build.log 2>&1; then
  grep -E 'error|undefined|\*\*\*' build.log | head -n 30 >&2
  exit 1
fi
