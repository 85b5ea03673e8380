/*
** leak.c: no plaintext of any role reaches the file below, and none a message.
**
** One workload makes SQLite use every kind of file that it has (leakvfs.h) and
** puts known texts into every row, index and name. It runs twice: on the VFS
** "leak" itself, where the texts must be seen in each role (else the test
** would prove nothing), and on the shim that stands on it, where none may be
** seen. Every line to sqlite3_log and every error message is looked at, too.
*/
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ext/tde.h"
#include "../unit/tree.h"
#include "../unit/unit.h"
#include "leakvfs.h"

#define PATH_SIZE 600
#define DATA_MARKERS (1u << MARK_ROW | 1u << MARK_KEY | 1u << MARK_BLOB | 1u << MARK_TEMP)
#define PATH_ONLY (1u << MARK_PATH)

static char scratch[PATH_SIZE - 200]; /* the run's directory, "~Qnames!" in its name */
static const char *vfs;               /* under test: "leak" or "tde" */
static unsigned log_lines, log_shown; /* and those that showed what they must not */

/* Messages may name files. SQLite's own quote the statement, hence the schema;
** ours have no reason to. */
static int message_shows(const char *text) {
  const char *own = strstr(text, "tde");

  for (int m = 0; m < MARKERS; m++) {
    int allowed = m == MARK_PATH || (!own && !(DATA_MARKERS >> m & 1));
    if (!allowed && strstr(text, marker_text[m])) return 1;
  }
  return 0;
}

static void on_log(void *ctx, int code, const char *text) {
  (void)ctx;
  (void)code;
  log_lines++;
  if (message_shows(text)) {
    log_shown++;
    printf("shown in the log: %s\n", text);
  }
}

/* ---- SQL ---- */

static sqlite3 *open_on(const char *which, const char *name) {
  char uri[PATH_SIZE + 40];
  sqlite3 *db = NULL;

  snprintf(uri, sizeof(uri), "file:%s/%s?vfs=%s", scratch, name, which);
  CHECK(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                        NULL) == SQLITE_OK);
  sqlite3_busy_timeout(db, 5000);
  return db;
}

/* Runs SQL; returns its code. Every message it leaves is looked at. */
static int try_sql(sqlite3 *db, const char *sql) {
  char *message = NULL;
  int rc = sqlite3_exec(db, sql, NULL, NULL, &message);

  if (message) CHECK(!message_shows(message));
  sqlite3_free(message);
  return rc;
}

static void must(sqlite3 *db, const char *sql) {
  int rc = try_sql(db, sql);

  if (!CHECK(rc == SQLITE_OK)) printf("  %s: %s\n", sql, sqlite3_errmsg(db));
}

static sqlite3_int64 number(sqlite3 *db, const char *sql) {
  sqlite3_stmt *s = NULL;
  sqlite3_int64 n = -1;

  if (CHECK(sqlite3_prepare_v2(db, sql, -1, &s, NULL) == SQLITE_OK) &&
      sqlite3_step(s) == SQLITE_ROW) {
    n = sqlite3_column_int64(s, 0);
  }
  CHECK(sqlite3_finalize(s) == SQLITE_OK);
  return n;
}

static void closed(sqlite3 *db) {
  CHECK(sqlite3_close(db) == SQLITE_OK);
}

/* SQL function mark(n, i): the marker n repeated 30 to 70 times, about i. The
** texts come from here, so that no statement that SQLite may quote holds them. */
static void fn_mark(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  int n = sqlite3_value_int(argv[0]), i = sqlite3_value_int(argv[1]), times = 30 + i % 41;
  char text[80 * MARKER_BYTES + 16];
  size_t len = 0;

  (void)argc;
  for (int k = 0; k < times; k++, len += MARKER_BYTES)
    memcpy(text + len, marker_text[n], MARKER_BYTES);
  len += (size_t)snprintf(text + len, 16, "%d", i);
  if (n == MARK_BLOB) {
    sqlite3_result_blob(ctx, text, (int)len, SQLITE_TRANSIENT);
  } else {
    sqlite3_result_text(ctx, text, (int)len, SQLITE_TRANSIENT);
  }
}

/* A connection that spills early and keeps temporary data in files. */
static sqlite3 *open_spilling(const char *name) {
  sqlite3 *db = open_on(vfs, name);

  sqlite3_create_function(db, "mark", 2, SQLITE_UTF8, NULL, fn_mark, NULL, NULL);
  must(db, "PRAGMA temp_store=FILE; PRAGMA cache_size=5; PRAGMA cache_spill=1");
  return db;
}

#define COUNTING(n) "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<" n ")"
#define TABLE "\"~Qschem!t\""
#define ADD_ROWS(n) \
  COUNTING(n)       \
  "INSERT INTO " TABLE "(k, a, b) SELECT mark(1,i)||random(), mark(0,i), mark(2,i) FROM c"
#define CREATE                                               \
  "CREATE TABLE " TABLE                                      \
  "(id INTEGER PRIMARY KEY, k TEXT UNIQUE, a TEXT, b BLOB);" \
  "CREATE INDEX \"~Qschem!i\" ON " TABLE                     \
  "(a, k);"                                                  \
  "CREATE VIEW \"~Qschem!v\" AS SELECT a, k FROM " TABLE     \
  ";"                                                        \
  "CREATE TRIGGER \"~Qschem!g\" AFTER DELETE ON " TABLE " BEGIN SELECT 1; END;"

/* ---- the workload, part by part ---- */

static void in_mode(const char *mode) {
  char name[80], sql[200];
  sqlite3 *db;

  snprintf(name, sizeof(name), "mode-%s.db", mode);
  snprintf(sql, sizeof(sql), "PRAGMA auto_vacuum=FULL; PRAGMA journal_mode=%s", mode);
  db = open_spilling(name);
  must(db, sql);
  must(db, CREATE ADD_ROWS("120"));
  must(db, "BEGIN; UPDATE " TABLE
           " SET a = mark(0, id + 1), b = mark(2, id + 3);"
           "DELETE FROM " TABLE " WHERE id % 5 = 0; COMMIT");
  if (strcmp(mode, "OFF") != 0) {
    must(db, "BEGIN; UPDATE " TABLE " SET k = mark(1, id) || id; ROLLBACK");
    CHECK(number(db, "SELECT count(*) FROM " TABLE) == 96);
  }
  must(db, "DELETE FROM " TABLE " WHERE id > 20");
  closed(db);
}

static void journal_modes(void) {
  static const char *const modes[] = {"DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"};
  for (size_t i = 0; i < COUNT(modes); i++) in_mode(modes[i]);
}

/* WAL begun anew, frames of rolled-back transactions overwritten, readers. */
static void wal(void) {
  sqlite3 *db = open_spilling("wal.db"), *reader;

  must(db, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
  must(db, CREATE ADD_ROWS("200"));
  reader = open_spilling("wal.db");
  must(reader, "BEGIN; SELECT count(*) FROM " TABLE);
  must(db, "BEGIN; UPDATE " TABLE
           " SET b = mark(2, id); ROLLBACK; BEGIN;"
           "UPDATE " TABLE " SET a = mark(0, id + 2); SAVEPOINT s; DELETE FROM " TABLE
           "; ROLLBACK TO s; COMMIT");
  must(db, "PRAGMA wal_checkpoint(PASSIVE)");
  must(reader, "COMMIT");
  closed(reader);
  must(db, "PRAGMA wal_checkpoint(RESTART);" ADD_ROWS(
               "20") ";PRAGMA wal_checkpoint(TRUNCATE);" ADD_ROWS("20"));
  CHECK(number(db, "SELECT count(*) FROM " TABLE) == 240);
  closed(db);
}

/* Sorter, temp table, its journal, ephemeral tables, statement journals. */
static void temporary(void) {
  sqlite3 *db = open_spilling("temporary.db");

  must(db, "PRAGMA cache_size=-20000;" CREATE ADD_ROWS("6000") "; PRAGMA cache_size=5");
  must(db, "PRAGMA temp.cache_size=5; CREATE TEMP TABLE \"~Qtsche!t\"(id INTEGER PRIMARY KEY, v)");
  must(db, COUNTING("1500") "INSERT INTO temp.\"~Qtsche!t\"(v) SELECT mark(3,i) FROM c");
  must(db, "BEGIN; UPDATE temp.\"~Qtsche!t\" SET v = v || mark(3, id); ROLLBACK");
  must(db, "CREATE INDEX temp.\"~Qtsche!i\" ON \"~Qtsche!t\"(v)");
  /* DISTINCT, a materialised CTE and view, a compound, ORDER BY: each larger than a cache. */
  must(db, "SELECT count(*) FROM (SELECT DISTINCT a || k FROM " TABLE ")");
  must(db, "WITH m AS MATERIALIZED (SELECT k || a AS x FROM " TABLE
           ") "
           "SELECT count(*) FROM m a JOIN (SELECT x FROM m LIMIT 3) b ON a.x = b.x");
  must(db,
       "SELECT count(*) FROM (SELECT a || id FROM " TABLE " UNION SELECT k FROM \"~Qschem!v\")");
  must(db, "SELECT max(x) FROM (SELECT b || k AS x FROM " TABLE " ORDER BY x || a LIMIT 5000)");
  /* Fails in its last row: what it did comes back from the statement journal. */
  must(db, "BEGIN; UPDATE " TABLE " SET b = mark(2, id + 1) WHERE id < 100");
  CHECK(try_sql(db, "UPDATE " TABLE " SET a = mark(0, id + 5), k = CASE WHEN id < 6000 THEN k ELSE "
                    "(SELECT k FROM " TABLE " WHERE id = 1) END") == SQLITE_CONSTRAINT);
  must(db, "SAVEPOINT s; UPDATE " TABLE " SET b = mark(2, id + 9); ROLLBACK TO s; COMMIT");
  CHECK(number(db, "SELECT count(*) FROM " TABLE) == 6000);
  must(db, "REINDEX");
  closed(db);
}

/* VACUUM to each kind of page size, into another file, and the backup API. */
static void rewriting(void) {
  sqlite3 *db = open_spilling("rewriting.db"), *to;
  sqlite3_backup *b;
  char sql[PATH_SIZE + 60];
  static const int sizes[] = {512, 65536, 1024, 4096};

  must(db, CREATE ADD_ROWS("300"));
  for (size_t i = 0; i < COUNT(sizes); i++) {
    snprintf(sql, sizeof(sql), "PRAGMA page_size=%d; VACUUM; UPDATE " TABLE " SET a = mark(0, id)",
             sizes[i]);
    must(db, sql);
  }
  snprintf(sql, sizeof(sql), "VACUUM INTO 'file:%s/into.db?vfs=%s'", scratch, vfs);
  must(db, sql);
  to = open_spilling("backup.db");
  b = sqlite3_backup_init(to, "main", db, "main");
  if (CHECK(b != NULL)) {
    CHECK(sqlite3_backup_step(b, 3) == SQLITE_OK);
    must(db, "UPDATE " TABLE " SET b = mark(2, id) WHERE id = 7");
    CHECK(sqlite3_backup_step(b, -1) == SQLITE_DONE);
    CHECK(sqlite3_backup_finish(b) == SQLITE_OK);
  }
  closed(to);
  closed(db);
}

/* Two files in one transaction: a super-journal names both journals. */
static void attached(void) {
  sqlite3 *db = open_spilling("one.db");
  char sql[PATH_SIZE + 60];

  snprintf(sql, sizeof(sql), "ATTACH 'file:%s/two.db?vfs=%s' AS two", scratch, vfs);
  must(db, sql);
  must(db, CREATE ADD_ROWS("50") "; CREATE TABLE two.\"~Qschem!u\"(x)");
  must(db, "BEGIN; UPDATE " TABLE
           " SET a = mark(0, id); INSERT INTO two.\"~Qschem!u\" SELECT a FROM " TABLE "; COMMIT");
  closed(db);
}

/* A child that is killed within a transaction that has reached the files. */
static void crash(const char *name, const char *mode) {
  char sql[100];
  pid_t pid;
  int status = 0;
  sqlite3 *db;

  fflush(stdout);
  pid = fork();
  if (pid == 0) {
    int before = unit_failures;
    snprintf(sql, sizeof(sql), "PRAGMA journal_mode=%s; PRAGMA wal_autocheckpoint=0", mode);
    db = open_spilling(name);
    must(db, sql);
    must(db, CREATE ADD_ROWS("150"));
    must(db, "BEGIN; UPDATE " TABLE " SET a = mark(0, id + 7), b = mark(2, id); DELETE FROM " TABLE
             " WHERE id > 100");
    fflush(stdout);
    if (unit_failures == before) (void)kill(getpid(), 9);
    _exit(1);
  }
  REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
  CHECK(WIFSIGNALED(status));
  db = open_spilling(name);
  CHECK(number(db, "SELECT count(*) FROM " TABLE) == 150);
  CHECK(number(db, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'") ==
        0);
  closed(db);
}

static void blobs(void) {
  sqlite3 *db = open_spilling("blobs.db");
  sqlite3_blob *b = NULL;

  must(db, "PRAGMA page_size=1024;" CREATE ADD_ROWS("5"));
  must(db, "UPDATE " TABLE " SET b = zeroblob(20000) WHERE id = 2");
  if (CHECK(sqlite3_blob_open(db, "main", "~Qschem!t", "b", 2, 1, &b) == SQLITE_OK)) {
    for (int i = 0; i < 1000; i += 10) {
      CHECK(sqlite3_blob_write(b, marker_text[MARK_BLOB], MARKER_BYTES, i * 19) == SQLITE_OK);
    }
    CHECK(sqlite3_blob_close(b) == SQLITE_OK);
  }
  closed(db);
}

static void workload(const char *on) {
  vfs = on;
  leak_reset();
  journal_modes();
  wal();
  temporary();
  rewriting();
  attached();
  blobs();
  crash("crash-journal.db", "DELETE");
  crash("crash-persist.db", "PERSIST");
  crash("crash-wal.db", "WAL");
}

static void print_tallies(void) {
  for (int r = 0; r < LEAK_ROLES; r++) {
    const leak_tally *t = leak_tally_of((leak_role)r);
    if (!t->writes) continue;
    printf("  %-5s %-13s %7llu writes %11llu bytes %7llu hits\n", vfs, leak_role_name[r],
           (unsigned long long)t->writes, (unsigned long long)t->bytes,
           (unsigned long long)leak_hits((leak_role)r, 0));
  }
}

/* ---- what is on disk afterwards ---- */

static int file_shows(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC), shows;
  struct stat sb;
  char *p;

  if (fd < 0 || fstat(fd, &sb) != 0) return -1;
  p = malloc((size_t)sb.st_size + 1);
  if (!p || read(fd, p, (size_t)sb.st_size) != sb.st_size) {
    free(p);
    close(fd);
    return -1;
  }
  shows = leak_find(p, (size_t)sb.st_size) != MARKERS;
  free(p);
  close(fd);
  return shows;
}

/* Files of the scratch directory that show a marker; *all: files in all. With
** clean, they are removed. */
static int files_that_show(int *all, int clean) {
  DIR *d = opendir(scratch);
  struct dirent *e;
  char path[PATH_SIZE + 300];
  int n = 0;

  *all = 0;
  if (!CHECK(d != NULL)) return -1;
  while ((e = readdir(d)) != NULL) {
    int shows;
    if (e->d_name[0] == '.' || strcmp(e->d_name, "instance") == 0) continue;
    snprintf(path, sizeof(path), "%s/%s", scratch, e->d_name);
    shows = file_shows(path);
    CHECK(shows >= 0);
    n += shows == 1;
    (*all)++;
    if (clean) CHECK(unlink(path) == 0);
  }
  closedir(d);
  return n;
}

/* ---- tests ---- */

/* The control: in every role plain SQLite shows what the workload put in. */
static void test_control(void) {
  int all, shown;

  workload("leak");
  print_tallies();
  for (int r = 0; r < LEAK_SHM; r++) {
    uint64_t hits = leak_hits((leak_role)r, PATH_ONLY);
    if (r == LEAK_SUPER_JOURNAL) hits = leak_tally_of(LEAK_SUPER_JOURNAL)->hits[MARK_PATH];
    if (!CHECK(hits > 0)) printf("  role %s\n", leak_role_name[r]);
  }
  for (int m = 0; m < MARKERS; m++) {
    uint64_t hits = 0;
    for (int r = 0; r < LEAK_SHM; r++) hits += leak_tally_of((leak_role)r)->hits[m];
    if (!CHECK(hits > 0)) printf("  marker %s\n", marker_text[m]);
  }
  CHECK(leak_tally_of(LEAK_MAIN_JOURNAL)->hits[MARK_PATH] > 0); /* names its super-journal */
  CHECK(leak_tally_of(LEAK_SHM)->writes > 0);
  shown = files_that_show(&all, 1);
  CHECK(all >= 12 && shown >= 12);
}

/* A super-journal, and a journal that repeats its name (FORMAT.md): names of files, and
** nothing else of what is known. */
static int names_files(leak_role r) {
  return r == LEAK_SUPER_JOURNAL || r == LEAK_MAIN_JOURNAL;
}

/* The same through the shim: every role is used, and none shows anything but names of files,
** where it has them. */
static void test_sealed(void) {
  int all;

  workload("tde");
  print_tallies();
  for (int r = 0; r < LEAK_UNKNOWN; r++) {
    const leak_tally *t = leak_tally_of((leak_role)r);
    if (!CHECK(t->writes > 0 && t->bytes > 0))
      printf("  role %s was not used\n", leak_role_name[r]);
    if (!CHECK(leak_hits((leak_role)r, names_files((leak_role)r) ? PATH_ONLY : 0) == 0)) {
      printf("  role %s shows plaintext\n", leak_role_name[r]);
    }
  }
  CHECK(leak_tally_of(LEAK_UNKNOWN)->writes == 0);
  CHECK(files_that_show(&all, 0) == 0);
  CHECK(all >= 12);
}

/* tde_encrypt and tde_decrypt: only the plain side, which lies in files of a
** name that is counted apart, shows anything. */
static void test_convert(void) {
  sqlite3 *db;
  char sql[2 * PATH_SIZE + 60];
  int all;

  CHECK(files_that_show(&all, 1) >= 0);
  leak_reset();
  leak_ignore("/plain");
  vfs = "leak";
  db = open_spilling("plain.db");
  must(db, CREATE ADD_ROWS("200"));
  snprintf(sql, sizeof(sql), "VACUUM INTO 'file:%s/in-place.db?vfs=unix'", scratch);
  must(db, sql);
  closed(db);
  CHECK(leak_hits(LEAK_IGNORED, PATH_ONLY) > 0);
  /* The copy made the plain database's own temporary files: what follows must not. */
  leak_reset();
  db = open_on("tde", "other.db");
  snprintf(sql, sizeof(sql), "SELECT tde_encrypt('%s/plain.db', '%s/sealed.db')", scratch, scratch);
  must(db, sql);
  snprintf(sql, sizeof(sql), "SELECT tde_encrypt('%s/in-place.db')", scratch);
  must(db, sql);
  for (int r = 0; r < LEAK_IGNORED; r++) CHECK(leak_hits((leak_role)r, 0) == 0);
  CHECK(leak_tally_of(LEAK_MAIN_DB)->bytes > 200000);
  snprintf(sql, sizeof(sql), "SELECT tde_decrypt('%s/sealed.db', '%s/plain-again.db')", scratch,
           scratch);
  must(db, sql);
  for (int r = 0; r < LEAK_IGNORED; r++) CHECK(leak_hits((leak_role)r, 0) == 0);
  CHECK(leak_hits(LEAK_IGNORED, PATH_ONLY) > 0);
  closed(db);
  vfs = "tde";
  db = open_spilling("in-place.db");
  CHECK(number(db, "SELECT count(*) FROM " TABLE) == 200);
  closed(db);
  CHECK(files_that_show(&all, 1) == 2); /* plain.db and plain-again.db */
  leak_ignore(NULL);
}

/* Flips a bit in a file of the scratch directory. */
static void flip(const char *name, off_t at) {
  char path[PATH_SIZE + 100];
  unsigned char b = 0;
  int fd;

  snprintf(path, sizeof(path), "%s/%s", scratch, name);
  fd = open(path, O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0 && pread(fd, &b, 1, at) == 1);
  b ^= 4;
  CHECK(pwrite(fd, &b, 1, at) == 1);
  close(fd);
}

/* A text result is a message, too. */
static void look_at_result(sqlite3 *db, const char *sql) {
  sqlite3_stmt *s = NULL;

  if (sqlite3_prepare_v2(db, sql, -1, &s, NULL) == SQLITE_OK) {
    while (sqlite3_step(s) == SQLITE_ROW) {
      const char *text = (const char *)sqlite3_column_text(s, 0);
      CHECK(text && leak_find(text, strlen(text)) >= MARK_PATH);
    }
  }
  (void)sqlite3_finalize(s);
  CHECK(!message_shows(sqlite3_errmsg(db)));
}

static void fail_and_look(const char *name) {
  sqlite3 *db = open_on("tde", name);

  CHECK(try_sql(db, "SELECT sum(length(a) + length(b) + length(k)) FROM " TABLE) != SQLITE_OK);
  (void)try_sql(db, "UPDATE " TABLE " SET a = 'x'");
  look_at_result(db, "SELECT tde_verify()");
  look_at_result(db, "SELECT tde_status()");
  (void)try_sql(db, "PRAGMA integrity_check");
  (void)sqlite3_close(db);
}

/* Damage of each kind, and a key that is gone: errors, and nothing told. */
static void test_messages(void) {
  sqlite3 *db;
  unsigned lines = log_lines;
  int all;

  vfs = "tde";
  db = open_spilling("errors.db");
  must(db, CREATE ADD_ROWS("100"));
  closed(db);
  for (off_t unit = 1; unit < 9; unit++) flip("errors.db", 65536 + unit * 4144 + 99);
  fail_and_look("errors.db");
  flip("errors.db", 65536 + 50);
  fail_and_look("errors.db");
  flip("errors.db", 200);
  flip("errors.db", 32768 + 200);
  fail_and_look("errors.db");
  db = open_spilling("errors-wal.db");
  must(db, "PRAGMA journal_mode=WAL;" CREATE ADD_ROWS("100"));
  for (off_t frame = 1; frame < 9; frame++) flip("errors-wal.db-wal", 208 + frame * 4168 + 300);
  must(db, "PRAGMA cache_size=0");
  sqlite3_db_release_memory(db);
  CHECK(try_sql(db, "SELECT sum(length(a) + length(b)) FROM " TABLE) != SQLITE_OK);
  look_at_result(db, "SELECT tde_verify()");
  (void)sqlite3_close(db);
  CHECK(log_lines > lines);
  CHECK(log_shown == 0);
  /* The control of this test. */
  sqlite3_log(SQLITE_NOTICE, "tde: the log's control: %s", marker_text[MARK_ROW]);
  CHECK(log_shown == 1);
  log_shown = 0;
  CHECK(files_that_show(&all, 1) == 0);
}

/* ---- main ---- */

static const unit_test tests[] = {
    {"control", test_control},
    {"sealed", test_sealed},
    {"convert", test_convert},
    {"messages", test_messages},
};

int main(int argc, char **argv) {
  const char *tmp = getenv("TMPDIR");
  char top[PATH_SIZE / 2], instance[PATH_SIZE];
  int rc;

  snprintf(top, sizeof(top), "%s/tde-leak-XXXXXX", tmp ? tmp : "/tmp");
  if (!mkdtemp(top)) return 2;
  snprintf(scratch, sizeof(scratch), "%s/%s", top, marker_text[MARK_PATH]);
  if (mkdir(scratch, 0700) != 0) return 2;
  snprintf(instance, sizeof(instance), "%s/instance", scratch);
  setenv("TDE_INSTANCE", instance, 1);
  setenv("SQLITE_TMPDIR", scratch, 1);
  sqlite3_config(SQLITE_CONFIG_LOG, on_log, NULL);
  sqlite3_config(SQLITE_CONFIG_STMTJRNL_SPILL, 1024);
  sqlite3_initialize();
  if (leak_register() != SQLITE_OK || tde_register() != SQLITE_OK) return 2;
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(top);
  return rc;
}
