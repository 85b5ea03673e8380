/*
** wal.c: the WAL: frames in, frames out; its generations are logfile.c's.
**
** A frame waits in the run until the commit frame is complete: the
** wal-index names no frame before the commit frame's xWrite has returned.
*/
#include <string.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* Where in a frame's header, and in the log's, its salts stand (SQLite file format,
** section 4.1). */
#define FRAME_SALT 8
#define HEADER_SALT 16

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
      return tde_log_refuse_frames(
          f,
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
  if (!f->gen.valid && !f->s.prefix_pending) tde_log_look_again(f);
  rc = tde_log_refresh(f);
  if (rc) return rc;
  if (!f->gen.valid) {
    memset(buf, 0, n);
    if (off < TDE_WAL_HEADER) return SQLITE_OK;
    return f->s.hooks->bad(f, 0, TDE_TAMPERED);
  }
  i = tde_unit_at(&f->s.geo, off, &at);
  if (at == TDE_WAL_FRAME_HEAD) *page_of = i;
  looking = at == 0 && n == tde_unit_size(&f->s.geo, i) && !tde_sealed_own(&f->s, i);
  rc = tde_sealed_read(&f->s, buf, n, off, TDE_READ_PROBE);
  if (rc == SQLITE_OK && looking && i > 0) note_pages(f, i, tde_get32be(buf + 4));
  if (rc != SQLITE_NOTFOUND) return rc;
  /* Perhaps a generation that this handle does not know yet: a shim above may
  ** keep the wal-index, whose locks tell otherwise. */
  tde_log_look_again(f);
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
    rc = tde_log_begin(f, tde_get32be(buf + 8) + TDE_WAL_FRAME_HEAD);
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
  again = tde_sealed_own(&f->s, i) && !(f->s.cur_active && f->s.cur_index == i);
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
