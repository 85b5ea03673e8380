# suite.tcl: runs inside SQLite's test program, for run.py.
#
#     testfixture suite.tcl list TESTDIR PERMUTATION...
#     testfixture suite.tcl run  TESTDIR PERMUTATION FILE
#
# The first prints one line a test file: permutation, tab, path. The second runs
# one file as SQLite's permutations.test would. SQLite's scripts are sourced and
# not edited: what is added is added to the interpreter.

set suite_args [lassign $argv suite_verb testdir]
# Test files find their folder through argv0; the name must not be
# permutations.test, which would take the command line for its own.
set argv0 [file join $testdir veryquick.test]
set argv [list --maxerror=1000000]
source [file join $testdir permutations.test]

# Each test file runs in an interpreter of its own, which needs the same view of
# files as this one.
if {[info commands tde_logical] ne "" && [info exists env(SQLITE_SUITE_PRELUDE)]} {
  rename load_testfixture_extensions suite_load_extensions
  proc load_testfixture_extensions {child} {
    suite_load_extensions $child
    interp alias $child tde_logical {} tde_logical
    interp eval $child [list source $::env(SQLITE_SUITE_PRELUDE)]
  }
}

proc suite_list {permutations} {
  foreach perm $permutations {
    set files [list]
    foreach name [array names ::testspec $perm] {
      array unset spec
      array set spec $::testspec($name)
      foreach file [lsort $spec(-files)] {
        if {[file tail $file] eq $file} { set file [file join $::testdir $file] }
        if {[file exists $file]} { puts "$name\t[file normalize $file]" }
      }
    }
  }
}

if {$suite_verb eq "list"} {
  suite_list $suite_args
  exit 0
}
lassign $suite_args suite_permutation suite_file
run_tests $suite_permutation {*}$::testspec($suite_permutation) -files [list $suite_file]
finish_test
