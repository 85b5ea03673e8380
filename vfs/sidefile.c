/*
** sidefile.c: the methods of every file but a main database: WAL (wal.c), rollback journal (journal.c),
** temporary files (sealed.c alone), and super-journals, which pass through as they are.
*/
#include "methods.h"

SQLITE_EXTENSION_INIT3

static int do_side_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *f = file_of(pf);

  if (f->plain) return LOWER(f)->xRead(f->lower, buf, n, off);
  if (f->role == TDE_ROLE_WAL) return tde_wal_read(f, buf, (uint32_t)n, (uint64_t)off);
  if (f->role == TDE_ROLE_JOURNAL) return tde_journal_read(f, buf, (uint32_t)n, (uint64_t)off);
  return tde_sealed_read(&f->s, buf, (uint32_t)n, (uint64_t)off, 0);
}

static int do_side_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  tde_file *f = file_of(pf);

  if (n == 0) return SQLITE_OK;
  if (f->plain) return LOWER(f)->xWrite(f->lower, buf, n, off);
  if (f->role == TDE_ROLE_WAL) return tde_wal_write(f, buf, (uint32_t)n, (uint64_t)off);
  if (f->role == TDE_ROLE_JOURNAL) return tde_journal_write(f, buf, (uint32_t)n, (uint64_t)off);
  return tde_sealed_write(&f->s, buf, (uint32_t)n, (uint64_t)off);
}

static int do_side_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  tde_file *f = file_of(pf);

  if (f->plain) return LOWER(f)->xTruncate(f->lower, size);
  if (f->role == TDE_ROLE_TEMP) return tde_sealed_truncate(&f->s, (uint64_t)size);
  return tde_log_truncate(f, (uint64_t)size);
}

static int do_side_sync(sqlite3_file *pf, int flags) {
  tde_file *f = file_of(pf);

  if (!f->plain) {
    int rc = tde_sealed_flush(&f->s);
    if (rc) return rc;
    f->s.counters->lower_syncs++;
    f->gen.synced = 1;
  }
  return LOWER(f)->xSync(f->lower, flags);
}

static int do_side_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tde_file *f = file_of(pf);
  uint64_t n = 0;
  int rc;

  if (f->plain) return LOWER(f)->xFileSize(f->lower, size);
  rc = f->role == TDE_ROLE_TEMP ? tde_sealed_size(&f->s, &n) : tde_log_size(f, &n);
  *size = (sqlite3_int64)n;
  return rc;
}

static int side_lock(sqlite3_file *pf, int level) {
  tde_file *f = file_of(pf);
  return LOWER(f)->xLock(f->lower, level);
}

static int side_unlock(sqlite3_file *pf, int level) {
  tde_file *f = file_of(pf);
  return LOWER(f)->xUnlock(f->lower, level);
}

static int side_control(sqlite3_file *pf, int op, void *arg) {
  tde_file *f = file_of(pf);

  if (op == SQLITE_FCNTL_VFSNAME) return tde_any_vfsname(f, (char **)arg);
  if (!f->plain) {
    if (op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE) return SQLITE_OK;
    if (op == SQLITE_FCNTL_MMAP_SIZE) return tde_map_limit(f, arg);
  }
  return LOWER(f)->xFileControl(f->lower, op, arg);
}

int tde_sidefile_close(tde_file *f) {
  int rc = SQLITE_OK, rc2;

  if (!f->plain && f->role == TDE_ROLE_JOURNAL && f->gen.valid) {
    rc = tde_sealed_flush(&f->s);
    /* What it did not save must not be overwritten. */
    if (rc && !f->owned_owner) f->db->journal_lost = 1;
  }
  if (f->db && f->db->wal == f) f->db->wal = NULL;
  if (f->db && f->db->journal == f) f->db->journal = NULL;
  tde_sealed_clear(&f->s);
  tde_cryptor_clear(&f->own_crypt);
  if (f->owned_owner) tde_db_close_beside(f->owned_owner);
  rc2 = tde_lower_close(f->lower);
  sqlite3_free(f);
  return rc ? rc : rc2;
}

/* ---- the methods ---- */

static int side_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m, 0);
  return leave(m, io_code(rc ? rc : do_side_read(pf, buf, n, off)));
}
static int side_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m, 0);
  return leave(m, io_code(rc ? rc : do_side_write(pf, buf, n, off)));
}
static int side_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  tde_file *m = enter(pf);
  return leave(m, io_code(do_side_truncate(pf, size)));
}
static int side_sync(sqlite3_file *pf, int flags) {
  tde_file *m = enter(pf);
  return leave(m, io_code(do_side_sync(pf, flags)));
}
static int side_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tde_file *m = enter(pf);
  return leave(m, io_code(do_side_size(pf, size)));
}
static int side_close(sqlite3_file *pf) {
  tde_file *f = file_of(pf), *m = f->owned_owner ? NULL : enter(pf);
  return leave(m, tde_sidefile_close(f));
}

/* Version 3 without shared memory, for the mmap size of temporary databases. */
const sqlite3_io_methods tde_sidefile_methods = {.iVersion = 3,
                                                 .xFetch = tde_any_fetch,
                                                 .xUnfetch = tde_any_unfetch,
                                                 .xClose = side_close,
                                                 .xRead = side_read,
                                                 .xWrite = side_write,
                                                 .xTruncate = side_truncate,
                                                 .xSync = side_sync,
                                                 .xFileSize = side_size,
                                                 .xLock = side_lock,
                                                 .xUnlock = side_unlock,
                                                 .xCheckReservedLock = tde_any_reserved,
                                                 .xFileControl = side_control,
                                                 .xSectorSize = tde_any_sector_size,
                                                 .xDeviceCharacteristics = tde_any_traits};
