/*
** replica.c: copies of a database that keep its DEK; see replica.h.
**
** What must hold:
**  - a copy is whole and synced before its caller gives it a name; until then it has
**    no header, by which it would be taken for a backup;
**  - an update of a secondary is in its redo log, complete and synced, before the
**    first byte of the secondary changes; whoever finds that log finishes the update
**    before anything is read (tde_db_gate). The secondary is locked EXCLUSIVE
**    meanwhile;
**  - the log counts only when the disk has room for all of it: what lies behind the
**    secondary's end, where nobody reads, is written there before. Otherwise readers
**    would depend on an update that cannot be finished;
**  - its change counter goes up with each update: connections that cached pages of
**    it see that they are old.
*/
#include "replica.h"

#include <errno.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "redo.h"
#include "snapshot.h"

SQLITE_EXTENSION_INIT3

#define RUN_BYTES (64u * 1024u)

/* ---- a new file ---- */

typedef struct target {
  tde_file *f; /* the source */
  tde_replica *r;
  sqlite3_file *lower;
  uint64_t written; /* units from here on were never written */
  uint8_t *run;     /* records that wait, adjacent */
  uint32_t nrun;
  uint64_t run_first;
  uint32_t record;
  uint8_t *there; /* one record read back */
  int failed;     /* a write of a run did: it stays so */
  int unread;     /* the source could not be read */
  int twice;      /* its units are gone through ahead, and once more */
  int again;      /* ... which is at hand now */
} target;

static int write_run(target *t) {
  if (t->nrun && !t->failed) {
    t->failed = t->lower->pMethods->xWrite(
        t->lower, t->run, (int)t->nrun,
        (sqlite3_int64)tde_unit_physical(&t->f->s.geo, t->run_first));
  }
  t->nrun = 0;
  return t->failed;
}

static int new_has(void *ctx, uint64_t i, const uint8_t *record, uint32_t n) {
  target *t = ctx;

  if (i >= t->written) return 0;
  if (t->nrun && write_run(t)) return 0; /* new_put will tell */
  return t->lower->pMethods->xRead(t->lower, t->there, (int)n,
                                   (sqlite3_int64)tde_unit_physical(&t->f->s.geo, i)) ==
             SQLITE_OK &&
         memcmp(t->there, record, n) == 0;
}

static int new_put(void *ctx, uint64_t i, const uint8_t *record, uint32_t n) {
  target *t = ctx;
  const tde_geometry *g = &t->f->s.geo;
  int rc = SQLITE_OK;

  if (t->nrun && (t->nrun + n > RUN_BYTES ||
                  tde_unit_physical(g, i) != tde_unit_physical(g, t->run_first) + t->nrun)) {
    rc = write_run(t);
  }
  if (rc || t->failed) return rc ? rc : t->failed;
  if (!t->nrun) t->run_first = i;
  memcpy(t->run + t->nrun, record, n);
  t->nrun += n;
  if (i >= t->written) t->written = i + 1;
  t->r->changed++;
  return SQLITE_OK;
}

/* Who looks on is told of one course, whose halves may be of different length. */
static int tell(void *ctx, uint64_t done, uint64_t all) {
  target *t = ctx;

  if (!t->r->progress) return 0;
  return t->r->progress(t->r->ctx, t->again ? all + done : done, t->twice ? 2 * all : all);
}

/* Both slots, and the header's last byte. A unit size in it says that there are units. */
static int write_header(target *t) {
  tde_db *db = t->f->db;
  uint8_t *head = sqlite3_malloc64(TDE_HEADER_BYTES);
  tde_header h = db->header;
  int rc = SQLITE_NOMEM;

  if (!head) return rc;
  memset(head, 0, TDE_HEADER_BYTES);
  h.doc = (char *)t->r->doc;
  h.ndoc = t->r->ndoc;
  h.sequence = 1;
  if (!t->r->units) h.unit_size = 0;
  rc = tde_class_rc(tde_keys_slot_build(db->keys, &tde_source, &h, head));
  if (rc == SQLITE_OK) {
    memcpy(head + TDE_SLOT_STRIDE, head, TDE_SLOT_BYTES);
    rc = t->lower->pMethods->xWrite(t->lower, head, (int)TDE_HEADER_BYTES, 0);
  }
  sqlite3_free(head);
  return rc;
}

static int copy_units(target *t) {
  tde_snapshot_sink sink = {t, new_has, new_put, tell};
  tde_replica *r = t->r;
  int rc;

  t->twice = 1;
  rc = tde_snapshot_ahead(t->f, &sink);
  t->twice = t->again = t->written > 0;
  if (rc == SQLITE_OK) rc = write_run(t);
  if (rc) return rc;
  rc = r->begin(r->ctx);
  t->unread = rc != SQLITE_OK;
  if (rc) return rc;
  rc = tde_snapshot_take(t->f, &sink, 0, r->settled, &r->size, &r->wal);
  t->unread = rc != SQLITE_OK && !t->failed;
  r->end(r->ctx);
  if (rc == SQLITE_OK) rc = write_run(t);
  r->units = (r->size + t->f->s.geo.unit - 1) / t->f->s.geo.unit;
  return rc;
}

/* The header comes when its units are durable. */
static int finish(target *t) {
  sqlite3_int64 size = (sqlite3_int64)tde_lower_size(&t->f->s.geo, t->r->units);
  int rc = t->lower->pMethods->xTruncate(t->lower, size);

  if (rc == SQLITE_OK) rc = t->lower->pMethods->xSync(t->lower, SQLITE_SYNC_FULL);
  if (rc == SQLITE_OK) rc = write_header(t);
  if (rc == SQLITE_OK) rc = t->lower->pMethods->xSync(t->lower, SQLITE_SYNC_FULL);
  return rc;
}

static const char *remedy_of(int rc) {
  switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return "try again when it is not in use";
    case SQLITE_FULL:
      return "make room on the disk";
    case SQLITE_INTERRUPT:
      return "run it again";
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return "check the path, and the permissions of the file and its folder";
    default:
      return "check the disk";
  }
}

static void explain(tde_file *f, const char *what, const char *path, int rc, tde_status *st) {
  int busy = (rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED;
  int err = (rc & 0xff) == SQLITE_CANTOPEN || (rc & 0xff) == SQLITE_IOERR ? errno : 0;

  if (st->code) return;
  if (rc == SQLITE_LOCKED) {
    tde_fail(st, TDE_BUSY, "try again, or use a connection without a shared cache",
             "%s: a connection with the same cache wrote meanwhile", f->path);
    return;
  }
  tde_file_enter(f);
  tde_db_note_if_lost(f->db, rc);
  tde_file_leave(f);
  if (f->db->last.code && (rc & 0xff) != SQLITE_FULL) {
    *st = f->db->last;
    return;
  }
  if (rc == SQLITE_BUSY_SNAPSHOT) {
    tde_fail(st, TDE_BUSY,
             "end this connection's other statements, or use one that may write, and try again",
             "%s: pages are in its log, of which this connection shares no index", f->path);
    return;
  }
  tde_fail(st, busy ? TDE_BUSY : TDE_IO, tde_errno_remedy(err, remedy_of(rc)), "%s %s: %s", what,
           path, sqlite3_errstr(rc));
}

/* What is said from here on is this call's. Another thread's connection may share the file. */
static void forget_last(tde_file *f) {
  tde_file_enter(f);
  f->db->last.code = TDE_OK;
  tde_file_leave(f);
}

int tde_replica_write(tde_file *f, const char *path, tde_replica *r, tde_status *st) {
  const char *name = tde_name_of(path, "");
  target t;
  int rc = SQLITE_NOMEM;

  memset(&t, 0, sizeof(t));
  t.f = f;
  t.r = r;
  t.record = f->s.geo.unit + TDE_UNIT_OVERHEAD;
  t.run = sqlite3_malloc64(RUN_BYTES);
  t.there = sqlite3_malloc64(t.record);
  forget_last(f);
  if (name && t.run && t.there) {
    t.lower = tde_lower_open(
        f->lower_vfs, name,
        SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_EXCLUSIVE,
        NULL, &rc);
  }
  if (t.lower) {
    rc = copy_units(&t);
    if (rc == SQLITE_OK) rc = finish(&t);
    (void)tde_main_close(t.lower);
  }
  if (rc) explain(f, t.unread ? "the source" : "the copy", t.unread ? f->path : path, rc, st);
  sqlite3_free(t.run);
  sqlite3_free(t.there);
  tde_name_free(name);
  return rc;
}

/* ---- an existing one ---- */

typedef struct update {
  tde_file *from, *to;
  tde_replica *r;
  tde_redo log;
  uint64_t has_units;
  sqlite3_int64 had_bytes;
  int unread;    /* the source could not be read */
  int committed; /* the log counts: it must stay until it is applied */
  uint8_t *there;
} update;

static int old_has(void *ctx, uint64_t i, const uint8_t *record, uint32_t n) {
  update *u = ctx;

  return i < u->has_units &&
         LOWER(u->to)->xRead(u->to->lower, u->there, (int)n,
                             (sqlite3_int64)tde_unit_physical(&u->to->s.geo, i)) == SQLITE_OK &&
         memcmp(u->there, record, n) == 0;
}

static int old_put(void *ctx, uint64_t i, const uint8_t *record, uint32_t n) {
  update *u = ctx;

  (void)n;
  u->r->changed++;
  return tde_redo_add(&u->log, i, record);
}

static int old_tell(void *ctx, uint64_t done, uint64_t all) {
  update *u = ctx;
  return u->r->progress ? u->r->progress(u->r->ctx, done, all) : 0;
}

/* The secondary's own change counter, plus one. */
static int next_counter(update *u, uint32_t *counter) {
  uint8_t head[TDE_DBHEAD_BYTES];
  int rc = tde_sealed_read(&u->to->s, head, sizeof(head), 0, 0);

  *counter = tde_get32be(head + TDE_DBHEAD_COUNTER) + 1;
  if (*counter == 0) *counter = 1;
  return rc;
}

/* Is the file at hand a copy of this database? */
static int check_target(update *u, const char *path, tde_status *st) {
  tde_db *a = u->from->db, *b = u->to->db;

  if (b->state != TDE_STATE_ONLINE) {
    *st = b->last;
    return tde_class_rc(b->last.code) ? tde_class_rc(b->last.code) : SQLITE_ERROR;
  }
  if (memcmp(a->header.uuid, b->header.uuid, TDE_UUID_BYTES) != 0 || !b->facts.secondary ||
      a->header.unit_size != b->header.unit_size) {
    tde_fail(st, TDE_MISUSE, "create one with tde_create_secondary()",
             "%s is not a secondary of this database", path);
    return SQLITE_MISUSE;
  }
  return SQLITE_OK;
}

static int reserve_target(tde_file *to) {
  int rc = tde_main_lock(to->lower, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED);

  if (rc == SQLITE_OK) rc = LOWER(to)->xLock(to->lower, SQLITE_LOCK_RESERVED);
  if (rc) (void)LOWER(to)->xUnlock(to->lower, SQLITE_LOCK_NONE);
  return rc;
}

/* The busy handler of who has the primary decides how long others are waited for: for one who
** writes without any lock, for readers as a commit does, so that no new ones come. */
static int lock_target(const tde_file *from, tde_file *to) {
  int rc;

  do {
    rc = reserve_target(to);
  } while ((rc & 0xff) == SQLITE_BUSY && tde_db_wait_busy(from->db));
  if (rc) return rc;
  do {
    rc = LOWER(to)->xLock(to->lower, SQLITE_LOCK_EXCLUSIVE);
  } while ((rc & 0xff) == SQLITE_BUSY && tde_db_wait_busy(from->db));
  if (rc == SQLITE_OK) to->db->lock = SQLITE_LOCK_EXCLUSIVE;
  return rc;
}

static void unlock_target(tde_file *to) {
  (void)LOWER(to)->xUnlock(to->lower, SQLITE_LOCK_NONE);
  to->db->lock = SQLITE_LOCK_NONE;
}

/* Where the secondary ends. What an earlier update that was cut short has put behind that counts
** for nothing, and does not say that the disk has room there. */
static int measure_target(update *u) {
  const tde_geometry *g = &u->to->s.geo;
  uint64_t rest, size = 0, units;
  int rc = LOWER(u->to)->xFileSize(u->to->lower, &u->had_bytes);

  if (rc == SQLITE_OK) rc = tde_snapshot_size(u->to, &size);
  if (rc) return rc;
  u->has_units = tde_units_in(g, (uint64_t)u->had_bytes, &rest);
  units = (size + g->unit - 1) / g->unit;
  if (units >= u->has_units) return SQLITE_OK;
  u->has_units = units;
  u->had_bytes = (sqlite3_int64)tde_lower_size(g, units);
  return SQLITE_OK;
}

/* Everything that changed goes into the log. */
static int gather(update *u) {
  tde_snapshot_sink sink = {u, old_has, old_put, old_tell};
  tde_replica *r = u->r;
  uint32_t counter = 0;
  int rc = measure_target(u);

  if (rc == SQLITE_OK) rc = next_counter(u, &counter);
  if (rc == SQLITE_OK) rc = tde_redo_begin(&u->log, u->to);
  if (rc == SQLITE_OK) rc = tde_redo_bind(&u->log);
  if (rc) return rc;
  rc = r->begin(r->ctx);
  u->unread = rc != SQLITE_OK;
  if (rc) return rc;
  rc = tde_snapshot_take(u->from, &sink, counter, r->settled, &r->size, &r->wal);
  r->end(r->ctx);
  r->units = (r->size + u->to->s.geo.unit - 1) / u->to->s.geo.unit;
  u->log.units = r->units;
  return rc;
}

/* An older copy of one of the two came back, and was given another DEK of that number. */
static tde_class other_dek(const update *u, uint32_t epoch, tde_status *st) {
  return tde_fail(st, TDE_MISUSE, "remove it, and create it anew with tde_create_secondary()",
                  "%s: its DEK of epoch %u is another than its primary's", u->to->path,
                  (unsigned)epoch);
}

/* DEK epochs that the secondary does not know yet. *fresh: there were some. */
static int hand_down_epochs(update *u, int *fresh, tde_status *st) {
  tde_db *a = u->from->db, *b = u->to->db;
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES), *its = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class c = dek && its ? TDE_OK : TDE_NOMEM;

  *fresh = 0;
  for (int i = 0; c == TDE_OK && i < a->facts.nepochs; i++) {
    uint32_t epoch = a->facts.epochs[i];
    c = tde_keys_dek(a->keys, epoch, dek);
    if (c == TDE_OK && !tde_keys_has(b->keys, epoch)) {
      *fresh = 1;
      c = tde_keys_add_epoch(b->keys, epoch, dek, 0);
    } else if (c == TDE_OK) {
      c = tde_keys_dek(b->keys, epoch, its);
      if (c == TDE_OK && !tde_equal(dek, its, TDE_KEY_BYTES)) c = other_dek(u, epoch, st);
    }
  }
  for (int i = 0; c == TDE_OK && i < b->facts.nepochs; i++) {
    int known = 0;
    for (int k = 0; k < a->facts.nepochs; k++) known |= a->facts.epochs[k] == b->facts.epochs[i];
    *fresh |= !known;
  }
  if (a->facts.epoch != b->facts.epoch) *fresh = 1;
  tde_secret_free(dek);
  tde_secret_free(its);
  return tde_class_rc(c);
}

/* The log does not count: what was written behind the end goes, too. */
static void take_back(update *u) {
  sqlite3_int64 now = 0;

  (void)tde_redo_void(&u->log);
  if (LOWER(u->to)->xFileSize(u->to->lower, &now) == SQLITE_OK && now > u->had_bytes) {
    (void)LOWER(u->to)->xTruncate(u->to->lower, u->had_bytes);
  }
}

/* Where there are new DEK epochs, the header names them before the log counts, which
** whoever finds it applies, and forgets old ones after. */
static int apply(update *u, tde_mutation before, tde_mutation after, tde_status *st) {
  int fresh, rc = hand_down_epochs(u, &fresh, st);

  if (rc == SQLITE_OK && fresh) rc = tde_file_update_header(u->to, before, u->r->ctx, 0, st);
  if (rc == SQLITE_OK) rc = tde_redo_grow(&u->log, u->has_units);
  if (rc == SQLITE_OK) rc = tde_redo_commit(&u->log);
  if (rc) return rc;
  u->committed = 1;
  rc = tde_redo_apply(&u->log);
  if (rc == SQLITE_OK) rc = tde_file_update_header(u->to, after, u->r->ctx, 1, st);
  if (rc == SQLITE_OK) rc = tde_redo_void(&u->log);
  return rc;
}

/* u->to is to be closed, also after a failure. */
static int open_target(update *u, const char *path, const char *instance, tde_status *st) {
  int rc;

  forget_last(u->from);
  rc = tde_db_open_beside(path, u->from->lower_vfs, instance, SQLITE_OPEN_READWRITE, &u->to);
  return rc == SQLITE_OK ? check_target(u, path, st) : rc;
}

int tde_replica_document(tde_file *f, const char *path, const char *instance, char **doc, size_t *n,
                         tde_status *st) {
  update u = {.from = f};
  int rc = open_target(&u, path, instance, st);

  *doc = rc == SQLITE_OK ? tde_file_keydoc(u.to, n) : NULL;
  if (rc == SQLITE_OK && !*doc) rc = SQLITE_NOMEM;
  if (rc) explain(f, "the secondary", path, rc, st);
  tde_db_close_beside(u.to);
  return rc;
}

int tde_replica_sync(tde_file *f, const char *path, const char *instance, tde_mutation before,
                     tde_mutation after, tde_replica *r, tde_status *st) {
  update u = {.from = f, .r = r};
  int rc = open_target(&u, path, instance, st);

  u.there = rc ? NULL : sqlite3_malloc64(u.to->s.geo.unit + TDE_UNIT_OVERHEAD);
  if (rc == SQLITE_OK && !u.there) rc = SQLITE_NOMEM;
  if (rc == SQLITE_OK) {
    rc = lock_target(f, u.to);
    if (rc == SQLITE_OK) rc = tde_redo_settle(u.to, 1);
    if (rc == SQLITE_OK) rc = gather(&u);
    if (rc == SQLITE_OK) rc = r->confirm(r->ctx, st);
    if (rc == SQLITE_OK) rc = apply(&u, before, after, st);
    if (u.log.lower && rc && !u.committed) take_back(&u);
    tde_redo_close(&u.log);
    unlock_target(u.to);
  }
  if (rc) explain(f, u.unread ? "the source" : "the secondary", u.unread ? f->path : path, rc, st);
  sqlite3_free(u.there);
  tde_db_close_beside(u.to);
  return rc;
}
