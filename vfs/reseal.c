/*
** reseal.c: seals the units of an older DEK epoch anew, while the database is in use.
**
** The header names the new epoch first, so that every writer seals under it from
** then on: writers look at the header when they take RESERVED or the checkpoint
** lock, and when they begin a WAL generation; who joins one seals under its epoch. Then
** this sweep goes through the file in steps. A step holds the lock that keeps other
** writers of the database file out (RESERVED; in WAL mode the checkpoint lock), never one
** that readers need: what a reader sees does not change, and one who meets a record half
** written reads it again (sealed.c). Each step's records go through the redo log:
** a crash leaves every unit whole in one of two places.
**
** What must hold:
**  - only units that open are sealed anew: one that does not is an error, and the
**    old epoch stays in the header; a place that has no record yet is passed over, and
**    one that the WAL has, so that a checkpoint will write it;
**  - a step leaves no log behind before it lets other writers in;
**  - the header forgets the old epoch after no WAL or rollback journal of it is left,
**    and after that cannot be undone by an outage: SQLite truncates and deletes its logs
**    without a sync where old content would do no harm, and with synchronous=OFF syncs
**    nothing;
**  - the sweep holds no state on disk: after a crash it begins at unit 0 and skips
**    what is done, by the epoch in each record's head.
*/
#include <errno.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "redo.h"

SQLITE_EXTENSION_INIT3

/* Units looked at, and sealed, in one step: it holds the lock for some ten
** milliseconds and a sync or four. */
#define LOOK_UNITS 8192
#define SEAL_UNITS 512

/* ---- the lock ---- */

typedef struct exclusion {
  enum { NOTHING_TAKEN, RESERVED_TAKEN, CKPT_TAKEN } what;
  int write_taken; /* the WAL's write lock, too */
  int before;
} exclusion;

/* One of the wal-index's locks, waited for as the connection's busy handler wants. */
static int take_shm(tde_file *f, int lock) {
  tde_db *db = f->db;
  int rc;

  do {
    rc = LOWER(f)->xShmLock(f->lower, lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
  } while ((rc & 0xff) == SQLITE_BUSY && tde_db_wait_busy(db));
  if (rc == SQLITE_OK) db->shm_locks++;
  return rc;
}

static void give_shm(tde_file *f, int lock) {
  (void)LOWER(f)->xShmLock(f->lower, lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
  f->db->shm_locks--;
}

/* In WAL mode since this connection looked? */
static int is_wal_by_now(tde_file *f, int *wal) {
  uint8_t version = 0;
  int rc = tde_sealed_read(&f->s, &version, 1, TDE_DBHEAD_WRITE_VERSION, 0);

  *wal = rc == SQLITE_OK && version == 2;
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : rc;
}

/* RESERVED keeps nobody out who writes the database from a WAL. SQLITE_BUSY_RECOVERY: it is
** to be read through SQLite first, which then has the wal-index, too. */
static int reserve(tde_file *f, exclusion *x) {
  int wal = 0, rc = tde_db_reserve(f, &x->before);

  if (rc) return rc;
  x->what = RESERVED_TAKEN;
  tde_sealed_forget(&f->s);
  rc = tde_db_follow(f);
  if (rc == SQLITE_OK && f->db->state == TDE_STATE_ONLINE) rc = is_wal_by_now(f, &wal);
  if (rc == SQLITE_OK && wal) rc = SQLITE_BUSY_RECOVERY;
  return rc == SQLITE_OK ? tde_db_freshen(f) : rc;
}

static int keep_writers_out(tde_file *f, exclusion *x) {
  tde_db *db = f->db;
  int rc;

  memset(x, 0, sizeof(*x));
  if (db->lock >= SQLITE_LOCK_EXCLUSIVE) return SQLITE_OK;
  if (!db->shm_open) return reserve(f, x);
  rc = take_shm(f, TDE_SHM_CKPT);
  if (rc) return rc;
  x->what = CKPT_TAKEN;
  return tde_db_freshen(f);
}

/* Writers of the WAL, too: who began a generation by the header of before, and was slow, has
** written it by now, and the next one begins by that of now. SQLite takes the locks in this
** order. */
static int keep_log_writers_out(tde_file *f, exclusion *x) {
  int rc = keep_writers_out(f, x);

  if (rc == SQLITE_OK && x->what == CKPT_TAKEN) {
    rc = take_shm(f, TDE_SHM_WRITE);
    x->write_taken = rc == SQLITE_OK;
  }
  return rc;
}

static void let_writers_in(tde_file *f, const exclusion *x) {
  if (x->write_taken) give_shm(f, TDE_SHM_WRITE);
  if (x->what == CKPT_TAKEN) {
    give_shm(f, TDE_SHM_CKPT);
  } else if (x->what == RESERVED_TAKEN) {
    tde_db_unreserve(f, x->before);
  }
}

/* ---- one step ---- */

typedef struct step {
  tde_file *f;
  tde_redo log;
  int log_open;
  int applying; /* the log counts: it stays until it is applied */
  uint8_t *records; /* TDE_FETCH_UNITS records, then one plaintext */
  uint32_t record;
  uint64_t looked, sealed;
} step;

/* Opens record i and seals it under the current epoch, into its own place. */
static int seal_anew(step *p, uint64_t i, uint8_t *record) {
  tde_file *f = p->f;
  tde_sealed *s = &f->s;
  uint32_t n = s->geo.unit;
  uint8_t *plain = p->records + TDE_FETCH_UNITS * (size_t)p->record;
  uint32_t pad = tde_unit_pad(record);
  tde_unit_place at = {TDE_ROLE_MAIN, i, s->salt};
  tde_aead *aead;
  tde_class c = tde_sealed_open_record(s, i, record, plain);
  int rc;

  if (c == TDE_TAMPERED && s->hooks->salvage &&
      s->hooks->salvage(s->ctx, i, record, p->record) == SQLITE_OK) {
    c = tde_sealed_open_record(s, i, record, plain);
    pad = tde_unit_pad(record);
  }
  /* Torn in a checkpoint by an outage, and a reader keeps the next one from mending it yet. That
  ** seals it under the epoch of then; nothing of an older one is in it that opens. */
  if (c == TDE_TAMPERED && tde_wal_has_unit(f, i)) return SQLITE_OK;
  if (c) return s->hooks->bad(s->ctx, i, c);
  c = tde_cryptor_get(s->crypt, f->db->header.epoch, &aead);
  if (c == TDE_OK) {
    c = tde_unit_seal(aead, &at, f->db->header.epoch, pad > n ? 0 : pad, plain, record, n);
  }
  tde_wipe(plain, n);
  if (c) return tde_class_rc(c);
  f->db->counters.units_sealed++;
  if (!p->log_open) {
    p->log_open = 1;
    rc = tde_redo_begin(&p->log, f);
    if (rc) return rc;
  }
  p->sealed++;
  return tde_redo_add(&p->log, i, record);
}

/* Looks at up to TDE_FETCH_UNITS units from i on; *n gets their number, 0 at the end. */
static int look(step *p, uint64_t i, uint32_t *n) {
  tde_sealed *s = &p->f->s;
  uint32_t got = 0;
  int torn, rc = tde_sealed_fetch(s, i, tde_units_adjacent(&s->geo, i, TDE_FETCH_UNITS), p->records,
                                  &got, &torn);

  if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
  for (uint32_t k = 0; rc == SQLITE_OK && k < got; k++) {
    uint8_t *record = p->records + (size_t)k * p->record;
    /* All zero: no record was written to the unit's place. A checkpoint passed over it, and its
    ** page is in the WAL (sealed.c). There is nothing of an older epoch in it. */
    if (tde_unit_epoch(record) == p->f->db->header.epoch || tde_all_zero(record, p->record)) continue;
    rc = seal_anew(p, i + k, record);
  }
  *n = got;
  p->looked += got;
  return rc;
}

static int write_step(step *p) {
  int rc;

  if (!p->log_open || !p->log.count) return SQLITE_OK;
  rc = tde_redo_commit(&p->log);
  p->applying = rc == SQLITE_OK;
  if (rc == SQLITE_OK) rc = tde_redo_apply(&p->log);
  if (rc == SQLITE_OK) rc = tde_redo_void(&p->log);
  return rc;
}

/* From unit *next on; the lock is held. *end: there is none behind. */
static int run_step(step *p, uint64_t *next, int *end) {
  uint64_t i = *next;
  uint32_t n = 0;
  int rc = tde_redo_settle(p->f, 0);

  *end = 0;
  while (rc == SQLITE_OK && p->looked < LOOK_UNITS && p->sealed < SEAL_UNITS) {
    rc = look(p, i, &n);
    if (rc) break;
    i += n;
    if (n == 0) {
      *end = 1;
      break;
    }
  }
  if (rc == SQLITE_OK) rc = write_step(p);
  /* A full disk: whoever commits to a WAL next looks at no log, and needs what room there is. */
  if (rc && p->log.lower && !p->applying) (void)tde_redo_void(&p->log);
  if (p->log_open) tde_redo_close(&p->log);
  if (rc == SQLITE_OK && *end) tde_redo_tidy(p->f);
  if (rc == SQLITE_OK) *next = i;
  return rc;
}

/* The cause that the system gave; 0: none that tells something. */
static int errno_of(int rc) {
  if ((rc & 0xff) == SQLITE_FULL) return ENOSPC;
  return (rc & 0xff) == SQLITE_CANTOPEN || (rc & 0xff) == SQLITE_IOERR ? errno : 0;
}

static void explain(const tde_file *f, int rc, int err, const char *what, tde_status *st) {
  int busy = (rc & 0xff) == SQLITE_BUSY;

  tde_fail(st, busy ? TDE_BUSY : TDE_IO,
           busy ? "try again when others write less" : tde_errno_remedy(err, "check the disk"),
           "%s: %s: %s", f->path, what, sqlite3_errstr(rc));
  if (st && !busy) tde_also(st, "then run tde_rotate_dek() again: it goes on");
}

/* What the database itself says of the failure. A key may come back. */
static void tell_cause(const tde_db *db, int rc, tde_status *st) {
  *st = db->last;
  if (rc == SQLITE_IOERR_AUTH) tde_also(st, "then run tde_rotate_dek() again: it goes on");
}

int tde_file_reseal_step(tde_file *f, uint64_t *next, uint64_t *all, int *end, tde_status *st) {
  exclusion x;
  step p;
  sqlite3_int64 size = 0;
  uint64_t rest;
  int rc, err;

  *end = 1;
  memset(&p, 0, sizeof(p));
  p.f = f;
  p.record = f->s.geo.unit + TDE_UNIT_OVERHEAD;
  if (!f->db->header.unit_size) return SQLITE_OK;
  p.records = sqlite3_malloc64((TDE_FETCH_UNITS + 1) * (size_t)p.record);
  if (!p.records) return SQLITE_NOMEM;
  tde_file_enter(f);
  rc = keep_writers_out(f, &x);
  if (rc == SQLITE_OK) {
    if (f->db->state != TDE_STATE_ONLINE || !f->db->keys || !tde_keys_live(f->db->keys)) {
      rc = SQLITE_IOERR_AUTH;
    } else {
      rc = run_step(&p, next, end);
    }
    tde_db_note_if_lost(f->db, rc);
    if (rc && st && f->db->last.code) tell_cause(f->db, rc, st);
  }
  err = errno_of(rc);
  let_writers_in(f, &x);
  if (rc == SQLITE_OK) rc = LOWER(f)->xFileSize(f->lower, &size);
  *all = tde_units_in(&f->s.geo, (uint64_t)size, &rest);
  tde_file_leave(f);
  tde_wipe(p.records, (TDE_FETCH_UNITS + 1) * (size_t)p.record);
  sqlite3_free(p.records);
  if (rc && st && st->code == TDE_OK) explain(f, rc, err, "units could not be sealed anew", st);
  return rc;
}

/* ---- the end ---- */

/* A log of an epoch that goes. A rollback journal is emptied: whoever could still roll it back
** has had the occasion: it was no hot one (the outage came before its header was synced),
** and SQLite would write over it. A WAL may hold what was committed: the epoch stays. */
static int void_stale(tde_file *f, sqlite3_file *log, tde_role role) {
  uint8_t b[TDE_PREFIX_BYTES];
  tde_prefix p;
  int rc = log->pMethods->xRead(log, b, (int)TDE_PREFIX_BYTES, 0);

  if (rc) return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : rc;
  switch (tde_prefix_parse(b, role, &p)) {
    case TDE_PREFIX_UNKNOWN: /* not looked at is not another one */
      return SQLITE_IOERR_NOMEM;
    case TDE_PREFIX_OK:
      if (p.epoch == f->db->facts.epoch) break;
      return role == TDE_ROLE_WAL ? SQLITE_BUSY : log->pMethods->xTruncate(log, 0);
    case TDE_PREFIX_NONE:
    case TDE_PREFIX_FOREIGN:
      break;
  }
  return SQLITE_OK;
}

/* What was cut off in this log, or written over, does not come back. */
static int settle_log(tde_file *f, const char *suffix, int kind) {
  const char *name = tde_name_of(f->path, suffix);
  sqlite3_file *lower = NULL;
  int there = 1, rc = SQLITE_NOMEM;

  if (name) lower = tde_lower_open(f->lower_vfs, name, kind | SQLITE_OPEN_READWRITE, NULL, &rc);
  if (lower) {
    rc = void_stale(f, lower, kind == SQLITE_OPEN_WAL ? TDE_ROLE_WAL : TDE_ROLE_JOURNAL);
    if (rc == SQLITE_OK) rc = lower->pMethods->xSync(lower, SQLITE_SYNC_NORMAL);
    (void)tde_lower_close(lower);
  } else if ((rc & 0xff) == SQLITE_CANTOPEN &&
             f->lower_vfs->xAccess(f->lower_vfs, name, SQLITE_ACCESS_EXISTS, &there) == SQLITE_OK &&
             !there) {
    rc = SQLITE_OK;
  }
  tde_name_free(name);
  return rc;
}

static int settle_logs(tde_file *f) {
  tde_redo log;
  int rc = settle_log(f, "-wal", SQLITE_OPEN_WAL);

  if (rc == SQLITE_OK) rc = settle_log(f, "-journal", SQLITE_OPEN_MAIN_JOURNAL);
  if (rc) return rc;
  rc = tde_redo_begin(&log, f);
  if (rc == SQLITE_OK) rc = tde_redo_sync_name(&log);
  tde_redo_close(&log);
  return rc;
}

int tde_file_reseal_end(tde_file *f, tde_status *st) {
  exclusion x;
  int rc, err;

  tde_file_enter(f);
  rc = keep_log_writers_out(f, &x);
  if (rc == SQLITE_OK) rc = settle_logs(f);
  /* Others may have written without a sync (synchronous=OFF): nothing of the old epoch is to
  ** come back by an outage. */
  if (rc == SQLITE_OK) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
  err = errno_of(rc);
  let_writers_in(f, &x);
  tde_file_leave(f);
  if (rc) explain(f, rc, err, "every page is under the new key, but the logs could not be settled", st);
  return rc;
}
