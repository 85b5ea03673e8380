/*
** guard.c: the double-write guard of a main database.
**
** A unit may hold several pages (VACUUM made them smaller than U). SQLite then
** writes one page of a unit, and after a crash restores one page of it, and
** relies on the rest staying as it is; an AEAD record torn in the middle would
** take the rest with it. So while pages are smaller than U, each new record
** goes to one of two areas beside the header slots and is synced first. The
** two are used in turn: by the time an area is used again, the sync of the
** other one has made the unit it guarded durable. (So do the units of SQLite's lock bytes, which
** no log restores: sealed.c, fill_gap.)
** Area: index + 1 (8, LE) | record. Empty: zero.
*/
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "redo.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

static sqlite3_int64 guard_at(int area) {
  return (sqlite3_int64)area * TDE_SLOT_STRIDE + TDE_SLOT_BYTES;
}

/* The index that an area guards, or -1; the record in b + 8. */
static int64_t read_area(tde_file *f, int area, uint8_t *b, uint32_t n) {
  uint64_t index;
  int rc = LOWER(f)->xRead(f->lower, b, (int)(n + 8), guard_at(area));

  if (rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ) return -1;
  index = tde_get64le(b);
  return index ? (int64_t)(index - 1) : -1;
}

/* Units are being sealed anew, or a secondary is brought up to date: a crash may
** have left the only whole copy in the redo log. Another process may have begun
** that since this one read the header. */
static int salvage_redo(tde_file *f, uint64_t index, uint8_t *record, uint32_t n) {
  tde_db *db = f->db;
  int rc;

  if (!db->facts.regenerating && !db->facts.secondary) {
    (void)tde_db_learn_epoch(f, db->header.epoch);
    if (!db->facts.regenerating && !db->facts.secondary) return SQLITE_NOTFOUND;
  }
  rc = tde_redo_find(f, index, record, n);
  if (rc == SQLITE_OK) {
    tde_log(TDE_LOG_NOTICE, "%s: unit %llu was torn; the redo log has it whole", tde_path_of(f),
            (unsigned long long)index);
  }
  return rc;
}

int tde_guard_salvage(void *ctx, uint64_t index, uint8_t *record, uint32_t n) {
  tde_file *f = ctx;
  uint8_t *b = sqlite3_malloc64((size_t)n * 2 + 8);
  int rc = SQLITE_NOTFOUND;

  if (!b) return SQLITE_NOMEM;
  for (int area = 0; area < 2 && rc == SQLITE_NOTFOUND; area++) {
    if (read_area(f, area, b, n) != (int64_t)index) continue;
    if (tde_sealed_open_record(&f->s, index, b + 8, b + 8 + n) == TDE_OK) {
      memcpy(record, b + 8, n);
      rc = SQLITE_OK;
      tde_log(TDE_LOG_NOTICE, "%s: unit %llu was torn; its double-write copy is whole",
              tde_path_of(f), (unsigned long long)index);
    }
  }
  tde_wipe(b, (size_t)n * 2 + 8);
  sqlite3_free(b);
  return rc == SQLITE_NOTFOUND ? salvage_redo(f, index, record, n) : rc;
}

/* After a crash an area may hold the only whole copy of a unit: put it back
** before the area is used again. */
static int recover(tde_file *f, uint32_t n) {
  uint8_t *b = sqlite3_malloc64((size_t)n * 3 + 8), *copy = b + 8, *there, *plain;
  int rc = SQLITE_OK;

  if (!b) return SQLITE_NOMEM;
  there = b + 8 + n;
  plain = there + n;
  for (int area = 0; area < 2 && rc == SQLITE_OK; area++) {
    uint32_t got;
    int torn;
    int64_t index = read_area(f, area, b, n);
    tde_class c;
    if (index < 0) continue;
    c = tde_sealed_open_record(&f->s, (uint64_t)index, copy, plain);
    if (c == TDE_TAMPERED) continue;
    if (c == TDE_OK) {
      rc = tde_sealed_fetch(&f->s, (uint64_t)index, 1, there, &got, &torn);
      if (rc == SQLITE_OK) c = tde_sealed_open_record(&f->s, (uint64_t)index, there, plain);
    }
    if (rc == SQLITE_OK && c == TDE_TAMPERED) {
      rc = LOWER(f)->xWrite(f->lower, copy, (int)n,
                            (sqlite3_int64)tde_unit_physical(&f->s.geo, (uint64_t)index));
    } else if (rc == SQLITE_IOERR_SHORT_READ) {
      rc = SQLITE_OK;
    } else if (rc == SQLITE_OK) {
      rc = tde_class_rc(c);
    }
  }
  tde_wipe(b, (size_t)n * 3 + 8);
  sqlite3_free(b);
  if (rc == SQLITE_OK) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
  return rc;
}

int tde_guard_put(void *ctx, uint64_t index, const uint8_t *record, uint32_t n) {
  tde_file *f = ctx;
  tde_db *db = f->db;
  uint8_t *b;
  int rc = SQLITE_OK;

  if (n + 8 > TDE_GUARD_BYTES) return SQLITE_INTERNAL;
  if (!db->guard_ready) {
    rc = recover(f, n);
    if (rc) return rc;
    db->guard_ready = 1;
  }
  b = sqlite3_malloc64((size_t)n + 8);
  if (!b) return SQLITE_NOMEM;
  tde_put64le(b, index + 1);
  memcpy(b + 8, record, n);
  db->guard_used = 1;
  rc = LOWER(f)->xWrite(f->lower, b, (int)(n + 8), guard_at(db->guard_next));
  db->counters.lower_writes++;
  sqlite3_free(b);
  if (rc == SQLITE_OK) {
    rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
    db->counters.lower_syncs++;
  }
  if (rc == SQLITE_OK) db->guard_next = !db->guard_next;
  return rc;
}

int tde_guard_clear(tde_file *f) {
  static const uint8_t zero[8];
  int rc = SQLITE_OK;

  if (!f->db->guard_used) return SQLITE_OK;
  for (int area = 0; area < 2 && rc == SQLITE_OK; area++) {
    rc = LOWER(f)->xWrite(f->lower, zero, sizeof(zero), guard_at(area));
  }
  if (rc == SQLITE_OK) f->db->guard_used = 0;
  return rc;
}
