/*
** verify.c: opens every unit of a database and of its WAL as they are on disk.
**
** What counts in a WAL is what the wal-index says: frames 1 to mxFrame. Those
** must open. Behind them lies what a rolled-back or unfinished transaction or
** an older generation left: void for SQLite, and no damage.
**
** The records are read through this connection's own lower handles (a second
** open of the file in this process would cost SQLite its POSIX locks). A unit
** that fails is read again a few times: a checkpoint may be writing it. Page
** content never leaves this module. With a shared cache, another connection's thread
** may be at work in the same file: each unit is opened with the file entered.
*/
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

#define REREADS 5
#define REREAD_USEC 1000
#define PROGRESS_EVERY 256

typedef struct verifier {
  int (*on_bad)(void *, const tde_bad_unit *);
  int (*progress)(void *, uint64_t, uint64_t);
  void *ctx;
  uint64_t done, all;
  tde_verify_result *out;
  uint32_t *pages; /* page numbers in live WAL frames, ascending */
  uint64_t npages;
  uint32_t unit;      /* of the database file */
  uint32_t page_size; /* of the WAL; 0: none */
  uint32_t count;     /* pages of the database, as the last commit in the WAL has it */
  uint32_t frames;    /* which ended with this one */
} verifier;

static int report_bad(verifier *v, const char *role, uint64_t index, tde_class c) {
  tde_bad_unit bad = {role, index, c};
  v->out->bad++;
  return v->on_bad && v->on_bad(v->ctx, &bad) ? SQLITE_INTERRUPT : SQLITE_OK;
}

static int step(verifier *v) {
  v->done++;
  if (!v->progress || v->done % PROGRESS_EVERY) return SQLITE_OK;
  return v->progress(v->ctx, v->done, v->all) ? SQLITE_INTERRUPT : SQLITE_OK;
}

/* Opens unit i, reading it again when it fails. b: record, then plaintext. */
static tde_class open_again(tde_sealed *s, uint64_t i, uint8_t *b, int *rc) {
  uint32_t n = tde_record_size(&s->geo, i), got;
  tde_class c = TDE_TAMPERED;
  int torn;

  for (int k = 0; k < REREADS && c == TDE_TAMPERED; k++) {
    if (k) usleep(REREAD_USEC);
    *rc = tde_sealed_fetch(s, i, 1, b, &got, &torn);
    if (*rc == SQLITE_IOERR_SHORT_READ) {
      *rc = SQLITE_OK;
      return torn ? TDE_TORN : TDE_TRUNCATED;
    }
    if (*rc) return TDE_IO;
    c = tde_sealed_open_record(s, i, b, b + n);
    if (c == TDE_TAMPERED && s->hooks->salvage && s->hooks->salvage(s->ctx, i, b, n) == SQLITE_OK) {
      c = tde_sealed_open_record(s, i, b, b + n);
    }
  }
  return c;
}

static tde_class open_patiently(tde_file *f, uint64_t i, uint8_t *b, int *rc) {
  tde_class c;

  tde_file_enter(f);
  c = open_again(&f->s, i, b, rc);
  tde_file_leave(f);
  return c;
}

/* True while the WAL may hold pages that the database file still lacks. */
static int wal_holds_frames(const tde_file *f) {
  sqlite3_int64 lower = 0;
  tde_file *w = f->db->wal;

  if (!w) return 0;
  return LOWER(w)->xFileSize(w->lower, &lower) != SQLITE_OK || lower > 0;
}

/* Is the file as long as page 1 says? Page count at 28, valid when the version
** at 92 equals the change counter at 24 (SQLite file format, section 1.3). An
** incomplete record behind the last page is what a crash left of a page that
** was rolled back: no damage. */
static void check_length(tde_file *f, const uint8_t *page1, uint64_t units, uint64_t rest,
                         verifier *v) {
  uint32_t page = (uint32_t)page1[16] << 8 | page1[17], count = tde_get32be(page1 + 28);

  if (page == 1) page = 65536;
  if (wal_holds_frames(f) || tde_get32be(page1 + 24) != tde_get32be(page1 + 92)) return;
  if (page >= 512 && (uint64_t)count * page > units * v->unit) {
    v->out->truncated = rest == 0;
    v->out->torn = rest != 0;
  }
}

static int by_number(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

/* True when the WAL holds every page that unit i has a part of. */
static int superseded(const verifier *v, uint64_t i) {
  uint64_t from = i * v->unit, to = from + v->unit - 1;

  if (!v->npages) return 0;
  for (uint64_t p = from / v->page_size; p <= to / v->page_size; p++) {
    uint32_t number = (uint32_t)(p + 1);
    if (!bsearch(&number, v->pages, v->npages, sizeof(number), by_number)) return 0;
  }
  return 1;
}

/* Is there, for each page that the WAL's last commit counts, a frame or a place in the
** file? SQLite logs every page before it counts (but that of its lock bytes). */
static void check_logged_length(const tde_file *f, verifier *v, uint64_t units) {
  uint32_t pages = 0;

  if (!v->count) return;
  if (f->db->index && (tde_wal_index(f, &pages) != v->frames || pages != v->count)) {
    return; /* somebody has committed since: the next run will see */
  }
  for (uint64_t p = units * v->unit / v->page_size; p < v->count; p++) {
    uint32_t number = (uint32_t)(p + 1);
    if (p * v->page_size == TDE_HOLE_START) continue;
    if (bsearch(&number, v->pages, v->npages, sizeof(number), by_number)) continue;
    v->out->truncated = 1;
    return;
  }
}

/* How long the file is, in units and bytes behind them; v->unit 0: it has none yet. */
static int measure(tde_file *f, verifier *v, uint64_t *units, uint64_t *rest) {
  sqlite3_int64 lower = 0;
  int rc;

  tde_file_enter(f);
  rc = LOWER(f)->xFileSize(f->lower, &lower);
  v->unit = f->db->header.unit_size ? f->s.geo.unit : 0;
  *units = v->unit ? tde_units_in(&f->s.geo, (uint64_t)lower, rest) : 0;
  tde_file_leave(f);
  return rc;
}

static int verify_main(tde_file *f, verifier *v) {
  uint64_t units, rest = 0;
  uint32_t n;
  uint8_t *b;
  int rc = measure(f, v, &units, &rest);

  if (rc || !v->unit) return rc;
  n = v->unit + TDE_UNIT_OVERHEAD;
  v->all += units;
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!b) return SQLITE_NOMEM;
  for (uint64_t i = 0; rc == SQLITE_OK && i < units; i++) {
    tde_class c = open_patiently(f, i, b, &rc);
    if (rc) break;
    if (c && c != TDE_TAMPERED && c != TDE_TORN && c != TDE_TRUNCATED) {
      rc = tde_class_rc(c);
    } else if (c && superseded(v, i)) {
      v->out->superseded++;
    } else if (c) {
      rc = report_bad(v, "main", i, c);
    } else {
      v->out->main_units++;
      if (i == 0) check_length(f, b + n, units, rest, v);
    }
    if (rc == SQLITE_OK) rc = step(v);
  }
  if (rc == SQLITE_OK) check_logged_length(f, v, units);
  tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  return rc;
}

typedef struct wal_walk {
  uint64_t last; /* the last frame that counts; without shared memory it is */
  uint8_t salt[TDE_SALT_BYTES]; /* of the generation that is verified */
  const uint8_t *plain; /* the record that was opened */
  int known;     /* not known: the unbroken chain of authentic frames is taken */
  int broken;    /* a record did not open */
} wal_walk;

/* A frame that counts: its page, and the database's pages where it ends a transaction
** (SQLite file format, section 4.1). */
static void note_frame(verifier *v, uint64_t i, const uint8_t *frame) {
  v->pages[v->npages++] = tde_get32be(frame);
  if (tde_get32be(frame + 4) == 0) return;
  v->count = tde_get32be(frame + 4);
  v->frames = (uint32_t)i;
}

/* SQLITE_LOCKED: a connection with the same cache, which our read transaction does not keep
** from it, began the log anew. */
static int open_frame(tde_file *w, wal_walk *k, uint64_t i, uint8_t *b, tde_class *c) {
  tde_sealed *s = &w->s;
  uint32_t got;
  int torn, rc;

  *c = TDE_TAMPERED;
  tde_file_enter(w->db->file);
  rc = tde_sealed_fetch(s, i, 1, b, &got, &torn);
  k->plain = b + tde_record_size(&s->geo, i);
  if (rc == SQLITE_OK) *c = tde_sealed_open_record(s, i, b, b + tde_record_size(&s->geo, i));
  if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
  if (rc == SQLITE_OK && *c && tde_log_begun_anew(w, k->salt)) rc = SQLITE_LOCKED;
  tde_file_leave(w->db->file);
  return rc;
}

/* One record of the WAL. b: record, then plaintext. */
static int verify_frame(tde_file *w, verifier *v, wal_walk *k, uint64_t i, uint8_t *b) {
  tde_class c;
  int rc = open_frame(w, k, i, b, &c), counts = k->known ? i <= k->last : !k->broken;

  if (rc) return rc;
  if (c && c != TDE_TAMPERED) return tde_class_rc(c);
  if (c == TDE_OK && counts) {
    v->out->wal_units++;
    if (i > 0) note_frame(v, i, k->plain);
    return SQLITE_OK;
  }
  if (c && k->known && counts) return report_bad(v, "wal", i, c);
  if (c == TDE_OK && k->broken) v->out->wal_cut++;
  if (c) k->broken = 1;
  v->out->wal_stale++;
  return SQLITE_OK;
}

static int verify_wal(tde_file *f, verifier *v) {
  tde_file *w = f->db->wal;
  sqlite3_int64 lower = 0;
  wal_walk k = {.last = 0};
  uint64_t units = 0, rest;
  uint32_t n;
  uint8_t *b;
  int rc, valid;

  /* In this order: another connection may be appending, and then the file is
  ** longer than the index says, never shorter. */
  tde_file_enter(f);
  rc = tde_log_refresh(w);
  memcpy(k.salt, w->s.salt, sizeof(k.salt));
  k.last = tde_wal_index(f, NULL);
  k.known = f->db->index != NULL;
  if (rc == SQLITE_OK) rc = LOWER(w)->xFileSize(w->lower, &lower);
  valid = rc == SQLITE_OK && lower > 0 && w->gen.valid;
  n = w->s.geo.unit + TDE_UNIT_OVERHEAD;
  if (valid) units = tde_units_in(&w->s.geo, (uint64_t)lower, &rest);
  tde_file_leave(f);
  if (!valid) return rc;
  v->all += units;
  v->page_size = n - TDE_UNIT_OVERHEAD - TDE_WAL_FRAME_HEAD;
  v->pages = sqlite3_malloc64((units + 1) * sizeof(*v->pages));
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!v->pages || !b) rc = SQLITE_NOMEM;
  for (uint64_t i = 0; rc == SQLITE_OK && i < units; i++) {
    rc = verify_frame(w, v, &k, i, b);
    if (rc == SQLITE_OK) rc = step(v);
  }
  if (rc == SQLITE_OK && k.known && k.last >= units && k.last > 0) v->out->torn = 1;
  if (b) tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  if (v->npages) qsort(v->pages, v->npages, sizeof(*v->pages), by_number);
  return rc;
}

int tde_file_verify(tde_file *f, int (*on_bad)(void *, const tde_bad_unit *),
                    int (*progress)(void *, uint64_t, uint64_t), void *ctx, tde_verify_result *out,
                    tde_status *st) {
  verifier v;
  int rc = SQLITE_OK;

  memset(&v, 0, sizeof(v));
  v.on_bad = on_bad;
  v.progress = progress;
  v.ctx = ctx;
  v.out = out;
  memset(out, 0, sizeof(*out));
  if (f->plain || (f->db->state != TDE_STATE_ONLINE && f->db->state != TDE_STATE_NEW)) {
    if (st) *st = f->db->last;
    if (f->plain) {
      tde_fail(st, TDE_NOT_ENCRYPTED, "SELECT tde_encrypt('the file') encrypts it",
               "%s: not encrypted: there is nothing to verify", f->path);
    }
    return f->plain ? SQLITE_ERROR : tde_class_rc(f->db->last.code);
  }
  if (f->db->state == TDE_STATE_NEW) return SQLITE_OK;
  if (f->db->wal) rc = verify_wal(f, &v);
  if (rc == SQLITE_OK) rc = verify_main(f, &v);
  sqlite3_free(v.pages);
  if (rc == SQLITE_LOCKED) {
    tde_fail(st, TDE_BUSY, "try again, or verify through a connection without a shared cache",
             "%s: its log was begun anew meanwhile", f->path);
  } else if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO, "check the disk",
             "%s: not verified to the end: %s", f->path, sqlite3_errstr(rc));
  }
  return rc;
}
