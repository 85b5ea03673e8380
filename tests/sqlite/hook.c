/*
** hook.c: puts the shim under SQLite's test program.
**
** SQLite is built with SQLITE_EXTRA_INIT naming suite_sqlite_init, which it
** calls at the end of each sqlite3_initialize() that did something. The suite
** shuts SQLite down and starts it again hundreds of times, and each start puts
** the unix VFS back in front: what must hold is that no connection is ever
** opened by anything but the shim unless the test asks for another VFS, so an
** error here fails sqlite3_initialize itself. SUITE_LIVE: in the Tcl program,
** which also looks at files behind SQLite's back (live.c).
*/
#include "sqlite3.h"

#if SUITE_TDE
#include "ext/tde.h"
#endif
#if SUITE_LIVE
#include "live.h"
#endif

int suite_sqlite_init(const char *unused);

int suite_sqlite_init(const char *unused) {
  int rc = SQLITE_OK;
  (void)unused;
#if SUITE_TDE
  rc = tde_register();
  if (rc == SQLITE_OK) rc = tde_make_default(1);
#if SUITE_LIVE
  if (rc == SQLITE_OK) rc = suite_live_start();
#endif
#endif
  return rc;
}
