/*
** mainfile.c: the methods of a main database.
**
** Order that must hold: a journal's pending run is written before any page of
** its database (the process may die in between, and SQLite syncs nothing with
** synchronous=OFF). A main database's writes wait in its run only under
** EXCLUSIVE and outside WAL mode; SQLITE_FCNTL_SYNC, which SQLite sends before
** each commit whatever the synchronous setting, flushes them and can fail.
*/
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "methods.h"
#include "openfiles.h"

SQLITE_EXTENSION_INIT3

static int read_code(const tde_file *f, int rc) {
  return f->db->lock < SQLITE_LOCK_RESERVED ? early_code(rc) : io_code(rc);
}

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

/* ---- reading ---- */

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

/* The bytes that SQLite asks for as it opens the file, at offset 0 and without a lock. Memory that
** cannot be had is an error, here as at any other read. */
static int read_unlocked(tde_file *f, uint8_t *buf, uint32_t n) {
  int rc = open_head(f);

  if (rc == SQLITE_OK) {
    memcpy(buf, f->db->head, n);
  } else if (rc == SQLITE_NOMEM) {
    memset(buf, 0, n);
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
  return tde_get32be(page + TDE_DBHEAD_PAGES) <= 1 && page[100] == 13 && page[103] == 0 && page[104] == 0;
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
  uint64_t size = f->s.known_end;
  uint32_t count;

  if (f->db->lock != SQLITE_LOCK_SHARED || f->db->wal || n < 512) return 0;
  if (page[TDE_DBHEAD_READ_VERSION] != 1 || tde_stated_page_size(page) != (uint32_t)n) return 0;
  count = tde_stated_pages(page);
  if (count < 2) return 0;
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
  return f->db->lock == SQLITE_LOCK_NONE && off == 0 && n <= TDE_DBHEAD_BYTES;
}

/* A key service that hangs must not keep a lock from others, whose keys are live. */
static int ask_first(tde_file *f) {
  int rc = tde_db_ask(f);

  return rc == SQLITE_OK && f->db->state == TDE_STATE_INACCESSIBLE ? tde_db_report(f->db) : rc;
}

/* A transaction begins: others may have written since the last one. */
static void forget_seen(tde_file *f) {
  tde_sealed_forget(&f->s);
  f->s.known_end = 0;
  f->db->guard_ready = 0;
  f->db->writing = 0;
}

/* With nolock=1 and immutable=1 no lock says that a transaction begins; what SQLite asks for first
** then does: the change counter, or before the first one the file's size (pager.c,
** sqlite3PagerSharedLock). */
static int begin_unlocked(tde_file *f) {
  int rc;

  if (f->plain) return SQLITE_OK;
  rc = ask_first(f);
  forget_seen(f);
  return rc ? rc : tde_db_gate(f);
}

/* The size is asked for within a transaction, too, which may end although the key is lost. A secondary
** has none, and one without pages nothing to lose. */
static int may_be_first(const tde_file *f) {
  const tde_db *db = f->db;

  return db->no_locks &&
         (db->facts.secondary || db->state != TDE_STATE_ONLINE || !db->header.unit_size);
}

/* With immutable=1 there is no change counter: whatever it reads asks for a key that it has lost. */
static int reads_first(const tde_file *f, int n, sqlite3_int64 off) {
  return f->db->no_locks && ((n == 16 && off == 24) ||
                             (f->db->state == TDE_STATE_INACCESSIBLE && !is_opening(f, n, off)));
}

static int do_main_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *f = file_of(pf);
  tde_db *db = f->db;
  int unlocked = is_opening(f, n, off), rc;

  rc = reads_first(f, n, off) ? begin_unlocked(f) : SQLITE_OK;
  if (rc) {
    memset(buf, 0, (size_t)n);
    return rc;
  }
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

/* ---- writing ---- */

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
  db->writing = 1;
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

/* Under a lock nobody else makes the file shorter: what was there stays, or was cut off by
** other means. In WAL mode checkpoints may, and the WAL's page count is known. SQLite asks
** for the size when a transaction begins. */
static void note_end(tde_file *f, uint64_t size) {
  if (f->db->lock < SQLITE_LOCK_SHARED || f->db->wal || tde_sealed_pending(&f->s)) return;
  if (size > f->s.known_end) f->s.known_end = size;
}

/* Under locking_mode=EXCLUSIVE SQLite does not ask again for the size of what it makes longer. */
static void note_own_end(tde_file *f) {
  const tde_sealed *s = &f->s;

  if (s->size_known && s->nunits) note_end(f, tde_unit_start(&s->geo, s->nunits) - s->last_pad);
}

static int do_main_sync(sqlite3_file *pf, int flags) {
  tde_file *f = file_of(pf);
  int rc;

  if (f->plain) return LOWER(f)->xSync(f->lower, flags);
  rc = main_flush(f);
  if (rc) return rc;
  rc = LOWER(f)->xSync(f->lower, flags);
  f->s.counters->lower_syncs++;
  if (rc == SQLITE_OK) note_own_end(f);
  if (rc == SQLITE_OK) rc = tde_db_after_sync(f);
  return rc;
}

static int do_main_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tde_file *f = file_of(pf);
  uint64_t n = 0;
  int rc = may_be_first(f) ? begin_unlocked(f) : SQLITE_OK;

  if (rc) return rc;
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

/* ---- locks ---- */

/* Another connection's thread may look (openfiles.c). */
static void set_lock(tde_db *db, int level) {
  __atomic_store_n(&db->lock, level, __ATOMIC_RELAXED);
}

static int do_main_lock(sqlite3_file *pf, int level) {
  tde_file *f = file_of(pf);
  tde_db *db = f->db;
  int before = db->lock, rc;

  rc = level >= SQLITE_LOCK_RESERVED ? refuse_read_only(f) : SQLITE_OK;
  if (rc == SQLITE_OK && db->guest && !f->plain && level == SQLITE_LOCK_RESERVED) {
    rc = tde_connection_refuse_guest(f);
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
  if (before == SQLITE_LOCK_NONE) forget_seen(f);
  rc = before == SQLITE_LOCK_NONE ? tde_db_gate(f) : tde_db_io_gate(f, 0);
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

/* ---- shared memory ---- */

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
    rc = f->db->shm_locks ? tde_db_io_gate(f, 0) : may_begin(f);
    if (rc == SQLITE_OK && f->db->guest && offset == TDE_SHM_WRITE)
      rc = tde_connection_refuse_guest(f);
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

/* ---- the rest ---- */

static int do_main_control(sqlite3_file *pf, int op, void *arg) {
  tde_file *f = file_of(pf);
  int rc;

  if (op == TDE_FCNTL_FILE) {
    *(tde_file **)arg = f;
    return SQLITE_OK;
  }
  if (op == SQLITE_FCNTL_VFSNAME) return tde_any_vfsname(f, (char **)arg);
  if (op == SQLITE_FCNTL_PDB) tde_connection_take(f, arg);
  if (f->plain) return LOWER(f)->xFileControl(f->lower, op, arg);
  switch (op) {
    case SQLITE_FCNTL_SIZE_HINT:
    case SQLITE_FCNTL_CHUNK_SIZE:
      return SQLITE_OK; /* would make bytes below that nobody sealed */
    case SQLITE_FCNTL_MMAP_SIZE:
      return tde_map_limit(f, arg);
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
      f->db->writing = 0; /* it is over, or all of its pages are out */
      forget_lost(f->db);
      break;
    default:
      break;
  }
  return LOWER(f)->xFileControl(f->lower, op, arg);
}

int tde_mainfile_close(tde_file *f) {
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
  return tde_mainfile_close(f);
}

/* ---- the methods ---- */

static int main_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  tde_file *m = enter(pf);
  int rc = io_gate(m, 0);

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
  int rc = io_gate(m, 1);
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
    int rc = tde_connection_pragma(file_of(pf), arg);
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

/* What both tables have: the first serves lower files that have no shared memory. */
#define MAIN_METHODS                                                                          \
  .xClose = main_close, .xRead = main_read, .xWrite = main_write, .xTruncate = main_truncate, \
  .xSync = main_sync, .xFileSize = main_size, .xLock = main_lock, .xUnlock = main_unlock,     \
  .xCheckReservedLock = tde_any_reserved, .xFileControl = main_control,                       \
  .xSectorSize = tde_any_sector_size, .xDeviceCharacteristics = tde_any_traits

static const sqlite3_io_methods main_methods_v1 = {.iVersion = 1, MAIN_METHODS};

static const sqlite3_io_methods main_methods_v3 = {.iVersion = 3,
                                                   MAIN_METHODS,
                                                   .xShmMap = main_shm_map,
                                                   .xShmLock = main_shm_lock,
                                                   .xShmBarrier = main_shm_barrier,
                                                   .xShmUnmap = main_shm_unmap,
                                                   .xFetch = tde_any_fetch,
                                                   .xUnfetch = tde_any_unfetch};

/* Version 3 also where xFetch maps nothing: SQLite tells the mmap size to no
** other, and PRAGMA mmap_size would not answer. */
const sqlite3_io_methods *tde_mainfile_methods(const tde_file *f) {
  return LOWER(f)->iVersion < 2 || !LOWER(f)->xShmMap ? &main_methods_v1 : &main_methods_v3;
}
