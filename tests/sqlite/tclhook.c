/*
** tclhook.c: start of the test program's Tcl interpreter: SQLite's own test
** commands, then, in the encrypting build, the logical view of files.
**
** SQLITE_SUITE_PRELUDE names a script that replaces the commands which look at
** files behind SQLite's back (prelude.tcl). It is read here and not by the
** runner alone, because many tests start the test program again.
*/
#include <stdio.h>
#include <stdlib.h>

#include <tcl.h>

#if SUITE_TDE
#include "logical.h"
#endif

const char *sqlite3TestInit(Tcl_Interp *interp);
const char *suite_tcl_init(Tcl_Interp *interp);

const char *suite_tcl_init(Tcl_Interp *interp) {
  const char *script = sqlite3TestInit(interp);
#if SUITE_TDE
  const char *prelude = getenv("SQLITE_SUITE_PRELUDE");
  suite_logical_init(interp);
  if (prelude != NULL && Tcl_EvalFile(interp, prelude) != TCL_OK) {
    fprintf(stderr, "%s: %s\n", prelude, Tcl_GetStringResult(interp));
    exit(70);
  }
#endif
  return script;
}
