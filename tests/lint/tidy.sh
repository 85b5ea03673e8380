#!/bin/sh
# tidy.sh FILE.c: clang-tidy on one file, quiet when it is clean.
#
# An extension's file and the same file for static linking differ in SQLite's
# API macro alone, so one of the two is looked at.
set -u
before="-include tests/lint/analyzer.h"
[ "$1" != ext/base/status.c ] || before=""
# shellcheck disable=SC2086  # two words, or none
out=$(clang-tidy --quiet "$1" -- -std=gnu11 -D_GNU_SOURCE -DSQLITE_CORE=1 -I. $before 2>&1)
rc=$?
[ $rc -eq 0 ] || echo "$out"
exit $rc
