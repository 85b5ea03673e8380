/*
** rotate_dek.c: a new DEK for a database in use.
**
**  1. A new DEK is drawn, wrapped by the protector, and proved by an unwrap.
**  2. The header names it as the current epoch, beside the old one: every writer
**     seals under it from here on.
**  3. The units are swept (vfs/reseal.c), in steps between which others write.
**  4. The WAL is emptied into the database: its frames may be of the old epoch.
**  5. The logs are synced, and the header forgets the old epoch.
**
** Several may be at it at once. Each counts on its own sweep, so it may end only the
** regeneration that it swept for: when another process has ended that one, and begun the
** next, the epoch before is not old yet.
**
** A crash or an interrupt leaves both epochs in the header, and every unit readable;
** the next call goes on from there. How far it is stands in the header, too, for
** other processes to see.
*/
#include "rotate_dek.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "../vfs/logview.h"
#include "change.h"
#include "progress.h"
#include "result.h"

SQLITE_EXTENSION_INIT3

/* How often the header tells how far it is. */
#define NOTE_EVERY_S 10
/* Writers that may die while the units are swept. */
#define RECOVERY_TRIES 100
/* How long a checkpoint of others is waited for. */
#define CHECKPOINT_TRIES 100
#define CHECKPOINT_PAUSE_MS 20

typedef struct rotation {
  sqlite3 *db;
  const char *schema;
  tde_file *f;
  int64_t units;
  uint32_t epoch; /* that of the regeneration at which it takes part */
  int resumed;
  tde_job job;
} rotation;

/* ---- 1 and 2 ---- */

typedef struct begin_edit {
  rotation *r;
  const uint8_t *dek;
  tde_op wrap;
  int64_t units, now;
} begin_edit;

/* Makes the DEK known to this process: the header that is written next is
** authenticated under it. Here, where nobody else can be at the same. */
static tde_class edit_begin(void *ctx, tde_keydoc *doc, tde_status *st) {
  begin_edit *b = ctx;
  tde_class cls = tde_keydoc_begin_epoch(doc, &b->wrap, b->units, b->now, st);
  b->r->epoch = tde_keydoc_epoch(doc);
  return cls ? cls : tde_file_add_epoch(b->r->f, b->r->epoch, b->dek, st);
}

/* Draws and wraps the DEK of the next epoch. */
static tde_class prepare(tde_change *c, uint8_t *dek, begin_edit *b, tde_status *st) {
  char full[TDE_KEY_ID_MAX];
  tde_keydoc_asker who;
  tde_class cls = tde_random(dek, TDE_KEY_BYTES, st);

  tde_keydoc_asker_of(c->doc, &who);
  tde_key_full_id(&c->protector, full);
  if (cls == TDE_OK) cls = tde_keydoc_wrap(c->inst, full, &who, c->info->uuid, dek, &b->wrap, st);
  return cls;
}

/* What SQLite could not do, in its words, or in the database's where its key is away. */
static void tell_failure(const rotation *r, int rc, const char *what, tde_status *st) {
  int waits = (rc & 0xff) == SQLITE_BUSY || rc == SQLITE_INTERRUPT;
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));

  if (info) tde_file_info_get(r->f, 0, info);
  if (info && info->state == TDE_STATE_INACCESSIBLE && info->last.code) {
    *st = info->last;
    tde_also(st, "then run tde_rotate_dek() again");
  } else {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : waits ? TDE_BUSY : TDE_IO,
             "run tde_rotate_dek() again", "%s: %s", what, sqlite3_errmsg(r->db));
  }
  sqlite3_free(info);
}

/* A read through SQLite: a hot journal that somebody left is rolled back before the
** units are looked at, and a WAL connection has its index. */
static int read_something(rotation *r) {
  char *sql = sqlite3_mprintf("SELECT count(*) FROM \"%w\".sqlite_schema", r->schema);
  int rc = sql ? sqlite3_exec(r->db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;

  sqlite3_free(sql);
  return rc;
}

/* An outage during a checkpoint leaves units torn that the WAL has whole: it is
** brought into the file before the units are looked at. (SQLITE_BUSY: another
** connection is at it.) */
static int checkpoint(rotation *r, tde_status *st) {
  int rc = read_something(r);

  for (int i = 0; rc == SQLITE_OK && i < CHECKPOINT_TRIES; i++) {
    rc = sqlite3_wal_checkpoint_v2(r->db, r->schema, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    if (rc != SQLITE_BUSY) break;
    (void)sqlite3_sleep(CHECKPOINT_PAUSE_MS);
    if (i + 1 < CHECKPOINT_TRIES) rc = SQLITE_OK;
  }
  if (rc) tell_failure(r, rc, "the log could not be brought into the database", st);
  return rc;
}

/* The logs are brought into the file, which SQLite does in no transaction. */
static int no_transaction(const rotation *r, tde_change *c, tde_status *st) {
  if (sqlite3_txn_state(r->db, r->schema) == SQLITE_TXN_NONE) return SQLITE_OK;
  tde_fail(st, TDE_MISUSE, "COMMIT or ROLLBACK, and end this connection's other statements, first",
           "%s: this connection has an open transaction", c->info->path);
  return SQLITE_MISUSE;
}

static int begin(void *ctx, tde_change *c, tde_status *st) {
  rotation *r = ctx;
  begin_edit *b = calloc(1, sizeof(*b));
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  int rc = b && dek ? no_transaction(r, c, st) : SQLITE_NOMEM;

  if (rc == SQLITE_OK && tde_keydoc_is_secondary(c->doc)) {
    rc = SQLITE_MISUSE;
    tde_fail(st, TDE_MISUSE, "rotate the DEK of the primary, then sync",
             "%s: is a secondary, whose DEK is the primary's", c->info->path);
  }
  if (rc == SQLITE_OK && tde_keydoc_regenerating(c->doc)) {
    r->resumed = 1;
    r->epoch = tde_keydoc_epoch(c->doc);
  } else if (rc == SQLITE_OK) {
    b->r = r;
    b->dek = dek;
    b->units = r->units;
    b->now = (int64_t)time(NULL);
    /* Who can not do this can not go on: nothing is begun then. */
    rc = checkpoint(r, st);
    if (rc == SQLITE_OK) rc = tde_class_rc(prepare(c, dek, b, st));
    if (rc == SQLITE_OK) rc = tde_change_commit(c, edit_begin, b, 0, 1, NULL, st);
  }
  tde_secret_free(dek);
  free(b);
  return rc;
}

/* ---- 3 ---- */

/* Is the regeneration still the one that r sweeps for? */
static int goes_on(const rotation *r, const tde_keydoc *doc) {
  return tde_keydoc_regenerating(doc) && tde_keydoc_epoch(doc) == r->epoch;
}

typedef struct progress {
  const rotation *r;
  int64_t done, all;
} progress;

static tde_class edit_progress(void *ctx, tde_keydoc *doc, tde_status *st) {
  const progress *p = ctx;
  if (!goes_on(p->r, doc)) return TDE_OK;
  return tde_keydoc_epoch_progress(doc, p->done, p->all) ? tde_nomem(st) : TDE_OK;
}

static int note(void *ctx, tde_change *c, tde_status *st) {
  const progress *p = ctx;
  return goes_on(p->r, c->doc) ? tde_change_commit(c, edit_progress, ctx, 1, 0, NULL, st)
                               : SQLITE_OK;
}

static int sweep(rotation *r, tde_status *st) {
  uint64_t next = 0, all = 0;
  int64_t noted = (int64_t)time(NULL);
  int end = 0, died = 0, rc = SQLITE_OK;

  while (rc == SQLITE_OK && !end) {
    rc = read_something(r);
    if (rc) {
      tell_failure(r, rc, "the database could not be read", st);
      break;
    }
    rc = tde_file_reseal_step(r->f, &next, &all, &end, st);
    if (rc == SQLITE_BUSY_RECOVERY && died++ < RECOVERY_TRIES) {
      /* A writer died meanwhile: the read rolls its journal back. */
      tde_status_clear(st);
      rc = SQLITE_OK;
      end = 0;
      continue;
    }
    if (rc == SQLITE_OK) {
      rc = tde_job_step(&r->job, (int64_t)next, (int64_t)all);
      if (rc) tde_fail(st, TDE_BUSY, "run tde_rotate_dek() again: it goes on", "interrupted");
    }
    if ((int64_t)time(NULL) - noted >= NOTE_EVERY_S || (rc && next)) {
      progress p = {r, (int64_t)next, (int64_t)all};
      tde_status ignored;
      (void)tde_change_run(r->db, r->schema, NULL, note, &p, &ignored);
      noted = (int64_t)time(NULL);
    }
  }
  r->units = (int64_t)all;
  return rc;
}

/* ---- 4 and 5 ---- */

/* Is there a log of another epoch? An error must not pass for "no". Others may have begun
** the next one meanwhile, which is of the epoch of now. */
static int look_at_log(rotation *r, int *in_use, tde_status *st) {
  tde_log_view log;
  int rc = tde_file_log(r->f, 0, &log);

  *in_use = rc == SQLITE_OK && log.exists && log.stamped && log.epoch != r->epoch;
  if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO, "run tde_rotate_dek() again",
             "every page is under the new key, but the log cannot be looked at: %s",
             sqlite3_errstr(rc));
  }
  return rc;
}

static int empty_log(rotation *r, tde_status *st) {
  char holders[256], path[300] = "";
  const char *name = sqlite3_db_filename(r->db, r->schema);
  int in_use, done, rc = look_at_log(r, &in_use, st);

  if (rc || !in_use) return rc;
  done = sqlite3_wal_checkpoint_v2(r->db, r->schema, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  rc = look_at_log(r, &in_use, st);
  if (rc || !in_use) return rc;
  if (done != SQLITE_OK && done != SQLITE_BUSY && done != SQLITE_LOCKED) {
    tell_failure(r, done, "every page is under the new key, but the log could not be emptied", st);
    return done;
  }
  (void)sqlite3_snprintf(sizeof(path), path, "%s", name ? name : "");
  tde_log_holders(path, holders, sizeof(holders));
  tde_fail(st, TDE_BUSY, "end the transactions that use the log, then run tde_rotate_dek() again",
           "every page is under the new key, but the log may hold pages under the old one; held by "
           "%.200s",
           holders[0] ? holders : "another connection");
  return SQLITE_BUSY;
}

/* The logs are settled; a hot journal that somebody leaves meanwhile is rolled back. */
static int settle(rotation *r, tde_status *st) {
  int rc = SQLITE_BUSY_RECOVERY;

  for (int i = 0; rc == SQLITE_BUSY_RECOVERY && i < RECOVERY_TRIES; i++) {
    (void)read_something(r);
    tde_status_clear(st);
    rc = tde_file_reseal_end(r->f, st);
  }
  return rc;
}

static tde_class edit_end(void *ctx, tde_keydoc *doc, tde_status *st) {
  if (!goes_on(ctx, doc)) {
    return tde_fail(st, TDE_BUSY, "run tde_rotate_dek() again",
                    "another process rotates the DEK at the same time");
  }
  return tde_keydoc_end_epoch(doc, (int64_t)time(NULL)) ? tde_nomem(st) : TDE_OK;
}

/* Somebody else may have ended it: after a sweep of its own. */
static int forget_old_epoch(void *ctx, tde_change *c, tde_status *st) {
  return goes_on(ctx, c->doc) ? tde_change_commit(c, edit_end, ctx, 0, 1, NULL, st) : SQLITE_OK;
}

/* ---- the function ---- */

static void answer(sqlite3_context *ctx, rotation *r) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_json *j = tde_json_object();
  int bad = !info;

  if (info) {
    tde_file_info_get(r->f, 0, info);
    bad |= tde_json_set_int(j, "epoch", info->facts.epoch);
  }
  bad |= tde_json_set_int(j, "units", r->units) | tde_json_set_bool(j, "resumed", r->resumed);
  sqlite3_free(info);
  tde_result_json(ctx, j, bad);
}

void tde_sql_rotate_dek(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *schema = tde_arg_text(argc, argv, 0);
  rotation r;
  tde_status st;
  int rc = SQLITE_ERROR;

  memset(&r, 0, sizeof(r));
  tde_status_clear(&st);
  r.db = sqlite3_context_db_handle(ctx);
  r.schema = schema ? schema : "main";
  r.f = tde_subject_file(r.db, r.schema, &st);
  if (r.f) {
    tde_job_begin(&r.job, r.db, "rotate-dek", sqlite3_db_filename(r.db, r.schema));
    rc = tde_change_run(r.db, r.schema, "rotate-dek-begin", begin, &r, &st);
    if (rc == SQLITE_OK) rc = checkpoint(&r, &st);
    if (rc == SQLITE_OK) rc = sweep(&r, &st);
    if (rc == SQLITE_OK) rc = empty_log(&r, &st);
    if (rc == SQLITE_OK) rc = settle(&r, &st);
    if (rc == SQLITE_OK) {
      rc = tde_change_run(r.db, r.schema, "rotate-dek-end", forget_old_epoch, &r, &st);
    }
    tde_job_end(&r.job);
  }
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    answer(ctx, &r);
  }
}
