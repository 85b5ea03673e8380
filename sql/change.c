/*
** change.c: the way of every change of a database's keys; see change.h.
*/
#include "change.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "../vfs/logview.h"
#include "follow.h"

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
  char *text;
  size_t n = 0;
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
  text = tde_file_keydoc(c->f, &n);
  cls = text ? tde_keydoc_parse(text, n, &c->doc, st) : n ? TDE_NOMEM : TDE_INTERNAL;
  free(text);
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

/* A failure is an event, too. */
static void tell_failure(const tde_change *c, const tde_status *st) {
  tde_event e;

  if (!c->event || (c->tried_again && st->code == TDE_BUSY)) return;
  fill(c, &e, &c->subject, st);
  if (e.code == TDE_OK) e.code = TDE_IO;
  (void)tde_event_emit(c->inst ? tde_instance_audit(c->inst) : NULL, &e, NULL);
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

/* ---- the rule of old thumbprints ---- */

#define OLD_THUMBPRINT "PerDatabaseCMKKeyRotationAttemptedWhileOldThumbprintInUse"

/* Is the log of another protector than the current one? An error must not pass for "yes", nor
** for "no". */
static int look_at_log(tde_change *c, tde_log_view *log, int *old, tde_status *st) {
  int rc = tde_file_log(c->f, 0, log);

  *old = rc == SQLITE_OK && log->exists && log->stamped && log->authentic && log->units > 0 &&
         memcmp(log->thumbprint, c->protector.thumbprint, TDE_THUMB_BYTES) != 0;
  if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO,
             "check the disk, and the file whose name ends in -wal",
             "%.300s: its log cannot be looked at: %s", c->info->path, sqlite3_errstr(rc));
  }
  return rc;
}

/* A WAL that was begun under another protector than the current one must go into
** the database first: a log may be one key behind, not two. */
static int settle_log(tde_change *c, tde_status *st) {
  char stamped[2 * TDE_THUMB_SHOWN + 1], current[2 * TDE_THUMB_SHOWN + 1], holders[256];
  tde_log_view log;
  int old, rc = look_at_log(c, &log, &old, st);

  if (rc || !old) return rc;
  (void)sqlite3_wal_checkpoint_v2(c->db, c->schema, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  rc = look_at_log(c, &log, &old, st);
  if (rc || !old) return rc;
  tde_hex(log.thumbprint, TDE_THUMB_SHOWN, stamped);
  tde_hex(c->protector.thumbprint, TDE_THUMB_SHOWN, current);
  tde_log_holders(c->info->path, holders, sizeof(holders));
  tde_fail(st, TDE_BUSY,
           "end the transactions that use the log, then try again: it is checkpointed first",
           OLD_THUMBPRINT
           ": the log of %.120s is stamped with thumbprint %s, the protector is %s; "
           "held by %.120s",
           c->info->path, stamped, current, holders[0] ? holders : "another connection");
  return SQLITE_BUSY;
}

/* ---- protector ---- */

/* What becomes of the mode. */
typedef enum protector_mode { MODE_STAYS, MODE_DATABASE, MODE_INHERIT } protector_mode;

typedef struct rewrap {
  int n;
  uint32_t epochs[TDE_EPOCHS_MAX];
  tde_op *wraps; /* of each epoch */
  protector_mode mode;
  const tde_instance *inst;    /* MODE_INHERIT: from here */
  const tde_keydoc_asker *who; /* or NULL: stays */
  const char *event;
  int64_t now;
} rewrap;

static tde_class edit_protector(void *ctx, tde_keydoc *doc, tde_status *st) {
  rewrap *r = ctx;
  int failed = 0;

  if (r->mode == MODE_DATABASE) failed |= tde_keydoc_set_mode(doc, "database");
  if (r->mode == MODE_INHERIT) failed |= tde_keydoc_inherit(doc, r->inst);
  for (int i = 0; i < r->n; i++) {
    failed |= tde_keydoc_set_wrap(doc, r->epochs[i], &r->wraps[i], r->now);
  }
  failed |= tde_keydoc_use_key(doc, &r->wraps[0].info, r->now);
  if (r->who) failed |= tde_keydoc_set_identity(doc, r->who);
  if (strcmp(r->event, "auto-rotation") == 0) {
    failed |= tde_keydoc_rotation_checked(doc, r->now, 1, NULL);
  }
  return failed ? tde_nomem(st) : TDE_OK;
}

tde_class tde_change_dek(tde_change *c, uint32_t epoch, uint8_t *dek, tde_status *st) {
  tde_class cls = tde_file_dek(c->f, epoch, dek, st);

  /* The header that c began with named it, and the keys of that one were at hand. */
  if (cls != TDE_WRONG_KEY) return cls;
  return fail_stale(c, st);
}

/* Wraps the DEK of every epoch under the new key; each is proved by an unwrap. */
static tde_class wrap_all(tde_change *c, rewrap *r, const char *key_id, const tde_keydoc_asker *who,
                          tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  char full[TDE_KEY_ID_MAX];
  tde_class cls = TDE_OK;

  r->n = tde_keydoc_epochs(c->doc, r->epochs, TDE_EPOCHS_MAX);
  r->wraps = calloc((size_t)r->n, sizeof(*r->wraps));
  if (!dek || !r->wraps) cls = tde_nomem(st);
  for (int i = 0; cls == TDE_OK && i < r->n; i++) {
    cls = tde_change_dek(c, r->epochs[i], dek, st);
    if (cls == TDE_OK) {
      cls = tde_keydoc_wrap(c->inst, i ? full : key_id, who, c->info->uuid, dek, &r->wraps[i], st);
    }
    /* All epochs under one version, whatever the latest is a moment later. */
    if (cls == TDE_OK && i == 0) tde_key_full_id(&r->wraps[0].info, full);
  }
  tde_secret_free(dek);
  return cls;
}

/* Does what a change was decided on still hold? May say anew what key it is. */
typedef int (*still_true)(void *ctx, const tde_change *c);

typedef struct protector_work {
  const char *key_id;
  protector_mode mode;
  const tde_keydoc_asker *who;
  tde_key_info *out;
  still_true still; /* looked at in each try, before anything is asked; NULL: nothing to see */
  void *ctx;        /* of still */
  int tried_again;  /* see tde_change */
  int gave_up;      /* it did not: nothing was changed */
} protector_work;

static int set_protector(void *ctx, tde_change *c, tde_status *st) {
  protector_work *w = ctx;
  rewrap r = {.mode = w->mode, .inst = c->inst, .who = w->who, .event = c->event,
              .now = (int64_t)time(NULL)};
  tde_keydoc_asker own;
  int rc = SQLITE_OK;

  c->tried_again = w->tried_again;
  w->gave_up = w->still && !w->still(w->ctx, c);
  if (w->gave_up) return SQLITE_OK;
  memset(&c->subject, 0, sizeof(c->subject));
  (void)sqlite3_snprintf(sizeof(c->subject.base_id), c->subject.base_id, "%s", w->key_id);
  if (w->mode == MODE_DATABASE) {
    rc = tde_class_rc(tde_instance_may_protect(c->inst, w->key_id, st));
  }
  if (rc == SQLITE_OK) rc = settle_log(c, st);
  if (rc) return rc;
  tde_keydoc_asker_of(c->doc, &own);
  rc = tde_class_rc(wrap_all(c, &r, w->key_id, w->who ? w->who : &own, st));
  if (rc == SQLITE_OK) {
    *w->out = c->subject = r.wraps[0].info;
    rc = tde_change_commit(c, edit_protector, &r, 0, 1, w->out, st);
  }
  free(r.wraps);
  return rc;
}

int tde_change_protector(sqlite3 *db, const char *schema, const char *key_id, const char *event,
                         tde_key_info *out, tde_status *st) {
  protector_work w = {.key_id = key_id, .mode = MODE_DATABASE, .out = out};

  memset(out, 0, sizeof(*out));
  return tde_change_run(db, schema, event, set_protector, &w, st);
}

/* Puts the database under its instance's default protector, or another key that w names. */
static int inherit(sqlite3 *db, const char *schema, const char *event, protector_work *w,
                   tde_status *st) {
  tde_keydoc_asker who = {NULL, NULL, 0};
  const tde_instance *inst;
  int rc;
  tde_file *f = tde_subject_file(db, schema, st);
  tde_class c;

  if (!f) return SQLITE_ERROR;
  c = tde_instance_open(tde_file_instance(f), 0, &inst, st);
  if (c) return tde_class_rc(c);
  tde_instance_need_id(&inst);
  who.identity = tde_instance_default_identity(inst);
  if (!w->key_id) w->key_id = tde_instance_protector(inst);
  w->mode = MODE_INHERIT;
  w->who = &who;
  memset(w->out, 0, sizeof(*w->out));
  rc = tde_change_run(db, schema, event, set_protector, w, st);
  w->key_id = NULL; /* they end here */
  w->who = NULL;
  return rc;
}

int tde_change_revert(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st) {
  protector_work w = {.out = out};

  return inherit(db, schema, "revert", &w, st);
}

static int inherits(void *ctx, const tde_change *c) {
  (void)ctx;
  return strcmp(tde_keydoc_mode(c->doc), "inherit") == 0;
}

int tde_change_follow(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st) {
  protector_work w = {.out = out, .still = inherits};
  int rc = inherit(db, schema, "follow-instance", &w, st);

  if (rc || !w.gave_up) return rc;
  tde_fail(st, TDE_MISUSE,
           "tde_revert() goes back to a service-managed instance; to one with a key of its own "
           "the way is a restore without a protector",
           "%s: the database has a protector of its own",
           sqlite3_db_filename(db, schema ? schema : "main"));
  return SQLITE_MISUSE;
}

/* ---- auto-rotation ---- */

typedef struct looked {
  int64_t now;
  const char *error;
} looked;

static tde_class edit_looked(void *ctx, tde_keydoc *doc, tde_status *st) {
  looked *l = ctx;
  return tde_keydoc_rotation_checked(doc, l->now, 0, l->error) ? tde_nomem(st) : TDE_OK;
}

/* The newest version of a protector. */
typedef struct newest {
  const uint8_t *uuid; /* whose protector; NULL: that of the database that is open */
  tde_key_info info;
  tde_key_info from; /* the protector then */
  int moved; /* another version than the protector's */
  int other; /* the file is not the one that was meant, or is not to be rotated any more */
  looked l;
} newest;

static int is_protector(const tde_change *c, const tde_key_info *info) {
  return strcmp(c->protector.base_id, info->base_id) == 0 &&
         strcmp(c->protector.version, info->version) == 0;
}

static int may_rotate(const uint8_t *uuid, const tde_change *c) {
  const tde_key_facts *facts = &c->info->facts;

  if (!uuid) return 1; /* somebody called for it */
  return memcmp(uuid, c->info->uuid, TDE_UUID_BYTES) == 0 && !facts->secondary &&
         facts->auto_rotation;
}

/* Writes down that somebody looked, so that the schedule survives. */
static int note_look(void *ctx, tde_change *c, tde_status *st) {
  newest *n = ctx;

  /* What another key's service answered, or none, is nothing to write down. */
  if (!may_rotate(n->uuid, c) || !is_protector(c, &n->from)) return SQLITE_OK;
  return tde_change_commit(c, edit_looked, &n->l, 1, 0, NULL, st);
}

static int look_for_newest(void *ctx, tde_change *c, tde_status *st) {
  newest *n = ctx;
  tde_op *op;
  tde_keydoc_asker who;
  tde_class cls;

  n->other = !may_rotate(n->uuid, c);
  if (n->other) return SQLITE_OK;
  op = calloc(1, sizeof(*op));
  if (!op) return SQLITE_NOMEM;
  tde_keydoc_asker_of(c->doc, &who);
  op->kind = TDE_OP_LATEST;
  op->instance = c->inst;
  op->identity = who.identity;
  op->federated_client_id = who.federated_client_id;
  n->from = c->protector;
  cls = tde_provider_run(op, c->protector.base_id, st);
  n->info = op->info;
  n->moved = strcmp(op->info.version, c->protector.version) != 0;
  free(op);
  return tde_class_rc(cls);
}

/* Between the look and the change, somebody may have set another protector, or another
** process a version that is newer still. */
static int is_as_looked(void *ctx, const tde_change *c) {
  const newest *n = ctx;

  return may_rotate(n->uuid, c) && is_protector(c, &n->from);
}

static int auto_rotate(sqlite3 *db, const char *schema, newest *n, tde_status *st) {
  char full[TDE_KEY_ID_MAX], why[400];
  tde_key_info out;
  tde_status ignored;
  protector_work w = {.out = &out, .still = is_as_looked, .ctx = n};
  int rc = tde_change_run(db, schema, "auto-rotation", look_for_newest, n, st);

  if (n->other) return rc;
  if (rc == SQLITE_OK && n->moved) {
    tde_key_full_id(&n->info, full);
    w.key_id = full;
    memset(&out, 0, sizeof(out));
    rc = tde_change_run(db, schema, "auto-rotation", set_protector, &w, st);
    if (rc == SQLITE_OK) return rc; /* which notes the look, too */
  }
  if (rc) {
    (void)sqlite3_snprintf(sizeof(why), why, "%s", st->message);
    n->l.error = why;
  }
  /* Not each look is an event: its failure was told already. */
  (void)tde_change_run(db, schema, NULL, note_look, n, &ignored);
  n->l.error = NULL;
  return rc;
}

int tde_change_auto_rotate(sqlite3 *db, const char *schema, tde_status *st) {
  newest n = {.l.now = (int64_t)time(NULL)};

  return auto_rotate(db, schema, &n, st);
}

/* ---- the background job ---- */

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

/* A look in the future was made by a clock that was wrong. */
static int is_due(int64_t checked, int64_t every) {
  int64_t now = (int64_t)time(NULL);

  return checked > now || now - checked >= every;
}

/* What is to be done about a database that inherits. */
typedef struct following {
  const uint8_t *uuid;
  tde_follow what;
  char target[TDE_KEY_ID_MAX]; /* where a MOVE goes */
} following;

static tde_follow what_now(const tde_key_facts *facts, const tde_instance *inst,
                           char target[TDE_KEY_ID_MAX]) {
  tde_follow what = tde_follow_of(facts, inst, target);

  if (what == TDE_FOLLOW_MOVE && tde_follow_too_soon(facts, inst)) what = TDE_FOLLOW_NOTHING;
  return what;
}

/* Is this the database that was meant, and is the same to be done still? */
static int still_follows(void *ctx, const tde_change *c) {
  following *f = ctx;

  return memcmp(f->uuid, c->info->uuid, TDE_UUID_BYTES) == 0 &&
         what_now(&c->info->facts, c->inst, f->target) == f->what;
}

static tde_class edit_adopt(void *ctx, tde_keydoc *doc, tde_status *st) {
  return tde_keydoc_inherit(doc, ctx) ? tde_nomem(st) : TDE_OK;
}

/* Notes from which instance the database inherits. */
static int adopt(void *ctx, tde_change *c, tde_status *st) {
  c->tried_again = 1;
  if (!still_follows(ctx, c)) return SQLITE_OK;
  return tde_change_commit(c, edit_adopt, (void *)c->inst, 0, 0, NULL, st);
}

static void follow(sqlite3 *db, following *f) {
  tde_key_info out;
  protector_work w = {.key_id = f->target, .out = &out, .still = still_follows, .ctx = f,
                      .tried_again = 1};
  tde_status st;
  int rc = SQLITE_OK;

  if (f->what == TDE_FOLLOW_MOVE) rc = inherit(db, "main", "follow-instance", &w, &st);
  if (f->what == TDE_FOLLOW_ADOPT) rc = tde_change_run(db, "main", "adopt-instance", adopt, f, &st);
  /* Whoever uses the database will have done so by some later check. */
  if (rc && st.code != TDE_BUSY) tde_log_status(TDE_LOG_WARNING, "follow-instance", &st);
}

/* By now another file may have the path: one with a protector of its own, or a backup. */
static int is_the_one(sqlite3 *db, const uint8_t *uuid) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = tde_subject_file(db, "main", NULL);
  int same = 0;

  if (f && info) {
    tde_file_info_get(f, 0, info);
    same = info->state == TDE_STATE_ONLINE && !info->facts.backup && !info->facts.secondary &&
           memcmp(info->uuid, uuid, TDE_UUID_BYTES) == 0;
  }
  sqlite3_free(info);
  return same;
}

static void run_job(sqlite3 *db, following *f, int rotate) {
  newest n = {.uuid = f->uuid, .l.now = (int64_t)time(NULL)};
  tde_status st;

  if (!is_the_one(db, f->uuid)) return;
  follow(db, f);
  if (rotate && auto_rotate(db, "main", &n, &st)) {
    tde_log_status(TDE_LOG_WARNING, "auto-rotation", &st);
  }
}

void tde_change_job(const uint8_t uuid[TDE_UUID_BYTES], const tde_key_facts *facts,
                    const tde_key_params *params) {
  following f = {.uuid = uuid};
  const tde_instance *inst;
  sqlite3 *db;
  int rotate;

  if (facts->secondary || facts->backup ||
      tde_instance_open(params->instance, 0, &inst, NULL) != TDE_OK) {
    return;
  }
  /* An older document is to name an instance. */
  if (strcmp(facts->mode, "inherit") == 0 && !facts->inherits_from[0]) tde_instance_need_id(&inst);
  f.what = what_now(facts, inst, f.target);
  if (f.what == TDE_FOLLOW_OTHER) tde_follow_tell(uuid, params->path, facts, inst);
  rotate = facts->auto_rotation &&
           is_due(facts->rotation_checked, tde_instance_policy(inst)->rotation_s);
  if (f.what != TDE_FOLLOW_MOVE && f.what != TDE_FOLLOW_ADOPT && !rotate) return;
  db = tde_change_open(params);
  if (!db) {
    tde_log(TDE_LOG_WARNING, "%s: could not be opened to follow its protector", params->path);
    return;
  }
  run_job(db, &f, rotate);
  (void)sqlite3_close(db);
}
