# story.tcl: what the rehearsals share: steps that are printed with what they gave, and
# a test key server. Sourced by restore.tcl and tenants.tcl, run by make demo-restore and
# make demo-tenants.
#
# Must hold: a step whose result is not the expected one ends the story with status 1.
source [file join [file dirname [file dirname [file normalize [info script]]]] harness.tcl]
source [file join $::here keyvault keyvault.tcl]

proc say {text} { puts "\n$text" }

proc done {code} {
  kv_stop
  cd /
  file delete -force $::scratch
  exit $code
}

# step TEXT SCRIPT PATTERN: runs the script; its result (or error) must match.
proc step {text script pattern} {
  if {[catch {uplevel 1 $script} result]} { set result [string trim $result] }
  puts "\n  $text"
  foreach line [split $result \n] { puts "    $line" }
  flush stdout
  if {[string match $pattern $result]} return
  puts "    ^ this is not what was to come: $pattern"
  done 1
}

if {![::tcltest::testConstraint keyvault]} {
  puts "the test key server is needed: install libmicrohttpd-dev, then make keyvault-if-can"
  exit 1
}
