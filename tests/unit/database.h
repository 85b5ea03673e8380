/*
** database.h: a folder with databases and an instance, for unit tests through the extension.
*/
#ifndef TDE_TESTS_UNIT_DATABASE_H
#define TDE_TESTS_UNIT_DATABASE_H

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/unit/unit.h"

/* Makes a folder tde-NAME-* below TMPDIR, with an instance directory that TDE_INSTANCE names
** from here on; root gets its path. 0, or 1 with errno. (tree.h removes it.) */
static inline int make_root(const char *name, char *root, size_t n) {
  const char *tmp = getenv("TMPDIR");
  char instance[300];

  (void)snprintf(root, n, "%s/tde-%s-XXXXXX", tmp && *tmp ? tmp : "/tmp", name);
  if (!mkdtemp(root)) return 1;
  (void)snprintf(instance, sizeof(instance), "%s/instance", root);
  return mkdir(instance, 0700) || setenv("TDE_INSTANCE", instance, 1);
}

/* The caller closes it. */
static inline sqlite3 *open_uri(const char *uri) {
  sqlite3 *db = NULL;

  CHECK(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                        NULL) == SQLITE_OK);
  return db;
}

/* An encrypted database of this name in that folder; the caller closes it. */
static inline sqlite3 *open_below(const char *root, const char *name) {
  char uri[300];

  (void)snprintf(uri, sizeof(uri), "file:%s/%s?vfs=tde", root, name);
  return open_uri(uri);
}

static inline int run_sql(sqlite3 *db, const char *sql) {
  return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

#endif
