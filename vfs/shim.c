/*
** shim.c: the VFS "tde" and its method tables.
**
** The shim stacks on another VFS. SQLite above sees exactly the bytes that it
** wrote, at the offsets it wrote them, in files of the sizes it expects; the
** lower VFS sees sealed records (sealed.h, FORMAT.md). What does not touch
** file content passes through. By role:
**
**   main database   database.c: header, keys, lock gate; units in sealed.c
**   WAL, journal    logfile.c: generations
**   temp files      sealed.c with a random key that exists in memory alone
**   super-journal   passed through: it holds file names only
**   anything else   refused
**
** Order that must hold: a journal's pending run is written before any page of
** its database (the process may die in between, and SQLite syncs nothing with
** synchronous=OFF). A main database's writes wait in its run only under
** EXCLUSIVE and outside WAL mode; SQLITE_FCNTL_SYNC, which SQLite sends before
** each commit whatever the synchronous setting, flushes them and can fail.
*/
#include "shim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "openfiles.h"

SQLITE_EXTENSION_INIT3

tde_key_source tde_source;

static sqlite3_vfs tde_vfs;
static sqlite3_vfs *base_vfs;
static sqlite3_vfs *default_before;
static pthread_mutex_t register_lock = PTHREAD_MUTEX_INITIALIZER;

sqlite3_vfs *tde_base_vfs(void) {
  return base_vfs;
}

const char *tde_vfs_base_name(void) {
  return base_vfs ? base_vfs->zName : NULL;
}

int64_t tde_now_ms(void) {
  struct timespec ts;
  /* Goes on while the machine sleeps, as a key's grace does. */
  clock_gettime(CLOCK_BOOTTIME, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static inline tde_file *file_of(sqlite3_file *pf) {
  return ((tde_handle *)pf)->f;
}

/* What an I/O method may answer. SQLite's pager takes only SQLITE_FULL and
** SQLITE_IOERR* for failures after which its cache can not be trusted (pager.c,
** pager_error); anything else out of a rollback would leave rolled-back changes
** in the cache. */
static int io_code(int rc) {
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
static int early_code(int rc) {
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

static int read_code(const tde_file *f, int rc) {
  return f->db->lock < SQLITE_LOCK_RESERVED ? early_code(rc) : io_code(rc);
}

/* ---- main database ---- */

/* Writes may wait in the run: nobody else can read the file, and the order
** rules above hold. */
static int may_defer(const tde_file *f) {
  return f->db->lock == SQLITE_LOCK_EXCLUSIVE && !f->db->wal && !f->db->shm_open;
}

/* A write that failed must not go out later: nobody keeps others from writing newer pages
** meanwhile, and what waits here would be read in place of theirs. */
static int drop_failed(tde_file *f, int rc) {
  if (rc && !may_defer(f)) tde_sealed_drop(&f->s);
  return rc;
}

static int main_flush(tde_file *f) {
  int rc = tde_sealed_pending(&f->s) ? tde_sealed_flush(&f->s) : SQLITE_OK;
  if (rc) f->db->write_failed = 1;
  return rc;
}

/* Reads and opens unit 0 into out, and remembers which sealing it is and its first 100
** bytes. SQLITE_NOTFOUND: it did not open at this first look. */
static int open_unit0(tde_file *f, uint8_t *out) {
  tde_db *db = f->db;
  tde_sealed *s = &f->s;
  uint32_t got;
  tde_class c;
  int torn, rc;

  db->head_valid = 0;
  rc = tde_sealed_fetch(s, 0, 1, s->scratch, &got, &torn);
  if (rc) return rc;
  c = tde_sealed_open_record(s, 0, s->scratch, out);
  if (c) return c == TDE_TAMPERED ? SQLITE_NOTFOUND : tde_class_rc(c);
  memcpy(db->head_seen, s->scratch, TDE_UNIT_HEAD);
  memcpy(db->head, out, sizeof(db->head));
  db->head_valid = 1;
  return SQLITE_OK;
}

/* Reads unit 0 anew for its first 100 bytes; the rest is gone at once. */
static int open_head(tde_file *f) {
  tde_sealed *s = &f->s;
  int rc = tde_sealed_scratch(s, s->geo.unit);
  uint8_t *page;

  if (rc) return rc;
  page = s->scratch + TDE_UNIT_HEAD; /* in place: no second buffer for a page that nobody sees */
  rc = open_unit0(f, page);
  tde_wipe(page, s->geo.unit);
  return rc;
}

static int load_head(tde_file *f) {
  int rc = open_head(f);

  if (rc != SQLITE_NOTFOUND) return rc;
  return tde_sealed_read(&f->s, f->db->head, sizeof(f->db->head), 0, 0); /* with second looks */
}

/* Page size from SQLite's header, to notice pages smaller than a unit. (Others do not make
** the last unit full: a backup of an empty database into one of larger pages leaves a file
** shorter than the page size that it states.) */
static void note_page_size(tde_file *f, const uint8_t *head) {
  uint32_t page = tde_stated_page_size(head);
  f->s.small_pages = page >= 512 && page < f->s.geo.unit;
  if (f->s.small_pages) f->s.guarding = 1;
}

/* The bytes that SQLite asks for as it opens the file, at offset 0 and without a lock. */
static int read_unlocked(tde_file *f, uint8_t *buf, uint32_t n) {
  int rc = open_head(f);

  if (rc == SQLITE_OK) {
    memcpy(buf, f->db->head, n);
  } else {
    rc = tde_sealed_read(&f->s, buf, n, 0, TDE_READ_SHORT); /* says what is wrong, if it still is */
    tde_sealed_trim(&f->s); /* mostly from here on whole pages are read */
  }
  if (rc == SQLITE_OK && n >= 18) note_page_size(f, buf);
  return rc;
}

/* Page 1 whole: SQLite will ask for its change counter soon, which then costs no
** second opening. SQLITE_NOTFOUND: to be read as any other page. */
static int read_page1(tde_file *f, uint8_t *buf) {
  int rc = tde_sealed_scratch(&f->s, f->s.geo.unit);

  if (rc) return rc;
  rc = open_unit0(f, buf);
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_NOTFOUND : rc;
}

static int unit0_pending(const tde_file *f) {
  return tde_sealed_in_run(&f->s, 0) || f->s.cur_active;
}

/* The database header's bytes 0..99, or the change counter in them, which
** SQLite reads at each read transaction in rollback mode. Most often unit 0 is
** the one seen before: each sealing draws a new nonce, so an equal record head
** says so without reading or opening the page. */
static int read_head(tde_file *f, uint8_t *buf, uint32_t n, uint32_t off) {
  tde_db *db = f->db;
  uint8_t now[TDE_UNIT_HEAD];
  int rc;

  if (unit0_pending(f)) return tde_sealed_read(&f->s, buf, n, off, 0);
  if (db->head_valid) {
    rc = LOWER(f)->xRead(f->lower, now, sizeof(now), (sqlite3_int64)f->s.geo.base);
    f->s.counters->lower_reads++;
    if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
    if (rc || memcmp(now, db->head_seen, sizeof(now)) != 0) {
      db->head_valid = 0;
      f->s.ahead_units = 0; /* nolock=1: nothing else would say so */
    }
  }
  if (!db->head_valid) {
    rc = load_head(f);
    if (rc) {
      memset(buf, 0, n);
      return rc;
    }
  }
  memcpy(buf, db->head + off, n);
  return SQLITE_OK;
}

/* Does the WAL's last commit count on a page of n bytes at this offset? SQLite
** logs every page up to the count (wal.c), so one that is neither in the WAL
** nor in this file was cut off, and zeros would be forged. Beyond the count it
** may read what it is about to create. The wal-index knows the count even when all
** that was logged is in the file; without shared memory nobody else writes. */
static int committed_page(tde_file *f, int n, sqlite3_int64 off) {
  if (!f->db->wal || n < 512) return 0;
  return off / n < (sqlite3_int64)tde_wal_pages(f);
}

/* Is this all of an empty database: page 1 its only one, and in it an empty schema table (SQLite
** file format, section 1.6: byte 100 is the page's kind, 103 and 104 count its cells)? The
** rest of the page is not looked at. */
static int is_empty_schema(const uint8_t *page) {
  return tde_get32be(page + 28) <= 1 && page[100] == 13 && page[103] == 0 && page[104] == 0;
}

/* Does the file end within this page, between two of its units? SQLite would
** take the rest of the page for zeros. (Page 1 is read with a page size that may
** not be the file's yet: its header tells. A backup of an empty database into one of larger
** pages leaves the file that short.) */
static int page_is_cut(tde_file *f, const uint8_t *page, int n, sqlite3_int64 off) {
  uint64_t size = 0;

  if ((uint32_t)n <= f->s.geo.unit) return 0;
  if (off == 0 && tde_stated_page_size(page) != (uint32_t)n) return 0;
  if (off == 0 && is_empty_schema(page)) return 0;
  return tde_sealed_size(&f->s, &size) == SQLITE_OK && size > (uint64_t)off;
}

/* Does page 1 count pages that the file does not have? SQLite then says that the database is
** malformed, and reads none of them (btree.c, lockBtree, which compares the same way). Not said
** where a page count may be ahead of the file by right: in a WAL database the log has the rest,
** and a writer's page 1 is newer than its file. SQLite has asked for the size under this lock. */
static int file_is_cut(const tde_file *f, const uint8_t *page, int n) {
  uint32_t count = tde_get32be(page + 28);
  uint64_t size = f->s.known_end;

  if (f->db->lock != SQLITE_LOCK_SHARED || f->db->wal || n < 512 || page[19] != 1) return 0;
  if (tde_stated_page_size(page) != (uint32_t)n) return 0;
  if (count < 2 || memcmp(page + 24, page + 92, 4) != 0) return 0;
  return size && size <= (uint64_t)(count - 1) * (uint32_t)n;
}

/* For status and log; SQLite fails by itself, unless somebody wants what is left
** (writable_schema). */
static void note_if_cut(tde_file *f, const uint8_t *page, int n) {
  uint32_t at;

  if (!file_is_cut(f, page, n)) return;
  (void)f->s.hooks->bad(f, tde_unit_at(&f->s.geo, f->s.known_end, &at), TDE_TRUNCATED);
}

/* SQLite reads the header as it opens the file, without a lock. A file whose key is away opens;
** its first transaction is told why. */
static int is_opening(const tde_file *f, int n, sqlite3_int64 off) {
  return f->db->lock == SQLITE_LOCK_NONE && off == 0 && n <= 100;
}

static int do_main_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *f = file_of(pf);
  tde_db *db = f->db;
  int unlocked = is_opening(f, n, off), rc;

  if (f->plain) return LOWER(f)->xRead(f->lower, buf, n, off);
  if (db->state == TDE_STATE_NEW || (db->state == TDE_STATE_ONLINE && !db->header.unit_size)) {
    memset(buf, 0, (size_t)n);
    return SQLITE_IOERR_SHORT_READ;
  }
  if (db->state != TDE_STATE_ONLINE) {
    memset(buf, 0, (size_t)n);
    return unlocked ? SQLITE_IOERR_SHORT_READ : tde_db_report(db);
  }
  if (db->damaged_zeros) {
    return tde_sealed_read(&f->s, buf, (uint32_t)n, (uint64_t)off, TDE_READ_LENIENT);
  }
  if (unlocked) return read_unlocked(f, buf, (uint32_t)n);
  if (off + n <= (sqlite3_int64)sizeof(db->head)) {
    return read_head(f, buf, (uint32_t)n, (uint32_t)off);
  }
  rc = SQLITE_NOTFOUND;
  if (off == 0 && (uint32_t)n == f->s.geo.unit && !unit0_pending(f)) rc = read_page1(f, buf);
  if (rc == SQLITE_NOTFOUND) rc = tde_sealed_read(&f->s, buf, (uint32_t)n, (uint64_t)off, 0);
  if (rc == SQLITE_OK && off == 0) {
    note_page_size(f, buf);
    note_if_cut(f, buf, n);
  }
  if (rc == SQLITE_IOERR_SHORT_READ &&
      ((off > 0 && committed_page(f, n, off)) || (uint64_t)off + (uint32_t)n <= f->s.known_end ||
       page_is_cut(f, buf, n, off))) {
    uint32_t at;
    return f->s.hooks->bad(f, tde_unit_at(&f->s.geo, (uint64_t)off, &at), TDE_TRUNCATED);
  }
  return rc;
}

/* Bytes of a page while what a write leaves out stays without a record (sealed.c,
** fill_gap); else 0. n: bytes of the page being written, or 0. */
static uint32_t gap_page(const tde_file *f, uint32_t n) {
  const tde_file *w = f->db->wal;

  if (!w) return n >= f->s.geo.unit && tde_db_rolls_back(f->db) ? n : 0;
  return w->s.geo.unit > TDE_WAL_FRAME_HEAD ? w->s.geo.unit - TDE_WAL_FRAME_HEAD : f->s.geo.unit;
}

/* Writes a page, but for the one of zeros at the new end with which a rollback makes the
** file as long again as it was (pager.c, pager_truncate): there the file grows. */
static int write_page(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off) {
  uint64_t size = 0;
  int rc;

  if (f->s.gap_page && !f->db->wal && tde_all_zero(buf, n)) {
    rc = tde_sealed_size(&f->s, &size);
    if (rc) return rc;
    if (off >= size) return tde_sealed_truncate(&f->s, off + n);
  }
  return tde_sealed_write(&f->s, buf, n, off);
}

/* What changes a secondary is its primary. */
static int refuse_secondary(tde_file *f) {
  tde_fail(&f->db->last, TDE_MISUSE,
           "write to its primary and run tde_sync_secondary() there; tde_restore() makes a "
           "database of its own of it",
           "%s: is a secondary, which is only read", f->path);
  (void)tde_db_report(f->db);
  return SQLITE_READONLY;
}

/* A backup stays what it is: the database of one moment, under the keys of then. */
static int refuse_backup(tde_file *f) {
  tde_fail_backup(f, &f->db->last);
  (void)tde_db_report(f->db);
  return SQLITE_READONLY;
}

/* Asked where SQLite takes its locks, and where it writes: with nolock=1 it takes none. */
static int refuse_read_only(tde_file *f) {
  if (f->plain) return SQLITE_OK;
  if (f->db->facts.secondary) return refuse_secondary(f);
  return f->db->facts.backup ? refuse_backup(f) : SQLITE_OK;
}

static int do_main_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  tde_file *f = file_of(pf);
  tde_db *db = f->db;
  int rc = SQLITE_OK;

  if (f->plain) return LOWER(f)->xWrite(f->lower, buf, n, off);
  if (db->damaged_zeros) return SQLITE_IOERR_WRITE; /* opened read-only: see open_main */
  if (db->state == TDE_STATE_NEW) rc = tde_db_create(f);
  if (rc == SQLITE_OK && db->state != TDE_STATE_ONLINE) rc = tde_db_report(db);
  if (rc == SQLITE_OK) rc = refuse_read_only(f);
  if (rc == SQLITE_OK && !db->header.unit_size) rc = tde_db_fix_unit(f, n);
  if (rc) return rc;
  if ((uint32_t)n < f->s.geo.unit) f->s.guarding = 1;
  if (off == 0 && n >= 18) note_page_size(f, buf);
  f->s.gap_page = gap_page(f, (uint32_t)n);
  rc = write_page(f, buf, (uint32_t)n, (uint64_t)off);
  if (rc == SQLITE_OK && !may_defer(f)) rc = tde_sealed_flush(&f->s);
  if (rc) db->write_failed = 1;
  return drop_failed(f, rc);
}

static int do_main_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  tde_file *f = file_of(pf);
  int rc;

  if (f->plain) return LOWER(f)->xTruncate(f->lower, size);
  if (f->db->state == TDE_STATE_NEW && size == 0) return SQLITE_OK;
  if (f->db->state != TDE_STATE_ONLINE) return tde_db_report(f->db);
  if (!f->db->header.unit_size) return SQLITE_OK; /* empty */
  rc = refuse_read_only(f);
  if (rc) return rc;
  tde_map_undo(f);
  f->s.gap_page = gap_page(f, 0);
  return drop_failed(f, tde_sealed_truncate(&f->s, (uint64_t)size));
}

static int do_main_sync(sqlite3_file *pf, int flags) {
  tde_file *f = file_of(pf);
  int rc;

  if (f->plain) return LOWER(f)->xSync(f->lower, flags);
  rc = main_flush(f);
  if (rc) return rc;
  rc = LOWER(f)->xSync(f->lower, flags);
  f->s.counters->lower_syncs++;
  if (rc == SQLITE_OK) rc = tde_db_after_sync(f);
  return rc;
}

/* Under a lock nobody else makes the file shorter: what was there stays, or was cut off by
** other means. In WAL mode checkpoints may, and the WAL's page count is known. SQLite asks
** for the size when a transaction begins. */
static void note_end(tde_file *f, uint64_t size) {
  if (f->db->lock < SQLITE_LOCK_SHARED || f->db->wal || tde_sealed_pending(&f->s)) return;
  if (size > f->s.known_end) f->s.known_end = size;
}

static int do_main_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tde_file *f = file_of(pf);
  uint64_t n = 0;
  int rc = SQLITE_OK;

  if (f->plain) return LOWER(f)->xFileSize(f->lower, size);
  if (f->db->state == TDE_STATE_ONLINE && f->db->header.unit_size) {
    rc = tde_sealed_size(&f->s, &n);
    note_end(f, rc == SQLITE_OK ? n : 0);
  } else if (f->db->state != TDE_STATE_ONLINE && f->db->state != TDE_STATE_NEW) {
    rc = tde_db_report(f->db); /* size 0 would be an empty database, and its journal void */
  }
  *size = (sqlite3_int64)n;
  return rc;
}

/* Another connection's thread may look (openfiles.c). */
static void set_lock(tde_db *db, int level) {
  __atomic_store_n(&db->lock, level, __ATOMIC_RELAXED);
}

static tde_ask_of_guest ask_of_guest;

void tde_vfs_ask_of_guest(tde_ask_of_guest ask) {
  __atomic_store_n(&ask_of_guest, ask, __ATOMIC_RELEASE);
}

static int is_plain_main(const tde_file *f, const char *main);

/* May a plain connection that has attached this database write to it now? */
static int refuse_guest(tde_file *f) {
  tde_ask_of_guest ask = __atomic_load_n(&ask_of_guest, __ATOMIC_ACQUIRE);
  sqlite3 *connection = *f->db->connection;
  tde_status st;

  if (!ask || !is_plain_main(f, sqlite3_db_filename(connection, "main"))) return SQLITE_OK;
  tde_status_clear(&st);
  if (ask(connection, tde_path_of(f), &st) == TDE_OK) return SQLITE_OK;
  f->db->last = st;
  (void)tde_db_report(f->db);
  return SQLITE_READONLY;
}

/* A key service that hangs must not keep a lock from others, whose keys are live. */
static int ask_first(tde_file *f) {
  int rc = tde_db_ask(f);

  return rc == SQLITE_OK && f->db->state == TDE_STATE_INACCESSIBLE ? tde_db_report(f->db) : rc;
}

static int do_main_lock(sqlite3_file *pf, int level) {
  tde_file *f = file_of(pf);
  tde_db *db = f->db;
  int before = db->lock, rc;

  rc = level >= SQLITE_LOCK_RESERVED ? refuse_read_only(f) : SQLITE_OK;
  if (rc == SQLITE_OK && db->guest && !f->plain && level == SQLITE_LOCK_RESERVED) {
    rc = refuse_guest(f);
  }
  if (rc == SQLITE_OK && before == SQLITE_LOCK_NONE && !f->plain) rc = ask_first(f);
  if (rc == SQLITE_OK) rc = tde_main_lock(f->lower, before, level);
  if (rc) return rc;
  set_lock(db, level > before ? level : before);
  if (f->plain) return SQLITE_OK;
  /* Under EXCLUSIVE SQLite takes no wal-index locks any more (closing the last
  ** connection, locking_mode=EXCLUSIVE): look at the generation again here. */
  if (level == SQLITE_LOCK_EXCLUSIVE && db->wal) db->wal->gen.checked = 0;
  /* A journal kept open (TRUNCATE, PERSIST): another connection may have
  ** written it, and died. */
  if (before == SQLITE_LOCK_NONE && db->journal) db->journal->gen.checked = 0;
  if (before == SQLITE_LOCK_NONE) {
    tde_sealed_forget(&f->s);
    f->s.known_end = 0;
    db->guard_ready = 0;
  }
  rc = before == SQLITE_LOCK_NONE ? tde_db_gate(f) : tde_db_io_gate(f);
  if (rc == SQLITE_OK && level >= SQLITE_LOCK_RESERVED && before < SQLITE_LOCK_RESERVED) {
    rc = db->state == TDE_STATE_NEW ? tde_db_create(f) : tde_db_freshen(f);
  }
  /* A lock can be lowered to SHARED or none (sqlite3.h, xUnlock): a higher one stays until
  ** SQLite has rolled back. */
  if (rc && before < SQLITE_LOCK_RESERVED) {
    if (before < level) (void)LOWER(f)->xUnlock(f->lower, before);
    set_lock(db, before);
  }
  return rc;
}

/* The key was lost while this connection had a transaction: what it derived goes with its
** end. */
static void forget_lost(tde_db *db) {
  if (db->keys && !tde_keys_live(db->keys) && !tde_db_in_transaction(db)) tde_db_wipe(db);
}

static int do_main_unlock(sqlite3_file *pf, int level) {
  tde_file *f = file_of(pf);
  int rc = SQLITE_OK, rc2;

  if (!f->plain) {
    rc = main_flush(f);
    if (rc) {
      /* SQLite was told at FCNTL_SYNC; its journal is still there. */
      tde_log(TDE_LOG_ERROR, "%s: pending pages could not be written before the lock was released",
              f->path);
      tde_sealed_drop(&f->s);
    }
    tde_sealed_forget(&f->s);
    f->s.guarding = f->s.small_pages;
    f->db->journal_lost = 0;
    if (f->db->wal) f->db->wal->gen.alone = 0;
  }
  rc2 = LOWER(f)->xUnlock(f->lower, level);
  if (rc2 == SQLITE_OK && level < f->db->lock) set_lock(f->db, level);
  if (!f->plain) forget_lost(f->db);
  return rc ? rc : rc2;
}

static int main_check_reserved(sqlite3_file *pf, int *out) {
  return tde_main_reserved(file_of(pf)->lower, out);
}

/* The name chain, as other shims do it. */
static int control_vfsname(tde_file *f, char **out) {
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

static tde_ask_of_new ask_of_new;

void tde_vfs_ask_of_new(tde_ask_of_new ask) {
  __atomic_store_n(&ask_of_new, ask, __ATOMIC_RELEASE);
}

/* Is the main database of the connection that opens f another VFS's? NULL: it is being opened just
** now. A VFS above this one may have names of its own for the same path. One that has no file is the
** default VFS's, as far as can be told: VFS pointers are not to be had here. */
static int is_plain_main(const tde_file *f, const char *main) {
  if (!main || main == f->path) return 0;
  return main[0] ? !tde_openfiles_has(main)
                 : strcmp(sqlite3_vfs_find(NULL)->zName, TDE_VFS_NAME) != 0;
}

static tde_answer_pragma answer_pragma;

void tde_vfs_answer_pragma(tde_answer_pragma answer) {
  __atomic_store_n(&answer_pragma, answer, __ATOMIC_RELEASE);
}

static int control_pragma(tde_file *f, char **arg) {
  tde_answer_pragma answer = __atomic_load_n(&answer_pragma, __ATOMIC_ACQUIRE);

  if (!answer || f->no_pragmas || sqlite3_strnicmp(arg[1], "tde_", 4) != 0) return SQLITE_NOTFOUND;
  return answer(f, arg[1], arg[2], &arg[0]);
}

/* What the main database's name says of functions counts for all that the connection attaches. */
static void heed_functions(tde_file *f, const char *main) {
  const char *v = NULL;

  if (!main) main = f->path; /* it is being opened just now */
  if (main && main[0]) v = sqlite3_uri_parameter(main, "tde_functions");
  f->no_pragmas = v && strcmp(v, "off") == 0;
}

/* SQLite has opened the file for a connection, or has given it this one, too. */
static void take_connection(tde_file *f, sqlite3 *const *where) {
  tde_ask_of_new ask = __atomic_load_n(&ask_of_new, __ATOMIC_ACQUIRE);
  sqlite3 *connection = *where;
  tde_db *db = f->db;
  tde_status st;

  db->connection = where;
  if (!f->plain && is_plain_main(f, sqlite3_db_filename(connection, "main"))) db->guest = 1;
  if (!ask || db->state != TDE_STATE_NEW || db->params.protector ||
      sqlite3_uri_parameter(f->path, "tde_instance")) {
    return;
  }
  tde_status_clear(&st);
  db->unwanted = ask(connection, tde_path_of(f), db->params.instance, &st) != TDE_OK;
  if (db->unwanted) db->last = st;
}

static int do_main_control(sqlite3_file *pf, int op, void *arg) {
  tde_file *f = file_of(pf);
  int rc;

  if (op == TDE_FCNTL_FILE) {
    *(tde_file **)arg = f;
    return SQLITE_OK;
  }
  if (op == SQLITE_FCNTL_VFSNAME) return control_vfsname(f, (char **)arg);
  if (op == SQLITE_FCNTL_PDB) heed_functions(f, sqlite3_db_filename(*(sqlite3 **)arg, "main"));
  if (f->plain) return LOWER(f)->xFileControl(f->lower, op, arg);
  switch (op) {
    case SQLITE_FCNTL_SIZE_HINT:
    case SQLITE_FCNTL_CHUNK_SIZE:
      return SQLITE_OK; /* would make bytes below that nobody sealed */
    case SQLITE_FCNTL_MMAP_SIZE:
      return tde_map_limit(f, arg);
    case SQLITE_FCNTL_PDB:
      take_connection(f, arg);
      break;
    case SQLITE_FCNTL_BUSYHANDLER:
      f->db->busy_handler = (int (*)(void *))((void **)arg)[0];
      f->db->busy_arg = ((void **)arg)[1];
      break;
    case SQLITE_FCNTL_POWERSAFE_OVERWRITE:
      if (*(int *)arg == 0) {
        tde_log(TDE_LOG_WARNING,
                "%s: powersafe overwrite can not be switched off for an "
                "encrypted database",
                f->path);
      }
      *(int *)arg = 1;
      return SQLITE_OK;
    case SQLITE_FCNTL_BEGIN_ATOMIC_WRITE:
    case SQLITE_FCNTL_COMMIT_ATOMIC_WRITE:
    case SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE:
      return SQLITE_NOTFOUND;
    case SQLITE_FCNTL_SYNC:
    case SQLITE_FCNTL_COMMIT_PHASETWO:
      rc = main_flush(f);
      if (rc == SQLITE_OK && op == SQLITE_FCNTL_SYNC) rc = tde_heal_free_pages(f);
      if (rc) return io_code(rc);
      break;
    default:
      break;
  }
  return LOWER(f)->xFileControl(f->lower, op, arg);
}

static int any_sector_size(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  return LOWER(f)->xSectorSize ? LOWER(f)->xSectorSize(f->lower) : 4096;
}

static int any_traits(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  int traits = LOWER(f)->xDeviceCharacteristics(f->lower);

  if (f->plain) return traits;
  /* A record is longer than a page and lies elsewhere: what the device says of
  ** atomic writes and safe appends does not hold for pages. */
  return traits & (SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN |
                   SQLITE_IOCAP_IMMUTABLE | SQLITE_IOCAP_SEQUENTIAL);
}

/* Also of a file whose opening failed half-way, which is in use already. */
static int close_main(tde_file *f) {
  int rc = SQLITE_OK, rc2;

  if (!f->plain && f->db && f->db->state == TDE_STATE_ONLINE) {
    rc = main_flush(f);
    tde_db_before_close(f);
  }
  tde_openfiles_remove(f);
  tde_sealed_clear(&f->s);
  tde_map_close(f);
  tde_db_close(f);
  rc2 = tde_main_close(f->lower);
  sqlite3_free(f);
  return rc ? rc : rc2;
}

/* For good: nobody else touches it from here on. */
static int main_close(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  tde_file_enter(f);
  return close_main(f);
}

/* A lock of the wal-index keeps nobody from the file: both in one. */
static int may_begin(tde_file *f) {
  int rc = tde_db_ask(f);

  return rc ? rc : tde_db_gate(f);
}

/* Shared memory: the wal-index passes through; the gate stands here, too,
** since a WAL connection keeps its SHARED lock between transactions. */
static int do_main_shm_map(sqlite3_file *pf, int region, int size, int extend,
                           void volatile **out) {
  tde_file *f = file_of(pf);
  int rc = f->plain ? SQLITE_OK : may_begin(f);
  if (rc) return rc;
  rc = f->plain ? LOWER(f)->xShmMap(f->lower, region, size, extend, out)
                : tde_index_map(f, region, size, extend, out);
  if (rc == SQLITE_OK || rc == SQLITE_READONLY) f->db->shm_open = 1;
  return rc;
}

/* Does this connection hold the WAL's write lock? */
static void note_writing(tde_db *db, int rc, int flags) {
  if (rc == SQLITE_OK && (flags & SQLITE_SHM_LOCK) && (flags & SQLITE_SHM_EXCLUSIVE)) {
    db->wal_writing = 1;
  }
  if (flags & SQLITE_SHM_UNLOCK) db->wal_writing = 0;
}

static int do_main_shm_lock(sqlite3_file *pf, int offset, int n, int flags) {
  tde_file *f = file_of(pf);
  int rc;

  if (!f->plain && (flags & SQLITE_SHM_LOCK)) {
    rc = f->db->shm_locks ? tde_db_io_gate(f) : may_begin(f);
    if (rc == SQLITE_OK && f->db->guest && offset == TDE_SHM_WRITE) rc = refuse_guest(f);
    if (rc) return rc;
  }
  if (!f->plain && f->db->wal && offset == TDE_SHM_WRITE && (flags & SQLITE_SHM_UNLOCK)) {
    tde_wal_end(f->db->wal);
  }
  rc = LOWER(f)->xShmLock(f->lower, offset, n, flags);
  if (f->plain) return rc;
  tde_sealed_forget(&f->s);
  if (rc == SQLITE_OK) f->db->shm_locks += flags & SQLITE_SHM_LOCK ? n : -n;
  if (offset == TDE_SHM_WRITE) note_writing(f->db, rc, flags);
  if (f->db->shm_locks == 0) forget_lost(f->db);
  if (rc == SQLITE_OK && (flags & SQLITE_SHM_LOCK)) {
    if (f->db->wal_writing) tde_index_sign(f);
    if (offset == TDE_SHM_CKPT && (flags & SQLITE_SHM_EXCLUSIVE)) {
      /* A checkpoint writes the database: under the newest epoch. */
      rc = tde_db_freshen(f);
      if (rc) {
        (void)LOWER(f)->xShmLock(f->lower, offset, n, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
        f->db->shm_locks -= n;
        return rc;
      }
    }
    /* Others may have written since, or died at it: look at the guards and the
    ** WAL's generation again before they are used. */
    if (flags & SQLITE_SHM_EXCLUSIVE) f->db->guard_ready = 0;
    if (f->db->wal) {
      f->db->wal->gen.checked = 0;
      /* After locking_mode=EXCLUSIVE, under which none is taken, a rolled back transaction
      ** shows here first. */
      if (!f->db->wal_writing) tde_wal_forget(f->db->wal);
      if (offset == TDE_SHM_WRITE && (flags & SQLITE_SHM_EXCLUSIVE)) tde_wal_begin(f->db->wal);
    }
  }
  return rc;
}

static void main_shm_barrier(sqlite3_file *pf) {
  tde_file *f = file_of(pf);
  LOWER(f)->xShmBarrier(f->lower);
}

/* Only for a database passed through in plain (tde_plain=allow): the pages of others
** must be opened first (map.c). */
static int main_fetch(sqlite3_file *pf, sqlite3_int64 off, int n, void **out) {
  tde_file *f = file_of(pf);
  if (f->plain && LOWER(f)->iVersion >= 3) return LOWER(f)->xFetch(f->lower, off, n, out);
  *out = NULL;
  return SQLITE_OK;
}

static int main_unfetch(sqlite3_file *pf, sqlite3_int64 off, void *p) {
  tde_file *f = file_of(pf);
  if (f->plain && LOWER(f)->iVersion >= 3) return LOWER(f)->xUnfetch(f->lower, off, p);
  if (f->role == TDE_ROLE_MAIN && !f->plain) tde_map_undo(f);
  return SQLITE_OK;
}

/* ---- WAL, journal, temp, super-journal ---- */

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

  if (op == SQLITE_FCNTL_VFSNAME) return control_vfsname(f, (char **)arg);
  if (!f->plain) {
    if (op == SQLITE_FCNTL_SIZE_HINT || op == SQLITE_FCNTL_CHUNK_SIZE) return SQLITE_OK;
    if (op == SQLITE_FCNTL_MMAP_SIZE) return tde_map_limit(f, arg);
  }
  return LOWER(f)->xFileControl(f->lower, op, arg);
}

static int do_side_close(tde_file *f) {
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

/* ---- the methods, with codes that SQLite's pager understands ----
**
** Each marks the database as in use by this thread (shim.h); those that move
** content also ask whether the key is still there.
*/

/* The main file whose keys this file goes by; NULL: none. */
static tde_file *keys_file(const tde_file *f) {
  return f->db ? f->db->file : NULL;
}

static tde_file *enter(sqlite3_file *pf) {
  tde_file *m = keys_file(file_of(pf));
  if (m) tde_file_enter(m);
  return m;
}

static int leave(tde_file *m, int rc) {
  if (m) tde_file_leave(m);
  return rc;
}

static int io_gate(tde_file *m) {
  return m ? tde_db_io_gate(m) : SQLITE_OK;
}

static int main_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m);

  if (rc) {
    memset(buf, 0, (size_t)n);
  } else {
    rc = do_main_read(pf, buf, n, off);
  }
  /* The key went this very moment. */
  if (rc == SQLITE_IOERR_AUTH && is_opening(file_of(pf), n, off)) {
    memset(buf, 0, (size_t)n);
    rc = SQLITE_IOERR_SHORT_READ;
  }
  return leave(m, read_code(file_of(pf), rc));
}
static int main_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m);
  return leave(m, io_code(rc ? rc : do_main_write(pf, buf, n, off)));
}
static int main_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  tde_file *m = enter(pf);
  return leave(m, io_code(do_main_truncate(pf, size)));
}
static int main_sync(sqlite3_file *pf, int flags) {
  tde_file *m = enter(pf);
  return leave(m, io_code(do_main_sync(pf, flags)));
}
static int main_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tde_file *m = enter(pf);
  return leave(m, read_code(file_of(pf), do_main_size(pf, size)));
}
static int main_shm_unmap(sqlite3_file *pf, int delete_it) {
  tde_file *m = enter(pf);
  tde_file *f = file_of(pf);
  f->db->shm_open = 0;
  tde_index_unmapped(f->db);
  return leave(m, LOWER(f)->xShmUnmap(f->lower, delete_it));
}
static int main_lock(sqlite3_file *pf, int level) {
  tde_file *m = enter(pf);
  return leave(m, early_code(do_main_lock(pf, level)));
}
static int main_unlock(sqlite3_file *pf, int level) {
  tde_file *m = enter(pf);
  return leave(m, do_main_unlock(pf, level));
}
static int main_control(sqlite3_file *pf, int op, void *arg) {
  tde_file *m;

  if (op == SQLITE_FCNTL_PRAGMA) {
    int rc = control_pragma(file_of(pf), arg);
    if (rc != SQLITE_NOTFOUND) return rc;
  }
  m = enter(pf);
  return leave(m, do_main_control(pf, op, arg));
}
static int main_shm_map(sqlite3_file *pf, int region, int size, int extend, void volatile **out) {
  tde_file *m = enter(pf);
  return leave(m, early_code(do_main_shm_map(pf, region, size, extend, out)));
}
static int main_shm_lock(sqlite3_file *pf, int offset, int n, int flags) {
  tde_file *m = enter(pf);
  return leave(m, early_code(do_main_shm_lock(pf, offset, n, flags)));
}
static int side_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m);
  return leave(m, io_code(rc ? rc : do_side_read(pf, buf, n, off)));
}
static int side_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m);
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
  return leave(m, do_side_close(f));
}

/* A table without shared memory, for lower files that have none. */
static const sqlite3_io_methods main_methods_v1 = {.iVersion = 1,
                                                   .xClose = main_close,
                                                   .xRead = main_read,
                                                   .xWrite = main_write,
                                                   .xTruncate = main_truncate,
                                                   .xSync = main_sync,
                                                   .xFileSize = main_size,
                                                   .xLock = main_lock,
                                                   .xUnlock = main_unlock,
                                                   .xCheckReservedLock = main_check_reserved,
                                                   .xFileControl = main_control,
                                                   .xSectorSize = any_sector_size,
                                                   .xDeviceCharacteristics = any_traits};

static const sqlite3_io_methods main_methods_v3 = {.iVersion = 3,
                                                   .xClose = main_close,
                                                   .xRead = main_read,
                                                   .xWrite = main_write,
                                                   .xTruncate = main_truncate,
                                                   .xSync = main_sync,
                                                   .xFileSize = main_size,
                                                   .xLock = main_lock,
                                                   .xUnlock = main_unlock,
                                                   .xCheckReservedLock = main_check_reserved,
                                                   .xFileControl = main_control,
                                                   .xSectorSize = any_sector_size,
                                                   .xDeviceCharacteristics = any_traits,
                                                   .xShmMap = main_shm_map,
                                                   .xShmLock = main_shm_lock,
                                                   .xShmBarrier = main_shm_barrier,
                                                   .xShmUnmap = main_shm_unmap,
                                                   .xFetch = main_fetch,
                                                   .xUnfetch = main_unfetch};

/* Version 3 without shared memory, for the mmap size of temporary databases. */
static const sqlite3_io_methods side_methods = {.iVersion = 3,
                                                .xFetch = main_fetch,
                                                .xUnfetch = main_unfetch,
                                                .xClose = side_close,
                                                .xRead = side_read,
                                                .xWrite = side_write,
                                                .xTruncate = side_truncate,
                                                .xSync = side_sync,
                                                .xFileSize = side_size,
                                                .xLock = side_lock,
                                                .xUnlock = side_unlock,
                                                .xCheckReservedLock = main_check_reserved,
                                                .xFileControl = side_control,
                                                .xSectorSize = any_sector_size,
                                                .xDeviceCharacteristics = any_traits};

/* ---- opening ---- */

const char *tde_name_of(const char *path, const char *suffix) {
  const char *none[1] = {NULL};
  char *text = sqlite3_mprintf("%s%s", path, suffix);
  const char *name = text ? sqlite3_create_filename(text, "", "", 0, none) : NULL;

  sqlite3_free(text);
  return name;
}

void tde_name_free(const char *name) {
  sqlite3_free_filename((char *)name);
}

int tde_lower_close(sqlite3_file *lower) {
  int rc = SQLITE_OK;

  if (lower && lower->pMethods) rc = lower->pMethods->xClose(lower);
  sqlite3_free(lower);
  return rc;
}

sqlite3_file *tde_lower_open(sqlite3_vfs *vfs, const char *name, int flags, int *out_flags,
                             int *rc) {
  sqlite3_file *lower = sqlite3_malloc64((sqlite3_uint64)vfs->szOsFile);

  if (!lower) {
    *rc = SQLITE_NOMEM;
    return NULL;
  }
  memset(lower, 0, (size_t)vfs->szOsFile);
  *rc = vfs->xOpen(vfs, name, lower, flags, out_flags);
  if (*rc) {
    (void)tde_lower_close(lower);
    return NULL;
  }
  return lower;
}

/* NULL: *st says why. */
static sqlite3_vfs *choose_base(const char *name, tde_status *st) {
  const char *want = sqlite3_uri_parameter(name, "tde_base");
  sqlite3_vfs *vfs;

  if (!want) return base_vfs;
  vfs = sqlite3_vfs_find(want);
  if (!vfs || vfs == &tde_vfs || !vfs->xDelete) { /* memdb has no files */
    tde_fail(st, TDE_MISUSE, "name a VFS that keeps files, or leave tde_base out",
             "%.250s: tde_base=%.100s: no such VFS to stack on", name, want);
    return NULL;
  }
  return vfs;
}

/* *st: why, where it is not SQLite's error alone. */
static int open_main(tde_file *f, const char *name, int flags, int *out_flags, tde_status *st) {
  const char *damaged = sqlite3_uri_parameter(name, "tde_damaged");
  int rc = tde_class_rc(tde_uri_check(name, st)), got = 0;

  if (rc == SQLITE_OK && !(f->lower_vfs = choose_base(name, st))) rc = SQLITE_CANTOPEN;
  if (rc) {
    tde_log_status(TDE_LOG_ERROR, NULL, st);
    return rc;
  }
  if (damaged && strcmp(damaged, "zeros") == 0) {
    flags &= ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    flags |= SQLITE_OPEN_READONLY;
  }
  f->lower = tde_lower_open(f->lower_vfs, name, flags, &got, &rc);
  if (rc) return rc;
  if (out_flags) *out_flags = got;
  tde_openfiles_add(f);
  rc = tde_db_open(f, name, got & SQLITE_OPEN_READONLY ? SQLITE_OPEN_READONLY : flags);
  if (rc && f->db) *st = f->db->last;
  return rc;
}

static int open_log(tde_file *f, const char *name, int flags, int *out_flags) {
  tde_file *owner = tde_openfiles_owner(name);
  int rc;

  if (!owner) {
    tde_log(TDE_LOG_ERROR, "%s: a %s whose database is not open here is refused",
            name ? name : "(no name)", tde_role_name(f->role));
    return SQLITE_CANTOPEN;
  }
  f->lower_vfs = owner->lower_vfs;
  f->plain = owner->plain;
  if (!f->plain && owner->db->state == TDE_STATE_NEW && (flags & SQLITE_OPEN_CREATE)) {
    rc = tde_db_create(owner); /* nolock=1: no RESERVED came before */
    if (rc) return rc;
  }
  if (!f->plain && owner->db->state != TDE_STATE_ONLINE && owner->db->state != TDE_STATE_NEW) {
    rc = tde_db_report(owner->db);
    return rc ? rc : SQLITE_CANTOPEN;
  }
  f->lower = tde_lower_open(f->lower_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  f->db = owner->db;
  if (!f->plain) tde_log_open(f);
  return SQLITE_OK;
}

static int open_temp(tde_file *f, const char *name, int flags, int *out_flags) {
  tde_class c;
  int rc;

  f->lower_vfs = base_vfs;
  f->lower = tde_lower_open(base_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  c = tde_cryptor_init_temp(&f->own_crypt, NULL);
  if (c) return tde_class_rc(c);
  tde_sealed_init(&f->s, f->lower, TDE_ROLE_TEMP, 0, &f->own_crypt, &f->own_counters,
                  &tde_temp_hooks, f);
  return SQLITE_OK;
}

static int open_super(tde_file *f, const char *name, int flags, int *out_flags) {
  int rc, is_sealed = 0;

  f->lower_vfs = tde_openfiles_vfs(name);
  f->lower = tde_lower_open(f->lower_vfs, name, flags, out_flags, &rc);
  if (rc) return rc;
  f->plain = 1;
  if ((flags & SQLITE_OPEN_READONLY) && name) {
    f->plain = 0;
    rc = tde_log_open_child(f, name, &is_sealed);
    if (!is_sealed) f->plain = 1;
  }
  return rc;
}

/* Version 3 also where xFetch maps nothing: SQLite tells the mmap size to no
** other, and PRAGMA mmap_size would not answer. */
static const sqlite3_io_methods *main_methods_for(const tde_file *f) {
  return LOWER(f)->iVersion < 2 || !LOWER(f)->xShmMap ? &main_methods_v1 : &main_methods_v3;
}

static int open_role(tde_file *f, const char *name, int flags, int *out_flags, tde_status *st) {
  switch (f->role) {
    case TDE_ROLE_MAIN:
      return name ? open_main(f, name, flags, out_flags, st) : SQLITE_CANTOPEN;
    case TDE_ROLE_WAL:
    case TDE_ROLE_JOURNAL:
      return open_log(f, name, flags, out_flags);
    case TDE_ROLE_TEMP:
      return open_temp(f, name, flags, out_flags);
    case TDE_ROLE_SUPER:
      return open_super(f, name, flags, out_flags);
    default:
      tde_log(TDE_LOG_ERROR, "%s: a file of unknown use (flags 0x%x) is refused",
              name ? name : "(no name)", (unsigned)flags);
      return SQLITE_CANTOPEN;
  }
}

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *pf, int flags,
                     int *out_flags) {
  tde_handle *h = (tde_handle *)pf;
  tde_file *f = sqlite3_malloc64(sizeof(*f));
  tde_status why;
  int rc;

  (void)vfs;
  h->base.pMethods = NULL;
  if (!f) return SQLITE_NOMEM;
  memset(f, 0, sizeof(*f));
  h->f = f;
  f->path = name;
  f->role = tde_role_of(flags);
  tde_file_enter(f);
  tde_status_clear(&why);
  rc = open_role(f, name, flags, out_flags, &why);
  if (rc == SQLITE_OK) {
    h->base.pMethods = f->role == TDE_ROLE_MAIN ? main_methods_for(f) : &side_methods;
    tde_file_leave(f);
  } else if (f->lower) {
    (void)(f->role == TDE_ROLE_MAIN ? close_main(f) : do_side_close(f));
  } else {
    sqlite3_free(f);
  }
  return rc && why.code ? tde_refuse_open(pf, rc, &why) : rc;
}

/* ---- the rest of the VFS passes through ---- */

#define BASE_CALL(method, ...) base_vfs->method(base_vfs, __VA_ARGS__)

static int shim_delete(sqlite3_vfs *v, const char *name, int sync_dir) {
  sqlite3_vfs *lower = tde_openfiles_vfs(name);
  (void)v;
  return lower->xDelete(lower, name, sync_dir);
}
static int shim_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  sqlite3_vfs *lower = tde_openfiles_vfs(name);
  (void)v;
  return lower->xAccess(lower, name, flags, out);
}
static int shim_full_pathname(sqlite3_vfs *v, const char *name, int n, char *out) {
  (void)v;
  return BASE_CALL(xFullPathname, name, n, out);
}
static void *shim_dlopen(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xDlOpen, name);
}
static void shim_dlerror(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  BASE_CALL(xDlError, n, out);
}
static void (*shim_dlsym(sqlite3_vfs *v, void *p, const char *name))(void) {
  (void)v;
  return BASE_CALL(xDlSym, p, name);
}
static void shim_dlclose(sqlite3_vfs *v, void *p) {
  (void)v;
  BASE_CALL(xDlClose, p);
}
static int shim_randomness(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  return BASE_CALL(xRandomness, n, out);
}
static int shim_sleep(sqlite3_vfs *v, int usec) {
  (void)v;
  return BASE_CALL(xSleep, usec);
}
static int shim_current_time(sqlite3_vfs *v, double *out) {
  (void)v;
  return BASE_CALL(xCurrentTime, out);
}
static int shim_last_error(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  return base_vfs->xGetLastError ? BASE_CALL(xGetLastError, n, out) : 0;
}
static int shim_current_time64(sqlite3_vfs *v, sqlite3_int64 *out) {
  (void)v;
  return BASE_CALL(xCurrentTimeInt64, out);
}
static int shim_set_syscall(sqlite3_vfs *v, const char *name, sqlite3_syscall_ptr p) {
  (void)v;
  return BASE_CALL(xSetSystemCall, name, p);
}
static sqlite3_syscall_ptr shim_get_syscall(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xGetSystemCall, name);
}
static const char *shim_next_syscall(sqlite3_vfs *v, const char *name) {
  (void)v;
  return BASE_CALL(xNextSystemCall, name);
}

/* TDE_LOG=stderr: for programs that can not set SQLite's log, as most languages' bindings can
** not. Of an open that fails there is no connection to ask. */
static int log_to_stderr;

static tde_class read_log_setting(tde_status *st) {
  const char *v = secure_getenv("TDE_LOG");

  if (v && v[0] && strcmp(v, "stderr") != 0) {
    return tde_fail(st, TDE_MISUSE, "unset TDE_LOG, or set it to stderr",
                    "TDE_LOG=%.100s: has no such value", v);
  }
  log_to_stderr = v && v[0];
  return TDE_OK;
}

/* One call, so that lines of several threads and processes do not mix. */
static void write_stderr(const char *line) {
  char text[1300];
  int n = snprintf(text, sizeof(text), "tde: %s\n", line);

  if (n > 0 && (size_t)n < sizeof(text) && write(STDERR_FILENO, text, (size_t)n) < 0) {
    return; /* there is nobody left to tell */
  }
}

static void log_to_sqlite(tde_level level, const char *line) {
  if (log_to_stderr) write_stderr(line);
  sqlite3_log(level == TDE_LOG_ERROR    ? SQLITE_ERROR
              : level == TDE_LOG_NOTICE ? SQLITE_NOTICE
                                        : SQLITE_WARNING,
              "tde: %s", line);
}

static void fill_vfs(void) {
  int v = base_vfs->iVersion;

  tde_vfs.iVersion = v < 3 ? v : 3;
  tde_vfs.szOsFile = (int)sizeof(tde_handle);
  tde_vfs.mxPathname = base_vfs->mxPathname;
  tde_vfs.zName = TDE_VFS_NAME;
  tde_vfs.xOpen = shim_open;
  tde_vfs.xDelete = shim_delete;
  tde_vfs.xAccess = shim_access;
  tde_vfs.xFullPathname = shim_full_pathname;
  tde_vfs.xDlOpen = base_vfs->xDlOpen ? shim_dlopen : NULL;
  tde_vfs.xDlError = base_vfs->xDlError ? shim_dlerror : NULL;
  tde_vfs.xDlSym = base_vfs->xDlSym ? shim_dlsym : NULL;
  tde_vfs.xDlClose = base_vfs->xDlClose ? shim_dlclose : NULL;
  tde_vfs.xRandomness = shim_randomness;
  tde_vfs.xSleep = shim_sleep;
  tde_vfs.xCurrentTime = shim_current_time;
  tde_vfs.xGetLastError = shim_last_error;
  if (v >= 2) tde_vfs.xCurrentTimeInt64 = base_vfs->xCurrentTimeInt64 ? shim_current_time64 : NULL;
  if (v >= 3 && base_vfs->xSetSystemCall) {
    tde_vfs.xSetSystemCall = shim_set_syscall;
    tde_vfs.xGetSystemCall = shim_get_syscall;
    tde_vfs.xNextSystemCall = shim_next_syscall;
  }
}

/* The first time in a process. The lock is held. */
static tde_class prepare(const tde_key_source *source, tde_status *st) {
  tde_class c;

  tde_source = *source;
  tde_log_set_sink(log_to_sqlite);
  c = read_log_setting(st);
  if (c == TDE_OK) c = tde_crypto_init(st);
  if (c) {
    tde_log_status(TDE_LOG_ERROR, NULL, st);
    return c;
  }
  base_vfs = sqlite3_vfs_find(NULL);
  if (!base_vfs) return tde_fail(st, TDE_MISCONFIGURED, NULL, "SQLite has no default VFS");
  fill_vfs();
  return TDE_OK;
}

int tde_vfs_register(const tde_key_source *source, tde_status *st) {
  sqlite3_vfs *there = sqlite3_vfs_find(TDE_VFS_NAME);
  int rc;

  if (there && there != &tde_vfs) { /* whose files are not ours, whatever it is */
    tde_fail(st, TDE_MISCONFIGURED, "load the same file everywhere in the process",
             "another copy of this extension is loaded already (its VFS " TDE_VFS_NAME
             " is there)");
    return SQLITE_ERROR;
  }
  pthread_mutex_lock(&register_lock);
  rc = base_vfs || prepare(source, st) == TDE_OK ? SQLITE_OK : SQLITE_ERROR;
  /* A host may have unregistered it. */
  if (rc == SQLITE_OK && sqlite3_vfs_find(TDE_VFS_NAME) != &tde_vfs) {
    rc = sqlite3_vfs_register(&tde_vfs, 0);
  }
  pthread_mutex_unlock(&register_lock);
  return rc;
}

int tde_vfs_make_default(int on) {
  sqlite3_vfs *now;
  int rc = SQLITE_OK;

  pthread_mutex_lock(&register_lock);
  now = sqlite3_vfs_find(NULL);
  if (!base_vfs) {
    rc = SQLITE_MISUSE;
  } else if (on && now != &tde_vfs) {
    default_before = now;
    rc = sqlite3_vfs_register(&tde_vfs, 1);
  } else if (!on && now == &tde_vfs) {
    rc = sqlite3_vfs_register(default_before ? default_before : base_vfs, 1);
  }
  pthread_mutex_unlock(&register_lock);
  return rc;
}

void tde_file_info_get(tde_file *f, int refresh, tde_file_info *out) {
  tde_db *db = f->db;

  memset(out, 0, sizeof(*out));
  tde_file_enter(f);
  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) tde_db_lose(db);
  /* Not under a write transaction, whose units are sealed as it began. */
  if (refresh && db->lock < SQLITE_LOCK_RESERVED && !db->wal_writing) {
    const tde_status was = db->last;
    int keep = refresh == TDE_REFRESH_KEEP && db->state == TDE_STATE_ONLINE;
    (void)tde_db_load(f, 1);
    if (keep && db->state == TDE_STATE_ONLINE && !db->last.code) db->last = was;
  }
  out->state = db->state;
  out->last = db->last;
  out->format_version = db->header.version ? db->header.version : TDE_FORMAT_VERSION;
  memcpy(out->uuid, db->header.uuid, TDE_UUID_BYTES);
  out->sequence = db->header.sequence;
  out->unit_size = db->header.unit_size;
  out->facts = db->facts;
  out->slot[0] = db->slot[0];
  out->slot[1] = db->slot[1];
  out->counters = db->counters;
  out->path = f->path;
  out->lower_vfs = f->lower_vfs->zName;
  tde_file_leave(f);
}

char *tde_file_keydoc(tde_file *f, size_t *n) {
  char *doc = NULL;

  tde_file_enter(f);
  *n = f->db->header.ndoc;
  if (f->db->header.doc) doc = malloc(*n + 1);
  if (doc) memcpy(doc, f->db->header.doc, *n);
  if (doc) doc[*n] = 0;
  tde_file_leave(f);
  return doc;
}
