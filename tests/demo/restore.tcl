# restore.tcl: a rehearsal: a database under a key of the customer's, its backup, and a
# restore on another instance that lacks the key; then the key is revoked, given back, and
# rotated. In the stock sqlite3 shell, against the test key server.
source [file join [file dirname [file normalize [info script]]] story.tcl]
kv_start

# Two instances. The first: the customer's key in vault beta. The second: another key, in
# a Managed HSM, and none of the first's.
kv_instance [at first] {,"policy":{"check_interval_s":1,"heal_window_s":1}}
kv_instance [at second]
write_file [at second]/instance.json [string map [list [kv_key beta] [kv_key delta rsa]] [read_bytes [at second]/instance.json]]
file attributes [at second]/instance.json -permissions 0600
set ::env(TDE_INSTANCE) [at first]
kv_vault beta POST keys/customer/create {{"kty":"RSA"}}
set key [kv_key beta customer]
proc on {instance script} {
  set ::env(TDE_INSTANCE) [at $instance]
  return [shell ".mode list\n$script"]
}
# What the customer does at their key service while the shell goes on. (The body in a
# file: .system takes its quotes away.)
proc admin {path body} {
  write_file [at body-[incr ::bodies].json] $body
  return ".system curl -s -o /dev/null -H content-type:application/json -d @body-$::bodies.json http://127.0.0.1:$::kv(admin)/admin/$path"
}
set granted {"get","list","create","update","delete","recover","purge","wrapKey","unwrapKey","rotate"}
proc grant {permissions} { return [admin grant "{\"vault\":\"beta\",\"identity\":\"app-secret\",\"permissions\":\[$permissions\]}"] }

say "A database under the customer's key, and its backup"
step "A database is made; its protector is $key" {
  on first ".open file:app.db?vfs=tde
CREATE TABLE orders(id INTEGER PRIMARY KEY, item TEXT); INSERT INTO orders(item) VALUES('one'), ('two'), ('three');
SELECT json_extract(tde_set_protector('$key'), '\$.mode');"
} database
step "Nothing of it is readable on disk" {
  expr {[string first "three" [read_bytes [at app.db]]] < 0 ? "no plaintext found" : "PLAINTEXT"}
} "no plaintext found"
step "A backup" {
  on first ".open file:app.db?vfs=tde
SELECT json_extract(tde_backup('app.bak'), '\$.key_id');"
} $key

say "On another instance the key is missing"
step "What does the backup need? (No key is asked for that.)" {
  on second "SELECT json_extract(value, '\$.key_id'), json_extract(value, '\$.state') FROM json_each(tde_restore_check('app.bak'), '\$.needed');"
} "$key|missing"
step "A restore names exactly that key, and leaves nothing behind" {
  set said [lindex [split [on second "SELECT tde_restore('app.bak', 'restored.db');"] \n] end]
  return -level 0 "$said ([expr {[file exists [at restored.db]] ? "A FILE IS LEFT" : "no file is left"}])"
} "*MissingKeyForRestore*$key*tde_instance_add_key*(no file is left)"
step "The key is added to the instance, which does not make it the default" {
  on second "SELECT json_extract(tde_instance_add_key('$key'), '\$.key_id'); SELECT json_extract(tde_instance(), '\$.default_protector');"
} "$key\n[kv_key delta rsa]"
step "Now the restore works: at the instance's level, under its own key" {
  on second "SELECT json_extract(tde_restore('app.bak', 'restored.db'), '\$.mode');
.open file:restored.db?vfs=tde
SELECT json_extract(tde_status(), '\$.protector'); SELECT group_concat(item) FROM orders;"
} "inherit\n[kv_key delta rsa]\none,two,three"
step "Or, as chosen, under a protector of its own" {
  on second "SELECT json_extract(tde_restore('app.bak', 'own.db', json_object('protector', '$key')), '\$.mode');
.open file:own.db?vfs=tde
SELECT json_extract(tde_status(), '\$.protector'); SELECT count(*) FROM orders;"
} "database\n$key\n3"

say "The customer revokes the key while the database is in use, and gives it back"
step "Refused, with the reason; after the heal window only tde_revalidate() brings it back" {
  set script ".open file:app.db?vfs=tde
SELECT count(*), json_extract(tde_status(), '\$.state') FROM orders;
[grant {"get"}]
.system sleep 6
SELECT count(*) FROM orders;
.open file::memory:
.open file:app.db?vfs=tde
SELECT json_extract(tde_status(), '\$.error.class');
[grant $granted]
.system sleep 3
SELECT json_extract(tde_revalidate(), '\$.state') IS NOT NULL;
SELECT count(*), json_extract(tde_status(), '\$.state') FROM orders;"
  set ::env(TDE_INSTANCE) [at first]
  shell $script
} "*3|Online\n*disk I/O error*denied\n1\n3|Online"

say "The key is rotated; an old backup still asks for the old one"
set old [lindex [split [json [kv_vault beta GET keys/customer] {$.key.kid}] /] end]
kv_vault beta POST keys/customer/rotate
step "The database goes to the new version: one header write" {
  set new [on first ".open file:app.db?vfs=tde
SELECT json_extract(tde_set_protector('$key'), '\$.version');"]
  expr {$new ne $old ? "from $old to $new" : "the version did not change: $new"}
} "from $old to *"
step "The backup from before needs the old version" {
  on first "SELECT json_extract(tde_restore_check('app.bak'), '\$.needed\[0\].version');"
} $old
step "which tde_key_safe_to_retire() says, too" {
  on first "SELECT json_extract(tde_key_safe_to_retire('$key/$old', 'app.bak'), '\$.safe');"
} 0

puts "\nAll steps came out as they should."
done 0
