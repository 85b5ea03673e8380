/*
** uri.c: the tde_ parameters in the name of a main database.
**
** What must hold: one that does not exist, has no value or stands there twice is refused, not passed
** over; what is not refused means what it meant when the database was opened.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

SQLITE_EXTENSION_INIT3

/* ---- which there are ---- */

/* The URI parameters, and the two values of those that have no others. */
static const struct uri_param {
  const char *name, *usual, *second;
} uri_params[] = {{"tde_instance", NULL, NULL},
                  {"tde_protector", NULL, NULL},
                  {"tde_identity", NULL, NULL},
                  {"tde_federated_client_id", NULL, NULL},
                  {"tde_key", NULL, NULL},
                  {"tde_base", NULL, NULL},
                  {"tde_functions", NULL, NULL},
                  {"tde_plain", "refuse", "allow"},
                  {"tde_damaged", "refuse", "zeros"},
                  {"tde_inaccessible", "allow", "refuse"},
                  {"tde_map", "on", "off"}};

static const struct uri_param *find_param(const char *key) {
  for (size_t i = 0; i < sizeof(uri_params) / sizeof(uri_params[0]); i++) {
    if (strcmp(key, uri_params[i].name) == 0) return &uri_params[i];
  }
  return NULL;
}

/* SQLite finds the first parameter of a name alone. */
static int is_repeated(const char *name, int at) {
  const char *key = sqlite3_uri_key(name, at);

  for (int i = 0; i < at; i++) {
    if (strcmp(sqlite3_uri_key(name, i), key) == 0) return 1;
  }
  return 0;
}

/* Not NULL: what is wrong with a parameter of the name, and *remedy. Its value is looked at
** elsewhere where SQLite shows the message (tde_functions: sql/functions.c). */
static const char *wrong_with(const char *name, int at, char remedy[128]) {
  const char *key = sqlite3_uri_key(name, at), *value;
  const struct uri_param *p;

  if ((key[0] | 0x20) != 't' || sqlite3_strnicmp(key, "tde", 3) != 0) return NULL;
  value = sqlite3_uri_parameter(name, key);
  p = find_param(key);
  (void)snprintf(remedy, 128, "README.md lists them");
  if (!p) return "there is no URI parameter of this name";
  (void)snprintf(remedy, 128, "name it once");
  if (is_repeated(name, at)) return "stands in the URI twice";
  if (p->usual) {
    (void)snprintf(remedy, 128, "use %s=%s or %s=%s", key, p->usual, key, p->second);
    return strcmp(value, p->usual) != 0 && strcmp(value, p->second) != 0 ? "has no such value"
                                                                         : NULL;
  }
  (void)snprintf(remedy, 128, "give it a value or leave it out");
  return !value[0] && strcmp(key, "tde_functions") != 0 ? "is empty" : NULL;
}

/* What is misspelt, left empty or said twice would be passed over, and with it a key or an
** instance. */
tde_class tde_uri_check(const char *name, tde_status *st) {
  const char *key, *why;
  char remedy[128];

  for (int i = 0; (key = sqlite3_uri_key(name, i)) != NULL; i++) {
    why = wrong_with(name, i, remedy);
    if (!why) continue;
    if (st) tde_status_clear(st);
    return tde_fail(st, TDE_MISUSE, remedy, "%.250s: %.60s=%.100s: %s", name, key,
                    sqlite3_uri_parameter(name, key), why);
  }
  return TDE_OK;
}

/* ---- what they say ---- */

static int uri_says(const char *name, const char *param, const char *what) {
  const char *value = sqlite3_uri_parameter(name, param);

  return value && strcmp(value, what) == 0;
}

static char *copy_param(const char *name, const char *key, int *oom) {
  const char *v = sqlite3_uri_parameter(name, key);
  char *copy;

  if (!v) return NULL;
  copy = sqlite3_mprintf("%s", v);
  if (!copy) *oom = 1;
  return copy;
}

/* tde_instance=, or the environment, as it is now: what is opened through one instance stays
** with it. Where it can not be told, asking for the key says why. */
static char *instance_of(const char *name, int *oom) {
  char *dir = tde_source.resolve(tde_source.ctx, sqlite3_uri_parameter(name, "tde_instance"));
  char *copy;

  if (!dir) return copy_param(name, "tde_instance", oom);
  copy = sqlite3_mprintf("%s", dir);
  if (!copy) *oom = 1;
  free(dir);
  return copy;
}

int tde_db_read_uri(tde_db *db, const char *name) {
  int oom = 0;

  db->plain_allowed = uri_says(name, "tde_plain", "allow");
  db->damaged_zeros = uri_says(name, "tde_damaged", "zeros");
  db->refuse_inaccessible = uri_says(name, "tde_inaccessible", "refuse");
  db->map_off = uri_says(name, "tde_map", "off");
  db->params.instance = instance_of(name, &oom);
  db->params.protector = copy_param(name, "tde_protector", &oom);
  db->params.identity = copy_param(name, "tde_identity", &oom);
  db->params.federated_client_id = copy_param(name, "tde_federated_client_id", &oom);
  db->as_key = copy_param(name, "tde_key", &oom);
  return oom ? SQLITE_NOMEM : SQLITE_OK;
}

void tde_db_forget_uri(tde_db *db) {
  sqlite3_free(db->params.instance);
  sqlite3_free(db->params.protector);
  sqlite3_free(db->params.identity);
  sqlite3_free(db->params.federated_client_id);
  sqlite3_free(db->as_key);
}
