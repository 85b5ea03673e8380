/*
** verify.c: opens every unit of a database and of its WAL as they are on disk.
**
** What counts in a WAL is what the wal-index says: frames 1 to mxFrame. Those
** must open: a recovery goes through all of them. Behind them lies what a rolled-back
** or unfinished transaction or an older generation left: void for SQLite, and no damage.
** Who begins to read takes a page from the WAL only where its frame was not checkpointed
** yet (wal.c: minFrame), so only such a frame stands in for a unit of the database file.
** Without a wal-index that is shared (locking_mode=EXCLUSIVE) the caller has asked SQLite,
** or what this connection itself wrote and recovered is taken.
**
** The records are read through this connection's own lower handles (a second
** open of the file in this process would cost SQLite its POSIX locks). A unit
** that fails is read again a few times: a checkpoint may be writing it. Where very many
** fail, as in a file that was half lost, the others are read twice at once: hours would go by. Page
** content never leaves this module. With a shared cache, another connection's thread
** may be at work in the same file: each unit is opened with the file entered.
**
** A read transaction that began when all was checkpointed does not keep others from
** beginning the log anew, but keeps them from a checkpoint afterwards (wal.c,
** walTryBeginRead): the new log is looked at then.
*/
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "shim.h"
#include "snapshot.h"

SQLITE_EXTENSION_INIT3

#define REREADS 5
#define REREAD_USEC 1000
/* Units of one file that may fail so. */
#define PATIENCE 1000
#define PROGRESS_EVERY 256
#define LOG_TRIES 5

typedef struct verifier {
  int (*on_bad)(void *, const tde_bad_unit *);
  int (*progress)(void *, uint64_t, uint64_t);
  void *ctx;
  uint64_t done, all;
  tde_verify_result *out;
  uint32_t *pages; /* page numbers in frames that were not checkpointed, ascending */
  uint64_t npages;
  uint32_t *spoilt; /* frames that do not open */
  uint64_t nspoilt;
  uint64_t hopeless;         /* units that did not open however often they were read */
  uint32_t unit;             /* of the database file */
  uint32_t page_size;        /* of the log; 0: it does not tell */
  uint32_t frames, restored; /* committed; of these: in the database file already */
  uint32_t count; /* pages of the database, as the log's last commit has it; 0: page 1 tells */
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
static tde_class open_again(tde_sealed *s, uint64_t i, int patient, uint8_t *b, int *rc) {
  uint32_t n = tde_record_size(&s->geo, i), got;
  tde_class c = TDE_TAMPERED;
  int torn;

  for (int k = 0; k < (patient ? REREADS : 2) && c == TDE_TAMPERED; k++) {
    if (k && patient) usleep(REREAD_USEC);
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

static tde_class open_patiently(tde_file *f, verifier *v, uint64_t i, uint8_t *b, int *rc) {
  tde_class c;

  tde_file_enter(f);
  c = open_again(&f->s, i, v->hopeless < PATIENCE, b, rc);
  tde_file_leave(f);
  if (c == TDE_TAMPERED) v->hopeless++;
  return c;
}

/* Is the file as long as page 1 says? An incomplete record behind the last page is what a crash
** left of a page that was rolled back: no damage. */
static void check_length(const uint8_t *page1, uint64_t units, uint64_t rest, verifier *v) {
  uint32_t page = tde_stated_page_size(page1), count = tde_stated_pages(page1);

  if (v->count) return;
  if (page >= 512 && (uint64_t)count * page > units * v->unit) {
    v->out->truncated = rest == 0;
    v->out->torn = rest != 0;
  }
}

static int by_number(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static int is_logged(const verifier *v, uint64_t page) {
  uint32_t number = (uint32_t)(page + 1);

  return v->npages && bsearch(&number, v->pages, v->npages, sizeof(number), by_number) != NULL;
}

/* Does the log's last commit leave out unit i? A checkpoint cuts it off. */
static int is_beyond(const verifier *v, uint64_t i) {
  return v->count && v->page_size && i * v->unit >= (uint64_t)v->count * v->page_size;
}

/* True when nobody reads unit i of the file: the WAL holds every page that it has a part
** of, or the database has become shorter. */
static int superseded(const verifier *v, uint64_t i) {
  uint64_t from = i * v->unit, to = from + v->unit - 1;

  if (is_beyond(v, i)) return 1;
  if (!v->npages) return 0;
  for (uint64_t p = from / v->page_size; p <= to / v->page_size; p++) {
    if (!is_logged(v, p)) return 0;
  }
  return 1;
}

/* Is there, for each page that the WAL's last commit counts, a frame or a place in the
** file? SQLite logs every page before it counts (but that of its lock bytes). */
static void check_logged_length(const tde_file *f, verifier *v, uint64_t units) {
  uint32_t pages = 0;

  if (!v->count || !v->page_size) return;
  if (f->db->index && !f->db->shm_locks &&
      (tde_wal_index(f, &pages) != v->frames || pages != v->count)) {
    return; /* page 1 kept us from a read transaction, and somebody has committed since */
  }
  for (uint64_t p = units * v->unit / v->page_size; p < v->count; p++) {
    if (p * v->page_size == TDE_HOLE_START || is_logged(v, p)) continue;
    v->out->truncated = 1;
    return;
  }
}

/* What stands behind a secondary's end is nobody's. */
static int leave_out_rest(tde_file *f, uint64_t *units, uint64_t *rest) {
  uint64_t size = 0, n;
  int rc = tde_snapshot_size(f, &size);

  n = (size + f->s.geo.unit - 1) / f->s.geo.unit;
  if (rc || n >= *units) return rc;
  *units = n;
  *rest = 0;
  return SQLITE_OK;
}

/* How long the file is, in units and bytes behind them; v->unit 0: it has none yet. */
static int measure(tde_file *f, verifier *v, uint64_t *units, uint64_t *rest) {
  sqlite3_int64 lower = 0;
  int rc;

  tde_file_enter(f);
  rc = LOWER(f)->xFileSize(f->lower, &lower);
  v->unit = f->db->header.unit_size ? f->s.geo.unit : 0;
  *units = v->unit ? tde_units_in(&f->s.geo, (uint64_t)lower, rest) : 0;
  if (rc == SQLITE_OK && v->unit && f->db->facts.secondary) rc = leave_out_rest(f, units, rest);
  tde_file_leave(f);
  return rc;
}

/* What became of unit i. */
static int judge_unit(verifier *v, uint64_t i, tde_class c) {
  if (c == TDE_OK) {
    v->out->main_units++;
  } else if (c != TDE_TAMPERED && c != TDE_TORN && c != TDE_TRUNCATED) {
    return tde_class_rc(c);
  } else if (c == TDE_TRUNCATED && is_beyond(v, i)) {
    return SQLITE_OK; /* a checkpoint has cut it off since */
  } else if (superseded(v, i)) {
    v->out->superseded++;
  } else {
    return report_bad(v, "main", i, c);
  }
  return SQLITE_OK;
}

static int verify_main(tde_file *f, verifier *v) {
  uint64_t units, rest = 0;
  uint32_t n;
  uint8_t *b;
  int rc = measure(f, v, &units, &rest);

  if (rc || !v->unit) return rc;
  n = v->unit + TDE_UNIT_OVERHEAD;
  v->all = v->done + units;
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!b) return SQLITE_NOMEM;
  for (uint64_t i = 0; rc == SQLITE_OK && i < units; i++) {
    tde_class c = open_patiently(f, v, i, b, &rc);
    if (rc) break;
    rc = judge_unit(v, i, c);
    if (c == TDE_OK && i == 0) check_length(b + n, units, rest, v);
    if (rc == SQLITE_OK) rc = step(v);
  }
  if (rc == SQLITE_OK) {
    tde_file_enter(f);
    check_logged_length(f, v, units);
    tde_file_leave(f);
  }
  tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  return rc;
}

typedef struct wal_walk {
  uint64_t units;               /* records that the file has */
  uint8_t salt[TDE_SALT_BYTES]; /* of the generation that is verified */
  const uint8_t *plain;         /* the record that was opened */
  int headless;                 /* committed frames have no prefix, or not theirs */
  int broken;                   /* a record did not open */
} wal_walk;

/* Is the log's prefix on disk another than the one that this connection goes by? */
static int prefix_differs(tde_file *w) {
  uint8_t b[TDE_PREFIX_BYTES];

  return LOWER(w)->xRead(w->lower, b, (int)sizeof(b), 0) != SQLITE_OK ||
         memcmp(b, w->gen.seen, sizeof(b)) != 0;
}

/* Has the log been begun anew since we began with it? A prefix that is damaged while the
** wal-index names its frames is left alone: who knows it still reads them. */
static int begun_anew(tde_file *w, const wal_walk *k) {
  if (memcmp(w->s.salt, k->salt, sizeof(k->salt)) != 0) return 1;
  if (!w->gen.valid || !w->db->index || !prefix_differs(w)) return 0;
  w->gen.checked = 0;
  return tde_log_refresh(w) == SQLITE_OK &&
         (!w->gen.valid || memcmp(w->s.salt, k->salt, sizeof(k->salt)) != 0);
}

/* Opens frame i; counting: the wal-index names it, so it must be of that log.
** SQLITE_LOCKED: the log was begun anew, which our read transaction does not keep others
** from when it needs nothing of the log, nor a connection with the same cache. */
static int open_frame(tde_file *w, wal_walk *k, uint64_t i, int counting, uint8_t *b,
                      tde_class *c) {
  tde_sealed *s = &w->s;
  uint32_t got;
  int torn, rc;

  *c = TDE_TAMPERED;
  tde_file_enter(w->db->file);
  rc = tde_sealed_fetch(s, i, 1, b, &got, &torn);
  k->plain = b + tde_record_size(&s->geo, i);
  if (rc == SQLITE_OK) *c = tde_sealed_open_record(s, i, b, b + tde_record_size(&s->geo, i));
  if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
  if (*c == TDE_OK && counting && !tde_wal_of_index(w, k->plain)) *c = TDE_TAMPERED;
  if (rc == SQLITE_OK && *c && begun_anew(w, k)) rc = SQLITE_LOCKED;
  tde_file_leave(w->db->file);
  return rc;
}

/* A frame that counts: its page, and the database's pages where it ends the last
** transaction (SQLite file format, section 4.1). */
static void note_frame(tde_file *w, verifier *v, uint64_t i, const uint8_t *frame) {
  if (i > v->restored) v->pages[v->npages++] = tde_get32be(frame);
  if (i == v->frames && !w->db->index) v->count = tde_get32be(frame + 4);
}

/* One record of the WAL. b: record, then plaintext. */
static int verify_frame(tde_file *w, verifier *v, wal_walk *k, uint64_t i, uint8_t *b) {
  tde_class c;
  int rc = open_frame(w, k, i, i > 0 && i <= v->frames, b, &c);

  if (rc) return rc;
  if (c && c != TDE_TAMPERED) return tde_class_rc(c);
  /* A log without a committed frame is void, its beginning, too: the next generation's waits
  ** in the memory of whoever begins it. */
  if (i <= v->frames && (c == TDE_OK || v->frames > 0)) {
    if (c && !(i == 0 && k->headless)) v->spoilt[v->nspoilt++] = (uint32_t)i;
    v->out->wal_units += c == TDE_OK;
    if (c == TDE_OK && i > 0) note_frame(w, v, i, k->plain);
    return SQLITE_OK;
  }
  if (c == TDE_OK && k->broken) v->out->wal_cut++;
  if (c) k->broken = 1;
  v->out->wal_stale++;
  return SQLITE_OK;
}

/* Which frames count. */
static int read_index(tde_file *f, const tde_verify_log *log, verifier *v) {
  const tde_generation *g = &f->db->wal->gen;
  tde_index_view x;
  int rc;

  if (f->db->index) {
    rc = tde_snapshot_index(f, &x);
    v->frames = x.frames;
    v->restored = x.restored;
    v->count = x.pages;
    v->page_size = x.page_size;
    return rc;
  }
  v->frames = log ? log->frames : g->last;
  v->restored = log ? log->restored : 0;
  v->count = g->valid ? g->pages : 0;
  v->page_size = g->valid ? f->db->wal->s.geo.unit - TDE_WAL_FRAME_HEAD : 0;
  return SQLITE_OK;
}

/* Where the log is, and what of it counts. In this order: another connection may be
** appending, and then the file is longer than the index says, never shorter; unless it
** was begun anew. SQLITE_LOCKED: it seems so. */
static int look_at_log(tde_file *f, const tde_verify_log *log, verifier *v, wal_walk *k) {
  tde_file *w = f->db->wal;
  sqlite3_int64 lower = 0;
  uint64_t rest;
  int rc;

  if (!w->gen.valid) w->gen.checked = 0;
  /* Another log in place of one that this connection alone writes is for its frames to tell. */
  rc = w->gen.valid && w->gen.alone ? SQLITE_OK : tde_log_refresh(w);
  memset(k, 0, sizeof(*k));
  memcpy(k->salt, w->s.salt, sizeof(k->salt));
  if (rc == SQLITE_OK) rc = read_index(f, log, v);
  if (rc == SQLITE_OK) rc = LOWER(w)->xFileSize(w->lower, &lower);
  if (rc) return rc;
  if (lower > 0 && w->gen.valid) k->units = tde_units_in(&w->s.geo, (uint64_t)lower, &rest);
  if (v->frames == 0) return SQLITE_OK;
  if (begun_anew(w, k)) return SQLITE_LOCKED;
  k->headless = !w->gen.valid || prefix_differs(w);
  return SQLITE_OK;
}

/* Looks again where committed frames have no prefix: the log may just be begun anew. */
static int settle_log(tde_file *f, const tde_verify_log *log, verifier *v, wal_walk *k) {
  int rc = SQLITE_OK;

  k->headless = 1;
  for (int i = 0; rc == SQLITE_OK && k->headless && i < REREADS; i++) {
    if (i) usleep(REREAD_USEC);
    tde_file_enter(f);
    rc = look_at_log(f, log, v, k);
    tde_file_leave(f);
  }
  return rc;
}

static int walk_log(tde_file *f, const tde_verify_log *log, verifier *v) {
  tde_file *w = f->db->wal;
  wal_walk k;
  size_t n;
  uint8_t *b;
  uint64_t behind = 0, rest; /* the database file's turn comes then */
  int rc = settle_log(f, log, v, &k);

  if (rc || (k.units == 0 && v->frames == 0)) return rc;
  rc = measure(f, v, &behind, &rest);
  if (rc) return rc;
  n = w->s.geo.unit + TDE_UNIT_OVERHEAD;
  v->all = k.units + behind;
  v->pages = sqlite3_malloc64((k.units + 1) * sizeof(*v->pages));
  v->spoilt = sqlite3_malloc64((k.units + 2) * sizeof(*v->spoilt));
  b = sqlite3_malloc64(2 * n);
  if (!v->pages || !v->spoilt || !b) rc = SQLITE_NOMEM;
  if (rc == SQLITE_OK && k.headless) v->spoilt[v->nspoilt++] = 0;
  for (uint64_t i = 0; rc == SQLITE_OK && i < k.units; i++) {
    rc = verify_frame(w, v, &k, i, b);
    if (rc == SQLITE_OK) rc = step(v);
  }
  if (rc == SQLITE_OK && v->frames > 0 && v->frames >= k.units) v->out->torn = 1;
  if (b) tde_wipe(b, 2 * n);
  sqlite3_free(b);
  return rc;
}

static void forget_log(verifier *v) {
  sqlite3_free(v->pages);
  sqlite3_free(v->spoilt);
  v->pages = v->spoilt = NULL;
  v->npages = v->nspoilt = 0;
  v->done = v->all = 0;
}

/* What was found in a log that was then begun anew says nothing. */
static int verify_wal(tde_file *f, const tde_verify_log *log, verifier *v) {
  int rc = SQLITE_LOCKED;

  for (int k = 0; rc == SQLITE_LOCKED && k < LOG_TRIES; k++) {
    forget_log(v);
    memset(v->out, 0, sizeof(*v->out));
    rc = walk_log(f, log, v);
  }
  for (uint64_t k = 0; rc == SQLITE_OK && k < v->nspoilt; k++) {
    rc = report_bad(v, "wal", v->spoilt[k], TDE_TAMPERED);
  }
  if (v->npages) qsort(v->pages, v->npages, sizeof(*v->pages), by_number);
  return rc;
}

int tde_file_log_unshared(tde_file *f) {
  return f->db->wal && !f->db->index;
}

int tde_file_verify(tde_file *f, const tde_verify_log *log,
                    int (*on_bad)(void *, const tde_bad_unit *),
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
  if (f->db->wal) rc = verify_wal(f, log, &v);
  if (rc == SQLITE_OK) rc = verify_main(f, &v);
  forget_log(&v);
  if (rc == SQLITE_LOCKED) {
    tde_fail(st, TDE_BUSY, "try again, or verify through a connection without a shared cache",
             "%s: its log was begun anew again and again meanwhile", f->path);
  } else if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO, "check the disk",
             "%s: not verified to the end: %s", f->path, sqlite3_errstr(rc));
  }
  return rc;
}
