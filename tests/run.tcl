# run.tcl: runs the *.test files, each in a process of its own, and adds up.
#
#   tclsh tests/run.tcl [-so PATH] [-jobs N] [-time SECONDS] [-match TESTS] [FILE...]
#
# FILE: names or glob patterns of test files, with or without ".test"; all by
# default. The environment is passed through, so that a sanitizer's runtime can
# be preloaded. Failures are printed in full, skipped tests with their reason.
# The last line is `N passed, N failed, N skipped`; exit 1 when anything failed.
# A file that ends without its totals (a crash, or out of time) is a failure.

set ::here [file dirname [file normalize [info script]]]
set ::so [expr {[info exists ::env(TDE_SO)] ? $::env(TDE_SO)
                                            : [file join [file dirname $::here] build tde.so]}]
set ::jobs 2
set ::limit 600
set ::patterns {}

for {set i 0} {$i < $argc} {incr i} {
  set a [lindex $argv $i]
  switch -- $a {
    -so { set ::so [lindex $argv [incr i]] }
    -jobs { set ::jobs [lindex $argv [incr i]] }
    -time { set ::limit [lindex $argv [incr i]] }
    -match { set ::env(TDE_TESTS) [lindex $argv [incr i]] }
    default {
      if {[string match -* $a]} {
        puts stderr "usage: tclsh run.tcl ?-so PATH? ?-jobs N? ?-time SECONDS? ?-match TESTS? ?FILE...?"
        exit 2
      }
      lappend ::patterns [file rootname [file tail $a]]
    }
  }
}
set ::env(TDE_SO) [file normalize $::so]
if {![file exists $::env(TDE_SO)]} {
  puts stderr "no extension at $::env(TDE_SO): run make, or name it with -so"
  exit 1
}

# The test files are UTF-8, and so are names of files in them, whatever the user's locale.
set ::env(LC_ALL) C.UTF-8

# One place for all scratch, so that a test file that dies leaves nothing.
set ::env(TMPDIR) [file join [file normalize [expr {[info exists ::env(TMPDIR)] ? $::env(TMPDIR) : "/tmp"}]] \
                       tde-run-[pid]]
file mkdir $::env(TMPDIR)
file attributes $::env(TMPDIR) -permissions 0711

# The slow ones first, so that the two lanes end together.
set ::slow {protector vault backup concurrency large differential convert pagesize}
proc selected {} {
  set files {}
  foreach path [glob -directory $::here *.test] {
    set name [file rootname [file tail $path]]
    if {![llength $::patterns]} { lappend files $name; continue }
    foreach p $::patterns {
      if {[string match $p $name]} { lappend files $name; break }
    }
  }
  set first [lmap n $::slow { if {$n ni $files} continue; set n }]
  return [concat $first [lmap n [lsort $files] { if {$n in $first} continue; set n }]]
}

array set ::total {passed 0 failed 0 skipped 0}
set ::skips {}
set ::bad {}

# Takes a finished file's output apart.
proc account {name text code seconds} {
  set because {}
  set rest {}
  set skipped {}
  set totals {}
  foreach line [split $text \n] {
    if {[regexp {^@because (\S+)\t(.*)$} $line -> c reason]} {
      dict set because $c $reason
    } elseif {[regexp {^@totals (\d+) (\d+) (\d+)$} $line -> p f s]} {
      set totals [list $p $f $s]
    } elseif {[regexp {^\+\+\+\+ (\S+) SKIPPED: (.*)$} $line -> test why]} {
      lappend skipped $test $why
    } else {
      lappend rest $line
    }
  }
  foreach {test why} $skipped {
    set reasons [lmap c [split $why] { if {![dict exists $because $c]} continue; dict get $because $c }]
    if {$why eq "userSpecifiedNonMatch"} continue
    lappend ::skips "$name: $test: [expr {[llength $reasons] ? [join $reasons {; }] : $why}]"
  }
  if {![llength $totals]} {
    incr ::total(failed)
    lappend ::bad $name
    set why [expr {$code == 124 ? "out of time ($::limit s)" : "ended early (status $code)"}]
    puts "$name: FAILED: $why\n[join $rest \n]"
    return
  }
  lassign $totals p f s
  # Totals and then another status: it crashed, or a sanitizer spoke, on its way out.
  if {$code != ($f > 0)} {
    lappend rest "$name: ended with status $code after its totals"
    incr f
  }
  if {[info exists ::env(TDE_TESTS)]} { set s [expr {[llength $skipped] / 2}] }
  incr ::total(passed) $p
  incr ::total(failed) $f
  incr ::total(skipped) $s
  puts [format "%-14s %4d passed %3d failed %3d skipped  %6.1f s" $name $p $f $s $seconds]
  if {$f} { lappend ::bad $name }
  set rest [string trim [join $rest \n]]
  if {$rest ne ""} { puts $rest }
  flush stdout
}

proc launch {name} {
  set chan [open [list | timeout -k 5 $::limit [info nameofexecutable] \
                      [file join $::here $name.test] < /dev/null 2>@1] r]
  fconfigure $chan -blocking 0 -encoding utf-8
  set ::output($chan) ""
  fileevent $chan readable [list collect $chan $name [clock milliseconds]]
  incr ::running
}

proc collect {chan name since} {
  append ::output($chan) [read $chan]
  if {![eof $chan]} return
  fconfigure $chan -blocking 1
  set code 0
  if {[catch {close $chan} message opts]} {
    set ec [dict get $opts -errorcode]
    set code [expr {[lindex $ec 0] eq "CHILDSTATUS" ? [lindex $ec 2] : [lindex $ec end]}]
  }
  account $name $::output($chan) $code [expr {([clock milliseconds] - $since) / 1000.0}]
  unset ::output($chan)
  incr ::running -1
  next
}

proc next {} {
  while {$::running < $::jobs && [llength $::queue]} {
    set ::queue [lassign $::queue name]
    launch $name
  }
  if {!$::running} { set ::done 1 }
}

set ::queue [selected]
if {![llength $::queue]} {
  puts stderr "no test file matches: $::patterns"
  exit 2
}
set ::running 0
next
if {![info exists ::done]} { vwait ::done }

cd /
catch {exec chmod -R u+rwx $::env(TMPDIR)}
file delete -force $::env(TMPDIR)

foreach line $::skips { puts "skipped: $line" }
if {[llength $::bad]} { puts "failed in: $::bad" }
puts "$::total(passed) passed, $::total(failed) failed, $::total(skipped) skipped"
exit [expr {$::total(failed) > 0}]
