/*
** lifecycle.c: the SQL functions that change a database's keys.
**
** Each takes its database's schema as an optional last argument, and answers with
** a JSON object that says what holds now. What a change is made of is in change.c, those of the
** protector are in protector.c.
*/
#include "lifecycle.h"

#include <string.h>
#include <time.h>

#include "../ext/base/secret.h"
#include "change.h"
#include "protector.h"
#include "result.h"

SQLITE_EXTENSION_INIT3

/* ---- arguments and answers ---- */

static int bad_argument(sqlite3_context *ctx, const char *what, const char *remedy) {
  tde_status st;

  tde_status_clear(&st);
  tde_fail(&st, TDE_MISUSE, remedy, "%s", what);
  tde_result_status(ctx, SQLITE_MISUSE, &st);
  return 1;
}

/* What is to be a key's id is none. */
static int bad_key_id(sqlite3_context *ctx, const char *key) {
  tde_status st;

  tde_status_clear(&st);
  if (tde_subject_key_id(key, &st)) return 0;
  tde_result_status(ctx, SQLITE_MISUSE, &st);
  return 1;
}

static void answer_key(sqlite3_context *ctx, const tde_key_info *k, const char *mode) {
  tde_json *j = tde_json_object();
  int bad = tde_key_put(j, k, TDE_THUMB_SHOWN);

  if (mode) bad |= tde_json_set_text(j, "mode", mode);
  tde_result_json(ctx, j, bad);
}

/* ---- tde_set_protector(key_id [, schema]) ---- */

/* An empty database gets its header under this key. */
static int create_under(tde_file *f, const char *key_id, tde_status *st) {
  int rc = tde_file_make_header(f, key_id, NULL, st);

  if (rc && st->code == TDE_OK) {
    tde_fail(st, TDE_IO, "try again", "the database's header could not be made: %s",
             sqlite3_errstr(rc));
  }
  return rc;
}

static int is_new(tde_file *f, tde_file_info *info) {
  tde_file_info_get(f, 1, info);
  return info->state == TDE_STATE_NEW;
}

static int protector_in_force(tde_file *f, tde_key_info *out, tde_status *st) {
  tde_keydoc *doc = NULL;
  tde_class c = tde_subject_keydoc(f, &doc, st);

  if (c == TDE_OK) c = tde_keydoc_protector(doc, out, st);
  tde_keydoc_free(doc);
  return tde_class_rc(c);
}

void tde_sql_set_protector(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  const char *key = tde_arg_text(argc, argv, 0), *schema = tde_arg_text(argc, argv, 1);
  const char *mode = "database";
  tde_file_info *info;
  tde_key_info out;
  tde_status st;
  tde_file *f;
  int rc;

  if (!key && bad_argument(ctx, "tde_set_protector: the key id is NULL",
                           "name a key, e.g. https://VAULT.vault.azure.net/keys/NAME")) {
    return;
  }
  if (strcmp(key, "inherit") != 0 && bad_key_id(ctx, key)) return;
  tde_status_clear(&st);
  f = tde_subject_file(db, schema, &st);
  info = f ? sqlite3_malloc64(sizeof(*info)) : NULL;
  if (!info) {
    tde_result_status(ctx, f ? SQLITE_NOMEM : SQLITE_ERROR, &st);
    return;
  }
  if (strcmp(key, "inherit") == 0) {
    mode = "inherit";
    rc = tde_protector_follow(db, schema, &out, &st);
  } else if (is_new(f, info)) {
    rc = tde_change_allowed(db, schema, f, info->path, &st);
    if (rc == SQLITE_OK) rc = create_under(f, key, &st);
    if (rc == SQLITE_OK) rc = protector_in_force(f, &out, &st);
  } else {
    rc = tde_protector_set(db, schema, key, "set-protector", &out, &st);
  }
  sqlite3_free(info);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    answer_key(ctx, &out, mode);
  }
}

/* ---- tde_revert([schema]) ---- */

void tde_sql_revert(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  const char *schema = tde_arg_text(argc, argv, 0);
  const tde_instance *inst = NULL;
  tde_key_info out;
  tde_status st;
  tde_file *f;
  int rc = SQLITE_ERROR;

  tde_status_clear(&st);
  f = tde_subject_file(db, schema, &st);
  if (f) rc = tde_class_rc(tde_instance_open(tde_file_instance(f), 0, &inst, &st));
  if (rc == SQLITE_OK && !tde_instance_is_service_managed(inst)) {
    rc = SQLITE_MISUSE;
    tde_fail(&st, TDE_MISUSE,
             "restore a backup without a protector, or let the instance use the service-managed "
             "key first",
             "the instance's protector is a customer's key: a database goes back to it by a "
             "restore only");
  }
  if (rc == SQLITE_OK) rc = tde_protector_revert(db, schema, &out, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    answer_key(ctx, &out, "inherit");
  }
}

/* ---- tde_add_key(key_id [, schema]), tde_remove_key(key [, schema]) ---- */

typedef struct list_edit {
  const tde_key_info *add;
  const char *remove;
} list_edit;

typedef struct list_work {
  const char *key;
  int adding;
  tde_key_info info;
} list_work;

static tde_class edit_list(void *ctx, tde_keydoc *doc, tde_status *st) {
  list_edit *e = ctx;

  if (e->remove) return tde_keydoc_list_remove(doc, e->remove, st);
  return tde_keydoc_list_add(doc, e->add, (int64_t)time(NULL), st);
}

/* A key that is to read backups must be there and enabled. */
static int look_at_key(tde_change *c, const char *key_id, tde_key_info *out, tde_status *st) {
  tde_keydoc_asker who;
  tde_class cls;

  tde_keydoc_asker_of(c->doc, &who);
  cls = tde_provider_get(c->inst, key_id, who.identity, who.federated_client_id, out, st);
  if (cls == TDE_OK && !out->enabled) {
    tde_key_full_id(out, st->key_id);
    cls = tde_fail(st, TDE_DISABLED, "enable the key version first",
                   "the key %.300s is disabled: it could read nothing", out->base_id);
  }
  return tde_class_rc(cls);
}

static int change_list(void *ctx, tde_change *c, tde_status *st) {
  list_work *w = ctx;
  list_edit e = {&w->info, w->adding ? NULL : w->key};
  int rc = SQLITE_OK;

  memset(&w->info, 0, sizeof(w->info));
  if (w->adding) rc = look_at_key(c, w->key, &w->info, st);
  if (!w->adding || rc) {
    (void)sqlite3_snprintf(sizeof(w->info.base_id), w->info.base_id, "%s", w->key);
  }
  c->subject = w->info;
  return rc ? rc : tde_change_commit(c, edit_list, &e, 1, 1, &w->info, st);
}

static void list_function(sqlite3_context *ctx, int argc, sqlite3_value **argv, int adding) {
  list_work w = {.key = tde_arg_text(argc, argv, 0), .adding = adding};
  tde_status st;
  int rc;

  if (!w.key && bad_argument(ctx, "the key is NULL", "name a key id or a thumbprint")) return;
  if (adding && bad_key_id(ctx, w.key)) return;
  rc = tde_change_run(sqlite3_context_db_handle(ctx), tde_arg_text(argc, argv, 1),
                      adding ? "add-key" : "remove-key", change_list, &w, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else if (adding) {
    answer_key(ctx, &w.info, NULL);
  } else {
    tde_json *j = tde_json_object();
    tde_result_json(ctx, j, tde_json_set_text(j, "removed", w.key));
  }
}

void tde_sql_add_key(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  list_function(ctx, argc, argv, 1);
}

void tde_sql_remove_key(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  list_function(ctx, argc, argv, 0);
}

/* ---- tde_set_identity(name [, federated_client_id [, schema]]) ---- */

static tde_class edit_identity(void *ctx, tde_keydoc *doc, tde_status *st) {
  return tde_keydoc_set_identity(doc, ctx) ? tde_nomem(st) : TDE_OK;
}

/* The new identity must be let in before it is the only one that asks. */
static tde_class prove_identity(tde_change *c, const tde_keydoc_asker *who, tde_status *st) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class cls = dek ? TDE_OK : tde_nomem(st);

  if (cls == TDE_OK) {
    cls = tde_keydoc_unwrap_as(c->doc, c->inst, who, NULL, tde_keydoc_epoch(c->doc), c->info->uuid,
                               dek, st);
  }
  tde_secret_free(dek);
  return cls;
}

static int set_identity(void *ctx, tde_change *c, tde_status *st) {
  tde_keydoc_asker *who = ctx;
  tde_class cls;

  if (who->identity || who->federated_client_id) {
    const tde_cloud *cloud = tde_instance_cloud(c->inst);
    const char *name = who->identity ? who->identity : tde_instance_default_identity(c->inst);
    const tde_identity *id = tde_cloud_identity(cloud, name, st);
    if (!id) return tde_class_rc(st->code);
    who->identity = id->name; /* one that is federated has a name */
  }
  cls = prove_identity(c, who, st);
  if (cls) return tde_class_rc(cls);
  return tde_change_commit(c, edit_identity, who, 0, 0, NULL, st);
}

void tde_sql_set_identity(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_keydoc_asker who = {.identity = tde_arg_text(argc, argv, 0),
                          .federated_client_id = tde_arg_text(argc, argv, 1)};
  tde_status st;
  int rc;

  if (((who.identity && !who.identity[0]) ||
       (who.federated_client_id && !who.federated_client_id[0])) &&
      bad_argument(ctx, "tde_set_identity: a name is empty", "NULL stands for none")) {
    return;
  }
  rc = tde_change_run(sqlite3_context_db_handle(ctx), tde_arg_text(argc, argv, 2), "set-identity",
                      set_identity, &who, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    tde_json *j = tde_json_object();
    int bad = tde_json_set_text(j, "identity", who.identity) |
              tde_json_set_text(j, "federated_client_id", who.federated_client_id);
    tde_result_json(ctx, j, bad);
  }
}

/* ---- tde_auto_rotation(on [, schema]) ---- */

static tde_class edit_off(void *ctx, tde_keydoc *doc, tde_status *st) {
  (void)ctx;
  return tde_keydoc_set_auto_rotation(doc, 0) ? tde_nomem(st) : TDE_OK;
}

static int switch_off(void *ctx, tde_change *c, tde_status *st) {
  return tde_change_commit(c, edit_off, ctx, 1, 0, NULL, st);
}

void tde_sql_auto_rotation(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  const char *schema = tde_arg_text(argc, argv, 1);
  sqlite3_int64 on = sqlite3_value_int64(argv[0]);
  tde_status st;
  tde_json *j;
  int rc;

  if ((sqlite3_value_numeric_type(argv[0]) != SQLITE_INTEGER || (on != 0 && on != 1)) &&
      bad_argument(ctx, "tde_auto_rotation: the argument is neither 0 nor 1", "give 0 or 1")) {
    return;
  }
  /* The first look is now: whoever switches it on sees that it works. */
  rc = on ? tde_protector_auto_rotation_on(db, schema, &st)
          : tde_change_run(db, schema, "auto-rotation-off", switch_off, NULL, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
    return;
  }
  j = tde_json_object();
  tde_result_json(ctx, j, tde_json_set_bool(j, "auto_rotation", (int)on));
}

/* ---- tde_revalidate([key_id [, schema]]) ---- */

/* A key that a header is to name, and the wrap of each epoch that it unwraps. */
typedef struct move {
  tde_key_info info;
  int n;
  uint32_t epochs[TDE_EPOCHS_MAX];
  size_t which[TDE_EPOCHS_MAX];
} move;

static tde_class edit_moved(void *ctx, tde_keydoc *doc, tde_status *st) {
  const move *m = ctx;
  int failed = 0;

  if (m->n == 0) return TDE_OK; /* the event alone: other processes see it */
  for (int i = 0; i < m->n; i++) {
    failed |= tde_keydoc_move_wrap(doc, m->epochs[i], m->which[i], &m->info);
  }
  failed |= tde_keydoc_use_key(doc, &m->info, (int64_t)time(NULL));
  return failed ? tde_nomem(st) : TDE_OK;
}

/* Does this very key version unwrap one of the basis's wraps to the DEK in use? */
static tde_class prove_epoch(tde_change *c, move *m, int i, uint8_t *dek[2], tde_status *st) {
  char full[TDE_KEY_ID_MAX];
  tde_keydoc_asker who;
  tde_class cls = tde_change_dek(c, m->epochs[i], dek[0], st);

  if (cls) return cls;
  tde_key_full_id(&m->info, full);
  tde_keydoc_asker_of(c->doc, &who);
  cls = tde_keydoc_unwrap_which(c->doc, c->inst, &who, full, m->epochs[i], c->info->uuid, dek[1],
                                &m->which[i], st);
  if (cls || tde_equal(dek[0], dek[1], TDE_KEY_BYTES)) return cls;
  return tde_fail(st, TDE_WRONG_KEY,
                  "name a key that wrapped it, or put it under this one with tde_set_protector()",
                  "the key %.300s unwraps something else than this database's DEK", full);
}

/* A header names a key only for what that key was seen to unwrap: since it was asked the
** database may have got another protector, or the key a new version. */
static int prove_move(tde_change *c, move *m, tde_status *st) {
  uint8_t *dek[2] = {tde_secret_alloc(TDE_KEY_BYTES), tde_secret_alloc(TDE_KEY_BYTES)};
  tde_class cls = dek[0] && dek[1] ? TDE_OK : tde_nomem(st);

  m->n = tde_keydoc_epochs(c->doc, m->epochs, TDE_EPOCHS_MAX);
  for (int i = 0; cls == TDE_OK && i < m->n; i++) cls = prove_epoch(c, m, i, dek, st);
  tde_secret_free(dek[0]);
  tde_secret_free(dek[1]);
  return tde_class_rc(cls);
}

/* Back online: the header says so to other processes, and names the key under
** which it is reached now. */
static int note_revalidation(void *ctx, tde_change *c, tde_status *st) {
  const char *key = ctx;
  move m = {.n = 0};
  int rc = SQLITE_OK;

  if (key) rc = look_at_key(c, key, &m.info, st);
  if (key && rc == SQLITE_OK) {
    c->subject = m.info;
    rc = prove_move(c, &m, st);
  }
  return rc ? rc : tde_change_commit(c, edit_moved, &m, 0, key != NULL, NULL, st);
}

static int is_empty_key(const char *key, tde_status *st) {
  if (!key || key[0]) return 0;
  tde_fail(st, TDE_MISUSE, "name a key, or none for the header's", "the key id is empty");
  return 1;
}

/* Would a connection of its own get at the very file of this one? */
static int may_go_beside(tde_file *f, tde_status *st) {
  const char *path = tde_file_path(f);

  if (tde_file_is_locked(f)) {
    tde_fail(st, TDE_MISUSE,
             "COMMIT or ROLLBACK first; with locking_mode=EXCLUSIVE, SELECT tde_revalidate()",
             "%s: this connection has it locked", path);
    return SQLITE_MISUSE;
  }
  return tde_change_of_name(f, path, st);
}

/* A connection that asks as f does, or for this key. NULL: it could not be opened. */
static sqlite3 *open_beside(tde_file *f, const char *key) {
  tde_key_params own, way;
  sqlite3 *db;

  if (!tde_file_copy_params(f, &own)) return NULL;
  way = own;
  if (key) {
    way.as_key = (char *)key;
    way.as_identity = way.as_federated = NULL; /* as tde_file_revalidate has asked */
  }
  db = tde_change_open(&way);
  tde_key_params_clear(&own);
  return db;
}

static int note_beside(tde_file *f, const char *key, tde_status *st) {
  sqlite3 *db = open_beside(f, key);
  int rc;

  if (!db) {
    tde_fail(st, TDE_IO, "try again; SQLite's error log has the cause",
             "%s: has its key, but could not be opened to note that", tde_file_path(f));
    return SQLITE_CANTOPEN;
  }
  rc = tde_change_run(db, NULL, "revalidate", note_revalidation, (void *)key, st);
  (void)sqlite3_close(db);
  return rc;
}

int tde_revalidate_beside(tde_file *f, const char *key, tde_status *st) {
  int rc = is_empty_key(key, st) ? SQLITE_MISUSE : SQLITE_OK;

  if (rc == SQLITE_OK && !tde_file_read_only(f)) rc = may_go_beside(f, st);
  if (rc == SQLITE_OK) rc = tde_file_revalidate(f, key, st);
  if (rc == SQLITE_OK && !tde_file_read_only(f)) rc = note_beside(f, key, st);
  return rc;
}

/* Who may not change the header hears so before the key is asked for. A read-only database has
** nothing to say. */
static int may_note(sqlite3 *db, const char *schema, tde_file *f, tde_status *st) {
  if (tde_file_read_only(f)) return SQLITE_OK;
  return tde_change_allowed(db, schema, f, tde_file_path(f), st);
}

void tde_sql_revalidate(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  const char *key = tde_arg_text(argc, argv, 0), *schema = tde_arg_text(argc, argv, 1);
  tde_status st;
  tde_file *f;
  tde_json *j;
  int rc = SQLITE_ERROR;

  tde_status_clear(&st);
  if (is_empty_key(key, &st)) {
    tde_result_status(ctx, SQLITE_MISUSE, &st);
    return;
  }
  if (key && bad_key_id(ctx, key)) return;
  f = tde_subject_file(db, schema, &st);
  if (f) rc = may_note(db, schema, f, &st);
  if (rc == SQLITE_OK) rc = tde_file_revalidate(f, key, &st);
  if (rc == SQLITE_OK && !tde_file_read_only(f)) {
    rc = tde_change_run(db, schema, "revalidate", note_revalidation, (void *)key, &st);
  }
  if (rc) {
    tde_result_status(ctx, rc, &st);
    return;
  }
  j = tde_json_object();
  tde_result_json(ctx, j, tde_json_set_text(j, "state", "Online"));
}
