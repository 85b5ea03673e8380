/*
** verify.c: opens every unit of a database and of its WAL as they are on disk.
**
** The records are read through this connection's own lower handles (a second
** open of the file in this process would cost SQLite its POSIX locks). A unit
** that fails is read again a few times: a checkpoint may be writing it. Page
** content never leaves this module.
*/
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
static tde_class open_patiently(tde_sealed *s, uint64_t i, uint8_t *b, int *rc) {
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
  if (page >= 512 && (uint64_t)count * page > units * f->s.geo.unit) {
    v->out->truncated = rest == 0;
    v->out->torn = rest != 0;
  }
}

static int verify_main(tde_file *f, verifier *v) {
  tde_sealed *s = &f->s;
  sqlite3_int64 lower = 0;
  uint64_t units, rest;
  uint32_t n = s->geo.unit + TDE_UNIT_OVERHEAD;
  uint8_t *b;
  int rc = LOWER(f)->xFileSize(f->lower, &lower);

  if (rc || !f->db->header.unit_size) return rc;
  units = tde_units_in(&s->geo, (uint64_t)lower, &rest);
  v->all += units;
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!b) return SQLITE_NOMEM;
  for (uint64_t i = 0; rc == SQLITE_OK && i < units; i++) {
    tde_class c = open_patiently(s, i, b, &rc);
    if (rc) break;
    if (c == TDE_NOMEM) {
      rc = SQLITE_NOMEM;
    } else if (c) {
      rc = report_bad(v, "main", i, c);
    } else {
      v->out->main_units++;
      if (i == 0) check_length(f, b + n, units, rest, v);
    }
    if (rc == SQLITE_OK) rc = step(v);
  }
  tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  return rc;
}

/* Frames behind the last one that opens belong to an older generation; a frame
** that does not open before it is damage. */
static int verify_wal(tde_file *w, verifier *v) {
  tde_sealed *s = &w->s;
  sqlite3_int64 lower = 0;
  uint64_t units, rest, failed_from = 0;
  uint32_t n;
  uint8_t *b;
  int rc = tde_log_refresh(w), failing = 0;

  if (rc == SQLITE_OK) rc = LOWER(w)->xFileSize(w->lower, &lower);
  if (rc || lower == 0 || !w->gen.valid) return rc;
  units = tde_units_in(&s->geo, (uint64_t)lower, &rest);
  v->all += units;
  n = s->geo.unit + TDE_UNIT_OVERHEAD;
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!b) return SQLITE_NOMEM;
  for (uint64_t i = 0; rc == SQLITE_OK && i < units; i++) {
    int torn;
    uint32_t got;
    tde_class c = TDE_TAMPERED;
    rc = tde_sealed_fetch(s, i, 1, b, &got, &torn);
    if (rc == SQLITE_OK) c = tde_sealed_open_record(s, i, b, b + n);
    if (rc) break;
    if (c == TDE_OK) {
      for (; failing && failed_from < i && rc == SQLITE_OK; failed_from++) {
        rc = report_bad(v, "wal", failed_from, TDE_TAMPERED);
      }
      failing = 0;
      v->out->wal_units++;
    } else if (c != TDE_TAMPERED) {
      rc = tde_class_rc(c);
    } else if (!failing) {
      failing = 1;
      failed_from = i;
    }
    if (rc == SQLITE_OK) rc = step(v);
  }
  if (failing && rc == SQLITE_OK) {
    if (failed_from == 0) rc = report_bad(v, "wal", 0, TDE_TAMPERED);
    v->out->wal_stale = units - failed_from;
  }
  tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  return rc;
}

int tde_file_verify(tde_file *f, int (*on_bad)(void *, const tde_bad_unit *),
                    int (*progress)(void *, uint64_t, uint64_t), void *ctx,
                    tde_verify_result *out, tde_status *st) {
  verifier v = {on_bad, progress, ctx, 0, 0, out};
  int rc;

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
  rc = verify_main(f, &v);
  if (rc == SQLITE_OK && f->db->wal) rc = verify_wal(f->db->wal, &v);
  if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO, NULL,
             "%s: not verified to the end (SQLite code %d)", f->path, rc);
  }
  return rc;
}
