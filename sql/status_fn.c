/*
** status_fn.c: the SQL function tde_status(), and the PRAGMAs; see status_fn.h.
*/
#include "status_fn.h"

#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "follow.h"
#include "lifecycle.h"
#include "result.h"
#include "subject.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

/* The schema that an optional argument names, "main" by default. */
static const char *schema_of(int argc, sqlite3_value **argv) {
  const char *name = argc > 0 ? (const char *)sqlite3_value_text(argv[0]) : NULL;
  return name ? name : "main";
}

static int no_such_schema(sqlite3_context *ctx, const char *schema) {
  tde_status st;

  if (tde_subject_is_schema(sqlite3_context_db_handle(ctx), schema)) return 0;
  tde_status_clear(&st);
  tde_fail(&st, TDE_MISUSE, "PRAGMA database_list names the schemas",
           "there is no schema named '%s' on this connection", schema);
  tde_result_status(ctx, SQLITE_ERROR, &st);
  return 1;
}

static int put_counters(tde_json *j, const tde_counters *c) {
  tde_json *o = tde_json_object();
  int bad = 0;

  bad |= tde_json_set_int(o, "units_sealed", (int64_t)c->units_sealed);
  bad |= tde_json_set_int(o, "units_opened", (int64_t)c->units_opened);
  bad |= tde_json_set_int(o, "units_rejected", (int64_t)c->units_rejected);
  bad |= tde_json_set_int(o, "lower_reads", (int64_t)c->lower_reads);
  bad |= tde_json_set_int(o, "lower_writes", (int64_t)c->lower_writes);
  bad |= tde_json_set_int(o, "lower_syncs", (int64_t)c->lower_syncs);
  return bad | tde_json_set_json(j, "counters", o);
}

static int put_slots(tde_json *j, const tde_file_info *info) {
  tde_json *list = tde_json_array();
  int bad = 0;

  for (int i = 0; i < 2; i++) {
    tde_json *o = tde_json_object();
    bad |= tde_json_set_bool(o, "valid", info->slot[i].valid);
    bad |= tde_json_set_int(o, "sequence", (int64_t)info->slot[i].sequence);
    bad |= tde_json_set_text(o, "found", info->slot[i].found);
    bad |= tde_json_append(list, o);
  }
  return bad | tde_json_set_json(j, "slots", list);
}

static int put_error(tde_json *j, const tde_status *st) {
  tde_json *o;
  int bad = 0;

  if (st->code == TDE_OK) return tde_json_set_text(j, "error", NULL);
  o = tde_json_object();
  bad |= tde_json_set_text(o, "class", tde_class_name(st->code));
  bad |= tde_json_set_text(o, "message", st->message);
  bad |= tde_json_set_text(o, "remedy", st->remedy);
  if (st->key_id[0]) bad |= tde_json_set_text(o, "key_id", st->key_id);
  if (st->http_status) bad |= tde_json_set_int(o, "http_status", st->http_status);
  if (st->service_code[0]) bad |= tde_json_set_text(o, "service_code", st->service_code);
  if (st->request_id[0]) bad |= tde_json_set_text(o, "request_id", st->request_id);
  return bad | tde_json_set_json(j, "error", o);
}

/* How the key stands: what status calls the state of a database whose file is
** sound. */
static const char *state_of(tde_file *f, const tde_file_info *info, tde_key_report *r) {
  if ((info->state != TDE_STATE_ONLINE && info->state != TDE_STATE_INACCESSIBLE) ||
      !tde_file_report(f, r)) {
    return tde_state_name(info->state);
  }
  if (!tde_access_is_live(r->access) && r->checking) return "Revalidating";
  return r->name;
}

static int put_lease(tde_json *j, const tde_key_report *r) {
  tde_json *o = tde_json_object();
  int bad = 0;

  bad |= tde_view_set_time(o, "since", r->since) | tde_view_set_time(o, "checked", r->checked_at) |
         tde_view_set_time(o, "next_check", r->next_check) |
         tde_view_set_time(o, "until", r->until);
  bad |= tde_json_set_text(o, "last_check", tde_class_name(r->last.code));
  bad |= tde_json_set_bool(o, "needs_revalidation", r->access == TDE_ACCESS_CLOSED);
  return bad | tde_json_set_json(j, "key", o);
}

/* The database that this one was made from, when it was. */
static int put_origin(tde_json *j, const tde_json *root) {
  const tde_json *origin = tde_json_get(root, "origin");
  tde_json *o;
  int bad;

  if (!origin) return tde_json_set_text(j, "origin", NULL);
  o = tde_json_object();
  bad = tde_json_set_text(o, "kind", tde_json_get_text(origin, "kind")) |
        tde_json_set_text(o, "uuid", tde_json_get_text(origin, "uuid")) |
        tde_view_set_time(o, "time", tde_json_get_int(origin, "time", 0));
  return bad | tde_json_set_json(j, "origin", o);
}

/* From which instance the database inherits, and why it does not follow the one that it is open
** under, where they differ. */
static int put_inheritance(tde_json *j, const tde_file_info *info, const tde_instance *inst) {
  const char *from = info->facts.inherits_from;
  char target[TDE_KEY_ID_MAX], why[sizeof(((tde_status *)0)->message) + 400] = "";
  tde_status st;

  if (inst && tde_follow_of(&info->facts, inst, target) == TDE_FOLLOW_OTHER) {
    tde_status_clear(&st);
    tde_follow_why_not(&info->facts, inst, &st);
    (void)sqlite3_snprintf(sizeof(why), why, "%s; %s", st.message, st.remedy);
  }
  return tde_json_set_text(j, "inherits_from", from[0] ? from : NULL) |
         tde_json_set_text(j, "not_followed", why[0] ? why : NULL);
}

/* What the key document says beside keys. */
static int put_document(tde_json *j, tde_file *f, const tde_file_info *info) {
  tde_keydoc *doc = NULL;
  const tde_json *root, *rotation, *regen;
  tde_json *o;
  const tde_instance *inst = NULL;
  int64_t checked;
  tde_class c = tde_subject_keydoc(f, &doc, NULL);
  int bad = 0;

  if (c) return c == TDE_NOMEM; /* one that can not be read says nothing */
  root = tde_keydoc_json(doc);
  rotation = tde_json_get(root, "auto_rotation");
  o = tde_json_object();
  bad |= tde_json_set_bool(o, "enabled", tde_keydoc_auto_rotation(doc, &checked)) |
         tde_view_set_time(o, "last_check", checked) |
         tde_view_set_time(o, "last_rotation", tde_json_get_int(rotation, "rotated", 0));
  if (tde_instance_open(tde_file_instance(f), 0, &inst, NULL) != TDE_OK) inst = NULL;
  if (info->facts.auto_rotation && inst) {
    bad |= tde_view_set_time(o, "next_check", checked + tde_instance_policy(inst)->rotation_s);
  }
  bad |= tde_json_set_text(o, "error", tde_json_get_text(rotation, "error"));
  bad |= tde_json_set_json(j, "auto_rotation", o);
  regen = tde_json_get(root, "regeneration");
  if (regen) bad |= tde_json_set_int(j, "regeneration_percent", tde_view_percent(regen));
  bad |= tde_json_set_bool(j, "secondary", tde_keydoc_is_secondary(doc)) | put_origin(j, root) |
         put_inheritance(j, info, inst);
  tde_keydoc_free(doc);
  return bad;
}

/* Whose file it is, also where nothing could verify that. */
static int put_keys(tde_json *j, const tde_file_info *info) {
  const char *who = info->facts.identity, *federated = info->facts.federated_client_id;
  char uuid[40], thumb[2 * TDE_THUMB_SHOWN + 1];
  int bad = 0;

  tde_uuid_text(info->uuid, uuid);
  tde_hex(info->facts.thumbprint, TDE_THUMB_SHOWN, thumb);
  bad |= tde_json_set_text(j, "uuid", uuid);
  bad |= tde_json_set_text(j, "protector", info->facts.key_id);
  bad |= tde_json_set_text(j, "protector_version", info->facts.key_version);
  bad |= tde_json_set_text(j, "thumbprint", thumb);
  bad |= tde_json_set_text(j, "mode", info->facts.mode);
  bad |= tde_json_set_int(j, "epoch", info->facts.epoch);
  bad |= tde_json_set_text(j, "identity", who[0] ? who : NULL);
  bad |= tde_json_set_text(j, "federated_client_id", federated[0] ? federated : NULL);
  return bad;
}

/* A database that is no file of this VFS. One that has no file (temporary, or in memory) is
** sealed where SQLite writes of it all the same, if the VFS is this one; that of the schema
** temp is the main database's. */
static int put_other(tde_json *j, sqlite3 *db, const char *schema) {
  const char *name = sqlite3_db_filename(db, schema);
  sqlite3_vfs *vfs = NULL;
  int sealed;

  if (name && name[0]) {
    return tde_json_set_text(j, "state", "NotEncrypted") |
           tde_json_set_text(j, "message", "opened through another VFS than tde");
  }
  (void)sqlite3_file_control(db, name ? schema : "main", SQLITE_FCNTL_VFS_POINTER, &vfs);
  sealed = vfs && strcmp(vfs->zName, TDE_VFS_NAME) == 0;
  return tde_json_set_text(j, "state", sealed ? "Temporary" : "NotEncrypted") |
         tde_json_set_text(j, "message",
                           sealed ? "has no file of its own; what SQLite writes of it is sealed "
                                    "under a key that is never stored"
                                  : "has no file of its own; what SQLite writes of it is plain");
}

static int put_file(tde_json *j, tde_file *f) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_key_report report;
  int bad = 0;

  if (!info) return 1;
  memset(&report, 0, sizeof(report));
  tde_file_info_get(f, TDE_REFRESH_KEEP, info);
  bad |= tde_json_set_text(j, "state", state_of(f, info, &report));
  bad |= tde_json_set_text(j, "path", info->path);
  bad |= tde_json_set_text(j, "lower_vfs", info->lower_vfs);
  if (info->facts.key_id[0]) bad |= put_keys(j, info);
  if (report.checked_at || report.since) bad |= put_lease(j, &report);
  bad |= put_document(j, f, info);
  bad |= tde_json_set_int(j, "format", info->format_version);
  bad |= tde_json_set_int(j, "sequence", (int64_t)info->sequence);
  bad |= tde_json_set_int(j, "unit_size", info->unit_size);
  bad |= put_slots(j, info);
  bad |= put_counters(j, &info->counters);
  bad |= put_error(j, &info->last);
  bad |= tde_json_set_json(j, "last_answer", tde_events_last_answer(info->uuid));
  sqlite3_free(info);
  return bad;
}

void tde_sql_status(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3 *db = sqlite3_context_db_handle(ctx);
  const char *schema = schema_of(argc, argv);
  tde_json *j;
  tde_file *f;
  int bad;

  if (no_such_schema(ctx, schema)) return;
  j = tde_json_object();
  f = tde_subject_find(db, schema);
  bad = f ? put_file(j, f) : put_other(j, db, schema);
  bad |= tde_json_set_bool(j, "memory_locked", tde_secret_locked());
  tde_result_json(ctx, j, bad);
}

/* ---- the PRAGMAs ---- */

/* A PRAGMA's answer. */
static int pragma_json(tde_json *j, int failed, char **out) {
  size_t n;
  char *text = failed ? NULL : tde_json_text(j, &n);

  tde_json_free(j);
  if (text) *out = sqlite3_mprintf("%s", text);
  free(text);
  return *out ? SQLITE_OK : SQLITE_NOMEM;
}

static int pragma_status(tde_file *f, const char *value, char **out) {
  tde_json *j;

  if (value) {
    *out = sqlite3_mprintf("PRAGMA tde_status takes no value; use PRAGMA SCHEMA.tde_status");
    return *out ? SQLITE_MISUSE : SQLITE_NOMEM;
  }
  j = tde_json_object();
  return pragma_json(j, put_file(j, f) | tde_json_set_bool(j, "memory_locked", tde_secret_locked()),
                     out);
}

static int pragma_revalidate(tde_file *f, const char *key, char **out) {
  tde_status st;
  tde_json *j;
  int rc;

  tde_status_clear(&st);
  rc = tde_revalidate_beside(f, key, &st);
  if (rc) {
    *out = rc == SQLITE_NOMEM ? NULL : tde_result_text(rc, &st);
    return *out ? rc : SQLITE_NOMEM;
  }
  j = tde_json_object();
  return pragma_json(j, tde_json_set_text(j, "state", "Online"), out);
}

int tde_sql_pragma(tde_file *f, const char *name, const char *value, char **out) {
  if (sqlite3_stricmp(name, "tde_status") == 0) return pragma_status(f, value, out);
  if (sqlite3_stricmp(name, "tde_revalidate") == 0) return pragma_revalidate(f, value, out);
  if (sqlite3_strnicmp(name, "tde_", 4) != 0) return SQLITE_NOTFOUND;
  /* SQLite passes over what nobody knows: who meant to change a key would believe it changed. */
  *out = sqlite3_mprintf("there is no PRAGMA %.60s; there are tde_status and tde_revalidate, all "
                         "else is a function: SELECT tde_...()",
                         name);
  return *out ? SQLITE_MISUSE : SQLITE_NOMEM;
}
