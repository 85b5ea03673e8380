# prelude.tcl: commands that look at files behind SQLite's back, answered with
# what SQLite wrote there.
#
# SQLite's tests read a header field with hexio_read, damage a page with a plain
# [open] and [seek], compare [file size] with a page count. What they mean is the
# byte that SQLite put at that place. In the encrypting build this file is
# sourced into every interpreter before a test, and sends such a request for an
# encrypted database, WAL or journal through the shim (tde_logical, logical.c).
# The wal-index of one begins 32 KiB further into its file (vfs/walindex.c).
# Every other file, and every request that is about the file as a whole (copy,
# delete, exists), goes to the original command.

namespace eval suite {
  variable path     ;# channel -> file
  variable pos      ;# channel -> offset of the next byte
  variable whole    ;# channel -> contents collected for a database written anew
  variable index    ;# channel -> the one on the wal-index's file
  variable read_from "" ;# the database that was read last through a channel
  array set path {}
}

# The kind of an encrypted file: main, wal, journal; "" for any other.
proc ::suite::kind {file} {
  if {[string match "|*" $file]} { return "" }
  tde_logical kind $file
}

proc ::suite::is_index {file} {
  expr {[regsub -- {-shm$} $file {} database] && [kind $database] eq "main"}
}

rename hexio_read ::suite::hexio_read_raw
proc hexio_read {file offset amount} {
  if {[::suite::kind $file] eq ""} { return [::suite::hexio_read_raw $file $offset $amount] }
  string toupper [binary encode hex [tde_logical read $file $offset $amount]]
}

rename hexio_write ::suite::hexio_write_raw
proc hexio_write {file offset data} {
  if {[::suite::is_index $file]} { incr offset 32768 }
  if {[::suite::kind $file] eq ""} { return [::suite::hexio_write_raw $file $offset $data] }
  regsub -all {[^0-9A-Fa-f]} $data {} digits
  if {[string length $digits] % 2} { set digits [string range $digits 0 end-1] }
  tde_logical write $file $offset [binary decode hex $digits]
}

proc ::suite::file_size {file} {
  # A missing file must give Tcl's own message.
  set raw [::tcl::file::size $file]
  if {$raw == 0} {
    tde_logical flush $file
    set raw [::tcl::file::size $file]
  }
  if {$raw == 0 || [::suite::kind $file] eq ""} { return $raw }
  tde_logical size $file
}

# A copy has what SQLite has written so far, whatever the shim still holds back.
proc ::suite::file_copy {args} {
  foreach file [lrange $args 0 end-1] {
    if {![string match -* $file] && [file isfile $file]} { tde_logical flush $file }
  }
  ::tcl::file::copy {*}$args
}
namespace ensemble configure file -map \
  [dict replace [namespace ensemble configure file -map] \
    size ::suite::file_size copy ::suite::file_copy]

proc ::suite::chan_truncate {chan args} {
  if {![info exists ::suite::path($chan)]} { return [::tcl::chan::truncate $chan {*}$args] }
  flush $chan
  tde_logical truncate $::suite::path($chan) [lindex $args 0]
}
namespace ensemble configure chan -map \
  [dict replace [namespace ensemble configure chan -map] truncate ::suite::chan_truncate]

# Tests of failing system calls ask whose they are: the unix VFS's, below.
if {[info commands test_syscall] ne ""} {
  rename test_syscall ::suite::test_syscall_raw
  proc test_syscall {verb args} {
    if {$verb eq "defaultvfs"} { return unix }
    uplevel 1 [list ::suite::test_syscall_raw $verb {*}$args]
  }
}

# A test that names one of the unix VFSs means its locks, not plain files. One
# that says psow=0 wants a WAL padded or not, which is no matter here; the shim,
# which rests on powersafe overwrite, would refuse (zerodamage.test, which is
# about just that, spells it otherwise).
rename sqlite3 ::suite::sqlite3_raw
proc sqlite3 {args} {
  if {[llength $args] >= 2} {
    lset args 1 [string map {?psow=0& ? ?psow=0 ? &psow=0 {}} [lindex $args 1]]
  }
  set at [lsearch -exact $args -vfs]
  if {$at >= 2 && [regexp {^unix(-.*)?$} [lindex $args $at+1] base]} {
    set file [lindex $args 1]
    if {![string match file:* $file]} { set file file:$file }
    append file [expr {[string first ? $file] >= 0 ? "&" : "?"}] tde_base=$base
    set args [lreplace $args $at $at+1]
    lset args 1 $file
    if {[lsearch -exact $args -uri] < 0} { lappend args -uri 1 }
    lappend args -vfs tde
  }
  # The message names the command as tester.tcl knows it.
  if {[catch {uplevel 1 [list ::suite::sqlite3_raw {*}$args]} result options]} {
    set result [string map {::suite::sqlite3_raw sqlite_orig} $result]
  }
  return -options $options $result
}

rename md5file ::suite::md5file_raw
proc md5file {file args} {
  if {[::suite::kind $file] eq ""} { return [::suite::md5file_raw $file {*}$args] }
  set copy [::suite::logical_copy $file]
  set sum [::suite::md5file_raw $copy {*}$args]
  file delete $copy
  return $sum
}

# A plain file with what SQLite sees in this one.
proc ::suite::logical_copy {file} {
  set fd [file tempfile copy]
  fconfigure $fd -translation binary
  puts -nonewline $fd [tde_logical read $file 0 [tde_logical size $file]]
  close $fd
  return $copy
}

# [open]: for reading or patching, a channel on the logical bytes.
rename open ::suite::open_raw
proc open {file {mode r} args} {
  if {[string match "|*" $file] || ![string match {*.db*} $file]
   || [string match {*-shm} $file]} {
    set raw [uplevel 1 [list ::suite::open_raw $file $mode {*}$args]]
    if {$mode ni {r rb} || ![::suite::is_index $file]} { return $raw }
    set chan [::suite::channel $file]
    fconfigure $raw -translation binary
    fconfigure $chan -translation binary
    set ::suite::index($chan) $raw
    return $chan
  }
  if {[regexp {^w|TRUNC} $mode]} {
    return [::suite::open_new $file $mode {*}$args]
  }
  if {[::suite::kind $file] eq ""} { return [::suite::open_raw $file $mode {*}$args] }
  set chan [::suite::channel $file]
  set ::suite::read_from $::suite::path($chan)
  if {[regexp {^a|APPEND} $mode]} { seek $chan 0 end }
  if {[string match {*b*} $mode] && [string is lower [string index $mode 0]]} {
    fconfigure $chan -translation binary
  }
  return $chan
}

# A file written anew is collected and written when it is closed: a WAL or
# journal of an encrypted database is sealed like SQLite's own, a database image
# becomes an encrypted database, all else is written as it is.
proc ::suite::open_new {file mode args} {
  # An encrypted file keeps its header, and so its identity.
  if {[kind $file] eq ""} { close [open_raw $file $mode {*}$args] }
  set chan [channel $file]
  set ::suite::whole($chan) ""
  if {[string match {*b*} $mode]} { fconfigure $chan -translation binary }
  return $chan
}

proc ::suite::write_new {file bytes} {
  if {[is_copy $bytes]} {
    # With its identity, which logs copied beside it are bound to; in place, since
    # connections that have it open share locks on the inode.
    file copy -force $::suite::read_from $file.tmp
    set from [open_raw $file.tmp rb]
    set to [open_raw $file wb]
    fcopy $from $to
    close $to
    close $from
    file delete $file.tmp
    return
  }
  # Recovery tests leave page 1 out.
  if {[string match "SQLite format 3\x00*" $bytes] || ([regexp {\.db\d*$} $file]
      && [string length $bytes] % 512 == 0 && [string match [string repeat \x00 512]* $bytes])} {
    tde_logical import $file $bytes
  } elseif {![regexp {(-wal|-journal)$} $file] || [tde_logical create $file] eq ""
            || [catch {write_log $file $bytes}]} {
    # A log whose page size cannot be is a foreign one here, too.
    set fd [open_raw $file wb]
    puts -nonewline $fd $bytes
    close $fd
  }
}

# Whether these bytes are what was read from another database.
proc ::suite::is_copy {bytes} {
  variable read_from
  if {$read_from eq "" || [kind $read_from] ne "main"} { return 0 }
  set n [tde_logical size $read_from]
  if {$n != [string length $bytes]} { return 0 }
  string equal $bytes [tde_logical read $read_from 0 $n]
}

# Writes a log in the pieces that SQLite would use.
proc ::suite::write_log {file bytes} {
  set page 512
  set at 0
  if {[string match *-wal $file]} {
    binary scan $bytes @8I page
    tde_logical write $file 0 [string range $bytes 0 31]
    set at 32
  }
  while {$at < [string length $bytes]} {
    foreach n [expr {[string match *-wal $file] ? "24 $page" : $page}] {
      tde_logical write $file $at [string range $bytes $at [expr {$at+$n-1}]]
      incr at $n
    }
  }
}

proc ::suite::channel {file} {
  variable path
  variable pos
  set chan [chan create {read write} ::suite::on_channel]
  set path($chan) [file normalize $file]
  set pos($chan) 0
  return $chan
}

proc ::suite::on_channel {verb chan args} { on_$verb $chan {*}$args }

proc ::suite::on_initialize {chan mode} {
  return {initialize finalize watch read write seek}
}

proc ::suite::on_watch {chan events} {}

proc ::suite::on_finalize {chan} {
  variable path
  variable pos
  variable whole
  variable index
  if {[info exists whole($chan)]} {
    write_new $path($chan) $whole($chan)
    unset whole($chan)
  }
  if {[info exists index($chan)]} {
    close $index($chan)
    unset index($chan)
  }
  unset path($chan) pos($chan)
}

proc ::suite::on_read {chan count} {
  variable path
  variable pos
  variable whole
  variable index
  if {[info exists whole($chan)]} {
    set data [string range $whole($chan) $pos($chan) [expr {$pos($chan)+$count-1}]]
  } elseif {[info exists index($chan)]} {
    seek $index($chan) [expr {$pos($chan) + 32768}]
    set data [read $index($chan) $count]
  } else {
    set data [tde_logical read $path($chan) $pos($chan) $count]
  }
  incr pos($chan) [string length $data]
  return $data
}

proc ::suite::on_write {chan data} {
  variable path
  variable pos
  variable whole
  set n [string length $data]
  if {[info exists whole($chan)]} {
    set gap [expr {$pos($chan) - [string length $whole($chan)]}]
    if {$gap > 0} { append whole($chan) [string repeat \x00 $gap] }
    set head [string range $whole($chan) 0 [expr {$pos($chan)-1}]]
    set tail [string range $whole($chan) [expr {$pos($chan)+$n}] end]
    set whole($chan) $head$data$tail
  } else {
    tde_logical write $path($chan) $pos($chan) $data
  }
  incr pos($chan) $n
  return $n
}

proc ::suite::on_seek {chan offset base} {
  variable path
  variable pos
  variable whole
  switch -- $base {
    start   { set at 0 }
    current { set at $pos($chan) }
    end {
      if {[info exists whole($chan)]} {
        set at [string length $whole($chan)]
      } else {
        set at [tde_logical size $path($chan)]
      }
    }
  }
  set pos($chan) [expr {$at + $offset}]
}
