# keyvault.tcl: the test key server for Tcl tests; sourced after harness.tcl.
#
# kv_start starts one for this test file (in its scratch directory, ended by kv_stop),
# and writes an instance that trusts it into TDE_INSTANCE. Tests need the
# constraint `keyvault`: the server is there when libmicrohttpd-dev is.

package require http

set ::kv_program [expr {[info exists ::env(TDE_KEYVAULT)] ? $::env(TDE_KEYVAULT)
                                                          : "$::root/build/keyvault/keyvault"}]
needs keyvault [file executable $::kv_program] "no test key server (libmicrohttpd-dev)"

set ::kv_contoso 11111111-1111-4111-8111-111111111111
set ::kv_fabrikam 22222222-2222-4222-8222-222222222222
proc kv_client {n} { return [format a0000000-0000-4000-8000-%012x $n] }

proc kv_start {} {
  if {![::tcltest::testConstraint keyvault]} return
  set state [at keyvault]
  file mkdir $state
  set ::kv_pid [exec $::kv_program --state $state --config $::here/keyvault/sample.json > [at keyvault.log] 2>@1 &]
  for {set i 0} {![file exists $state/ready.json]} {incr i} {
    if {$i > 6000} { error "the test key server did not start: [read_bytes [at keyvault.log]]" }
    after 50
  }
  set ready [read_bytes $state/ready.json]
  foreach name {https http admin identity_header} { set ::kv($name) [json $ready \$.$name] }
  set ::kv(state) $state
  kv_instance $::env(TDE_INSTANCE)
}

proc kv_stop {} {
  if {![info exists ::kv_pid]} return
  exec kill $::kv_pid
  for {set i 0} {$i < 200 && ![catch {exec kill -0 $::kv_pid}]} {incr i} { after 50 }
  unset ::kv_pid
}

# A vault key's id: kv_key alpha; kv_key delta rsa.
proc kv_key {vault {name tde}} {
  set suffix [expr {$vault eq "delta" ? "managedhsm.localtest" : "vault.localtest"}]
  return https://$vault.$suffix/keys/$name
}

# The same as the value of a URI parameter. (Tcl takes every file name for a path, and
# makes one slash of two.)
proc kv_protector {args} { return tde_protector=[string map {/ %2F} [kv_key {*}$args]] }

# ---- the admin port ----

proc kv_admin {method path {body ""}} {
  set opts [list -method $method -timeout 30000]
  if {$method eq "POST"} { lappend opts -type application/json -query [expr {$body eq "" ? "{}" : $body}] }
  set token [::http::geturl http://127.0.0.1:$::kv(admin)/admin/$path {*}$opts]
  set code [::http::ncode $token]
  set data [::http::data $token]
  ::http::cleanup $token
  if {$code != 200} { error "the key server: $method $path: $code $data" }
  return $data
}

# kv_fault unwrapKey 403 ,"inner":"KeyDisabled"
proc kv_fault {route fault {more ""}} {
  kv_admin POST fault "{\"route\":\"$route\",\"fault\":\"$fault\"$more}"
}
proc kv_well {} {
  kv_admin DELETE fault
  kv_admin POST listen {{"https":true,"http":true}}
  kv_admin POST clock {{"reset":true}}
}
proc kv_forget {} { kv_admin DELETE log }

# Requests of one operation that were granted, or with this status; by one identity.
proc kv_count {operation {status 200} {identity %}} {
  set log [kv_admin GET log]
  return [::sql onecolumn {
    SELECT count(*) FROM json_each($log, '$.entries') AS e
    WHERE json_extract(e.value, '$.operation') = $operation AND json_extract(e.value, '$.status') = CAST($status AS INTEGER)
      AND coalesce(json_extract(e.value, '$.identity'), '') LIKE $identity}]
}

# What a vault's key is asked for or told by an administrator of it, with app-secret's rights.
proc kv_vault {vault method path {body ""}} {
  set host [lindex [split [kv_key $vault] /] 2]
  set scope https://[expr {$vault eq "delta" ? "managedhsm" : "vault"}].localtest/.default
  set reply [kv_curl https://login.localtest:$::kv(https)/$::kv_contoso/oauth2/v2.0/token \
               -d grant_type=client_credentials -d client_id=[kv_client 1] -d scope=$scope \
               --data-urlencode client_secret@$::kv(state)/identities/app-secret/secret]
  set args [list -X $method -H "Authorization: Bearer [json $reply {$.access_token}]"]
  if {$body ne ""} { lappend args -d $body }
  return [kv_curl https://$host/$path?api-version=7.4 {*}$args]
}
proc kv_curl {args} {
  return [exec env -u LD_PRELOAD curl -s -m 60 --cacert $::kv(state)/ca.pem --connect-to ::127.0.0.1:$::kv(https) {*}$args]
}
# Not under a sanitizer: its leak check at the end of another program may hang.
needs curl [expr {![catch {exec env -u LD_PRELOAD curl --version}]}] "no curl"

# ---- instances ----

# An instance directory that trusts the server, with an identity of each kind; more
# goes into instance.json as it is (from a comma on).
proc kv_instance {dir {more ""} {timeout 10000}} {
  set id $::kv(state)/identities
  set members {}
  foreach {name kind n rest} [list \
      app client_secret 1 ",\"secret_file\":\"$id/app-secret/secret\"" \
      app-env client_secret 1 ",\"secret_env\":\"KV_TEST_SECRET\"" \
      certificate client_certificate 2 ",\"certificate_file\":\"$id/app-cert/certificate.pem\"" \
      workload workload_identity 3 ",\"token_file\":\"$id/app-workload/federated-token\"" \
      user managed_identity 5 "" \
      app-service app_service 5 "" \
      cross federated 6 ",\"via\":\"user\"" \
      reader client_secret 7 ",\"secret_file\":\"$id/reader/secret\"" \
      no-unwrap client_secret 8 ",\"secret_file\":\"$id/no-unwrap/secret\"" \
      no-wrap client_secret 9 ",\"secret_file\":\"$id/no-wrap/secret\""] {
    lappend members "\"$name\":{\"kind\":\"$kind\",\"client_id\":\"[kv_client $n]\"$rest}"
  }
  lappend members {"system":{"kind":"managed_identity"}} {"environment":{"kind":"environment"}}
  lappend members "\"default\":{\"kind\":\"client_secret\",\"client_id\":\"[kv_client 1]\",\"secret_file\":\"$id/app-secret/secret\"}"
  file mkdir $dir
  file attributes $dir -permissions 0700
  write_file $dir/instance.json "{\"version\":1,\"default_protector\":\"[kv_key beta]\",\"allow_loopback_http\":true,
    \"http\":{\"timeout_ms\":$timeout,\"ca_file\":\"$::kv(state)/ca.pem\",\"connect_to\":\"127.0.0.1:$::kv(https)\"},
    \"azure\":{\"authority\":\"https://login.localtest:$::kv(https)\",\"imds_endpoint\":\"http://127.0.0.1:$::kv(http)\",
               \"vault_suffixes\":\[\"vault.localtest\",\"managedhsm.localtest\"\]},
    \"identities\":{[join $members ,]}$more}"
  file attributes $dir/instance.json -permissions 0600
}

# ---- the Transit engine (HashiCorp Vault, OpenBao) ----

proc bao_key {{name tde} {mount transit}} { return vault:https://bao.localtest/$mount/keys/$name }
proc bao_protector {args} { return tde_protector=[string map {/ %2F} [bao_key {*}$args]] }
# What an administrator asks; the answer's "data", or its errors.
proc bao {method path {body {{}}}} {
  set token [string trim [read_bytes $::kv(state)/identities/bao-admin/token]]
  set args [list -X $method -H "X-Vault-Token: $token"]
  if {$method ne "GET"} { lappend args -d $body }
  return [kv_curl https://bao.localtest/v1/$path {*}$args]
}
# bao_rules bao-app {"transit/keys/*":["read"]}
proc bao_rules {identity rules} { kv_admin POST transit "{\"identity\":\"$identity\",\"rules\":{$rules}}" }
proc bao_set {json} { kv_admin POST transit $json }
