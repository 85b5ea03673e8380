/*
** methods.h: what the methods of a file have in common, whichever its role; they stand in mainfile.c
** and sidefile.c. Internal to vfs/.
**
** SQLite's methods are thin: each marks the database as in use by this thread (shim.h), asks whether
** the key is still there if it moves content, lets a function of its own do the work, and answers
** with a code that SQLite's pager understands.
*/
#ifndef TDE_METHODS_H
#define TDE_METHODS_H

#include "shim.h"

static inline tde_file *file_of(sqlite3_file *pf) {
  return ((tde_handle *)pf)->f;
}

/* What an I/O method may answer. SQLite's pager takes only SQLITE_FULL and
** SQLITE_IOERR* for failures after which its cache can not be trusted (pager.c,
** pager_error); anything else out of a rollback would leave rolled-back changes
** in the cache. */
static inline int io_code(int rc) {
  switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_IOERR:
    case SQLITE_FULL:
      return rc;
    case SQLITE_NOMEM:
      return SQLITE_IOERR_NOMEM;
    default:
      return SQLITE_IOERR;
  }
}

/* The same where nothing is written yet: taking locks, and reading without a
** write lock. The plain codes tell more there. */
static inline int early_code(int rc) {
  switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_READONLY:
    case SQLITE_NOTADB:
    case SQLITE_CANTOPEN:
      return rc;
    default:
      return io_code(rc);
  }
}

/* The main file whose keys this file goes by; NULL: none. */
static inline tde_file *keys_file(const tde_file *f) {
  return f->db ? f->db->file : NULL;
}

static inline tde_file *enter(sqlite3_file *pf) {
  tde_file *m = keys_file(file_of(pf));
  if (m) tde_file_enter(m);
  return m;
}

static inline int leave(tde_file *m, int rc) {
  if (m) tde_file_leave(m);
  return rc;
}

/* writes: a page of the main file. */
static inline int io_gate(tde_file *m, int writes) {
  return m ? tde_db_io_gate(m, writes) : SQLITE_OK;
}

/* SQLite's table for a main database, which depends on the lower file, and for any other file. */
const sqlite3_io_methods *tde_mainfile_methods(const tde_file *f);
extern const sqlite3_io_methods tde_sidefile_methods;
/* What xClose does, also of a file whose opening failed half-way; the file is in use already. */
int tde_mainfile_close(tde_file *f);
int tde_sidefile_close(tde_file *f);

/* Methods that answer alike for every role. */
int tde_any_reserved(sqlite3_file *pf, int *out);
int tde_any_sector_size(sqlite3_file *pf);
int tde_any_traits(sqlite3_file *pf);
int tde_any_fetch(sqlite3_file *pf, sqlite3_int64 off, int n, void **out);
int tde_any_unfetch(sqlite3_file *pf, sqlite3_int64 off, void *p);
/* SQLITE_FCNTL_VFSNAME: the name chain, as other shims do it. */
int tde_any_vfsname(tde_file *f, char **out);

/* connection.c: what a main database knows of the connections that use it */
int tde_connection_pragma(tde_file *f, char **arg); /* SQLITE_FCNTL_PRAGMA */
/* SQLITE_FCNTL_PDB: SQLite has opened the file for a connection, or has given it this one, too. */
void tde_connection_take(tde_file *f, sqlite3 *const *where);
/* May a plain connection that has attached this database write to it now? */
int tde_connection_refuse_guest(tde_file *f);

#endif
