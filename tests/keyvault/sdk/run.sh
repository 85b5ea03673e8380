#!/bin/sh
# run.sh: Microsoft's npm packages against the test key server, and against the product.
#
#   run.sh SERVER OUT-DIR CLIENT
#
# CLIENT is tests/azure/client.c, the product's provider as a command.
# Installs the packages that package-lock.json pins into OUT-DIR/sdk (once), starts
# the server, runs test.cjs. The last line is the totals.
set -eu

server=$1
client=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
mkdir -p "$2/sdk"
out=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

skip() {
  echo "skipped: $1"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}

command -v npm >/dev/null || skip "npm is not installed"
node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || skip "the packages need Node.js 20 or newer"
if ! cmp -s "$here/package-lock.json" "$out/sdk/installed-lock.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$out/sdk/"
  (cd "$out/sdk" && npm ci --no-audit --no-fund --ignore-scripts >npm.log 2>&1) ||
    skip "npm could not install the packages ($out/sdk/npm.log)"
  cp "$here/package-lock.json" "$out/sdk/installed-lock.json"
fi
cp "$here/lookup.cjs" "$here/test.cjs" "$out/sdk/"

state=$(mktemp -d)
"$server" --state "$state" --config "$here/../sample.json" >"$out/server.log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid || true; rm -rf "$state"' EXIT
until [ -f "$state/ready.json" ]; do
  kill -0 $pid || { cat "$out/server.log"; exit 1; }
  sleep 0.1
done
. "$state/env.sh"
rc=0
(cd "$out/sdk" && NODE_EXTRA_CA_CERTS=$KV_CA KV_CLIENT=$client timeout 300 node --require ./lookup.cjs test.cjs) || rc=$?
exit $rc
