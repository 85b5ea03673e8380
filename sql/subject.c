/*
** subject.c: which database or instance a call is about; see subject.h.
*/
#include "subject.h"

#include <stdlib.h>
#include <string.h>

#include "result.h"

SQLITE_EXTENSION_INIT3

tde_file *tde_subject_find(sqlite3 *db, const char *schema) {
  tde_file *f = NULL;

  return sqlite3_file_control(db, schema, TDE_FCNTL_FILE, &f) == SQLITE_OK ? f : NULL;
}

tde_class tde_subject_keydoc(tde_file *f, tde_keydoc **doc, tde_status *st) {
  size_t n = 0;
  char *text = tde_file_keydoc(f, &n);
  tde_class c = text ? tde_keydoc_parse(text, n, doc, st) : n ? tde_nomem(st) : TDE_INTERNAL;

  free(text);
  return c;
}

int tde_subject_is_schema(sqlite3 *db, const char *name) {
  return sqlite3_db_filename(db, name) || sqlite3_stricmp(name, "temp") == 0;
}

tde_file *tde_subject_file(sqlite3 *db, const char *schema, tde_status *st) {
  const char *name;
  tde_file *f;

  if (!schema) schema = "main";
  f = tde_subject_find(db, schema);
  if (f) return f;
  name = sqlite3_db_filename(db, schema);
  if (!tde_subject_is_schema(db, schema)) {
    tde_fail(st, TDE_MISUSE, "PRAGMA database_list names the schemas",
             "there is no schema named '%s' on this connection", schema);
  } else if (!name || !name[0]) {
    tde_fail(st, TDE_MISUSE, "name a schema whose database is a file",
             "schema '%s' has no file of its own: it is temporary, or in memory", schema);
  } else {
    tde_fail(st, TDE_NOT_ENCRYPTED,
             "open it with vfs=tde; a database in plain becomes an encrypted one by tde_encrypt()",
             "schema '%s' is opened through another VFS than tde", schema);
  }
  return NULL;
}

int tde_args_check(int argc, sqlite3_value **argv, tde_status *st) {
  for (int i = 0; i < argc; i++) {
    int type = sqlite3_value_type(argv[i]);
    const char *text;
    if (type != SQLITE_TEXT && type != SQLITE_BLOB) continue;
    text = (const char *)sqlite3_value_text(argv[i]);
    if (!text && type == SQLITE_TEXT) { /* no memory to make UTF-8 of it */
      tde_nomem(st);
      return SQLITE_NOMEM;
    }
    if (!text || strlen(text) == (size_t)sqlite3_value_bytes(argv[i])) continue;
    tde_fail(st, TDE_MISUSE, "give it without", "argument %d holds a NUL byte", i + 1);
    return SQLITE_MISUSE;
  }
  return SQLITE_OK;
}

const char *tde_arg_text(int argc, sqlite3_value **argv, int i) {
  return i < argc ? (const char *)sqlite3_value_text(argv[i]) : NULL;
}

const char *tde_arg_needed(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i,
                           const char *what) {
  const char *text = tde_arg_text(argc, argv, i);
  tde_status st;

  if (text && text[0]) return text;
  tde_status_clear(&st);
  tde_fail(&st, TDE_MISUSE, "give it as text", "%s is %s", what, text ? "empty" : "NULL");
  tde_result_status(ctx, SQLITE_MISUSE, &st);
  return NULL;
}

int tde_is_thumbprint(const char *key) {
  size_t n = strlen(key);

  return n >= 2 * TDE_THUMB_SHOWN && n <= 2 * TDE_THUMB_BYTES &&
         strspn(key, "0123456789abcdefABCDEF") == n;
}

int tde_subject_key_id(const char *key, tde_status *st) {
  int remote;

  /* This word is no key's id, but says which key: who takes it or not tells by itself. */
  if (strcmp(key, TDE_SERVICE_MANAGED) == 0 || tde_key_id_parse(key, &remote, st) == TDE_OK)
    return 1;
  st->code = TDE_MISUSE;
  return 0;
}

int tde_subject_key(const char *key, tde_status *st) {
  char base[TDE_KEY_ID_MAX], version[TDE_KEY_VERSION_MAX];
  const tde_provider *p;

  if (tde_is_thumbprint(key)) return 1;
  p = tde_provider_find(key, st);
  return p && p->parse_id(key, base, version, st) == TDE_OK;
}

int tde_is_uri(const char *path, tde_status *st) {
  if (strncmp(path, "file:", 5) != 0) return 0;
  tde_fail(st, TDE_MISUSE, "give the path; ./file:... is a file of such a name",
           "%.200s is a URI, which is not taken here", path);
  return 1;
}

const char *tde_subject_instance(sqlite3 *db, int argc, sqlite3_value **argv, int i) {
  const char *named = tde_arg_text(argc, argv, i);
  tde_file *f = named ? NULL : tde_subject_find(db, "main");

  return f ? tde_file_instance(f) : named;
}

/* RFC 3986: everything but the unreserved characters and '/' is escaped. */
static void escape(sqlite3_str *out, const char *text) {
  static const char keep[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";

  for (; *text; text++) {
    if (strchr(keep, *text)) {
      sqlite3_str_appendchar(out, 1, *text);
    } else {
      sqlite3_str_appendf(out, "%%%02X", (unsigned char)*text);
    }
  }
}

char *tde_uri_of(const char *path, const char *params) {
  sqlite3_str *out = sqlite3_str_new(NULL);

  /* An authority, if an empty one: a path may begin with two slashes. */
  sqlite3_str_appendall(out, path[0] == '/' ? "file://" : "file:");
  escape(out, path);
  sqlite3_str_appendall(out, params);
  return sqlite3_str_finish(out);
}

char *tde_uri_private(const char *uri) {
  int n = (int)strcspn(uri, "#"); /* a fragment ends it, and what stands last counts */

  return sqlite3_mprintf("%.*s%ccache=private", n, uri, memchr(uri, '?', (size_t)n) ? '&' : '?');
}

char *tde_uri_value(const char *text) {
  sqlite3_str *out = sqlite3_str_new(NULL);

  escape(out, text);
  if (!text[0]) { /* finishing an empty string gives NULL, which means no memory here */
    sqlite3_free(sqlite3_str_finish(out));
    return sqlite3_mprintf("");
  }
  return sqlite3_str_finish(out);
}

char *tde_uri_with(const char *path, const char *more, const tde_uri_param *params, size_t n) {
  char *query = sqlite3_mprintf("?x=y%s", more), *uri;

  for (size_t i = 0; i < n && query; i++) {
    char *value = params[i].value ? tde_uri_value(params[i].value) : NULL;
    if (value) {
      query = sqlite3_mprintf("%z&%s=%z", query, params[i].name, value);
    } else if (params[i].value) { /* without it, another key or identity would be taken */
      sqlite3_free(query);
      query = NULL;
    }
  }
  uri = query ? tde_uri_of(path, query) : NULL;
  sqlite3_free(query);
  return uri;
}
