# harness.tcl: what every *.test file shares.
#
# A test file sources this, writes tcltest tests, and ends with `finish`. Each
# file runs in a process and a scratch directory of its own, with a TDE_INSTANCE
# of its own in it; HOME points there, too, so that no test can touch the keys
# of the user who runs it. The extension under test is TDE_SO, by default
# build/tde.so beside the tests folder. Nothing here may hide a failure: what
# cannot run is a tcltest constraint with a reason, and run.tcl lists it.

package require Tcl 8.6
package require tcltest 2.3
package require sqlite3
namespace import -force ::tcltest::test

set ::here [file dirname [file normalize [info script]]]
set ::root [file dirname $::here]
set ::so [file normalize [expr {[info exists ::env(TDE_SO)] ? $::env(TDE_SO)
                                                             : "$::root/build/tde.so"}]]
if {![file exists $::so]} {
  puts stderr "no extension at $::so: run make, or set TDE_SO"
  exit 1
}

# ---- scratch ----

proc make_scratch {} {
  set base [expr {[info exists ::env(TMPDIR)] ? $::env(TMPDIR) : "/tmp"}]
  for {set i 0} {$i < 100} {incr i} {
    set dir [file join [file normalize $base] "tde-test-[pid]-[clock microseconds]"]
    if {![file exists $dir]} {
      file mkdir $dir
      file attributes $dir -permissions 0700
      return $dir
    }
  }
  error "no scratch directory under $base"
}

set ::scratch [make_scratch]
file mkdir $::scratch/tmp
set ::env(TDE_INSTANCE) $::scratch/instance
set ::env(HOME) $::scratch
set ::env(SQLITE_TMPDIR) $::scratch/tmp
unset -nocomplain ::env(XDG_DATA_HOME)
cd $::scratch

# A file in the scratch directory.
proc at {name} { return [file join $::scratch $name] }

# Removes databases with everything that belongs to them.
proc wipe {args} {
  foreach name $args {
    foreach f [glob -nocomplain -- [at $name]*] { file delete -force -- $f }
  }
}

proc write_file {path bytes {mode wb}} {
  set f [open $path $mode]
  if {"b" ni [split $mode ""]} { fconfigure $f -encoding utf-8 }
  puts -nonewline $f $bytes
  close $f
}

proc read_bytes {path {offset 0} {n -1}} {
  set f [open $path rb]
  seek $f $offset
  set b [expr {$n < 0 ? [read $f] : [read $f $n]}]
  close $f
  return $b
}

# Overwrites bytes in place; the file keeps its length.
proc patch {path offset bytes} {
  set f [open $path r+b]
  seek $f $offset
  puts -nonewline $f $bytes
  close $f
}

# Flips every bit of one byte.
proc damage {path offset} {
  binary scan [read_bytes $path $offset 1] cu b
  patch $path $offset [binary format cu [expr {$b ^ 0xff}]]
}

proc truncate_file {path size} {
  set f [open $path r+b]
  chan truncate $f $size
  close $f
}

# Where the record of a unit lies in a main file (vfs/FORMAT.md): before SQLite's lock bytes or behind
# them, which are elsewhere in `make check-tcl-locks`.
set ::lock_bytes [expr {[info exists ::env(TDE_LOCK_BYTES)] ? $::env(TDE_LOCK_BYTES) : 0x40000000}]
proc unit_at {i {unit 4096}} {
  set below [expr {($::lock_bytes - 65536) / ($unit + 48)}]
  expr {$i < $below ? 65536 + $i * ($unit + 48) : $::lock_bytes + 65536 + ($i - $below) * ($unit + 48)}
}

proc mode_of {path} { return [file attributes $path -permissions] }

# ---- constraints ----

set ::reasons {}

# A constraint with the reason that is printed where it does not hold.
proc needs {name holds reason} {
  ::tcltest::testConstraint $name [expr {$holds ? 1 : 0}]
  dict set ::reasons $name $reason
}

needs usual_locks [expr {$::lock_bytes == 0x40000000}] "counts on SQLite's lock bytes at 1 GiB"

# ---- connections ----

sqlite3 ::sql :memory:
::sql enable_load_extension 1
::sql eval {SELECT load_extension($::so)}

# Percent-encodes the path part of a URI.
proc uri {name {params ""}} {
  set path [expr {[file pathtype $name] eq "absolute" ? $name : [at $name]}]
  set path [string map {% %25 ? %3f # %23 " " %20} $path]
  return "file:$path[expr {$params eq "" ? "" : "?$params"}]"
}

# Opens a database through the VFS under test: open_tde db app.db ?params?
proc open_tde {db name {params ""}} {
  sqlite3 $db [uri $name "vfs=tde[expr {$params eq "" ? "" : "&$params"}]"] -uri 1
  $db timeout 10000
  return $db
}

# Opens a database in plain, whatever the default VFS is.
proc open_plain {db name {params ""}} {
  sqlite3 $db [uri $name "vfs=unix[expr {$params eq "" ? "" : "&$params"}]"] -uri 1
  $db timeout 10000
  return $db
}

# open_as tde|plain db name ?params?
proc open_as {kind args} { return [open_$kind {*}$args] }

proc close_all {args} {
  foreach db $args { catch {$db close} }
}

# ---- JSON, through SQLite's own functions ----

proc json {text path} {
  return [::sql onecolumn {SELECT json_extract($text, $path)}]
}
# Several paths of one text.
proc jget {json args} { return [lmap p $args { json $json $p }] }
# SQLite since 3.49 or so reads the schema before any SELECT: of a database without its key or whose
# page 1 is damaged a PRAGMA alone can ask, and the rest is asked through another connection.
write_file [at junk.db] [string repeat x 5000]
sqlite3 ::junk [at junk.db]
set ::schema_first [catch {::junk eval {SELECT 1}}]
::junk close
file delete [at junk.db]

proc status {db {schema main}} {
  if {![catch {$db onecolumn "PRAGMA \"$schema\".tde_status"} text] && $text ne ""} { return $text }
  return [$db onecolumn {SELECT tde_status($schema)}]
}
proc path_of {db schema} {
  $db eval {PRAGMA database_list} row { if {$row(name) eq $schema} { return $row(file) } }
  error "no schema $schema"
}
# What a function that takes a schema or a path says of this database.
proc ask {db function {schema main}} {
  if {[catch {$db onecolumn "SELECT ${function}(\$schema)"} text opts]} {
    set bare {{disk I/O error} {database disk image is malformed} {file is not a database} {unable to open database file}}
    if {!$::schema_first || $text ni $bare} { return -options $opts $text }
    set path [path_of $db $schema]
    return [::sql onecolumn "SELECT ${function}(\$path)"]
  }
  return $text
}
# A check of the key that happens to run is waited for.
proc state {db {schema main}} {
  for {set i 0} {$i < 100} {incr i} {
    set state [json [status $db $schema] {$.state}]
    if {$state ne "Revalidating"} break
    after 50
  }
  return $state
}
proc verify {db {schema main}} { return [ask $db tde_verify $schema] }
proc verify_ok {db {schema main}} { return [json [verify $db $schema] {$.ok}] }

# "ok" when SQLite and the extension both find the database whole.
proc whole {db {schema main}} {
  set i [$db eval "PRAGMA $schema.integrity_check"]
  if {$i ne "ok"} { return "integrity_check: $i" }
  if {![verify_ok $db $schema]} { return "tde_verify: [verify $db $schema]" }
  return ok
}

# The message of a failing script; an error when it does not fail.
proc failure {script} {
  if {![catch {uplevel 1 $script} message]} { error "did not fail: $script -> $message" }
  return $message
}

# True when the text matches every glob pattern; else the text, to be seen.
proc says {text args} {
  foreach pattern $args {
    if {![string match -nocase *$pattern* $text]} { return "no '$pattern' in: $text" }
  }
  return 1
}

# ---- content ----

# A table of n rows whose content is a function of the row alone.
proc fill {db {n 200} {table t}} {
  $db eval "CREATE TABLE IF NOT EXISTS $table (id INTEGER PRIMARY KEY, k TEXT, v BLOB);
            CREATE INDEX IF NOT EXISTS ${table}_k ON $table (k)"
  $db eval "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < $n)
            INSERT INTO $table (k, v)
            SELECT printf('key %06d', (i * 7919) % 100003), zeroblob(i % 97) || printf('%0*d', i % 211, i)
            FROM c"
}

# Everything in a database, as one digestible list.
proc content {db {schema main}} {
  set out {}
  foreach {type name sql} [$db eval "SELECT type, name, sql FROM $schema.sqlite_schema
                                     ORDER BY type, name"] {
    lappend out $type $name $sql
    if {$type eq "table"} {
      lappend out [$db eval "SELECT * FROM $schema.\"$name\" ORDER BY 1, 2"]
    }
  }
  return $out
}

proc readable {db} { return [expr {![catch {$db eval {SELECT count(*) FROM t}}]}] }
# Time for several checks of a key that is checked each second, with a thread that makes them.
proc some_checks {db {n 5}} { for {set i 0} {$i < $n} {incr i} { after 700; readable $db } }

# ---- other programs ----

set ::python ""
foreach p {/usr/bin/python3 python3} {
  if {![catch {exec $p -c {import sqlite3; sqlite3.connect(":memory:").enable_load_extension(1)}}]} {
    set ::python $p
    break
  }
}
needs python [expr {$::python ne ""}] "no python3 whose sqlite3 module can load extensions"
needs shell [expr {![catch {exec sqlite3 -version}]}] "no sqlite3 shell"
needs cc [expr {![catch {exec cc --version}]}] "no C compiler (cc)"
needs nm [expr {![catch {exec nm --version}]}] "no nm"
# A preloaded sanitizer means that the library beside the extension has one, too.
needs shared_only [expr {![info exists ::env(LD_PRELOAD)] && ![info exists ::env(TDE_COVERAGE)]}] "the library next to an instrumented extension is instrumented, too"
needs uncounted [expr {![info exists ::env(TDE_COVERAGE)]}] "another user can not add to the counts of coverage"

# The DEK epochs of the units of a database file, counted.
proc epochs {path {unit 4096}} {
  set seen [dict create]
  set bytes [read_bytes $path]
  for {set i 0} {[unit_at $i $unit] + $unit + 48 <= [string length $bytes]} {incr i} {
    binary scan $bytes @[unit_at $i $unit]iu e
    dict incr seen $e
  }
  return $seen
}

# An instance with its service-managed key. To make an RSA key takes long: a test file makes what
# its tests begin with once, and each begins with a copy.
proc make_instance {folder} {
  open_tde db seed.db "tde_instance=[at $folder]"
  db eval {CREATE TABLE t(a)}
  close_all db
  file delete [at seed.db]
}

# The decoder that shares no code with the extension: $::decode, and the constraint `decoder`.
proc needs_decoder {} {
  set ::decode [file join $::here decoder decode.py]
  needs decoder [expr {$::python ne "" && ![catch {exec openssl version}]
                     && ![catch {exec $::python $::decode selftest}]}] \
  "decode.py needs python3, libcrypto.so and the openssl program"
}

# Runs a program; returns stdout and stderr together, and its exit status with
# a leading "exit N" line when it is not 0. Never throws.
proc run {args} {
  if {[catch {exec {*}$args 2>@1} out opts]} {
    set code [dict get $opts -errorcode]
    if {[lindex $code 0] eq "CHILDSTATUS"} {
      return "exit [lindex $code 2]\n[regsub {\nchild process exited abnormally$} $out {}]"
    }
    return "exit ?\n$out"
  }
  return $out
}

# Runs the stock shell on a script with the extension loaded.
proc shell {script args} {
  return [run sqlite3 -batch -init /dev/null {*}$args << ".load $::so\n$script\n"]
}

# Python that loads the extension; `tde(name, params)` opens a database, `said(db, path)` is what its status has
# there, `records(size)` is where the records of a main file of this size lie, and `so` is the path.
set ::py_head {
import os, sqlite3, sys, time
from urllib.parse import quote
so = os.environ['TDE_SO_PATH']
_loader = sqlite3.connect(':memory:')
_loader.enable_load_extension(True)
_loader.load_extension(so)
_loader.close()
def tde(name, params='', **kw):
    kw.setdefault('timeout', 30)
    uri = 'file:' + quote(os.path.abspath(name)) + '?vfs=tde' + ('&' + params if params else '')
    return sqlite3.connect(uri, uri=True, **kw)
_locks = int(os.environ.get('TDE_LOCK_BYTES', '0x40000000'), 0)
def unit_at(i, unit=4096):
    below = (_locks - 65536) // (unit + 48)
    return 65536 + i * (unit + 48) if i < below else _locks + 65536 + (i - below) * (unit + 48)
def records(size, unit=4096):
    i = 0
    while unit_at(i, unit) + unit + 48 <= size:
        yield unit_at(i, unit)
        i += 1
_plain = sqlite3.connect(':memory:', check_same_thread=False)
def said(c, path):
    return _plain.execute('select json_extract(?, ?)', (c.execute('pragma tde_status').fetchone()[0], path)).fetchone()[0]
}
set ::env(TDE_SO_PATH) $::so
# What a script has printed is out, also when it ends by os._exit.
set ::env(PYTHONUNBUFFERED) 1

proc py_file {script} {
  set path [at "script-[incr ::py_count].py"]
  write_file $path $::py_head\n$script w
  return $path
}
set ::py_count 0

proc py {script args} { return [run $::python [py_file $script] {*}$args] }

# Waits until the script is true: true, or false after some seconds.
proc within {seconds script} {
  for {set i 0} {$i < $seconds * 20} {incr i} {
    if {[uplevel 1 $script]} { return 1 }
    after 50
  }
  return 0
}

# Starts a program without waiting: the channel, for `await`.
proc start {args} { return [open "|[list {*}$args 2>@1]" r] }
proc await {chan} {
  set out [read $chan]
  if {[catch {close $chan} message opts]} {
    set code [dict get $opts -errorcode]
    set out "exit [lindex $code end]\n$out$message"
  }
  return [string trimright $out \n]
}

# ---- the end ----

::tcltest::configure -verbose {body error skip} -singleproc 1 -tmpdir $::scratch
if {[info exists ::env(TDE_TESTS)]} { ::tcltest::configure -match $::env(TDE_TESTS) }

# Prints the totals in the form that run.tcl reads, and leaves.
proc finish {} {
  cd /
  foreach f [glob -nocomplain $::scratch/tmp/*] { file delete -force $f }
  catch {exec chmod -R u+rwx $::scratch}
  file delete -force $::scratch
  dict for {name reason} $::reasons {
    if {[info exists ::tcltest::skippedBecause($name)]} { puts "@because $name\t$reason" }
  }
  array set n [array get ::tcltest::numTests]
  puts "@totals $n(Passed) $n(Failed) $n(Skipped)"
  flush stdout
  exit [expr {$n(Failed) > 0}]
}
