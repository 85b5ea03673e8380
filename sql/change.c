/*
** change.c: the way of every change of a database's keys; see change.h.
*/
#include "change.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "../vfs/logview.h"

SQLITE_EXTENSION_INIT3

/* Says in a status that the basis is not in force any more. */
#define STALE "another connection changed the database's keys meanwhile"

int tde_change_is_stale(const tde_status *st) {
  return st->code == TDE_BUSY && strstr(st->message, STALE) != NULL;
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

static int check_state(const tde_change *c, tde_status *st) {
  const tde_file_info *i = c->info;

  if (i->state == TDE_STATE_ONLINE && !tde_file_read_only(c->f)) return SQLITE_OK;
  if (i->state == TDE_STATE_ONLINE) {
    tde_fail(st, TDE_MISUSE, "open it for writing", "%s: the database is read-only", i->path);
    return SQLITE_READONLY;
  }
  if (i->last.code) {
    *st = i->last;
    return tde_class_rc(i->last.code);
  }
  tde_fail(st, TDE_MISUSE, "write to it first", "%s: the database is %s", i->path,
           i->state == TDE_STATE_NEW ? "empty" : tde_state_name(i->state));
  return SQLITE_ERROR;
}

int tde_change_begin(tde_change *c, sqlite3 *db, const char *schema, const char *event,
                     tde_status *st) {
  const char *text;
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
  rc = check_state(c, st);
  if (rc) return rc;
  text = tde_file_keydoc(c->f, &n);
  cls = text ? tde_keydoc_parse(text, n, &c->doc, st) : TDE_INTERNAL;
  if (cls == TDE_OK) cls = tde_keydoc_protector(c->doc, &c->protector, st);
  if (cls == TDE_OK) cls = tde_instance_open(tde_file_instance(c->f), 0, &c->inst, st);
  return tde_class_rc(cls);
}

void tde_change_end(tde_change *c) {
  tde_keydoc_free(c->doc);
  sqlite3_free(c->info);
  memset(c, 0, sizeof(*c));
}

/* ---- committing ---- */

typedef struct commit {
  tde_change *c;
  tde_change_edit edit;
  void *ctx;
  tde_event e;
} commit;

/* The same DEKs under the same key? */
static int same_basis(const tde_keydoc *a, const tde_keydoc *b) {
  uint32_t ea[TDE_EPOCHS_MAX], eb[TDE_EPOCHS_MAX];
  int na = tde_keydoc_epochs(a, ea, TDE_EPOCHS_MAX), nb = tde_keydoc_epochs(b, eb, TDE_EPOCHS_MAX);
  tde_key_info pa, pb;

  return na == nb && memcmp(ea, eb, (size_t)na * sizeof(ea[0])) == 0 &&
         tde_keydoc_protector(a, &pa, NULL) == TDE_OK &&
         tde_keydoc_protector(b, &pb, NULL) == TDE_OK && strcmp(pa.base_id, pb.base_id) == 0 &&
         strcmp(pa.version, pb.version) == 0;
}

static tde_class mutate(void *ctx, const char *doc, size_t ndoc, char **newdoc, size_t *nnew,
                        tde_status *st) {
  commit *m = ctx;
  tde_keydoc *kd = NULL;
  tde_class c = tde_keydoc_parse(doc, ndoc, &kd, st);

  if (c == TDE_OK && !same_basis(kd, m->c->doc)) {
    c = tde_fail(st, TDE_BUSY, "try again", "%s: " STALE, m->c->info->path);
  }
  if (c == TDE_OK) c = m->edit(m->ctx, kd, st);
  if (c == TDE_OK && m->c->event && tde_keydoc_add_event(kd, &m->e)) {
    c = tde_fail(st, TDE_NOMEM, NULL, "out of memory");
  }
  if (c == TDE_OK) c = tde_keydoc_text(kd, newdoc, nnew, st);
  tde_keydoc_free(kd);
  return c;
}

static void fill(tde_change *c, tde_event *e, const tde_key_info *key, const tde_status *st) {
  if (!key) key = &c->protector;
  tde_event_fill(e, c->event, c->info ? c->info->uuid : NULL, c->info ? c->info->path : NULL,
                 key->base_id, key->version, st);
}

int tde_change_commit(tde_change *c, tde_change_edit edit, void *ctx, int both,
                      const tde_key_info *key, tde_status *st) {
  const tde_audit *audit = tde_instance_audit(c->inst);
  commit m = {c, edit, ctx, {0}};
  tde_status begins;
  int rc;

  fill(c, &m.e, key, NULL);
  if (audit->required && c->event) {
    /* Nothing happens that the audit does not know of. */
    tde_event before = m.e;
    tde_status_clear(&begins);
    (void)sqlite3_snprintf(sizeof(before.message), before.message, "begins");
    if (tde_event_emit(audit, &before, &begins)) {
      *st = begins;
      return SQLITE_IOERR;
    }
  }
  rc = tde_file_update_header(c->f, mutate, &m, both, st);
  if (rc == SQLITE_OK && c->event) (void)tde_event_emit(audit, &m.e, NULL);
  return rc;
}

int tde_change_failed(tde_change *c, int rc, const tde_key_info *key, const tde_status *st) {
  tde_event e;

  if (rc == SQLITE_OK || tde_change_is_stale(st)) return rc;
  fill(c, &e, key, st);
  if (e.code == TDE_OK) e.code = TDE_IO;
  (void)tde_event_emit(c->inst ? tde_instance_audit(c->inst) : NULL, &e, NULL);
  return rc;
}

/* ---- the rule of old thumbprints ---- */

#define OLD_THUMBPRINT "PerDatabaseCMKKeyRotationAttemptedWhileOldThumbprintInUse"

static int still_old(tde_change *c, tde_log_view *log) {
  if (tde_file_log(c->f, 0, log) != SQLITE_OK) return 1;
  return log->exists && log->stamped && log->authentic && log->units > 0 &&
         memcmp(log->thumbprint, c->protector.thumbprint, TDE_THUMB_BYTES) != 0;
}

/* A WAL that was begun under another protector than the current one must go into
** the database first: a log may be one key behind, not two. */
static int settle_log(tde_change *c, tde_status *st) {
  char stamped[2 * TDE_THUMB_SHOWN + 1], current[2 * TDE_THUMB_SHOWN + 1], holders[256];
  tde_log_view log;

  if (!still_old(c, &log)) return SQLITE_OK;
  (void)sqlite3_wal_checkpoint_v2(c->db, c->schema, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  if (!still_old(c, &log)) return SQLITE_OK;
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

typedef struct rewrap {
  int n;
  uint32_t epochs[TDE_EPOCHS_MAX];
  tde_op *wraps; /* of each epoch */
  const char *mode;
  const tde_keydoc_asker *who; /* or NULL: stays */
  const char *event;
  int64_t now;
} rewrap;

static tde_class edit_protector(void *ctx, tde_keydoc *doc, tde_status *st) {
  rewrap *r = ctx;
  int failed = tde_keydoc_set_mode(doc, r->mode);

  for (int i = 0; i < r->n; i++) {
    failed |= tde_keydoc_set_wrap(doc, r->epochs[i], &r->wraps[i], r->now);
  }
  failed |= tde_keydoc_use_key(doc, &r->wraps[0].info, r->now);
  if (r->who) failed |= tde_keydoc_set_identity(doc, r->who);
  if (strcmp(r->event, "auto-rotation") == 0) {
    failed |= tde_keydoc_rotation_checked(doc, r->now, 1, NULL);
  }
  return failed ? tde_fail(st, TDE_NOMEM, NULL, "out of memory") : TDE_OK;
}

/* Wraps the DEK of every epoch under the new key; each is proved by an unwrap. */
static tde_class wrap_all(tde_change *c, rewrap *r, const char *key_id, const tde_keydoc_asker *who,
                          tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  char full[TDE_KEY_ID_MAX];
  tde_class cls = TDE_OK;

  r->n = tde_keydoc_epochs(c->doc, r->epochs, TDE_EPOCHS_MAX);
  r->wraps = calloc((size_t)r->n, sizeof(*r->wraps));
  if (!dek || !r->wraps) cls = tde_fail(st, TDE_NOMEM, NULL, "out of memory");
  for (int i = 0; cls == TDE_OK && i < r->n; i++) {
    cls = tde_file_dek(c->f, r->epochs[i], dek, st);
    if (cls == TDE_OK) {
      cls = tde_keydoc_wrap(c->inst, i ? full : key_id, who, c->info->uuid, dek, &r->wraps[i], st);
    }
    /* All epochs under one version, whatever the latest is a moment later. */
    if (cls == TDE_OK && i == 0) tde_key_full_id(&r->wraps[0].info, full);
  }
  tde_secret_free(dek);
  return cls;
}

static int protector_once(tde_change *c, const char *key_id, rewrap *r, tde_key_info *out,
                          tde_status *st) {
  tde_keydoc_asker own;
  int rc = settle_log(c, st);

  if (rc) return rc;
  tde_keydoc_asker_of(c->doc, &own);
  rc = tde_class_rc(wrap_all(c, r, key_id, r->who ? r->who : &own, st));
  if (rc == SQLITE_OK) {
    *out = r->wraps[0].info;
    rc = tde_change_commit(c, edit_protector, r, 1, out, st);
  }
  return rc;
}

int tde_change_protector(sqlite3 *db, const char *schema, const char *key_id, const char *mode,
                         const tde_keydoc_asker *who, const char *event, tde_key_info *out,
                         tde_status *st) {
  tde_change c;
  int rc = SQLITE_BUSY;

  memset(out, 0, sizeof(*out));
  for (int i = 0; i < TDE_CHANGE_TRIES; i++) {
    rewrap r = {.mode = mode, .who = who, .event = event, .now = (int64_t)time(NULL)};
    rc = tde_change_begin(&c, db, schema, event, st);
    if (rc == SQLITE_OK && strcmp(mode, "database") == 0) {
      rc = tde_class_rc(tde_instance_may_protect(c.inst, key_id, st));
    }
    if (rc == SQLITE_OK) rc = protector_once(&c, key_id, &r, out, st);
    if (rc) {
      tde_key_info asked;
      memset(&asked, 0, sizeof(asked));
      (void)sqlite3_snprintf(sizeof(asked.base_id), asked.base_id, "%s", key_id);
      rc = tde_change_failed(&c, rc, &asked, st);
    }
    free(r.wraps);
    tde_change_end(&c);
    if (!rc || !tde_change_is_stale(st)) break;
  }
  return rc;
}

int tde_change_inherit(sqlite3 *db, const char *schema, const char *event, tde_key_info *out,
                       tde_status *st) {
  char protector[TDE_KEY_ID_MAX];
  tde_keydoc_asker who = {NULL, NULL};
  const tde_instance *inst;
  tde_file *f = tde_subject_file(db, schema, st);
  tde_class c;

  if (!f) return SQLITE_ERROR;
  c = tde_instance_open(tde_file_instance(f), 0, &inst, st);
  if (c == TDE_OK) c = tde_instance_protector(inst, protector, st);
  if (c) return tde_class_rc(c);
  who.identity = tde_instance_default_identity(inst);
  return tde_change_protector(db, schema, protector, "inherit", &who, event, out, st);
}

/* ---- auto-rotation ---- */

typedef struct looked {
  int64_t now;
  const char *error;
} looked;

static tde_class edit_looked(void *ctx, tde_keydoc *doc, tde_status *st) {
  looked *l = ctx;
  return tde_keydoc_rotation_checked(doc, l->now, 0, l->error)
             ? tde_fail(st, TDE_NOMEM, NULL, "out of memory")
             : TDE_OK;
}

/* Writes down that somebody looked, so that the schedule survives. */
static int note_look(tde_change *c, const char *error, tde_status *st) {
  looked l = {(int64_t)time(NULL), error};

  c->event = error ? "auto-rotation-failed" : NULL; /* each look is no event */
  return tde_change_commit(c, edit_looked, &l, 0, NULL, st);
}

static tde_class latest(tde_change *c, tde_op *op, tde_status *st) {
  tde_keydoc_asker who;

  memset(op, 0, sizeof(*op));
  tde_keydoc_asker_of(c->doc, &who);
  op->kind = TDE_OP_LATEST;
  op->instance = c->inst;
  op->identity = who.identity;
  op->federated_client_id = who.federated_client_id;
  return tde_provider_run(op, c->protector.base_id, st);
}

int tde_change_auto_rotate(sqlite3 *db, const char *schema, tde_status *st) {
  char full[TDE_KEY_ID_MAX], why[400] = "";
  tde_op *op = calloc(1, sizeof(*op));
  tde_key_info out;
  tde_status ignored;
  tde_change c;
  int rc = op ? tde_change_begin(&c, db, schema, "auto-rotation", st) : SQLITE_NOMEM, moved = 0;

  if (!op) return rc;
  if (rc == SQLITE_OK) rc = tde_class_rc(latest(&c, op, st));
  if (rc == SQLITE_OK && strcmp(op->info.version, c.protector.version) != 0) {
    char mode[16];
    (void)sqlite3_snprintf(sizeof(mode), mode, "%s", tde_keydoc_mode(c.doc));
    tde_key_full_id(&op->info, full);
    rc = tde_change_protector(db, schema, full, mode, NULL, "auto-rotation", &out, st);
    moved = rc == SQLITE_OK;
  }
  if (rc) (void)sqlite3_snprintf(sizeof(why), why, "%s", st->message);
  if (c.doc && !moved) (void)note_look(&c, rc ? why : NULL, &ignored);
  tde_change_end(&c);
  free(op);
  return rc;
}

/* ---- the background job ---- */

/* Is a database that inherits under another key than the instance's default? */
static int has_moved(const tde_key_facts *facts, const tde_instance *inst) {
  char protector[TDE_KEY_ID_MAX], base[TDE_KEY_ID_MAX], version[128];
  const tde_provider *p;

  if (strcmp(facts->mode, "inherit") != 0) return 0;
  if (tde_instance_protector(inst, protector, NULL) != TDE_OK) return 0;
  p = tde_provider_find(protector, NULL);
  if (!p || p->parse_id(protector, base, version, NULL) != TDE_OK) return 0;
  return strcmp(base, facts->key_id) != 0 || (version[0] && strcmp(version, facts->key_version));
}

static sqlite3 *open_for_job(const tde_key_params *params) {
  char *instance = tde_uri_value(params->instance ? params->instance : "");
  char *query = sqlite3_mprintf("?tde_base=%s&tde_instance=%s", params->vfs,
                                instance ? instance : "");
  char *uri = query && instance ? tde_uri_of(params->path, query) : NULL;
  sqlite3 *db = NULL;

  if (uri && sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, TDE_VFS_NAME)) {
    (void)sqlite3_close(db);
    db = NULL;
  }
  sqlite3_free(uri);
  sqlite3_free(query);
  sqlite3_free(instance);
  if (db) (void)sqlite3_busy_timeout(db, 2000);
  return db;
}

void tde_change_job(const tde_key_facts *facts, const tde_key_params *params) {
  const tde_instance *inst;
  tde_key_info out;
  tde_status st;
  sqlite3 *db;
  int follow, rotate;

  if (facts->secondary || tde_instance_open(params->instance, 0, &inst, NULL) != TDE_OK) return;
  follow = has_moved(facts, inst);
  rotate = facts->auto_rotation &&
           (int64_t)time(NULL) - facts->rotation_checked >= tde_instance_policy(inst)->rotation_s;
  if (!follow && !rotate) return;
  db = open_for_job(params);
  if (!db) return;
  if (follow) (void)tde_change_inherit(db, "main", "follow-instance", &out, &st);
  if (rotate) (void)tde_change_auto_rotate(db, "main", &st);
  (void)sqlite3_close(db);
}
