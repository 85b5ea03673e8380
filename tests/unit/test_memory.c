/*
** test_memory.c: an allocation of SQLite's that fails within a call of the VFS is that call's
** answer where SQLite still can give up: it is told then and there, and nothing is lost by it.
*/
#include <sqlite3.h>
#include <string.h>

#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"
#include "vfs/unit.h"

#define UNIT 4096u

static char root[256];
static sqlite3_mem_methods memory;
static int until_failure, of_size, has_failed;

/* of_size: only the ones of this size count. */
static void *failing_malloc(int n) {
  if (until_failure && (!of_size || n == of_size) && --until_failure == 0) {
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

static void arm(int nth, int size) {
  has_failed = 0;
  of_size = size;
  until_failure = nth;
}

static void disarm(void) {
  until_failure = 0;
}

/* The VFS below has a code of its own. */
static int lacks_memory(int rc) {
  return rc == SQLITE_NOMEM || rc == SQLITE_IOERR_NOMEM;
}

/* The file below a connection: its methods are the VFS's own. */
static sqlite3_file *file_below(sqlite3 *db) {
  sqlite3_file *f = NULL;

  CHECK(sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &f) == SQLITE_OK);
  return f;
}

static int remove_below(const char *name) {
  char path[300];

  (void)snprintf(path, sizeof(path), "%s/%s", root, name);
  return remove(path);
}

/* A new database's header is made as RESERVED is taken, in a transaction that has written
** nothing yet. */
static void a_creation_that_lacks_memory_says_so(void) {
  int n = 0;

  do {
    sqlite3 *db = open_below(root, "new.db");
    sqlite3_file *f = file_below(db);
    int rc;

    REQUIRE(f->pMethods->xLock(f, SQLITE_LOCK_SHARED) == SQLITE_OK);
    arm(++n, 0);
    rc = f->pMethods->xLock(f, SQLITE_LOCK_RESERVED);
    disarm();
    if (!CHECK(has_failed ? lacks_memory(rc) : rc == SQLITE_OK)) printf("  at %d: %d\n", n, rc);
    CHECK(f->pMethods->xUnlock(f, SQLITE_LOCK_NONE) == SQLITE_OK);
    CHECK(run_sql(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1)") == SQLITE_OK);
    CHECK(run_sql(db, "SELECT tde_status()") == SQLITE_OK);
    (void)sqlite3_close(db);
    db = open_below(root, "new.db");
    CHECK(run_sql(db, "INSERT INTO t SELECT x FROM t") == SQLITE_OK);
    (void)sqlite3_close(db);
    CHECK(remove_below("new.db") == 0);
  } while (has_failed && n < 500);
  CHECK(n > 2 && n < 500);
}

/* SQLite reads the first 100 bytes as it opens the file. */
static void an_open_that_lacks_memory_says_so(void) {
  char uri[300];
  sqlite3 *db = open_below(root, "app.db");

  REQUIRE(run_sql(db, "PRAGMA page_size=4096; CREATE TABLE t(x); INSERT INTO t VALUES(1)") ==
          SQLITE_OK);
  (void)sqlite3_close(db);
  (void)snprintf(uri, sizeof(uri), "file:%s/app.db?vfs=tde", root);
  arm(1, (int)(UNIT + TDE_UNIT_OVERHEAD));
  CHECK(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL) == SQLITE_NOMEM);
  disarm();
  CHECK(has_failed);
  (void)sqlite3_close(db);
  db = open_below(root, "app.db");
  CHECK(run_sql(db, "SELECT x FROM t") == SQLITE_OK);
  (void)sqlite3_close(db);
}

static int prepare(void) {
  return install_memory() || make_root("memory", root, sizeof(root)) || tde_register() != SQLITE_OK;
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"a_creation_that_lacks_memory_says_so", a_creation_that_lacks_memory_says_so},
      {"an_open_that_lacks_memory_says_so", an_open_that_lacks_memory_says_so},
  };
  int rc;

  if (prepare()) {
    perror("test_memory");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
