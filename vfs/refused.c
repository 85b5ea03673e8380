/*
** refused.c: a main database that the VFS does not open, and says why.
**
** Of an xOpen that fails SQLite keeps the code alone, and most languages' bindings cannot see its
** log. What it calls for each new connection (sql/functions.c, tde_sql_on_open) may fail with a
** text, but only once the file is open: so a file stands there until then.
**
** What must hold: the database's own file is not open behind it (where it had to be looked at it is
** closed again); who goes on all the same, as ATTACH does, which asks nobody, gets the code at the
** first lock, or where that is left out (nolock=1) when it asks for the size. Before it SQLite reads
** the page size, and takes a short read for an empty file. (With immutable=1 it asks for the size at
** once, and has no text.)
*/
#include <string.h>

#include "shim.h"

SQLITE_EXTENSION_INIT3

typedef struct refused_file {
  sqlite3_file base;
  struct refusal {
    int rc;
    tde_status why;
  } *refusal;
} refused_file;

_Static_assert(sizeof(refused_file) <= sizeof(tde_handle), "SQLite makes room for a tde_handle");

static int code(sqlite3_file *pf) {
  return ((refused_file *)pf)->refusal->rc;
}

static int refused_close(sqlite3_file *pf) {
  sqlite3_free(((refused_file *)pf)->refusal);
  pf->pMethods = NULL;
  return SQLITE_OK;
}
static int refused_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  (void)pf, (void)off;
  memset(buf, 0, (size_t)n);
  return SQLITE_IOERR_SHORT_READ;
}
static int refused_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  (void)buf, (void)n, (void)off;
  return code(pf);
}
static int refused_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  (void)size;
  return code(pf);
}
static int refused_flags(sqlite3_file *pf, int flags) { /* a sync, a lock */
  (void)flags;
  return code(pf);
}
static int refused_size(sqlite3_file *pf, sqlite3_int64 *size) {
  *size = 0;
  return code(pf);
}
static int refused_unlock(sqlite3_file *pf, int level) {
  (void)pf, (void)level;
  return SQLITE_OK;
}
static int refused_reserved(sqlite3_file *pf, int *out) {
  *out = 0;
  return code(pf);
}
static int refused_control(sqlite3_file *pf, int op, void *arg) {
  if (op != TDE_FCNTL_REFUSAL) return SQLITE_NOTFOUND;
  *(const tde_status **)arg = &((refused_file *)pf)->refusal->why;
  return code(pf);
}
static int refused_traits(sqlite3_file *pf) { /* sector size and characteristics: SQLite's usual */
  (void)pf;
  return 0;
}

static const sqlite3_io_methods refused_methods = {
    .iVersion = 1,
    .xClose = refused_close,
    .xRead = refused_read,
    .xWrite = refused_write,
    .xTruncate = refused_truncate,
    .xSync = refused_flags,
    .xFileSize = refused_size,
    .xLock = refused_flags,
    .xUnlock = refused_unlock,
    .xCheckReservedLock = refused_reserved,
    .xFileControl = refused_control,
    .xSectorSize = refused_traits,
    .xDeviceCharacteristics = refused_traits,
};

int tde_refuse_open(sqlite3_file *pf, int rc, const tde_status *why) {
  refused_file *r = (refused_file *)pf;

  r->refusal = sqlite3_malloc64(sizeof(*r->refusal));
  if (!r->refusal) return rc;
  r->refusal->rc = rc;
  r->refusal->why = *why;
  r->base.pMethods = &refused_methods;
  return SQLITE_OK;
}
