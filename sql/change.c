/*
** change.c: the way of every change of a database's keys; see change.h.
*/
#include "change.h"

#include <stdlib.h>
#include <string.h>

#include "../ext/base/secret.h"

SQLITE_EXTENSION_INIT3

/* How often a change is tried when others come in between, and the longest pause before it is
** tried again: five seconds in all, on average. */
#define TRIES 20
#define PAUSE_MS_MAX 1024

/* The basis is not in force any more. The message does for people alone: with a long path it is
** cut off before it says so. */
static tde_class fail_stale(tde_change *c, tde_status *st) {
  c->stale = 1;
  return tde_fail(st, TDE_BUSY, "try again",
                  "%s: another connection changed the database's keys meanwhile", c->info->path);
}

/* A hot journal is rolled back, a WAL opened, before the header is looked at. What
** that says does not matter here. */
static void touch(sqlite3 *db, const char *schema) {
  char *sql = sqlite3_mprintf("SELECT 1 FROM \"%w\".sqlite_schema LIMIT 1", schema);
  sqlite3_stmt *stmt = NULL;

  if (sql && sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK) (void)sqlite3_step(stmt);
  (void)sqlite3_finalize(stmt);
  sqlite3_free(sql);
}

static int fail_read_only(const char *path, tde_status *st) {
  tde_fail(st, TDE_MISUSE, "open it for writing", "%s: the database is read-only", path);
  return SQLITE_READONLY;
}

static int check_state(const tde_change *c, int reading, tde_status *st) {
  const tde_file_info *i = c->info;

  if (i->state == TDE_STATE_ONLINE && !reading && i->facts.backup) {
    (void)tde_fail_backup(c->f, st);
    return SQLITE_READONLY;
  }
  if (i->state == TDE_STATE_ONLINE && (reading || !tde_file_read_only(c->f))) return SQLITE_OK;
  if (i->state == TDE_STATE_ONLINE) return fail_read_only(i->path, st);
  if (i->last.code) {
    *st = i->last;
    return tde_class_rc(i->last.code);
  }
  tde_fail(st, TDE_MISUSE, "write to it first", "%s: the database is %s", i->path,
           i->state == TDE_STATE_NEW ? "empty" : tde_state_name(i->state));
  return SQLITE_ERROR;
}

/* Has the host said that this connection changes no database? */
static int is_query_only(sqlite3 *db) {
  sqlite3_stmt *stmt = NULL;
  int is = 0;

  if (sqlite3_prepare_v2(db, "PRAGMA query_only", -1, &stmt, NULL) == SQLITE_OK &&
      sqlite3_step(stmt) == SQLITE_ROW) {
    is = sqlite3_column_int(stmt, 0);
  }
  (void)sqlite3_finalize(stmt);
  return is;
}

int tde_change_of_name(tde_file *f, const char *path, tde_status *st) {
  if (!tde_file_has_moved(f)) return SQLITE_OK;
  tde_fail(st, TDE_MISUSE, "close this connection, and open the database again",
           "%s: the file was moved, replaced or deleted since it was opened", path);
  return SQLITE_READONLY_DBMOVED;
}

/* A change is of the file that has the name now, and no part of a transaction: a ROLLBACK
** would not undo it. */
static int may_change(sqlite3 *db, const char *schema, tde_file *f, const char *path,
                      tde_status *st) {
  if (is_query_only(db)) {
    tde_fail(st, TDE_MISUSE, "PRAGMA query_only=0, if that is meant to change",
             "%s: PRAGMA query_only is on, under which this connection changes nothing", path);
    return SQLITE_READONLY;
  }
  if (sqlite3_txn_state(db, schema) == SQLITE_TXN_WRITE) {
    tde_fail(st, TDE_MISUSE, "COMMIT or ROLLBACK first",
             "%s: this connection has an open write transaction", path);
    return SQLITE_MISUSE;
  }
  return tde_change_of_name(f, path, st);
}

int tde_change_allowed(sqlite3 *db, const char *schema, tde_file *f, const char *path,
                       tde_status *st) {
  if (tde_file_read_only(f)) return fail_read_only(path, st);
  return may_change(db, schema ? schema : "main", f, path, st);
}

static int begin(tde_change *c, sqlite3 *db, const char *schema, const char *event, int reading,
                 tde_status *st) {
  tde_class cls;
  int rc;

  memset(c, 0, sizeof(*c));
  tde_status_clear(st);
  c->db = db;
  c->schema = schema ? schema : "main";
  c->event = event;
  c->f = tde_subject_file(db, c->schema, st);
  if (!c->f) return SQLITE_ERROR;
  c->info = sqlite3_malloc64(sizeof(*c->info));
  if (!c->info) return SQLITE_NOMEM;
  touch(db, c->schema);
  tde_file_info_get(c->f, 1, c->info);
  rc = check_state(c, reading, st);
  if (rc == SQLITE_OK && !reading) rc = may_change(db, c->schema, c->f, c->info->path, st);
  if (rc) return rc;
  cls = tde_subject_keydoc(c->f, &c->doc, st);
  if (cls == TDE_OK) cls = tde_keydoc_protector(c->doc, &c->protector, st);
  if (cls == TDE_OK) c->subject = c->protector;
  if (cls == TDE_OK) cls = tde_instance_open(tde_file_instance(c->f), 0, &c->inst, st);
  return tde_class_rc(cls);
}

static void end(tde_change *c) {
  tde_keydoc_free(c->doc);
  sqlite3_free(c->info);
  memset(c, 0, sizeof(*c));
}

/* ---- committing ---- */

typedef struct commit {
  tde_change *c;
  tde_change_edit edit;
  void *ctx;
  int loose;
  tde_event e;
} commit;

static tde_class mutate(void *ctx, const char *doc, size_t ndoc, char **newdoc, size_t *nnew,
                        tde_status *st) {
  commit *m = ctx;
  tde_keydoc *kd = NULL;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  if (c == TDE_OK && !m->loose && !tde_keydoc_same_deks(kd, m->c->doc)) {
    c = fail_stale(m->c, st);
  }
  if (c == TDE_OK) c = m->edit(m->ctx, kd, st);
  if (c == TDE_OK && m->c->event && tde_keydoc_add_event(kd, &m->e)) {
    c = tde_nomem(st);
  }
  if (c == TDE_OK) c = tde_keydoc_text(kd, newdoc, nnew, st);
  tde_keydoc_free(kd);
  return c;
}

static void fill(const tde_change *c, tde_event *e, const tde_key_info *key, const tde_status *st) {
  tde_event_fill(e, c->event, c->info ? c->info->uuid : NULL, c->info ? c->info->path : NULL,
                 key->base_id, key->version, st);
}

int tde_change_commit(tde_change *c, tde_change_edit edit, void *ctx, int loose, int both,
                      const tde_key_info *key, tde_status *st) {
  const tde_audit *audit = tde_instance_audit(c->inst);
  commit m = {c, edit, ctx, loose, {0}};
  int rc = SQLITE_OK;

  fill(c, &m.e, key ? key : &c->protector, NULL);
  if (c->event && !c->announced) rc = tde_class_rc(tde_event_announce(audit, &m.e, st));
  if (rc == SQLITE_OK) rc = tde_file_update_header(c->f, mutate, &m, both, st);
  if (rc == SQLITE_OK && c->event) (void)tde_event_emit(audit, &m.e, NULL);
  return rc;
}

/* A failure is an event, too, also where it is the instance that cannot be read. */
static void tell_failure(const tde_change *c, const tde_status *st) {
  const tde_instance *inst = c->inst;
  tde_event e;

  if (!c->event || (c->tried_again && st->code == TDE_BUSY)) return;
  fill(c, &e, &c->subject, st);
  if (e.code == TDE_OK) e.code = TDE_IO;
  if (!inst && c->f) inst = tde_instance_now_or_last(tde_file_instance(c->f));
  (void)tde_event_emit(inst ? tde_instance_audit(inst) : NULL, &e, NULL);
}

int tde_change_announce(tde_change *c, tde_status *st) {
  tde_event e;
  int rc;

  fill(c, &e, &c->protector, NULL);
  rc = tde_class_rc(tde_event_announce(tde_instance_audit(c->inst), &e, st));
  c->announced = rc == SQLITE_OK;
  return rc;
}

void tde_change_tell(const tde_change *c) {
  tde_event e;

  fill(c, &e, &c->protector, NULL);
  (void)tde_event_emit(tde_instance_audit(c->inst), &e, NULL);
}

/* Who lost to another change has its keys to learn before the next try, and would be the slower
** one each time, were there no pause. Its length is random, so that two do not meet again. */
static void pause_before(int try) {
  int longest = 1 << try < PAUSE_MS_MAX ? 1 << try : PAUSE_MS_MAX;
  uint32_t random;

  sqlite3_randomness(sizeof(random), &random);
  (void)sqlite3_sleep(1 + (int)(random % (uint32_t)longest));
}

static int run(sqlite3 *db, const char *schema, const char *event, int reading,
               tde_change_work work, void *ctx, tde_status *st) {
  tde_change c;
  int again, rc = SQLITE_BUSY;

  for (int i = 0; i < TRIES; i++) {
    if (i) pause_before(i);
    rc = begin(&c, db, schema, event, reading, st);
    if (rc == SQLITE_OK) rc = work(ctx, &c, st);
    /* The next try begins with a read, which rolls a hot journal back. */
    again = rc && (c.stale || rc == SQLITE_BUSY_RECOVERY);
    if (rc && (!again || i + 1 == TRIES)) tell_failure(&c, st);
    end(&c);
    if (!again) break;
  }
  return rc;
}

int tde_change_run(sqlite3 *db, const char *schema, const char *event, tde_change_work work,
                   void *ctx, tde_status *st) {
  return run(db, schema, event, 0, work, ctx, st);
}

int tde_change_run_reading(sqlite3 *db, const char *schema, const char *event, tde_change_work work,
                           void *ctx, tde_status *st) {
  return run(db, schema, event, 1, work, ctx, st);
}

/* ---- DEKs ---- */

tde_class tde_change_dek(tde_change *c, uint32_t epoch, uint8_t *dek, tde_status *st) {
  tde_class cls = tde_file_dek(c->f, epoch, dek, st);

  /* The header that c began with named it, and the keys of that one were at hand. */
  if (cls != TDE_WRONG_KEY) return cls;
  return fail_stale(c, st);
}

tde_class tde_change_wrap(tde_change *c, const tde_instance *inst, const char *key_id,
                          const tde_keydoc_asker *who, tde_wraps *out, tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  char full[TDE_KEY_ID_MAX];
  tde_class cls = TDE_OK;

  out->n = tde_keydoc_epochs(c->doc, out->epochs, TDE_EPOCHS_MAX);
  out->of = calloc((size_t)out->n, sizeof(*out->of));
  if (!dek || !out->of) cls = tde_nomem(st);
  for (int i = 0; cls == TDE_OK && i < out->n; i++) {
    cls = tde_change_dek(c, out->epochs[i], dek, st);
    if (cls == TDE_OK) {
      cls = tde_keydoc_wrap(inst, i ? full : key_id, who, c->info->uuid, dek, &out->of[i], st);
    }
    /* All epochs under one version, whatever the latest is a moment later. */
    if (cls == TDE_OK && i == 0) tde_key_full_id(&out->of[0].info, full);
  }
  tde_secret_free(dek);
  return cls;
}

/* ---- another connection ---- */

/* Never over a cache that is shared: its lock is another connection's, which may be in this very
** thread. */
sqlite3 *tde_change_open(const tde_key_params *params) {
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_PRIVATECACHE;
  const tde_uri_param query[] = {{"tde_base", params->vfs},
                                 {"tde_instance", params->instance},
                                 {"tde_key", params->as_key},
                                 {"tde_identity", params->as_identity},
                                 {"tde_federated_client_id", params->as_federated}};
  char *uri = tde_uri_with(params->path, "", query, sizeof(query) / sizeof(query[0]));
  sqlite3 *db = NULL;

  if (uri && sqlite3_open_v2(uri, &db, flags, TDE_VFS_NAME)) {
    (void)sqlite3_close(db);
    db = NULL;
  }
  sqlite3_free(uri);
  if (db) (void)sqlite3_busy_timeout(db, 2000);
  return db;
}
