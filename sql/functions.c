/*
** functions.c: the table of SQL functions, the small ones, and what a new connection gets of them.
**
** Every function reports failure as an SQL error whose message names the cause
** and the next step. Functions that change files or the process are
** SQLITE_DIRECTONLY: a hostile schema can not call them.
*/
#include "functions.h"

#include <string.h>

#include "../ext/base/crypto.h"
#include "../keyprovider/http.h"
#include "../keyprovider/json.h"
#include "../vfs/tdevfs.h"
#include "backup.h"
#include "convert.h"
#include "instance_fn.h"
#include "lifecycle.h"
#include "restore.h"
#include "result.h"
#include "retire.h"
#include "rotate_dek.h"
#include "secondary.h"
#include "status_fn.h"
#include "subject.h"
#include "verify_fn.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

/* ---- tde_version() ---- */

static void fn_version(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_json *j = tde_json_object();
  int bad = 0;

  (void)argc;
  (void)argv;
  bad |= tde_json_set_text(j, "version", TDE_VERSION);
  bad |= tde_json_set_int(j, "format", 1);
  bad |= tde_json_set_text(j, "cipher", "XAES-256-GCM");
  bad |= tde_json_set_text(j, "engine", tde_crypto_engine());
  bad |= tde_json_set_text(j, "sqlite", sqlite3_libversion());
  tde_result_json(ctx, j, bad);
}

/* ---- tde_default([on]) ---- */

static void fn_default(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  sqlite3_int64 on = argc > 0 ? sqlite3_value_int64(argv[0]) : 1;
  tde_status st;
  int rc;

  /* What is misspelt must not switch it off: the next database would be plain. */
  if (argc > 0 && (sqlite3_value_numeric_type(argv[0]) != SQLITE_INTEGER || (on != 0 && on != 1))) {
    tde_status_clear(&st);
    tde_fail(&st, TDE_MISUSE, "give 0 or 1", "tde_default: the argument is neither 0 nor 1");
    tde_result_status(ctx, SQLITE_MISUSE, &st);
    return;
  }
  rc = tde_vfs_make_default((int)on);
  if (rc) {
    sqlite3_result_error_code(ctx, rc);
  } else { /* the default now, which need not be the VFS below */
    sqlite3_result_text(ctx, sqlite3_vfs_find(NULL)->zName, -1, SQLITE_TRANSIENT);
  }
}

/* ---- the table ---- */

typedef void (*sql_function)(sqlite3_context *, int, sqlite3_value **);

/* One function with all its numbers of arguments: each that is registered costs every
** new connection some 2,000 instructions, and opening a database is to be cheap. */
static const struct sql_function_row {
  const char *name;
  int least, most; /* arguments */
  int flags;
  sql_function call;
  int asks; /* a key service, for itself */
} functions[] = {
    {"tde_version", 0, 0, SQLITE_INNOCUOUS, fn_version, 0},
    {"tde_status", 0, 1, SQLITE_DIRECTONLY, tde_sql_status, 0},
    {"tde_verify", 0, 1, SQLITE_DIRECTONLY, tde_sql_verify, 0},
    {"tde_encrypt", 1, 2, SQLITE_DIRECTONLY, tde_sql_encrypt, 1},
    {"tde_decrypt", 2, 2, SQLITE_DIRECTONLY, tde_sql_decrypt, 0},
    {"tde_default", 0, 1, SQLITE_DIRECTONLY, fn_default, 0},
    {"tde_set_protector", 1, 2, SQLITE_DIRECTONLY, tde_sql_set_protector, 1},
    {"tde_revert", 0, 1, SQLITE_DIRECTONLY, tde_sql_revert, 1},
    {"tde_add_key", 1, 2, SQLITE_DIRECTONLY, tde_sql_add_key, 1},
    {"tde_remove_key", 1, 2, SQLITE_DIRECTONLY, tde_sql_remove_key, 0},
    {"tde_set_identity", 1, 3, SQLITE_DIRECTONLY, tde_sql_set_identity, 1},
    {"tde_auto_rotation", 1, 2, SQLITE_DIRECTONLY, tde_sql_auto_rotation, 1},
    {"tde_revalidate", 0, 2, SQLITE_DIRECTONLY, tde_sql_revalidate, 1},
    {"tde_rotate_dek", 0, 1, SQLITE_DIRECTONLY, tde_sql_rotate_dek, 1},
    {"tde_backup", 1, 2, SQLITE_DIRECTONLY, tde_sql_backup, 0},
    {"tde_copy", 1, 2, SQLITE_DIRECTONLY, tde_sql_copy, 1},
    {"tde_create_secondary", 1, 2, SQLITE_DIRECTONLY, tde_sql_create_secondary, 1},
    {"tde_sync_secondary", 1, 2, SQLITE_DIRECTONLY, tde_sql_sync_secondary, 1},
    {"tde_restore_check", 1, 2, SQLITE_DIRECTONLY, tde_sql_restore_check, 1},
    {"tde_restore", 2, 3, SQLITE_DIRECTONLY, tde_sql_restore, 1},
    {"tde_key_safe_to_retire", 1, 2, SQLITE_DIRECTONLY, tde_sql_key_safe_to_retire, 1},
    {"tde_instance", 0, 1, SQLITE_DIRECTONLY, tde_sql_instance, 0},
    {"tde_instance_set_protector", 1, 3, SQLITE_DIRECTONLY, tde_sql_instance_set_protector, 1},
    {"tde_instance_add_key", 1, 3, SQLITE_DIRECTONLY, tde_sql_instance_add_key, 1},
    {"tde_instance_remove_key", 1, 2, SQLITE_DIRECTONLY, tde_sql_instance_remove_key, 0},
    {"tde_instance_new_key", 1, 2, SQLITE_DIRECTONLY, tde_sql_instance_new_key, 0},
    {"tde_instance_set_policy", 2, 3, SQLITE_DIRECTONLY, tde_sql_instance_set_policy, 0},
    {"tde_instance_set_identity", 2, 3, SQLITE_DIRECTONLY, tde_sql_instance_set_identity, 0},
    {"tde_instance_set_audit", 1, 2, SQLITE_DIRECTONLY, tde_sql_instance_set_audit, 0},
};

/* Who calls a function may be waiting for a key service, and interrupt that. */
typedef struct caller {
  sqlite3_stmt *probe; /* a statement that says whether there was an interrupt: see progress.h */
  int gave_up;
} caller;

static int gives_up(void *arg) {
  caller *c = arg;

  if (!c->gave_up && c->probe) {
    (void)sqlite3_step(c->probe);
    c->gave_up = sqlite3_reset(c->probe) == SQLITE_INTERRUPT;
  }
  return c->gave_up;
}

/* The probe is made before: while the key service is asked, a lock of the database may be held. */
static void call(const struct sql_function_row *f, sqlite3_context *ctx, int argc,
                 sqlite3_value **argv) {
  caller c = {NULL, 0};
  tde_waiter before, w = {gives_up, &c};

  (void)sqlite3_prepare_v2(sqlite3_context_db_handle(ctx), "SELECT 1", -1, &c.probe, NULL);
  before = tde_http_waits(w);
  f->call(ctx, argc, argv);
  (void)tde_http_waits(before);
  (void)sqlite3_finalize(c.probe);
  /* Also where the function has an answer, as that a key is out of reach: it was not waited for. */
  if (c.gave_up) {
    sqlite3_result_error(ctx, "interrupted: a key service was not waited for; try again", -1);
    sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
  }
}

static void dispatch(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const struct sql_function_row *f = sqlite3_user_data(ctx);
  tde_status st;
  int rc;

  if (argc < f->least || argc > f->most) {
    tde_result_arity(ctx, f->name);
    return;
  }
  tde_status_clear(&st);
  rc = tde_args_check(argc, argv, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else if (f->asks) {
    call(f, ctx, argc, argv);
  } else {
    f->call(ctx, argc, argv);
  }
}

int tde_sql_register(sqlite3 *db, char **error) {
  int rc = SQLITE_OK;

  for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]) && rc == SQLITE_OK; i++) {
    rc = sqlite3_create_function_v2(db, functions[i].name, -1, SQLITE_UTF8 | functions[i].flags,
                                    (void *)&functions[i], dispatch, NULL, NULL, NULL);
  }
  if (rc == SQLITE_OK) rc = tde_views_register(db);
  if (rc && error) {
    *error = sqlite3_mprintf("tde: could not register the SQL functions: %s", sqlite3_errmsg(db));
  }
  return rc;
}

/* To prepare a function that is not there would be an error in the host's log. A library without
** the list can not say. */
static int may_have_version(sqlite3 *db) {
  static const char sql[] = "SELECT 1 FROM pragma_function_list WHERE name = 'tde_version'";
  sqlite3_stmt *stmt = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

  if (rc == SQLITE_OK) rc = sqlite3_step(stmt);
  (void)sqlite3_finalize(stmt);
  return rc != SQLITE_DONE;
}

int tde_sql_is_registered(sqlite3 *db) {
  sqlite3_stmt *stmt = NULL;
  int is = 0;

  if (may_have_version(db) &&
      sqlite3_prepare_v2(db, "SELECT tde_version()", -1, &stmt, NULL) == SQLITE_OK &&
      sqlite3_step(stmt) == SQLITE_ROW) {
    const char *text = (const char *)sqlite3_column_text(stmt, 0);
    is = text && strstr(text, "\"version\":\"" TDE_VERSION "\"") != NULL;
  }
  (void)sqlite3_finalize(stmt);
  return is;
}

/* A parameter that says that the file is to be encrypted. */
static int is_meant(const char *key, const char *value) {
  if (sqlite3_stricmp(key, "vfs") == 0) return sqlite3_stricmp(value, TDE_VFS_NAME) == 0;
  return sqlite3_strnicmp(key, "tde", 3) == 0 && strcmp(key, "tde_functions") != 0;
}

/* What in the name of a file that is another VFS's says that it is to be encrypted; the caller
** frees it. NULL: nothing, or no memory. */
static char *meant_as(const char *name) {
  const char *key;

  if (strstr(name, "vfs=" TDE_VFS_NAME)) return sqlite3_mprintf("vfs=" TDE_VFS_NAME);
  for (int i = 0; (key = sqlite3_uri_key(name, i)) != NULL; i++) {
    const char *value = sqlite3_uri_parameter(name, key);
    if (value && (is_meant(key, value) || strstr(value, "vfs=" TDE_VFS_NAME))) {
      return sqlite3_mprintf("%s=%s", key, value);
    }
  }
  return NULL;
}

static _Thread_local int plain_is_meant;

int tde_sql_open_plain(const char *name, sqlite3 **db, int flags, const char *vfs) {
  int rc;

  plain_is_meant = 1;
  rc = sqlite3_open_v2(name, db, flags, vfs);
  plain_is_meant = 0;
  return rc;
}

/* A database that would be plain because of how it was named is refused: a program that has the
** extension, and names one of its parameters, expects it to be encrypted. */
static int refuse_mistaken(const char *name, char **error) {
  char *what = plain_is_meant ? NULL : meant_as(name);

  if (!what) return SQLITE_OK;
  if (error) {
    *error = sqlite3_mprintf(
        "tde: %s has %s in its name, and would not be encrypted: write file:PATH?vfs=tde&..., with "
        "URIs switched on, or make tde the default VFS (tde_default)",
        name, what);
  }
  sqlite3_free(what);
  return SQLITE_ERROR;
}

static int is_out_of_memory(int rc) {
  return rc == SQLITE_NOMEM || rc == SQLITE_IOERR_NOMEM;
}

/* The VFS refused to open the main database. */
static int is_refused(sqlite3 *db, char **error) {
  const tde_status *why = NULL;
  int rc = sqlite3_file_control(db, "main", TDE_FCNTL_REFUSAL, &why);

  if (!why) return is_out_of_memory(rc) ? SQLITE_NOMEM : SQLITE_OK;
  if (error) {
    char *text = tde_result_text(rc, why);
    *error = text ? sqlite3_mprintf("tde: %s", text) : NULL;
    sqlite3_free(text);
  }
  return rc;
}

int tde_sql_on_open(sqlite3 *db, char **error) {
  const char *name = sqlite3_db_filename(db, "main"), *v = NULL;
  tde_file *f = NULL;
  int rc;

  if (name && name[0]) {
    rc = sqlite3_file_control(db, "main", TDE_FCNTL_FILE, &f);
    if (is_out_of_memory(rc)) return SQLITE_NOMEM; /* whose file it is was not told */
    rc = f ? SQLITE_OK : is_refused(db, error);
    if (rc == SQLITE_OK && !f) rc = refuse_mistaken(name, error);
    if (rc) return rc;
    v = sqlite3_uri_parameter(name, "tde_functions");
  }
  if (v && strcmp(v, "off") == 0) return SQLITE_OK;
  if (v && strcmp(v, "on") != 0) {
    if (error) *error = sqlite3_mprintf("tde_functions=%s: use tde_functions=on or off", v);
    return SQLITE_ERROR;
  }
  return tde_sql_register(db, error);
}
