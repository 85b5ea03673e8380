#!/bin/sh
# start.sh: the test key server with the sample tenant, for a person to try.
#
#   start.sh SERVER STATE-DIR [more options of the server]
#
# Serves until Ctrl-C. What it prints is what README.md shows.
set -eu

server=$1 state=$2
shift 2
mkdir -p "$state"
state=$(cd "$state" && pwd)
# One server a folder: of two, one's keys would stand beside the other's ports. The lock is the
# server's, too, and goes with it.
exec 9>>"$state/lock"
if command -v flock >/dev/null && ! flock -n 9; then
  echo "a test key server runs already with its state in $state: use that one, end it (Ctrl-C where it was" \
    "started, or curl -X POST of /admin/quit), or give this one another folder (make keyvault BUILD=...)" >&2
  exit 1
fi
rm -f "$state/ready.json"
"$server" --state "$state" --config "$(dirname "$0")/sample.json" "$@" &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid || true' INT TERM EXIT
while [ ! -f "$state/ready.json" ]; do
  kill -0 $pid 2>/dev/null || exit 1
  sleep 0.1
done

# An instance of the extension for it, whose identity is app-secret.
. "$state/env.sh"
mkdir -p -m 700 "$state/instance"
(umask 077 && cat >"$state/instance/instance.json") <<EOF
{
  "version": 1,
  "default_protector": "https://beta.vault.localtest/keys/tde",
  "identities": {
    "default": {"kind": "client_secret", "client_id": "a0000000-0000-4000-8000-000000000001",
                "secret_file": "$state/identities/app-secret/secret"}
  },
  "policy": {"check_interval_s": 2},
  "azure": {"authority": "$KV_AUTHORITY", "vault_suffixes": ["vault.localtest"]},
  "http": {"ca_file": "$KV_CA", "connect_to": "127.0.0.1:$KV_HTTPS"}
}
EOF
# What the owner of the key does in their own portal.
grant() {
  printf '#!/bin/sh\nunset LD_PRELOAD\ncurl -s -m 60 http://127.0.0.1:%s/admin/grant -d '"'%s'"' >/dev/null\n' "$KV_ADMIN" \
    "{\"vault\":\"beta\",\"identity\":\"app-secret\",\"permissions\":[$2]}" >"$state/$1"
  chmod 700 "$state/$1"
}
grant revoke ''
grant grant '"get","list","wrapKey","unwrapKey"'
echo "export TDE_INSTANCE='$state/instance'" >>"$state/env.sh"

cat <<EOF

The session of README.md ("A key in Azure Key Vault") goes on in another terminal, after

  . $state/env.sh

The vaults alpha, beta and gamma are served, each with an RSA key named tde.
With curl, there:

  kv() { curl -s --cacert \$KV_CA --connect-to ::127.0.0.1:\$KV_HTTPS "\$@"; echo; }
  tenant=11111111-1111-4111-8111-111111111111
  app=a0000000-0000-4000-8000-000000000001
  token=\$(kv \$KV_AUTHORITY/\$tenant/oauth2/v2.0/token -d grant_type=client_credentials \\
    -d client_id=\$app -d scope=https://vault.localtest/.default \\
    --data-urlencode client_secret@\$KV_STATE/identities/app-secret/secret |
    sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/')
  vault=https://alpha.vault.localtest:\$KV_HTTPS
  kv -H "Authorization: Bearer \$token" "\$vault/keys/tde?api-version=7.4"
  kv -H "Authorization: Bearer \$token" "\$vault/keys/tde/wrapkey?api-version=7.4" \\
    -d '{"alg":"RSA-OAEP-256","value":"c2VjcmV0"}'

What was asked:      curl -s http://127.0.0.1:\$KV_ADMIN/admin/log
Let it fail:         curl -s http://127.0.0.1:\$KV_ADMIN/admin/fault -d '{"route":"wrapKey","fault":"429"}'
All right again:     curl -s -X DELETE http://127.0.0.1:\$KV_ADMIN/admin/fault

Ctrl-C ends it.
EOF
wait $pid
