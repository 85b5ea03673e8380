/*
** test_walindex.c: the wal-index of a log that has more frames than a region of it
** (vfs/walindex.c), when memory is short.
*/
#include <sqlite3.h>

#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define ROWS "5000" /* of a page each */

static char root[256];
static sqlite3_mem_methods memory;
static int until_failure, has_failed;

static void *failing_malloc(int n) {
  if (until_failure && --until_failure == 0) {
    has_failed = 1;
    return NULL;
  }
  return memory.xMalloc(n);
}

static int install_memory(void) {
  sqlite3_mem_methods m;

  if (sqlite3_config(SQLITE_CONFIG_GETMALLOC, &memory)) return 1;
  m = memory;
  m.xMalloc = failing_malloc;
  return sqlite3_config(SQLITE_CONFIG_MALLOC, &m) || sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0);
}

/* Rows at both ends of the log. */
static int look(sqlite3 *db) {
  return run_sql(db, "SELECT sum(length(v)) FROM t WHERE id IN (1, 2, 2500, " ROWS ")");
}

static void what_failed_for_want_of_memory_goes_on(void) {
  sqlite3 *holder = open_below(root, "app.db"), *db;
  int n = 0;

  REQUIRE(run_sql(holder,
                  "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
                  "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(id INTEGER PRIMARY KEY, v);"
                  "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < " ROWS
                  ")"
                  "INSERT INTO t SELECT i, zeroblob(400) FROM c") == SQLITE_OK);
  do {
    db = open_below(root, "app.db");
    has_failed = 0;
    until_failure = ++n;
    (void)look(db);
    until_failure = 0;
    CHECK(look(db) == SQLITE_OK);
    (void)sqlite3_close(db);
  } while (has_failed && n < 5000);
  CHECK(n > 20 && n < 5000);
  (void)sqlite3_close(holder);
}

static int prepare(void) {
  return install_memory() || make_root("walindex", root, sizeof(root)) ||
         tde_register() != SQLITE_OK;
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"what_failed_for_want_of_memory_goes_on", what_failed_for_want_of_memory_goes_on},
  };
  int rc;

  if (prepare()) {
    perror("test_walindex");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
