/*
** test_exit.c: databases that a host still uses in its exit handlers, when OpenSSL has cleaned
** up (keyprovider/registry.c): what needs no key operation works, the rest fails.
*/
#include <sqlite3.h>
#include <sys/wait.h>

#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

static char root[256];
static sqlite3 *warm;

/* Runs after all that was registered later: OpenSSL's handler, and the extension's. */
static void late(void) {
  sqlite3 *cold = open_below(root, "cold.db"), *fresh = open_below(root, "fresh.db");
  int ok = run_sql(warm, "INSERT INTO t VALUES(2); SELECT count(*) FROM t") == SQLITE_OK;

  ok &= (run_sql(cold, "SELECT count(*) FROM t") & 0xff) == SQLITE_IOERR;
  ok &= run_sql(fresh, "CREATE TABLE t(v)") != SQLITE_OK;
  ok &= run_sql(warm, "SELECT tde_rotate_dek()") != SQLITE_OK;
  (void)sqlite3_close(cold);
  (void)sqlite3_close(fresh);
  ok &= sqlite3_close(warm) == SQLITE_OK;
  _exit(ok ? 0 : 1);
}

static int make(const char *name) {
  sqlite3 *db = open_below(root, name);
  int rc = run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");

  (void)sqlite3_close(db);
  return rc;
}

/* The host: a new program, in which nothing is initialized yet. */
static int be_host(void) {
  (void)snprintf(root, sizeof(root), "%s", getenv("TDE_TEST_ROOT"));
  (void)atexit(late);
  if (tde_register() != SQLITE_OK) return 2;
  warm = open_below(root, "warm.db");
  return run_sql(warm, "SELECT count(*) FROM t") == SQLITE_OK ? 0 : 3;
}

static char *self;

static void a_late_exit_handler_gets_errors_not_a_crash(void) {
  int status = 0;
  pid_t pid;

  REQUIRE(make("warm.db") == SQLITE_OK && make("cold.db") == SQLITE_OK);
  pid = fork();
  if (pid == 0) {
    char *const args[] = {self, "--host", NULL};
    (void)setenv("TDE_TEST_ROOT", root, 1);
    (void)execv("/proc/self/exe", args);
    _exit(4);
  }
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"a_late_exit_handler_gets_errors_not_a_crash", a_late_exit_handler_gets_errors_not_a_crash},
  };
  int rc;

  if (argc > 1 && strcmp(argv[1], "--host") == 0) return be_host();
  self = argv[0];
  if (make_root("exit", root, sizeof(root)) || tde_register() != SQLITE_OK) {
    perror("test_exit");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
