# tenants.tcl: a rehearsal: one process, 100 tenants with a database each, each under a key
# of the tenant's own. One tenant revokes the key: that database is refused, the others go
# on; given back, it returns by tde_revalidate().
source [file join [file dirname [file normalize [info script]]] story.tcl]
kv_start
kv_instance $::env(TDE_INSTANCE) {,"policy":{"check_interval_s":1,"heal_window_s":1}}

set n 100
say "$n tenants, each with a key of their own (this takes a while: $n RSA keys are made)"
for {set i 0} {$i < $n} {incr i} { kv_vault beta POST keys/tenant-$i/create {{"kty":"RSA"}} }
kv_forget

proc attributes {i json} {
  set version [lindex [split [json [kv_vault beta GET keys/tenant-$i] {$.key.kid}] /] end]
  kv_vault beta PATCH keys/tenant-$i/$version "{\"attributes\":$json}"
}
proc reply {} {
  if {[gets $::app line] < 0} { error "the application ended: [catch {close $::app} m] $m" }
  return $line
}
proc ask {command} { puts $::app $command; flush $::app; return [reply] }

set ::app [open "|[list $::python -u [py_file {
n, key = int(sys.argv[1]), sys.argv[2]
all = [tde('tenant-%d.db' % i, 'tde_protector=' + quote(key + str(i), safe=''), isolation_level=None) for i in range(n)]
for i, c in enumerate(all): c.executescript('create table t(a); insert into t values(%d)' % i)
def serve():
    refused = []
    for i, c in enumerate(all):
        try:
            c.execute('insert into t values(0)')
            if c.execute('select a from t limit 1').fetchone()[0] != i: refused.append('wrong content in %d' % i)
        except sqlite3.Error: refused.append(i)
    return refused
print('ready')
for line in sys.stdin:
    word, _, of = line.strip().partition(' ')
    if word == 'serve': print('refused:', *serve() or ['nobody'])
    if word == 'until':
        want = [int(of)] if of else []
        for _ in range(200):
            if serve() == want: break
            time.sleep(0.1)
        time.sleep(2)
        print('refused:', *serve() or ['nobody'])
    if word == 'status': print(*all[int(of)].execute("select json_extract(tde_status(), '$.state'), json_extract(tde_status(), '$.error.class')").fetchone())
    if word == 'revalidate':
        try:
            all[int(of)].execute('select tde_revalidate()')
            print('revalidated')
        except sqlite3.Error as e: print(e)
}] $n [kv_key beta tenant-] 2>@1]" r+]

step "One process opens them all" { reply } ready
step "and serves them; to sign in took one token" { return -level 0 "[ask serve], tokens: [kv_count token]" } \
  "refused: nobody, tokens: 1"
attributes 42 {{"enabled":false}}
step "Tenant 42 disables the key: theirs alone is refused" { ask "until 42" } "refused: 42"
step "with the reason" { ask "status 42" } "* disabled"
step "Revalidation says what is still wrong" { ask "revalidate 42" } "*tenant-42*disabled*"
attributes 42 {{"enabled":true}}
step "The key is given back: tde_revalidate()" { ask "revalidate 42" } revalidated
step "and everybody is served" { ask serve } "refused: nobody"
catch {close $::app}
puts "\nAll steps came out as they should."
done 0
