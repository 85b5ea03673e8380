#!/bin/sh
# library.sh SERIES_DIR OUT: builds libsqlite3.so.0 and the shell sqlite3 in OUT, from a source that
# fetch.py has unpacked, with the compile-time options of its Debian package: what a program finds
# that is started with OUT in LD_LIBRARY_PATH and PATH. The source stays as it was; one of another
# version starts OUT anew. LOCK_BYTES: where SQLite's lock bytes are to be, in place of 0x40000000.
set -eu

src=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
CC=${CC:-cc}

cd "$out"
if cmp -s "$src/version" version && [ -x sqlite3 ]; then exit 0; fi
rm -rf -- "$out"/*
mkdir work
cd work
step() {
  if ! "$@" >log 2>&1; then
    tail -n 20 log >&2
    exit 1
  fi
}
unset MAKEFLAGS MFLAGS CFLAGS LDFLAGS
step "$src/tree/configure" --disable-tcl --disable-readline
step make sqlite3.c shell.c
if [ -n "${LOCK_BYTES:-}" ]; then
  at='^SQLITE_PRIVATE int sqlite3PendingByte = 0x40000000;$'
  [ "$(grep -c "$at" sqlite3.c)" = 1 ]
  sed -i "/$at/s/0x40000000/$LOCK_BYTES/" sqlite3.c
fi
options=$(grep -oE -e '-DSQLITE_[A-Z0-9_]+(=[0-9]+)?' "$src/tree/debian/rules")
# shellcheck disable=SC2086
step $CC -shared -fPIC -O2 -fno-strict-aliasing $options -DSQLITE_ENABLE_FTS4 -DSQLITE_ENABLE_FTS5 \
  -Wl,-soname,libsqlite3.so.0 -o ../libsqlite3.so.0 sqlite3.c -lm -lpthread -ldl
step $CC -O1 -o ../sqlite3 shell.c -L.. -l:libsqlite3.so.0 -lm -lpthread -ldl -lz
cd ..
rm -rf work
cp "$src/version" version
