/*
** instance_fn.c: the SQL functions that show and change the instance.
*/
#include "instance_fn.h"

#include <stdio.h>
#include <string.h>

#include "../keyprovider/instance_edit.h"
#include "../keyprovider/keydoc.h"
#include "../vfs/tdevfs.h"
#include "result.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

static void show(sqlite3_context *ctx, const tde_instance *inst) {
  tde_json *j = tde_instance_describe(inst);

  tde_result_json(ctx, j, j == NULL);
}

/* c: how a change ended, which is answered with the instance as it is now. Where only that cannot be
** read, the error must not pass for the change's. */
static void answer(sqlite3_context *ctx, const char *path, tde_class c, tde_status *st) {
  const tde_instance *inst = NULL;

  if (c == TDE_OK) {
    c = tde_instance_open(path, 0, &inst, st);
    if (c) tde_fail(st, c, st->remedy, "the change was made, but: %s", st->message);
  }
  if (c) {
    tde_result_status(ctx, tde_class_rc(c), st);
  } else {
    show(ctx, inst);
  }
}

static const char *instance_of(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i) {
  return tde_subject_instance(sqlite3_context_db_handle(ctx), argc, argv, i);
}

/* A directory that is named holds an instance, or was misspelt: only a new key (and a new
** database) makes one there. Nor is one made that cannot have the key (NULL: none is
** needed), of which a new one has only its own, or for what is no key's id. False: the error
** is the call's result. */
static int is_there(sqlite3_context *ctx, const char *path, int named, const char *key) {
  int old = named, remote = 1;
  const tde_instance *inst;
  tde_status st;
  tde_class c = TDE_OK;

  tde_status_clear(&st);
  if (path && !path[0]) { /* an unset variable, not the default instance */
    c = tde_fail(&st, TDE_MISUSE, "name it, or give NULL",
                 "the instance directory's path is empty");
  }
  if (c == TDE_OK && key && strcmp(key, TDE_SERVICE_MANAGED) != 0) {
    c = tde_key_id_parse(key, &remote, &st);
    if (c) c = st.code = TDE_MISUSE; /* the argument is no key's id */
    old |= !remote && strcmp(key, "local:" TDE_SMK_NAME) != 0;
  }
  if (c == TDE_OK && old) c = tde_instance_open(path, 0, &inst, &st);
  if (c == TDE_OK) return 1;
  if (c == TDE_MISSING) {
    (void)snprintf(st.remedy, sizeof(st.remedy), "%s",
                   "check the path; tde_instance_new_key() makes an instance with its first key");
  }
  answer(ctx, path, c, &st);
  return 0;
}

static int is_named(int argc, sqlite3_value **argv, int i) {
  return tde_arg_text(argc, argv, i) != NULL;
}

void tde_sql_instance(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 0);
  const tde_instance *inst;
  tde_status st;
  tde_class c;

  if (!is_there(ctx, path, is_named(argc, argv, 0), NULL)) return;
  tde_status_clear(&st);
  c = tde_instance_open(path, 0, &inst, &st);
  /* On a new machine it is the first thing that is asked. */
  if (c == TDE_MISSING) tde_also(&st, "otherwise the first encrypted database makes one");
  if (c) {
    tde_result_status(ctx, tde_class_rc(c), &st);
  } else {
    show(ctx, inst);
  }
}

void tde_sql_instance_set_protector(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 2);
  const char *key = tde_arg_needed(ctx, argc, argv, 0, "the key id");
  char full[TDE_KEY_ID_MAX];
  tde_status st;

  if (!key || !is_there(ctx, path, is_named(argc, argv, 2), key)) return;
  tde_status_clear(&st);
  answer(ctx, path, tde_instance_set_protector(path, key, tde_arg_text(argc, argv, 1), full, &st),
         &st);
}

static void answer_key(sqlite3_context *ctx, const tde_key_info *k, tde_class c, tde_status *st) {
  tde_json *j;

  if (c) {
    tde_result_status(ctx, tde_class_rc(c), st);
    return;
  }
  j = tde_json_object();
  tde_result_json(ctx, j, tde_key_put(j, k, TDE_THUMB_SHOWN));
}

void tde_sql_instance_add_key(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 2);
  const char *key = tde_arg_needed(ctx, argc, argv, 0, "the key id");
  tde_key_info info;
  tde_status st;
  tde_class c;

  if (!key || !is_there(ctx, path, is_named(argc, argv, 2), key)) return;
  tde_status_clear(&st);
  c = tde_instance_add_key(path, key, tde_arg_text(argc, argv, 1), &info, &st);
  answer_key(ctx, &info, c, &st);
}

void tde_sql_instance_remove_key(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 1);
  const char *key = tde_arg_needed(ctx, argc, argv, 0, "the key");
  tde_status st;
  int removed;

  if (!key || !is_there(ctx, path, is_named(argc, argv, 1), NULL)) return;
  tde_status_clear(&st);
  answer(ctx, path, tde_instance_remove_key(path, key, &removed, &st), &st);
}

void tde_sql_instance_new_key(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 1);
  const char *name = tde_arg_needed(ctx, argc, argv, 0, "the name");
  tde_key_info info;
  tde_status st;
  tde_class c;

  if (!name || !is_there(ctx, path, 0, NULL)) return;
  tde_status_clear(&st);
  c = tde_instance_new_key(path, name, &info, &st);
  answer_key(ctx, &info, c, &st);
}

void tde_sql_instance_set_policy(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 2);
  const char *name = tde_arg_needed(ctx, argc, argv, 0, "the name");
  tde_status st;

  if (!name) return;
  tde_status_clear(&st);
  if (sqlite3_value_numeric_type(argv[1]) != SQLITE_INTEGER) {
    tde_fail(&st, TDE_MISUSE, "give whole seconds, or 0 or 1", "the value is no whole number");
    tde_result_status(ctx, SQLITE_MISUSE, &st);
    return;
  }
  if (!is_there(ctx, path, is_named(argc, argv, 2), NULL)) return;
  answer(ctx, path, tde_instance_set_policy(path, name, sqlite3_value_int64(argv[1]), &st), &st);
  tde_watch_policy_changed();
}

void tde_sql_instance_set_identity(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 2);
  const char *name = tde_arg_needed(ctx, argc, argv, 0, "the name");
  tde_status st;

  if (!name || !is_there(ctx, path, is_named(argc, argv, 2), NULL)) return;
  tde_status_clear(&st);
  answer(ctx, path, tde_instance_set_identity(path, name, tde_arg_text(argc, argv, 1), &st), &st);
}

void tde_sql_instance_set_audit(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = instance_of(ctx, argc, argv, 1);
  tde_status st;

  if (!is_there(ctx, path, is_named(argc, argv, 1), NULL)) return;
  tde_status_clear(&st);
  answer(ctx, path, tde_instance_set_audit(path, tde_arg_text(argc, argv, 0), &st), &st);
}
