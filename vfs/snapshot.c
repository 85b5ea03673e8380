/*
** snapshot.c: the sealed units of one moment; see snapshot.h.
**
** Why a WAL's snapshot is one. The wal-index header names the last committed frame M
** and the page count with it. It is read when the read transaction has begun, so
** that transaction's mark is M or less:
**  - a checkpoint writes no frame behind the mark into the database file, so a page
**    without a frame up to M stands in the file as it is at M, and keeps standing so;
**  - the log is not restarted while a reader has a mark in it. A reader whose mark
**    is 0 (everything was in the database) holds off checkpoints altogether; the log
**    may then be restarted once, before M is read or after: if everything up to M is
**    in the database file the log is not looked at, else it is the new one and
**    cannot be restarted again (wal.c, walRestartLog needs something to be
**    checkpointed first).
** A page with a frame up to M is its last such frame, whatever the file has.
**
** With a shared cache, other connections of this process work in the same file, whose
** threads are kept out while one unit is taken. They may write in the middle of the read
** transaction: in a rollback mode that ends the snapshot (SQLITE_LOCKED); in a WAL it is
** behind M, unless they begin the log anew, which ends the snapshot, too.
*/
#include "snapshot.h"

#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"

SQLITE_EXTENSION_INIT3

#define PROGRESS_EVERY 256

typedef struct snap {
  tde_file *f;
  const tde_snapshot_sink *sink;
  uint32_t unit, record, page;
  uint64_t units; /* of the snapshot */
  uint64_t size;  /* logical bytes */
  uint32_t counter;
  uint32_t pages;
  uint32_t *frame_of; /* by page number; 0: in the database file */
  uint64_t file_units;
  uint8_t *batch; /* TDE_FETCH_UNITS records of the file */
  uint64_t batch_at;
  uint32_t batch_n;
  uint8_t *plain;               /* one unit */
  uint8_t *out;                 /* one record */
  uint8_t *frame;               /* one record of the WAL, then its plaintext */
  uint64_t sealed;              /* by this file, when the snapshot began */
  uint8_t salt[TDE_SALT_BYTES]; /* the log's generation then */
} snap;

static void snap_free(snap *s) {
  if (s->plain) tde_wipe(s->plain, s->unit);
  if (s->frame) tde_wipe(s->frame, 2 * (size_t)TDE_UNIT_MAX + TDE_UNIT_OVERHEAD);
  sqlite3_free(s->frame_of);
  sqlite3_free(s->batch);
  sqlite3_free(s->plain);
  sqlite3_free(s->out);
  sqlite3_free(s->frame);
}

static int snap_init(snap *s, tde_file *f, const tde_snapshot_sink *sink) {
  memset(s, 0, sizeof(*s));
  s->f = f;
  s->sink = sink;
  s->unit = f->s.geo.unit;
  s->record = s->unit + TDE_UNIT_OVERHEAD;
  s->batch = sqlite3_malloc64((size_t)TDE_FETCH_UNITS * s->record);
  s->plain = sqlite3_malloc64(s->unit);
  s->out = sqlite3_malloc64(s->record);
  s->frame = sqlite3_malloc64(2 * (size_t)TDE_UNIT_MAX + TDE_UNIT_OVERHEAD);
  return s->batch && s->plain && s->out && s->frame ? SQLITE_OK : SQLITE_NOMEM;
}

/* How many units the file has. Of a snapshot of a WAL it is asked after the wal-index:
** until then a checkpoint may append pages that are not looked for in the log. */
static int measure(snap *s) {
  sqlite3_int64 lower = 0;
  uint64_t rest;
  int rc = LOWER(s->f)->xFileSize(s->f->lower, &lower);

  if (rc == SQLITE_OK) s->file_units = tde_units_in(&s->f->s.geo, (uint64_t)lower, &rest);
  return rc;
}

/* Does a connection with the same cache write into the database file? It holds RESERVED
** then, or EXCLUSIVE with a journal (locking_mode=EXCLUSIVE keeps that lock), or is done. */
static int written_beside(const snap *s) {
  const tde_db *db = s->f->db;

  if (db->wal) return 0;
  return db->counters.units_sealed != s->sealed ||
         (db->lock >= SQLITE_LOCK_RESERVED && db->lock < SQLITE_LOCK_EXCLUSIVE) ||
         (db->lock == SQLITE_LOCK_EXCLUSIVE && db->journal && db->journal->gen.valid);
}

static int step(snap *s, uint64_t done) {
  if (!s->sink->progress || done % PROGRESS_EVERY) return SQLITE_OK;
  return s->sink->progress(s->sink->ctx, done, s->units) ? SQLITE_INTERRUPT : SQLITE_OK;
}

/* ---- the database file ---- */

/* The record of unit i in the database file, from a batch; NULL: it has none. */
static int file_record(snap *s, uint64_t i, const uint8_t **record) {
  tde_sealed *d = &s->f->s;
  uint32_t got = 0;
  int torn, rc;

  *record = NULL;
  if (i >= s->file_units) return SQLITE_OK;
  if (!(s->batch_n && i >= s->batch_at && i < s->batch_at + s->batch_n)) {
    s->batch_n = 0;
    rc = tde_sealed_fetch(d, i, tde_units_adjacent(&d->geo, i, TDE_FETCH_UNITS), s->batch, &got,
                          &torn);
    if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
    s->batch_at = i;
    s->batch_n = got;
    if (got == 0) return SQLITE_OK;
  }
  *record = s->batch + (i - s->batch_at) * s->record;
  return SQLITE_OK;
}

/* Opens unit i as it stands in the file, looking again where it does not open, for a while if
** it must. */
static int open_unit(snap *s, uint64_t i, int must, const uint8_t **record, int *opened) {
  tde_sealed *d = &s->f->s;
  int rc = file_record(s, i, record);
  tde_class c = TDE_TRUNCATED;

  *opened = 0;
  if (rc) return rc;
  if (*record) c = tde_sealed_open_record(d, i, *record, s->plain);
  if (c == TDE_TAMPERED && must) {
    c = tde_sealed_again(d, i, s->out, s->plain);
    *record = s->out;
  }
  if (c == TDE_TAMPERED && d->hooks->salvage &&
      d->hooks->salvage(d->ctx, i, s->out, s->record) == SQLITE_OK) {
    *record = s->out;
    c = tde_sealed_open_record(d, i, s->out, s->plain);
  }
  if (c == TDE_OK) *opened = 1;
  if (c && c != TDE_TAMPERED && c != TDE_TRUNCATED) return tde_class_rc(c);
  return SQLITE_OK;
}

/* ---- the WAL ---- */

/* The header has not changed when the count of frames restored has been read: a restart of the
** log writes the header first (wal.c, walRestartHdr), so that count is this log's. */
int tde_snapshot_index(tde_file *f, tde_index_view *out) {
  const char *shm = (const char *)f->db->index;
  uint8_t a[TDE_INDEX_COPY], b[TDE_INDEX_COPY];
  uint16_t size;

  memset(out, 0, sizeof(*out));
  if (!shm) return SQLITE_OK;
  for (int tries = 0; tries < 1000; tries++) {
    memcpy(a, shm, sizeof(a));
    LOWER(f)->xShmBarrier(f->lower);
    memcpy(b, shm + TDE_INDEX_COPY, sizeof(b));
    if (memcmp(a, b, sizeof(a)) != 0) continue;
    out->restored = tde_wal_restored(f);
    LOWER(f)->xShmBarrier(f->lower);
    memcpy(b, shm, sizeof(b));
    if (memcmp(a, b, sizeof(a)) != 0) continue;
    memcpy(&out->frames, a + TDE_INDEX_MX_FRAME, sizeof(out->frames));
    memcpy(&out->pages, a + TDE_INDEX_PAGES, sizeof(out->pages));
    memcpy(&size, a + TDE_INDEX_PAGE_SIZE, sizeof(size));
    out->page_size = size == 1 ? 65536 : size;
    return SQLITE_OK;
  }
  return SQLITE_BUSY;
}

/* Opens frame k of the log into s->frame's second half. */
static int open_frame(snap *s, uint64_t k, const uint8_t **plain) {
  tde_file *w = s->f->db->wal;
  uint8_t *text = s->frame + TDE_UNIT_MAX + TDE_UNIT_OVERHEAD;
  uint32_t got;
  int torn, rc = tde_sealed_fetch(&w->s, k, 1, s->frame, &got, &torn);
  tde_class c;

  *plain = text;
  if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
  c = rc ? TDE_TRUNCATED : tde_sealed_open_record(&w->s, k, s->frame, text);
  if (c == TDE_OK && !tde_wal_of_index(w, text)) c = TDE_TAMPERED;
  if (c == TDE_OK) return SQLITE_OK;
  return tde_log_begun_anew(w, s->salt) ? SQLITE_LOCKED : w->s.hooks->bad(w, k, c);
}

/* Which page is in which frame, of those that the database file does not have yet: a
** checkpoint during this read transaction writes no page that is not in one of them. */
static int map_log(snap *s, uint32_t restored, uint32_t frames) {
  tde_file *w = s->f->db->wal;
  const uint8_t *plain;
  int rc = tde_log_refresh(w);

  s->page = w->s.geo.unit - TDE_WAL_FRAME_HEAD;
  if (rc == SQLITE_OK && !w->gen.valid) rc = SQLITE_IOERR_DATA;
  memcpy(s->salt, w->s.salt, sizeof(s->salt));
  s->frame_of = rc ? NULL : sqlite3_malloc64(((uint64_t)s->pages + 1) * sizeof(uint32_t));
  if (!s->frame_of) return rc ? rc : SQLITE_NOMEM;
  memset(s->frame_of, 0, ((size_t)s->pages + 1) * sizeof(uint32_t));
  for (uint32_t k = restored + 1; rc == SQLITE_OK && k <= frames; k++) {
    uint32_t number;
    rc = open_frame(s, k, &plain);
    if (rc) break;
    number = tde_get32be(plain);
    if (number >= 1 && number <= s->pages) s->frame_of[number] = k;
  }
  return rc;
}

static int take_wal(snap *s) {
  tde_index_view x;
  int rc = tde_snapshot_index(s->f, &x);

  s->pages = x.pages;
  if (rc == SQLITE_OK && s->f->db->wal && x.restored < x.frames) {
    rc = map_log(s, x.restored, x.frames);
  }
  return rc;
}

/* Without a wal-index nobody tells which of a log's frames count. There may be none. */
static int no_frames(tde_file *f) {
  tde_file *w = f->db->wal;
  sqlite3_int64 size = 0;
  int rc;

  if (!w) return SQLITE_OK;
  rc = LOWER(w)->xFileSize(w->lower, &size);
  if (rc || size == 0) return rc;
  rc = tde_log_refresh(w);
  return rc == SQLITE_OK && w->gen.valid ? SQLITE_BUSY_SNAPSHOT : rc;
}

/* ---- one unit ---- */

/* Lays the pages that the log has over the plaintext of unit i. *touched: some. */
static int overlay(snap *s, uint64_t i, int *touched) {
  uint64_t from = i * s->unit, to = from + s->unit;
  int rc = SQLITE_OK;

  *touched = 0;
  if (!s->frame_of || !s->page) return SQLITE_OK;
  for (uint64_t p = from / s->page; rc == SQLITE_OK && p * s->page < to && p < s->pages; p++) {
    uint64_t start = p * s->page, end = start + s->page;
    const uint8_t *plain;
    if (!s->frame_of[p + 1]) continue;
    rc = open_frame(s, s->frame_of[p + 1], &plain);
    if (rc) break;
    plain += TDE_WAL_FRAME_HEAD;
    if (start < from) {
      memcpy(s->plain, plain + (from - start), s->unit);
    } else {
      memcpy(s->plain + (start - from), plain, (end < to ? end : to) - start);
    }
    *touched = 1;
  }
  return rc;
}

/* Are all pages of unit i in the log? Then the file need not have it. That of SQLite's lock
** bytes is never logged: where the file ends before it, it is zeros. */
static int wholly_logged(const snap *s, uint64_t i) {
  uint64_t from = i * s->unit, to = from + s->unit;

  if (!s->frame_of || !s->page) return 0;
  for (uint64_t p = from / s->page; p * s->page < to && p < s->pages; p++) {
    if (p * s->page == TDE_HOLE_START && i >= s->file_units) continue;
    if (!s->frame_of[p + 1]) return 0;
  }
  return 1;
}

static int seal(snap *s, uint64_t i) {
  tde_sealed *d = &s->f->s;
  tde_unit_place at = {TDE_ROLE_MAIN, i, d->salt};
  uint64_t end = (i + 1) * s->unit;
  uint32_t pad = end > s->size ? (uint32_t)(end - s->size) : 0;
  tde_aead *aead;
  tde_class c = tde_cryptor_get(d->crypt, s->f->db->header.epoch, &aead);

  if (pad) memset(s->plain + s->unit - pad, 0, pad);
  if (c == TDE_OK) {
    c = tde_unit_seal(aead, &at, s->f->db->header.epoch, pad, s->plain, s->out, s->unit);
  }
  return tde_class_rc(c);
}

/* Page 1 for a file without a log. */
static void patch_head(snap *s) {
  s->plain[TDE_DBHEAD_WRITE_VERSION] = s->plain[TDE_DBHEAD_READ_VERSION] = 1;
  if (s->counter) {
    uint32_t page = tde_stated_page_size(s->plain);
    if (!s->pages && page) s->pages = (uint32_t)(s->size / page);
    tde_put32be(s->plain + TDE_DBHEAD_COUNTER, s->counter);
    tde_put32be(s->plain + TDE_DBHEAD_VALID_FOR, s->counter);
    tde_put32be(s->plain + TDE_DBHEAD_PAGES, s->pages);
  }
}

/* Must unit 0 be another than it is in the file? */
static int head_differs(const snap *s) {
  return s->counter || s->plain[TDE_DBHEAD_WRITE_VERSION] != 1 ||
         s->plain[TDE_DBHEAD_READ_VERSION] != 1;
}

static int hand_over(snap *s, uint64_t i) {
  const uint8_t *record = NULL;
  int opened = 0, touched = 0, rc = SQLITE_OK;

  if (!wholly_logged(s, i)) {
    /* A record that the target holds was authentic when it got it. */
    rc = file_record(s, i, &record);
    if (rc == SQLITE_OK && record && i > 0 && !s->frame_of &&
        s->sink->has(s->sink->ctx, i, record, s->record)) {
      return SQLITE_OK;
    }
    if (rc == SQLITE_OK) rc = open_unit(s, i, 1, &record, &opened);
    if (rc == SQLITE_OK && !opened) {
      rc = s->f->s.hooks->bad(s->f, i, record ? TDE_TAMPERED : TDE_TRUNCATED);
    }
  } else {
    memset(s->plain, 0, s->unit);
  }
  if (rc == SQLITE_OK) rc = overlay(s, i, &touched);
  if (rc) return rc;
  if (i == 0 && head_differs(s)) {
    patch_head(s);
    touched = 1;
  }
  if (touched || !record) {
    rc = seal(s, i);
    record = s->out;
  }
  if (rc == SQLITE_OK && !s->sink->has(s->sink->ctx, i, record, s->record)) {
    rc = s->sink->put(s->sink->ctx, i, record, s->record);
  }
  return rc;
}

/* ---- the interface ---- */

int tde_snapshot_size(tde_file *f, uint64_t *size) {
  uint8_t head[TDE_DBHEAD_BYTES];
  uint64_t stated;
  int rc = tde_sealed_size(&f->s, size);

  if (rc || !f->db->facts.secondary) return rc;
  rc = tde_sealed_read(&f->s, head, sizeof(head), 0, TDE_READ_PROBE);
  if (rc == SQLITE_NOTFOUND || rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK; /* others tell */
  stated = rc ? 0 : (uint64_t)tde_stated_pages(head) * tde_stated_page_size(head);
  if (stated && stated < *size) *size = stated;
  return rc;
}

int tde_snapshot_ahead(tde_file *f, const tde_snapshot_sink *sink) {
  const uint8_t *record;
  snap s;
  int rc = SQLITE_OK, opened;

  tde_file_enter(f);
  rc = snap_init(&s, f, sink);
  if (rc == SQLITE_OK && !f->db->shm_open && !f->db->wal && f->db->header.unit_size) {
    rc = measure(&s);
  }
  tde_file_leave(f);
  s.units = s.file_units;
  for (uint64_t i = 1; rc == SQLITE_OK && i < s.file_units; i++) {
    tde_file_enter(f);
    rc = open_unit(&s, i, 0, &record, &opened);
    tde_file_leave(f);
    if (rc == SQLITE_OK && opened && !sink->has(sink->ctx, i, record, s.record)) {
      rc = sink->put(sink->ctx, i, record, s.record);
    }
    if (rc == SQLITE_OK) rc = step(&s, i);
  }
  snap_free(&s);
  return rc;
}

/* What is to be taken: which pages are in the log, and how long the whole is. */
static int look(snap *s, int settled) {
  tde_file *f = s->f;
  int rc = SQLITE_OK;

  if (f->db->index) {
    rc = take_wal(s);
  } else if (!settled) {
    rc = no_frames(f);
  }
  if (rc == SQLITE_OK) rc = measure(s);
  if (rc == SQLITE_OK && s->frame_of) {
    s->size = (uint64_t)s->pages * s->page;
  } else if (rc == SQLITE_OK) {
    rc = tde_snapshot_size(f, &s->size);
    s->page = 0;
  }
  s->units = (s->size + s->unit - 1) / s->unit;
  return rc;
}

int tde_snapshot_take(tde_file *f, const tde_snapshot_sink *sink, uint32_t counter, int settled,
                      uint64_t *size, int *wal) {
  snap s;
  int rc;

  *size = 0;
  tde_file_enter(f);
  *wal = f->db->shm_open || f->db->wal;
  rc = snap_init(&s, f, sink);
  s.counter = counter;
  s.sealed = f->db->counters.units_sealed;
  if (rc == SQLITE_OK && f->db->header.unit_size) rc = look(&s, settled);
  tde_file_leave(f);
  for (uint64_t i = 0; rc == SQLITE_OK && i < s.units; i++) {
    tde_file_enter(f);
    rc = written_beside(&s) ? SQLITE_LOCKED : hand_over(&s, i);
    tde_file_leave(f);
    if (rc == SQLITE_OK) rc = step(&s, i + 1);
  }
  tde_file_enter(f);
  if (rc == SQLITE_OK && written_beside(&s)) rc = SQLITE_LOCKED;
  tde_file_leave(f);
  if (rc == SQLITE_OK && sink->progress) (void)sink->progress(sink->ctx, s.units, s.units);
  *size = s.size;
  snap_free(&s);
  return rc;
}
