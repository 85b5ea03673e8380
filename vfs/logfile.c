/*
** logfile.c: WAL and rollback journal.
**
** Both are logs that SQLite writes anew again and again in one file. Each time
** is a generation: a random salt in the file's prefix, bound into every unit,
** so that what an older generation left behind does not open. The prefix also
** carries the DEK epoch and the protector's thumbprint of that moment. All units of the
** generation are sealed under that epoch, whoever writes them: a connection that joins
** it may have slept through a regeneration, and know an older epoch, which is forgotten,
** or a newer one. An epoch is not forgotten before its generations are gone (reseal.c).
**
** What SQLite expects of a log is to find its end by itself: the first frame
** or record whose checksum fails. So where SQLite looks for the end, a unit
** that does not open reads as zeros (which fail the checksum) or as the end of
** the file; where SQLite knows that the data is there, it is an error:
**   - a WAL frame read whole from its first byte is recovery looking; a page
**     read behind the frame header is named by the wal-index;
**   - a journal unit that this handle wrote must be there; others may be torn.
** That gives an attacker no more than cutting the log off would.
**
** A WAL frame waits in the run until the commit frame is complete: the
** wal-index names no frame before the commit frame's xWrite has returned.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "openfiles.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* Where in a frame's header, and in the log's, its salts stand (SQLite file format,
** section 4.1). */
#define FRAME_SALT 8
#define HEADER_SALT 16

const uint8_t tde_sqlite_journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

void tde_log_open(tde_file *f) {
  tde_sealed_init(&f->s, f->lower, f->role, 0, &f->db->crypt[f->role - 1], &f->db->counters,
                  &tde_log_hooks, f);
  if (f->role == TDE_ROLE_WAL) {
    f->db->wal = f;
    f->db->file->s.known_end = 0; /* from here on checkpoints may make the file shorter */
    f->gen.alone = f->db->lock == SQLITE_LOCK_EXCLUSIVE && !f->db->shm_open;
  } else {
    f->db->journal = f;
    if (f->db->journal_lost) {
      /* A new transaction under the same lock (locking_mode=EXCLUSIVE). */
      tde_sealed_drop(&f->db->file->s);
      f->db->journal_lost = 0;
    }
  }
}

/* ---- generations ---- */

static int unit_ok(const tde_file *f, uint32_t unit) {
  uint32_t page = unit - TDE_WAL_FRAME_HEAD;

  if (f->role == TDE_ROLE_JOURNAL) return unit == TDE_UNIT_JOURNAL;
  return unit > TDE_WAL_FRAME_HEAD && page >= 512 && page <= 65536 && (page & (page - 1)) == 0;
}

static int refuse_log(tde_file *f, tde_class c, const char *why) {
  tde_fail(&f->db->last, c, "put the database that it belongs to beside it, or move the file away",
           "%s: %s", f->path, why);
  return tde_db_report(f->db);
}

/* Nothing is changed: whoever puts the log back can go on. */
static int refuse_frames(tde_file *f, const char *why) {
  tde_fail(
      &f->db->last, TDE_TAMPERED,
      "close all connections; SELECT tde_verify() then lists all damage; restore from a backup",
      "%s: %s", f->path, why);
  f->db->counters.units_rejected++;
  return tde_db_report(f->db);
}

/* A log of SQLite's own, of another database of this name: what stands in it is not ours to lose. */
static int is_plain_log(const uint8_t *b) {
  return ((tde_get32be(b) & ~1u) == TDE_SQLITE_WAL_MAGIC &&
          tde_get32be(b + 4) == TDE_SQLITE_WAL_VERSION) ||
         memcmp(b, tde_sqlite_journal_magic, sizeof(tde_sqlite_journal_magic)) == 0;
}

/* A backup and a secondary are only read: beside them stands the log of what they were made of. */
static int refuse_log_of_copy(tde_file *f) {
  tde_fail(&f->db->last, TDE_MISCONFIGURED,
           "tde_restore() makes a database of it; or move the file away",
           "%s: is not this file's, which is a %s: together they are a mixture", f->path,
           f->db->facts.backup ? "backup" : "secondary");
  return tde_db_report(f->db);
}

/* The prefix parsed: is it a generation of this database? */
static int judge_prefix(tde_file *f, const uint8_t *b, const tde_prefix *p) {
  tde_db *db = f->db;
  uint8_t mac_key[TDE_KEY_BYTES];
  tde_class c;

  if (memcmp(p->uuid, db->header.uuid, TDE_UUID_BYTES) != 0) {
    return refuse_log(f, TDE_WRONG_KEY, "belongs to another database");
  }
  if (!tde_db_knows(db, p->epoch)) {
    int rc = tde_db_load(db->file, 1); /* a newer epoch, perhaps */
    if (rc) return rc;
  }
  c = TDE_WRONG_KEY;
  if (tde_db_knows(db, p->epoch)) c = tde_keys_mac_key(db->keys, p->epoch, mac_key);
  if (c == TDE_WRONG_KEY) {
    return refuse_log(f, c, "is sealed under a key epoch that is not known");
  }
  if (c) return tde_class_rc(c);
  c = unit_ok(f, p->unit_size) ? tde_prefix_check_mac(b, mac_key) : TDE_WRONG_KEY;
  tde_wipe(mac_key, sizeof(mac_key));
  if (c == TDE_WRONG_KEY) {
    tde_log(TDE_LOG_WARNING, "%s: its prefix is not authentic: read as empty", f->path);
    return SQLITE_OK;
  }
  if (c) return tde_class_rc(c); /* not checked is not void */
  if (db->facts.backup || db->facts.secondary) return refuse_log_of_copy(f);
  memcpy(f->s.salt, p->salt, TDE_SALT_BYTES);
  f->s.epoch = p->epoch;
  memcpy(f->gen.seen, b, TDE_PREFIX_BYTES);
  f->gen.head_known = 0;
  tde_geometry_init(&f->s.geo, f->role, p->unit_size);
  f->gen.valid = 1;
  return SQLITE_OK;
}

/* Zeros where the file is shorter than a prefix. */
static int read_prefix(tde_file *f, uint8_t b[TDE_PREFIX_BYTES]) {
  sqlite3_int64 size = 0;
  int rc = LOWER(f)->xRead(f->lower, b, (int)TDE_PREFIX_BYTES, 0);

  f->s.counters->lower_reads++;
  if (rc != SQLITE_IOERR_SHORT_READ) return rc;
  rc = LOWER(f)->xFileSize(f->lower, &size);
  if (rc) return rc;
  if (size < (sqlite3_int64)TDE_PREFIX_BYTES) {
    memset(b, 0, TDE_PREFIX_BYTES);
    return SQLITE_OK;
  }
  rc = LOWER(f)->xRead(f->lower, b, (int)TDE_PREFIX_BYTES, 0); /* it has just grown */
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_IOERR_READ : rc;
}

/* ---- is it the generation that the wal-index speaks of? ---- */

/* It tells without a read (walindex.c). */
static int index_vouches(const tde_file *f) {
  uint8_t now[TDE_INDEX_SALT];

  return f->gen.indexed && tde_index_salt(f->db, now) &&
         memcmp(now, f->gen.index_salt, sizeof(now)) == 0;
}

/* What the next use of the log goes by is read from the file, whatever the wal-index says. */
static void look_again(tde_file *f) {
  f->gen.checked = f->gen.indexed = 0;
}

int tde_log_refresh(tde_file *f) {
  uint8_t b[TDE_PREFIX_BYTES];
  tde_generation *g = &f->gen;
  tde_prefix p;
  int rc;

  if (g->checked || f->s.prefix_pending) return SQLITE_OK;
  if (g->valid && index_vouches(f)) {
    g->checked = 1;
    return SQLITE_OK;
  }
  g->indexed = f->role == TDE_ROLE_WAL && tde_index_salt(f->db, g->index_salt);
  rc = read_prefix(f, b);
  g->indexed = rc == SQLITE_OK && index_vouches(f); /* it spoke of this one before and after */
  if (rc) return rc;
  if (f->role == TDE_ROLE_JOURNAL && !tde_sealed_pending(&f->s)) f->s.size_known = 0;
  if (g->valid && memcmp(b, g->seen, sizeof(b)) == 0) {
    g->checked = 1;
    return SQLITE_OK;
  }
  if (g->valid && g->alone) return refuse_frames(f, "was replaced by another while it was in use");
  g->valid = 0;
  g->last = 0;
  f->s.own_from = f->s.own_to = 0;
  tde_sealed_drop(&f->s);
  switch (tde_prefix_parse(b, f->role, &p)) {
    case TDE_PREFIX_NONE:
      break;
    case TDE_PREFIX_FOREIGN:
      if (is_plain_log(b)) {
        return refuse_log(f, TDE_MISCONFIGURED, "is the log of a database that is not encrypted");
      }
      tde_log(TDE_LOG_WARNING, "%s: its prefix is torn, or of another kind: read as empty",
              f->path);
      break;
    case TDE_PREFIX_UNKNOWN:
      return SQLITE_IOERR_NOMEM;
    case TDE_PREFIX_OK:
      rc = judge_prefix(f, b, &p);
      break;
  }
  if (rc == SQLITE_OK) g->checked = 1;
  return rc;
}

int tde_log_begun_anew(tde_file *w, const uint8_t salt[TDE_SALT_BYTES]) {
  look_again(w);
  return tde_log_refresh(w) == SQLITE_OK &&
         (!w->gen.valid || memcmp(w->s.salt, salt, TDE_SALT_BYTES) != 0);
}

/* Begins a generation; its prefix goes out in front of unit 0. */
static int new_generation(tde_file *f, uint32_t unit) {
  tde_db *db = f->db;
  uint8_t mac_key[TDE_KEY_BYTES];
  tde_prefix p;
  tde_class c;
  int rc;

  if (!unit_ok(f, unit)) return SQLITE_CORRUPT;
  if (f->role == TDE_ROLE_WAL) {
    /* It is stamped with the protector and epoch of now. (A journal's RESERVED
    ** lock has seen to that.) */
    rc = tde_db_follow(db->file);
    if (rc) return rc;
  }
  tde_sealed_drop(&f->s);
  memset(&p, 0, sizeof(p));
  p.epoch = db->header.epoch;
  p.unit_size = unit;
  memcpy(p.uuid, db->header.uuid, TDE_UUID_BYTES);
  memcpy(p.thumbprint, db->facts.thumbprint, TDE_THUMB_BYTES);
  c = tde_random(p.salt, TDE_SALT_BYTES, &db->last);
  if (c == TDE_OK) c = tde_keys_mac_key(db->keys, p.epoch, mac_key);
  if (c == TDE_OK) c = tde_prefix_build(&p, f->role, mac_key, f->s.prefix);
  tde_wipe(mac_key, sizeof(mac_key));
  if (c) {
    f->gen.valid = f->gen.checked = 0;
    return c == TDE_RANDOM ? tde_db_report(db) : tde_class_rc(c);
  }
  memcpy(f->s.salt, p.salt, TDE_SALT_BYTES);
  memcpy(f->gen.seen, f->s.prefix, TDE_PREFIX_BYTES);
  f->gen.head_known = 0;
  tde_geometry_init(&f->s.geo, f->role, unit);
  f->s.epoch = p.epoch;
  f->s.prefix_pending = 1;
  f->gen.valid = f->gen.checked = 1;
  f->gen.commit = f->gen.indexed = 0;
  f->gen.last = 0;
  f->s.own_from = f->s.own_to = 0;
  return SQLITE_OK;
}

static int is_mine(const tde_file *f, uint64_t i) {
  return tde_sealed_own(&f->s, i);
}

int tde_log_size(tde_file *f, uint64_t *size) {
  sqlite3_int64 lower = 0;
  int rc = tde_log_refresh(f);

  if (rc) return rc;
  if (f->gen.valid || f->role == TDE_ROLE_JOURNAL) {
    if (f->role == TDE_ROLE_WAL) {
      rc = tde_sealed_flush(&f->s);
      if (rc) return rc;
    }
    return tde_sealed_size(&f->s, size);
  }
  /* No generation: SQLite will find no header, whatever the size. */
  rc = LOWER(f)->xFileSize(f->lower, &lower);
  *size = lower > (sqlite3_int64)TDE_PREFIX_BYTES ? (uint64_t)lower - TDE_PREFIX_BYTES : 0;
  return rc;
}

int tde_log_truncate(tde_file *f, uint64_t size) {
  int rc;

  if (size > 0) {
    rc = tde_log_refresh(f);
    if (rc) return rc;
    if (f->gen.valid || f->role == TDE_ROLE_JOURNAL) return tde_sealed_truncate(&f->s, size);
  }
  rc = LOWER(f)->xTruncate(f->lower, 0);
  if (rc == SQLITE_OK) {
    tde_sealed_drop(&f->s);
    f->gen.valid = 0;
    f->gen.last = 0;
    f->gen.checked = 1;
    f->s.own_from = f->s.own_to = 0;
  }
  return rc;
}

/* ---- WAL ---- */

/* What waits does not go out, and what was seen of the log is looked at again. */
static void drop_waiting(tde_file *f) {
  if (f->s.prefix_pending) f->gen.valid = 0; /* a generation that never went out */
  tde_sealed_drop(&f->s);
  f->gen.checked = 0;
  f->s.own_from = f->s.own_to = 0;
}

void tde_wal_begin(tde_file *f) {
  drop_waiting(f);
  tde_sealed_forget(&f->s);
}

/* What waits and was not committed is of a transaction that was rolled back: others write
** these frames next, and what waited must not be read for theirs, or written over them. */
void tde_wal_forget(tde_file *f) {
  if (!tde_sealed_pending(&f->s) && !f->s.prefix_pending) return;
  drop_waiting(f);
  f->gen.commit = 0;
}

/* Under a VFS above that hides powersafe overwrite, SQLite pads a commit with
** frames, and cuts the write of the last at a sector boundary; if that VFS also
** keeps syncs to itself, half a frame waits here. The second half may come in
** any later transaction, so what there is goes out while the lock is held. */
void tde_wal_end(tde_file *f) {
  int rc = SQLITE_OK;

  if (f->gen.commit && tde_sealed_pending(&f->s)) rc = tde_sealed_flush(&f->s);
  /* SQLite does not look at what an unlock returns. The frame repeats the one
  ** before it: who reads it will be told, and a recovery ends before it. */
  if (rc)
    tde_log(TDE_LOG_ERROR, "%s: the padding of a commit could not be written (%d)", f->path, rc);
  tde_wal_forget(f);
}

/* A frame that ends a transaction has the database's pages then in its header, others 0. */
static void note_pages(tde_file *f, uint64_t i, uint32_t pages) {
  if (!pages) return;
  f->gen.pages = pages;
  f->gen.last = (uint32_t)i;
}

/* The salts in the log's own header (SQLite file format, section 4.1), sealed under its
** generation. Read once for each. */
static int head_salt(tde_file *w, uint8_t out[TDE_INDEX_SALT]) {
  tde_generation *g = &w->gen;
  uint8_t head[TDE_WAL_HEADER];
  int rc = SQLITE_OK;

  if (!g->head_known) {
    rc = tde_sealed_read(&w->s, head, sizeof(head), 0, TDE_READ_PROBE);
    if (rc == SQLITE_OK) memcpy(g->head_salt, head + HEADER_SALT, sizeof(g->head_salt));
    g->head_known = rc == SQLITE_OK;
  }
  memcpy(out, g->head_salt, TDE_INDEX_SALT);
  return rc;
}

/* SQLite before 3.50 leaves zeros in frames that it commits behind a savepoint which it undid
** (wal.c: sqlite3WalSavepointUndo keeps iReCksum), and reads them until the log is begun anew:
** for those the log's header speaks. */
int tde_wal_of_index(tde_file *w, const uint8_t *frame) {
  uint8_t salt[TDE_INDEX_SALT], head[TDE_INDEX_SALT];

  if (!tde_index_salt(w->db, salt) || memcmp(salt, frame + FRAME_SALT, sizeof(salt)) == 0) return 1;
  return tde_all_zero(frame + FRAME_SALT, sizeof(salt)) && head_salt(w, head) == SQLITE_OK &&
         memcmp(salt, head, sizeof(salt)) == 0;
}

/* Is frame i, whose lead was just read, what the wal-index says of it? */
static int index_agrees(tde_file *f, uint64_t i) {
  const uint8_t *lead = f->s.lead; /* stays: the log's header is read as a whole */
  uint32_t page = tde_get32be(lead), other;

  return tde_index_has(f->db, i, page, lead + FRAME_SALT) || !tde_index_page(f->db, i, &other) ||
         (page == other && tde_wal_of_index(f, lead));
}

/* SQLite reads a page behind its frame header because the wal-index says that it is there.
** That is not sealed: who can write it, or put a whole older log in place of this one, could
** give a page as another, or as it was. The header, sealed with the page, says whose it is.
** Looked at for as long as at a unit that does not open (sealed.c): a process may be about to
** write the index. */
static int check_frame(tde_file *f, uint64_t i) {
  for (int k = 0; !index_agrees(f, i); k++) {
    if (k == TDE_REREADS) {
      return refuse_frames(f,
                           "a frame is not of the page, or not of the log, that the wal-index "
                           "(the -shm file) says");
    }
    usleep(TDE_REREAD_USEC << k);
  }
  return SQLITE_OK;
}

/* *page_of: the frame of which a page was read; 0: none. */
static int read_log(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off, uint64_t *page_of) {
  uint32_t at;
  uint64_t i;
  int looking, rc;

  /* No generation seen so far: whatever the locks say, look again. */
  if (!f->gen.valid && !f->s.prefix_pending) look_again(f);
  rc = tde_log_refresh(f);
  if (rc) return rc;
  if (!f->gen.valid) {
    memset(buf, 0, n);
    if (off < TDE_WAL_HEADER) return SQLITE_OK;
    return f->s.hooks->bad(f, 0, TDE_TAMPERED);
  }
  i = tde_unit_at(&f->s.geo, off, &at);
  if (at == TDE_WAL_FRAME_HEAD) *page_of = i;
  looking = at == 0 && n == tde_unit_size(&f->s.geo, i) && !is_mine(f, i);
  rc = tde_sealed_read(&f->s, buf, n, off, TDE_READ_PROBE);
  if (rc == SQLITE_OK && looking && i > 0) note_pages(f, i, tde_get32be(buf + 4));
  if (rc != SQLITE_NOTFOUND) return rc;
  /* Perhaps a generation that this handle does not know yet: a shim above may
  ** keep the wal-index, whose locks tell otherwise. */
  look_again(f);
  rc = tde_log_refresh(f);
  if (rc) return rc;
  i = tde_unit_at(&f->s.geo, off, &at);
  *page_of = at == TDE_WAL_FRAME_HEAD ? i : 0;
  return tde_sealed_read(&f->s, buf, n, off, looking ? TDE_READ_LENIENT : 0);
}

int tde_wal_read(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off) {
  uint64_t frame = 0;
  int rc;

  f->s.lead_read = 0;
  rc = read_log(f, buf, n, off, &frame);
  if (rc == SQLITE_OK && frame > 0 && f->s.lead_read) {
    rc = check_frame(f, frame);
    if (rc) memset(buf, 0, n);
  }
  return rc;
}

/* A frame header behind a finished transaction, or the first that this handle
** writes: whose generation it joins must be looked at anew. (Most often the
** wal-index lock said so already: tde_wal_begin.) */
static int begins_transaction(tde_file *f, uint64_t off) {
  tde_generation *g = &f->gen;
  uint32_t at;
  uint64_t i;

  if (!g->valid || f->s.cur_active) return 0;
  i = tde_unit_at(&f->s.geo, off, &at);
  return at == 0 && (f->s.own_from == f->s.own_to || (g->commit && i == f->s.own_to));
}

int tde_wal_write(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off) {
  uint32_t at;
  uint64_t i;
  int again, waiting, whole, commits, rc;

  if (off == 0 && n == TDE_WAL_HEADER) {
    rc = new_generation(f, tde_get32be(buf + 8) + TDE_WAL_FRAME_HEAD);
    return rc == SQLITE_OK ? tde_sealed_write(&f->s, buf, n, off) : rc;
  }
  if (begins_transaction(f, off)) {
    f->gen.checked = 0;
    f->s.own_from = f->s.own_to = 0;
  }
  rc = tde_log_refresh(f);
  if (rc) return rc;
  if (!f->gen.valid) {
    tde_log(TDE_LOG_ERROR, "%s: a frame was to be written to a WAL without a header", f->path);
    return SQLITE_IOERR_CORRUPTFS;
  }
  i = tde_unit_at(&f->s.geo, off, &at);
  again = is_mine(f, i) && !(f->s.cur_active && f->s.cur_index == i);
  waiting = tde_sealed_in_run(&f->s, i);
  if (i > 0 && at == 0 && n >= 8) f->gen.commit = tde_get32be(buf + 4);
  whole = at + n == tde_unit_size(&f->s.geo, i);
  commits = whole && f->gen.commit;
  rc = tde_sealed_write(&f->s, buf, n, off);
  if (rc == SQLITE_OK && again) {
    /* A frame of this transaction is rewritten, its page alone or its header
    ** alone: nothing follows that would complete it, so seal it now; and
    ** write it now when its old form is in the file already. */
    rc = waiting && !commits ? tde_sealed_settle(&f->s) : tde_sealed_flush(&f->s);
  } else if (rc == SQLITE_OK) {
    if (commits) rc = tde_sealed_flush(&f->s);
    if (rc == SQLITE_OK && whole) note_pages(f, i, f->gen.commit);
  }
  if (rc == SQLITE_OK) return rc;
  f->gen.commit = 0;
  /* SQLite rolls back, and goes on with nothing of this transaction (pager.c, pager_error).
  ** Out of memory it may. */
  if ((rc & 0xff) == SQLITE_FULL || ((rc & 0xff) == SQLITE_IOERR && rc != SQLITE_IOERR_NOMEM)) {
    tde_wal_forget(f);
  }
  return rc;
}

/* Pages smaller than the unit: which of those in unit `index`, but for its bytes lo to hi,
** does the database count? A bit each. */
static uint32_t other_pages(const tde_file *f, uint64_t index, uint32_t lo, uint32_t hi) {
  uint32_t unit = f->s.geo.unit, page = f->s.gap_page, pages = tde_wal_pages(f), set = 0;
  uint64_t first = index * (unit / page); /* 0: page 1 */

  for (uint32_t k = 0; k < unit / page; k++) {
    int written = k * page >= lo && (k + 1) * page <= hi;
    if (!written && first + k < pages && (first + k) * page != TDE_HOLE_START) set |= 1u << k;
  }
  return set;
}

/* Which of the pages from `from` on (0: page 1) are in frames first + 1 to last? Their bits are
** taken from *lacking. */
static int find_pages(tde_file *w, uint64_t first, uint64_t last, uint64_t from,
                      uint32_t *lacking) {
  int rc = SQLITE_OK;

  for (uint64_t i = last; rc == SQLITE_OK && *lacking && i > first; i--) {
    uint8_t b[4];
    uint64_t page;
    rc = tde_sealed_read(&w->s, b, sizeof(b), tde_unit_start(&w->s.geo, i), 0);
    page = (uint64_t)tde_get32be(b) - 1;
    if (page >= from && page - from < 32) *lacking &= ~(1u << (page - from));
  }
  return rc;
}

/* A checkpoint passed over the pages of a unit at the new end, for an older reader's sake,
** and writes one of them now: the others are behind what checkpoints have brought into
** the file. This is rare, so the frames are looked at one by one. */
int tde_wal_has_rest(void *ctx, uint64_t index, uint32_t lo, uint32_t hi) {
  tde_file *f = ctx, *w = f->db->wal;
  uint32_t lacking, first = 0;
  sqlite3_int64 lower = 0;
  uint64_t last, rest;
  int rc = SQLITE_OK;

  if (!w || !w->gen.valid || !f->s.gap_page || f->s.gap_page >= f->s.geo.unit) {
    return SQLITE_NOTFOUND;
  }
  lacking = other_pages(f, index, lo, hi);
  if (f->db->index) {
    last = tde_wal_index(f, NULL);
    first = tde_wal_restored(f);
  } else { /* nobody else writes */
    rc = LOWER(w)->xFileSize(w->lower, &lower);
    last = tde_units_in(&w->s.geo, (uint64_t)lower, &rest);
    last -= last > 0;
  }
  if (rc == SQLITE_OK) {
    rc = find_pages(w, first, last, index * (f->s.geo.unit / f->s.gap_page), &lacking);
  }
  return rc == SQLITE_OK && lacking ? SQLITE_NOTFOUND : rc;
}

int tde_wal_has_unit(tde_file *f, uint64_t index) {
  tde_file *w = f->db->wal;
  uint32_t page, pages, first, frames, lacking = 1;
  uint64_t number;

  if (!w || !f->db->index || tde_log_refresh(w) || !w->gen.valid) return 0;
  page = w->s.geo.unit - TDE_WAL_FRAME_HEAD;
  if (page < f->s.geo.unit) return 0; /* whoever writes a part of it needs the rest */
  number = tde_unit_start(&f->s.geo, index) / page;
  first = tde_wal_restored(f); /* in this order: the log may just be begun anew */
  frames = tde_wal_index(f, &pages);
  if (frames <= first) return 0;
  return number >= pages ||
         (find_pages(w, first, frames, number, &lacking) == SQLITE_OK && !lacking);
}

/* ---- rollback journal ---- */

/* The commit in PERSIST mode: SQLite overwrites the header with zeros. Zero
** the prefix and the first record below: no key is needed to see that this
** journal is void. */
static int void_journal(tde_file *f) {
  static const uint8_t zeros[TDE_PREFIX_BYTES + TDE_UNIT_JOURNAL + TDE_UNIT_OVERHEAD];
  int rc = LOWER(f)->xWrite(f->lower, zeros, sizeof(zeros), 0);

  f->s.counters->lower_writes++;
  if (rc) {
    /* Half of it may be there: whether the journal is void is for the file to say. */
    f->gen.checked = 0;
    f->s.own_from = f->s.own_to = 0;
    return rc;
  }
  tde_sealed_drop(&f->s);
  f->gen.valid = 0;
  f->gen.checked = 1;
  f->s.own_from = f->s.own_to = 0;
  return SQLITE_OK;
}

int tde_journal_read(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off) {
  uint32_t at;
  uint64_t size, last;
  int probe = n <= 8, flags, rc = tde_log_refresh(f);

  if (rc) return rc;
  if (!f->gen.valid) {
    memset(buf, 0, n);
    rc = tde_sealed_size(&f->s, &size);
    if (rc) return rc;
    return off + n <= size ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
  }
  last = tde_unit_at(&f->s.geo, off + n - 1, &at);
  flags = is_mine(f, last) ? 0 : probe ? TDE_READ_LENIENT : TDE_READ_SHORT;
  return tde_sealed_read(&f->s, buf, n, off, flags);
}

/* ---- the super-journal's name ----
**
** A transaction over several databases has a super-journal; each journal ends with its name
** (pager.c, writeSuperJournal), sealed here. A plain database of the transaction may be the
** first to be opened after a crash, through a VFS that knows no keys, and deletes the
** super-journal when no journal names it: ours would count as committed. So the name stands
** in plain behind the records, too, in the form and place in which SQLite looks for it:
**
**     name | its length (4, BE) | sum of its bytes (4, BE) | journal magic
**
** No secret: it stands in the super-journal. And nothing here believes it.
*/
#define SUPER_TAIL 16u
#define SUPER_NAME_MAX 4096u

static uint32_t sum_of(const uint8_t *name, uint32_t n) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += (uint32_t)(signed char)name[i]; /* SQLite's are chars */
  return sum;
}

/* Takes the name in plain, if one ends the file, off its size. */
static int trim_name(tde_file *f, sqlite3_int64 *size) {
  uint8_t tail[SUPER_TAIL], *name;
  sqlite3_int64 end = *size - (sqlite3_int64)SUPER_TAIL;
  uint32_t n;
  int rc;

  if (end <= (sqlite3_int64)TDE_PREFIX_BYTES) return SQLITE_OK;
  rc = LOWER(f)->xRead(f->lower, tail, sizeof(tail), end);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK; /* it has just become shorter */
  if (rc) return rc;
  n = tde_get32be(tail);
  if (memcmp(tail + 8, tde_sqlite_journal_magic, 8) != 0 || n == 0 || n > SUPER_NAME_MAX ||
      end - (sqlite3_int64)n < (sqlite3_int64)TDE_PREFIX_BYTES) {
    return SQLITE_OK;
  }
  name = sqlite3_malloc64(n);
  if (!name) return SQLITE_NOMEM;
  rc = LOWER(f)->xRead(f->lower, name, (int)n, end - (sqlite3_int64)n);
  if (rc == SQLITE_OK && sum_of(name, n) == tde_get32be(tail + 4)) *size = end - (sqlite3_int64)n;
  sqlite3_free(name);
  return rc;
}

int tde_journal_trim(void *ctx, sqlite3_int64 *size) {
  tde_file *f = ctx;

  return f->role == TDE_ROLE_JOURNAL ? trim_name(f, size) : SQLITE_OK;
}

/* The record of the name, from SQLite's own, whose magic belongs at `at`. *n: its bytes, 0: there
** is no name to be had. */
static int read_super_name(tde_file *f, uint64_t at, uint8_t *out, uint32_t *n) {
  uint8_t head[8];
  uint32_t len;
  int rc = at < sizeof(head) ? SQLITE_CORRUPT
                             : tde_sealed_read(&f->s, head, sizeof(head), at - sizeof(head), 0);

  *n = 0;
  if (rc) return rc;
  len = tde_get32be(head);
  if (len == 0 || len > SUPER_NAME_MAX || len + sizeof(head) > at) return SQLITE_OK;
  rc = tde_sealed_read(&f->s, out, len + sizeof(head), at - sizeof(head) - len, 0);
  if (rc || sum_of(out, len) != tde_get32be(head + 4)) return rc;
  memcpy(out + len + sizeof(head), tde_sqlite_journal_magic, 8);
  *n = len + SUPER_TAIL;
  return SQLITE_OK;
}

/* Writes it behind the last record. What an earlier, longer transaction left there goes. */
static int repeat_super_name(tde_file *f, uint64_t magic_at) {
  uint8_t *name = sqlite3_malloc64(SUPER_NAME_MAX + SUPER_TAIL);
  uint32_t n, at;
  sqlite3_int64 to = (sqlite3_int64)tde_lower_size(&f->s.geo,
                                                   tde_unit_at(&f->s.geo, magic_at + 7, &at) + 1);
  int rc = name ? read_super_name(f, magic_at, name, &n) : SQLITE_NOMEM;

  if (rc == SQLITE_OK && n) {
    rc = LOWER(f)->xTruncate(f->lower, to);
    if (rc == SQLITE_OK) rc = LOWER(f)->xWrite(f->lower, name, (int)n, to);
    /* Pages that were spilled are in the file already: an outage must not keep the magic alone.
    ** Where nothing was synced before, they are not, or nobody asks for it. */
    if (rc == SQLITE_OK && f->gen.synced) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
    f->s.counters->lower_writes++;
  }
  f->s.size_known = 0;
  sqlite3_free(name);
  return rc;
}

/* The magic ends the name. From then on the other databases' roll-backs look for that name in
** this file, so it must be in the lower file, the name in plain before it; and if it can not
** be written, this journal must not claim it either, or it would take a deleted super-journal
** for a commit. Without the magic, it is rolled back alone. */
static int write_super_magic(tde_file *f, const uint8_t *magic, uint64_t off) {
  static const uint8_t none[8];
  int rc = tde_sealed_flush(&f->s);

  if (rc == SQLITE_OK) rc = repeat_super_name(f, off);
  if (rc) return rc;
  rc = tde_sealed_write(&f->s, magic, 8, off);
  if (rc == SQLITE_OK) rc = tde_sealed_flush(&f->s);
  if (rc) (void)tde_sealed_write(&f->s, none, sizeof(none), off);
  return rc;
}

int tde_journal_write(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off) {
  int starts, rc;

  if (off == 0 && n == 28 && tde_all_zero(buf, n)) return void_journal(f);
  starts = off == 0 && n >= 28 && memcmp(buf, tde_sqlite_journal_magic, 8) == 0;
  if (!starts) {
    rc = tde_log_refresh(f);
    if (rc) return rc;
  }
  if (starts || !f->gen.valid) {
    rc = new_generation(f, TDE_UNIT_JOURNAL);
    if (rc) return rc;
  }
  if (off > 0 && n == 8 && memcmp(buf, tde_sqlite_journal_magic, 8) == 0) {
    return write_super_magic(f, buf, off);
  }
  return tde_sealed_write(&f->s, buf, n, off);
}

/* Looks into the journal through a handle of its own, as SQLite does: the first byte
** tells (pager.c, hasHotJournal). */
static int first_byte(tde_file *main_file, const char *name, uint8_t *first) {
  tde_db *db = main_file->db;
  tde_file probe;
  int rc;

  memset(&probe, 0, sizeof(probe));
  probe.role = TDE_ROLE_JOURNAL;
  probe.path = name;
  probe.lower_vfs = main_file->lower_vfs;
  probe.db = db;
  probe.lower = tde_lower_open(main_file->lower_vfs, name,
                               SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_READONLY, NULL, &rc);
  if (!probe.lower) return rc;
  tde_sealed_init(&probe.s, probe.lower, probe.role, 0, &db->crypt[probe.role - 1], &db->counters,
                  &tde_log_hooks, &probe);
  rc = tde_journal_read(&probe, first, 1, 0);
  if (rc == SQLITE_IOERR_SHORT_READ) {
    *first = 0;
    rc = SQLITE_OK;
  }
  tde_sealed_clear(&probe.s);
  (void)tde_lower_close(probe.lower);
  return rc;
}

int tde_journal_is_hot(tde_file *main_file, int *hot) {
  const char *name = tde_name_of(main_file->path, "-journal");
  sqlite3_vfs *vfs = main_file->lower_vfs;
  uint8_t first = 0;
  int there = 0, reserved = 0, rc = SQLITE_NOMEM;

  *hot = 0;
  if (name) rc = vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there);
  if (rc == SQLITE_OK && there) {
    rc = tde_main_reserved(main_file->lower, &reserved);
  }
  if (rc == SQLITE_OK && there && !reserved) {
    rc = first_byte(main_file, name, &first);
    if ((rc & 0xff) == SQLITE_CANTOPEN) {
      /* Gone meanwhile? */
      int rc2 = vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there);
      if (rc2 == SQLITE_OK && !there) rc = SQLITE_OK;
    }
  }
  tde_name_free(name);
  *hot = rc == SQLITE_OK && first != 0;
  return rc;
}

/* ---- a child journal met through its super-journal ----
**
** When a hot journal that names a super-journal is rolled back, SQLite opens
** every other journal that the super-journal lists, as a super-journal file,
** to see whether it still names it; if none does, the super-journal goes. A
** sealed journal must answer with its content, or not at all: taken for a
** journal that names nothing, it would lose its super-journal, and its half of
** the transaction would be kept. So its database's header is opened here for
** the key. Where that is not to be had, the name that stands in plain at its end is
** what SQLite reads, and the super-journal stays for it: whoever could forge that name could
** delete the super-journal as well. A journal without one is an error then, and everything
** stays as it is.
*/
#define INSTANCES_MAX 8

/* Opens its header with the keys of this instance, NULL: the default one. True: that ends
** the search. */
static int try_owner(tde_file *f, const char *path, const char *instance, tde_file **owner,
                     int *rc) {
  tde_db_close_beside(*owner);
  *owner = NULL;
  *rc = tde_db_open_beside(path, f->lower_vfs, instance, SQLITE_OPEN_READONLY, owner);
  return *rc != SQLITE_OK || (*owner)->db->state == TDE_STATE_ONLINE;
}

/* Its instance is most likely that of the connection which rolls back now, and holds SHARED
** still (pager.c, pager_playback), or of one that has it attached, and comes to it later. */
static int open_owner(tde_file *f, const char *journal_path, tde_file **owner) {
  size_t n = strlen(journal_path);
  char *path, *instances[INSTANCES_MAX];
  int rc = SQLITE_OK, found = 0, have;

  if (n < 9 || strcmp(journal_path + n - 8, "-journal") != 0) return SQLITE_CANTOPEN;
  path = sqlite3_mprintf("%.*s", (int)(n - 8), journal_path);
  if (!path) return SQLITE_NOMEM;
  have = tde_openfiles_instances(path, instances, INSTANCES_MAX);
  for (int i = 0; i < have && !found; i++) found = try_owner(f, path, instances[i], owner, &rc);
  if (!found) (void)try_owner(f, path, NULL, owner, &rc);
  for (int i = 0; i < have; i++) sqlite3_free(instances[i]);
  sqlite3_free(path);
  if (rc == SQLITE_OK && (*owner)->db->state != TDE_STATE_ONLINE) {
    rc = tde_class_rc((*owner)->db->last.code);
    if (rc == SQLITE_OK) rc = SQLITE_CANTOPEN;
  }
  return rc;
}

/* No key for this journal: is the name in plain there? */
static int is_named_in_plain(tde_file *f) {
  sqlite3_int64 size = 0, cut;

  if (LOWER(f)->xFileSize(f->lower, &size) != SQLITE_OK) return 0;
  cut = size;
  return trim_name(f, &cut) == SQLITE_OK && cut < size;
}

static void tell_no_key(const char *journal_path, const tde_file *owner) {
  tde_status st;

  tde_status_clear(&st);
  tde_fail(&st, owner && owner->db ? owner->db->last.code : TDE_IO,
           "open that database first, or ATTACH it, with the tde_instance= that has its key: that rolls "
           "it back",
           "%.300s: belongs to a transaction over several databases that was cut short, and its key "
           "is not to be had here: %.300s",
           journal_path, owner && owner->db ? owner->db->last.message : "it can not be opened");
  tde_log_status(TDE_LOG_ERROR, NULL, &st);
}

int tde_log_open_child(tde_file *f, const char *journal_path, int *is_sealed) {
  uint8_t b[TDE_PREFIX_BYTES];
  tde_prefix p;
  tde_file *owner = NULL;
  int rc = LOWER(f)->xRead(f->lower, b, sizeof(b), 0);

  *is_sealed = 0;
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK;
  if (rc) return rc;
  switch (tde_prefix_parse(b, TDE_ROLE_JOURNAL, &p)) {
    case TDE_PREFIX_UNKNOWN:
      return SQLITE_IOERR_NOMEM;
    case TDE_PREFIX_OK:
      break;
    default:
      return SQLITE_OK; /* not sealed, or torn: it names nothing */
  }
  rc = open_owner(f, journal_path, &owner);
  if (rc) {
    if (rc != SQLITE_NOMEM && is_named_in_plain(f)) {
      rc = SQLITE_OK;
    } else {
      tell_no_key(journal_path, owner);
    }
    tde_db_close_beside(owner);
    return rc;
  }
  *is_sealed = 1;
  f->role = TDE_ROLE_JOURNAL;
  f->owned_owner = owner;
  f->db = owner->db;
  tde_log_open(f);
  return SQLITE_OK;
}
