/*
** methods.c: the methods that answer alike for every role; see methods.h.
*/
#include "methods.h"

SQLITE_EXTENSION_INIT3

int tde_any_reserved(sqlite3_file *pf, int *out) {
  return tde_main_reserved(file_of(pf)->lower, out);
}

int tde_any_vfsname(tde_file *f, char **out) {
  int rc = LOWER(f)->xFileControl(f->lower, SQLITE_FCNTL_VFSNAME, out);
  char *chain;

  if (rc == SQLITE_OK && *out) {
    chain = sqlite3_mprintf("%s/%z", TDE_VFS_NAME, *out);
  } else {
    chain = sqlite3_mprintf("%s/%s", TDE_VFS_NAME, f->lower_vfs->zName);
  }
  *out = chain;
  return chain ? SQLITE_OK : SQLITE_NOMEM;
}

int tde_any_sector_size(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  return LOWER(f)->xSectorSize ? LOWER(f)->xSectorSize(f->lower) : 4096;
}

int tde_any_traits(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  int traits = LOWER(f)->xDeviceCharacteristics(f->lower);

  if (f->plain) return traits;
  /* A record is longer than a page and lies elsewhere: what the device says of
  ** atomic writes and safe appends does not hold for pages. */
  return traits & (SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN |
                   SQLITE_IOCAP_IMMUTABLE | SQLITE_IOCAP_SEQUENTIAL);
}

/* Only for a database passed through in plain (tde_plain=allow): the pages of others
** must be opened first (map.c). */
int tde_any_fetch(sqlite3_file *pf, sqlite3_int64 off, int n, void **out) {
  tde_file *f = file_of(pf);
  if (f->plain && LOWER(f)->iVersion >= 3) return LOWER(f)->xFetch(f->lower, off, n, out);
  *out = NULL;
  return SQLITE_OK;
}

int tde_any_unfetch(sqlite3_file *pf, sqlite3_int64 off, void *p) {
  tde_file *f = file_of(pf);
  if (f->plain && LOWER(f)->iVersion >= 3) return LOWER(f)->xUnfetch(f->lower, off, p);
  if (f->role == TDE_ROLE_MAIN && !f->plain) tde_map_undo(f);
  return SQLITE_OK;
}
