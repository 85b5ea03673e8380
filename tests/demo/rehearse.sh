#!/bin/sh
# rehearse.sh EXTENSION: both rehearsals as one suite of `make check`. Their steps are
# printed; the last line is `N passed, N failed, N skipped`. Without the test key server
# (TDE_KEYVAULT) they are skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
TDE_SO=$(realpath "$1")
export TDE_SO
passed=0 failed=0 skipped=0

for story in restore tenants; do
  if [ ! -x "${TDE_KEYVAULT:-}" ]; then
    echo "skipped: demo-$story: no test key server (libmicrohttpd-dev)"
    skipped=$((skipped + 1))
  elif "${TCLSH:-tclsh}" "$here/$story.tcl"; then
    passed=$((passed + 1))
  else
    echo "FAIL demo-$story"
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
