/*
** test_progress.c: who is told of long operations (tde_set_progress of ext/tde.h, tde_progress),
** what of them a forked child knows (sql/progress.c), and a change in the middle of one.
*/
#include <pthread.h>
#include <semaphore.h>
#include <sqlite3.h>
#include <sys/wait.h>

#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

static char root[256];

static int int_of(sqlite3 *db, const char *sql) {
  sqlite3_stmt *q = NULL;
  int n = -1;

  if (sqlite3_prepare_v2(db, sql, -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
    n = sqlite3_column_int(q, 0);
  }
  (void)sqlite3_finalize(q);
  return n;
}

static int rows_of_progress(sqlite3 *db) {
  return int_of(db, "SELECT count(*) FROM tde_progress");
}

/* ---- the host's callback ---- */

typedef struct host {
  int calls, stop, wrong;
} host;

static int hear(void *ctx, const char *operation, const char *path, long long done,
                long long total) {
  host *h = ctx;

  h->calls++;
  h->wrong |= strcmp(operation, "verify") != 0 || !strstr(path, "/app.db") || done < 0 ||
              done > total || total < 1;
  return h->stop;
}

static void the_host_hears_of_an_operation_and_may_stop_it(void) {
  sqlite3 *db = open_below(root, "app.db");
  host h = {0};

  tde_set_progress(hear, &h);
  CHECK(run_sql(db, "SELECT tde_verify()") == SQLITE_OK);
  CHECK(h.calls > 0 && !h.wrong);
  h.stop = 1;
  CHECK(run_sql(db, "SELECT tde_verify()") == SQLITE_INTERRUPT);
  CHECK(rows_of_progress(db) == 0);
  tde_set_progress(NULL, NULL);
  h.calls = 0;
  CHECK(run_sql(db, "SELECT tde_verify()") == SQLITE_OK);
  CHECK(h.calls == 0);
  (void)sqlite3_close(db);
}

/* ---- how far it is ---- */

#define PAUSE_USEC 210000 /* the host is not told twice in less */

typedef struct course {
  long long done, total; /* as told last */
  int calls, back;
} course;

static int follow(void *ctx, const char *operation, const char *path, long long done,
                  long long total) {
  course *c = ctx;

  (void)operation, (void)path;
  if (c->calls++) c->back |= done * c->total < c->done * total;
  c->done = done;
  c->total = total;
  (void)usleep(PAUSE_USEC);
  return 0;
}

static void what_is_told_never_goes_back(void) {
  static const char *const operations[] = {
      "SELECT tde_backup('%s/steps.bak')", "SELECT tde_create_secondary('%s/steps.sec')",
      "SELECT tde_sync_secondary('%s/steps.sec')",
      "PRAGMA journal_mode=wal; INSERT INTO t VALUES(zeroblob(2500000)); SELECT tde_verify()"};
  sqlite3 *db = open_below(root, "steps.db");

  CHECK(run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES(zeroblob(2500000))") == SQLITE_OK);
  CHECK(run_sql(db, "PRAGMA wal_autocheckpoint=0") == SQLITE_OK);
  for (size_t i = 0; i < COUNT(operations); i++) {
    course c = {0};
    char sql[400];

    (void)snprintf(sql, sizeof(sql), operations[i], root);
    tde_set_progress(follow, &c);
    CHECK(run_sql(db, sql) == SQLITE_OK);
    tde_set_progress(NULL, NULL);
    if (!CHECK(c.calls > 1 && !c.back)) printf("%s\n", sql);
  }
  (void)sqlite3_close(db);
}

/* ---- another connection meanwhile ---- */

typedef struct turn {
  sqlite3 *other;
  const char *sql, *path; /* what the other one runs; of whose operation */
  int done, rc, wrong;
} turn;

static int other_once(void *ctx, const char *operation, const char *path, long long done,
                      long long total) {
  turn *t = ctx;

  (void)operation, (void)done, (void)total;
  if (t->done++) return 0;
  t->wrong = t->path && strcmp(path, t->path) != 0;
  t->rc = run_sql(t->other, t->sql);
  return 0;
}

/* A path so long that what says so is cut off in messages. */
static int make_long_path(char *out, size_t n) {
  size_t len = (size_t)snprintf(out, n, "%s", root);

  while (len < 490) {
    size_t part = 490 - len > 200 ? 200 : 490 - len;
    out[len] = '/';
    memset(out + len + 1, 'd', part - 1);
    out[len += part] = 0;
    if (mkdir(out, 0700)) return 1;
  }
  return snprintf(out + len, n - len, "/a.db") != 5;
}

static void a_backup_during_which_the_dek_changed_starts_over(void) {
  char path[600], uri[700], backup[600], sql[700];
  sqlite3 *db;
  turn t = {.sql = "SELECT tde_rotate_dek()"};

  REQUIRE(make_long_path(path, sizeof(path)) == 0);
  (void)snprintf(uri, sizeof(uri), "file:%s?vfs=tde", path);
  db = open_uri(uri);
  REQUIRE(run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES(zeroblob(100000))") == SQLITE_OK);
  t.other = open_uri(uri);
  (void)snprintf(backup, sizeof(backup), "%.*sbak", (int)strlen(path) - 2, path);
  (void)snprintf(sql, sizeof(sql), "SELECT tde_backup('%s')", backup);
  t.path = backup;
  tde_set_progress(other_once, &t);
  CHECK(run_sql(db, sql) == SQLITE_OK);
  tde_set_progress(NULL, NULL);
  CHECK(t.done > 1 && t.rc == SQLITE_OK && !t.wrong);
  (void)sqlite3_close(t.other);
  (void)sqlite3_close(db);
}

static void a_verification_holds_the_file_still_where_the_schema_is_empty(void) {
  sqlite3 *db = open_below(root, "empty.db");
  turn t = {.other = open_below(root, "empty.db"), .sql = "VACUUM"};

  REQUIRE(run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES(zeroblob(10000000)); DROP TABLE t") ==
          SQLITE_OK);
  tde_set_progress(other_once, &t);
  CHECK(int_of(db, "SELECT json_extract(tde_verify(), '$.ok')") == 1);
  tde_set_progress(NULL, NULL);
  CHECK(t.rc == SQLITE_BUSY);
  (void)sqlite3_close(t.other);
  (void)sqlite3_close(db);
}

/* ---- a fork meanwhile ---- */

static sem_t under_way, go_on;

static int stay(void *ctx, const char *operation, const char *path, long long done,
                long long total) {
  (void)ctx, (void)operation, (void)path, (void)done, (void)total;
  (void)sem_post(&under_way);
  (void)sem_wait(&go_on);
  return 1;
}

static void *verify(void *db) {
  CHECK(run_sql(db, "SELECT tde_verify()") == SQLITE_INTERRUPT);
  return NULL;
}

static void a_forked_child_has_none_of_its_parents_operations(void) {
  sqlite3 *db = open_below(root, "app.db"), *b = open_below(root, "app.db");
  pthread_t id;
  int status = 0;
  pid_t pid;

  tde_set_progress(stay, NULL);
  REQUIRE(pthread_create(&id, NULL, verify, db) == 0);
  (void)sem_wait(&under_way);
  CHECK(rows_of_progress(b) == 1);
  pid = fork();
  if (pid == 0) {
    sqlite3 *own;
    (void)alarm(10); /* else it hangs */
    own = open_below(root, "app.db");
    unit_child_exit(rows_of_progress(own) == 0);
  }
  (void)sem_post(&go_on);
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  (void)pthread_join(id, NULL);
  tde_set_progress(NULL, NULL);
  (void)sqlite3_close(db);
  (void)sqlite3_close(b);
}

static int prepare(void) {
  sqlite3 *db;
  int rc;

  if (make_root("progress", root, sizeof(root)) || sem_init(&under_way, 0, 0) ||
      sem_init(&go_on, 0, 0) || tde_register() != SQLITE_OK) {
    return 1;
  }
  db = open_below(root, "app.db");
  rc = run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES(zeroblob(10000000))");
  (void)sqlite3_close(db);
  return rc;
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"the_host_hears_of_an_operation_and_may_stop_it",
       the_host_hears_of_an_operation_and_may_stop_it},
      {"what_is_told_never_goes_back", what_is_told_never_goes_back},
      {"a_backup_during_which_the_dek_changed_starts_over",
       a_backup_during_which_the_dek_changed_starts_over},
      {"a_verification_holds_the_file_still_where_the_schema_is_empty",
       a_verification_holds_the_file_still_where_the_schema_is_empty},
      {"a_forked_child_has_none_of_its_parents_operations",
       a_forked_child_has_none_of_its_parents_operations},
  };
  int rc;

  if (prepare()) {
    perror("test_progress");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
