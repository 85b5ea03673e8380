/*
** options.c: the options of a call; see options.h. What is not understood is an
** error: an option that was passed over could lose a key.
*/
#include "options.h"

#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../vfs/tdevfs.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

static int bad(tde_status *st, const char *name, const char *what, const char *remedy) {
  tde_fail(st, TDE_MISUSE, remedy, "the option \"%.60s\" %s", name, what);
  return SQLITE_MISUSE;
}

int tde_time_of_text(sqlite3 *db, const char *text, int64_t *t) {
  sqlite3_stmt *stmt = NULL;

  *t = 0;
  if (text[0] && strspn(text, "0123456789") == strlen(text)) {
    *t = strtoll(text, NULL, 10);
    return 1;
  }
  if (sqlite3_prepare_v2(db, "SELECT CAST(strftime('%s', ?1) AS INTEGER)", -1, &stmt, NULL) ==
      SQLITE_OK) {
    (void)sqlite3_bind_text(stmt, 1, text, -1, SQLITE_TRANSIENT);
    if (sqlite3_step(stmt) == SQLITE_ROW) *t = sqlite3_column_int64(stmt, 0);
  }
  (void)sqlite3_finalize(stmt);
  return *t > 0;
}

/* ... or from a number; 0: none of these. */
static int64_t time_of(sqlite3 *db, const tde_json *json, const char *name) {
  const char *text = tde_json_get_text(json, name);
  int64_t t = tde_json_get_int(json, name, 0);

  if (text) (void)tde_time_of_text(db, text, &t);
  return t;
}

static int are_texts(const tde_json *v) {
  for (size_t i = 0; i < tde_json_count(v); i++) {
    if (!tde_json_text_at(v, i)) return 0;
  }
  return tde_json_is_array(v);
}

static int read_member(tde_options *o, sqlite3 *db, const char *name, tde_status *st) {
  const struct {
    const char *name;
    const char **to;
  } texts[] = {{"schema", &o->schema},
               {"instance", &o->instance},
               {"protector", &o->protector},
               {"identity", &o->identity},
               {"federated_client_id", &o->federated_client_id},
               {"uuid", &o->uuid}};
  const tde_json *v = tde_json_get(o->json, name);

  for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
    if (strcmp(name, texts[i].name) != 0) continue;
    if (tde_json_is_null(v)) return SQLITE_OK;
    if (!tde_json_is_text(v)) return bad(st, name, "is no text", "give it as text");
    if (!tde_json_get_text(o->json, name)[0]) return bad(st, name, "is empty", "leave it out");
    *texts[i].to = tde_json_get_text(o->json, name);
    if (texts[i].to != &o->protector || tde_subject_key_id(o->protector, st)) return SQLITE_OK;
    return SQLITE_MISUSE;
  }
  if (strcmp(name, "keys") == 0) {
    if (!are_texts(v)) {
      return bad(st, name, "is no array of key ids", "give json_array('KEY_ID', ...)");
    }
    o->keys = v;
    return SQLITE_OK;
  }
  o->at = time_of(db, o->json, name); /* "at" */
  if (o->at > 0) return SQLITE_OK;
  return bad(st, name, "is no time", "give a Unix time or '2026-01-31 12:00'");
}

static int no_object(tde_status *st, const char *allowed) {
  char names[sizeof(st->remedy)];

  tde_json_name_list("give a JSON object; its members may be: ", allowed, names, sizeof(names));
  tde_fail(st, TDE_MISUSE, names, "the options are no JSON object");
  return SQLITE_MISUSE;
}

static int no_option(tde_status *st, const char *name, const char *allowed) {
  char names[sizeof(st->remedy)];

  tde_json_name_list("the options are: ", allowed, names, sizeof(names));
  tde_fail(st, TDE_MISUSE, names, "there is no option \"%.60s\" here", name ? name : "");
  return SQLITE_MISUSE;
}

int tde_options_read(tde_options *o, sqlite3 *db, const char *text, const char *allowed,
                     tde_status *st) {
  tde_class c;
  int rc = SQLITE_OK;

  memset(o, 0, sizeof(*o));
  if (!text) return SQLITE_OK;
  c = tde_json_parse(text, strlen(text), "options", &o->json, st);
  if (c == TDE_NOMEM) return SQLITE_NOMEM;
  if (c || !tde_json_is_object(o->json)) return no_object(st, allowed);
  for (size_t i = 0; i < tde_json_members(o->json) && rc == SQLITE_OK; i++) {
    const char *name = tde_json_member_name(o->json, i);
    if (!name || !tde_is_one_of(name, allowed)) return no_option(st, name, allowed);
    rc = read_member(o, db, name, st);
  }
  return rc;
}

void tde_options_end(tde_options *o) {
  tde_json_free(o->json);
  memset(o, 0, sizeof(*o));
}

int tde_options_identity(const tde_options *o, const tde_instance *inst, const char *who,
                         tde_status *st) {
  if (!o->identity && !o->federated_client_id) return SQLITE_OK;
  if (!who) who = tde_instance_default_identity(inst);
  return tde_cloud_identity(tde_instance_cloud(inst), who, st) ? SQLITE_OK : tde_class_rc(st->code);
}

tde_keydoc_asker tde_options_asker(const tde_options *o, const tde_keydoc *doc,
                                   const tde_instance *inst) {
  tde_keydoc_asker who;
  tde_key_info protector;

  tde_keydoc_asker_of(doc, &who);
  if (who.identity && !tde_cloud_identity(tde_instance_cloud(inst), who.identity, NULL)) {
    memset(&who, 0, sizeof(who));
  }
  if (o->identity || o->federated_client_id) who.federated_client_id = o->federated_client_id;
  if (o->identity) who.identity = o->identity;
  if (!who.identity && who.federated_client_id &&
      tde_keydoc_protector(doc, &protector, NULL) == TDE_OK) {
    who.identity = tde_instance_asker(inst, o->protector ? o->protector : protector.base_id);
  }
  return who;
}
