/*
** test_locks.c: what two threads' connections must not take from each other (vfs/locks.c), and
** what a reader meets of another process's writing.
**
** Below the shim stands a VFS that calls back where os_unix.c has its gaps: a second thread is
** brought to the other side of the gap, and the first goes on when that one has come through, or
** after a while, since it must not. All on one database with a rollback journal.
*/
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"
#include "vfs/keyring.h"
#include "vfs/tdevfs.h"

#define LONG_ENOUGH_MS 300            /* for a thread that nobody keeps back */
#define SHARED_FIRST (0x40000000 + 2) /* os.h: the bytes that stand for SHARED */
#define SHARED_SIZE 510

static char root[256], path[280];

/* ---- the VFS below ---- */

typedef struct gap_file {
  sqlite3_file base;
  int main;
  sqlite3_file real[]; /* of the unix VFS */
} gap_file;

static sqlite3_vfs *unix_vfs, gap_vfs;
static sqlite3_io_methods gap_methods;
/* What a test does when the lower call is over (unlocking, reading, closing: before it begins). */
static void (*when_locked)(int level, int rc), (*when_unlocking)(int level), (*when_asked)(void),
    (*when_reading)(void), (*when_closing)(void), (*when_looked_for)(void);

#define REAL(f) ((gap_file *)(f))->real
#define CALL(f, method, ...) REAL(f)->pMethods->method(REAL(f), __VA_ARGS__)

static int gap_close(sqlite3_file *f) {
  if (((gap_file *)f)->main && when_closing) when_closing();
  return REAL(f)->pMethods->xClose(REAL(f));
}
/* So many reads of this byte of the database meet somebody who writes there. */
#define UNIT_20 (65536 + 20 * (4096 + 48) + 100)
static int meets;

static int gap_read(sqlite3_file *f, void *b, int n, sqlite3_int64 at) {
  int rc;

  if (when_reading) when_reading();
  rc = CALL(f, xRead, b, n, at);
  if (((gap_file *)f)->main && at <= UNIT_20 && at + n > UNIT_20 && meets > 0) {
    meets--;
    ((unsigned char *)b)[UNIT_20 - at] ^= 1;
  }
  return rc;
}
static sqlite3_int64 no_write_at; /* of the database */
/* Units that a power loss would take; headers that were written before, and after, they were safe. */
static int unsafe_units, early_headers, headers;
static void look_at_write(int n, sqlite3_int64 at) {
  unsafe_units += at >= 65536;
  if (at > 0 || n < 65536) return; /* a copy's header goes out as a whole */
  early_headers += unsafe_units > 0;
  headers++;
}
static int gap_write(sqlite3_file *f, const void *b, int n, sqlite3_int64 at) {
  if (((gap_file *)f)->main) look_at_write(n, at);
  if (((gap_file *)f)->main && no_write_at && at <= no_write_at && at + n > no_write_at) {
    return SQLITE_IOERR_WRITE;
  }
  return CALL(f, xWrite, b, n, at);
}
static int gap_truncate(sqlite3_file *f, sqlite3_int64 n) {
  return CALL(f, xTruncate, n);
}
static int gap_sync(sqlite3_file *f, int flags) {
  if (((gap_file *)f)->main) unsafe_units = 0;
  return CALL(f, xSync, flags);
}
static int gap_size(sqlite3_file *f, sqlite3_int64 *n) {
  return CALL(f, xFileSize, n);
}
static int gap_lock(sqlite3_file *f, int level) {
  int rc = CALL(f, xLock, level);
  if (((gap_file *)f)->main && when_locked) when_locked(level, rc);
  return rc;
}
static int gap_unlock(sqlite3_file *f, int level) {
  if (((gap_file *)f)->main && when_unlocking) when_unlocking(level);
  return CALL(f, xUnlock, level);
}
static int gap_reserved(sqlite3_file *f, int *out) {
  int rc = CALL(f, xCheckReservedLock, out);
  if (when_asked) when_asked();
  return rc;
}
static int gap_control(sqlite3_file *f, int op, void *arg) {
  if (op == SQLITE_FCNTL_HAS_MOVED && when_looked_for) when_looked_for();
  return CALL(f, xFileControl, op, arg);
}
static int gap_sector(sqlite3_file *f) {
  return REAL(f)->pMethods->xSectorSize(REAL(f));
}
static int gap_traits(sqlite3_file *f) {
  return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static int gap_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out) {
  gap_file *g = (gap_file *)f;
  int rc = unix_vfs->xOpen(unix_vfs, name, g->real, flags, out);

  (void)v;
  g->main = (flags & SQLITE_OPEN_MAIN_DB) != 0;
  f->pMethods = rc == SQLITE_OK ? &gap_methods : NULL;
  return rc;
}

static void make_vfs(void) {
  static const sqlite3_io_methods methods = {.iVersion = 1,
                                             .xClose = gap_close,
                                             .xRead = gap_read,
                                             .xWrite = gap_write,
                                             .xTruncate = gap_truncate,
                                             .xSync = gap_sync,
                                             .xFileSize = gap_size,
                                             .xLock = gap_lock,
                                             .xUnlock = gap_unlock,
                                             .xCheckReservedLock = gap_reserved,
                                             .xFileControl = gap_control,
                                             .xSectorSize = gap_sector,
                                             .xDeviceCharacteristics = gap_traits};
  unix_vfs = sqlite3_vfs_find("unix");
  gap_methods = methods;
  gap_vfs = *unix_vfs;
  gap_vfs.zName = "gap";
  gap_vfs.pNext = NULL;
  gap_vfs.szOsFile = (int)sizeof(gap_file) + unix_vfs->szOsFile;
  gap_vfs.xOpen = gap_open;
  (void)sqlite3_vfs_register(&gap_vfs, 0);
}

/* ---- tools ---- */

static int wait_ms(sem_t *s, long ms) {
  struct timespec until;
  int rc;

  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += ms / 1000;
  until.tv_nsec += ms % 1000 * 1000000;
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  while ((rc = sem_timedwait(s, &until)) != 0 && errno == EINTR) {
  }
  return rc == 0;
}

static sqlite3 *open_db(void) {
  char uri[330];

  (void)snprintf(uri, sizeof(uri), "file:%s?vfs=tde&tde_base=gap", path);
  return open_uri(uri);
}

/* How many rows a transaction has changed. -1: rc tells why not. */
static int changed_rows(sqlite3 *db, int *rc) {
  sqlite3_stmt *q = NULL;
  int n = -1;

  *rc = sqlite3_prepare_v2(db, "SELECT count(*) FROM t WHERE v<>0", -1, &q, NULL);
  if (*rc == SQLITE_OK && (*rc = sqlite3_step(q)) == SQLITE_ROW) n = sqlite3_column_int(q, 0);
  (void)sqlite3_finalize(q);
  return n;
}

/* A process runs a text and dies. */
static void run_and_die(const char *sql) {
  pid_t pid = fork();
  int status = 0;

  if (pid == 0) {
    sqlite3 *db = open_db();
    unit_child_exit(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK);
  }
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static void make_database(void) {
  run_and_die(
      "CREATE TABLE t(v INT, pad BLOB); WITH RECURSIVE i(k) AS (SELECT 1 UNION ALL SELECT k+1 "
      "FROM i WHERE k<200) INSERT INTO t SELECT 0, zeroblob(2000) FROM i");
}

/* Half of a transaction is in the file. */
static void leave_hot_journal(void) {
  run_and_die("PRAGMA cache_size=1; BEGIN; UPDATE t SET v=1");
}

/* Another process that has SHARED, so that nobody gets EXCLUSIVE. */
static pid_t somebody_reads(void) {
  int ready[2];
  char c = 0;
  pid_t pid;

  if (pipe(ready)) return -1;
  pid = fork();
  if (pid == 0) {
    struct flock l = {.l_type = F_RDLCK, .l_start = SHARED_FIRST, .l_len = SHARED_SIZE};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fcntl(fd, F_SETLK, &l) == 0) (void)!write(ready[1], "r", 1);
    for (;;) pause();
  }
  CHECK(read(ready[0], &c, 1) == 1);
  (void)close(ready[0]);
  (void)close(ready[1]);
  return pid;
}

/* ---- a refused rollback ---- */

static sem_t other_has_shared, refused, other_has_asked;
static pthread_t other_id;
static _Thread_local int is_other;

/* The other one stops between SHARED and its question until this one was refused EXCLUSIVE;
** this one then waits for the question. */
static void meet_at_pending(int level, int rc) {
  if (is_other && level == SQLITE_LOCK_SHARED && rc == SQLITE_OK) {
    (void)sem_post(&other_has_shared);
    CHECK(wait_ms(&refused, 10000));
  } else if (!is_other && level == SQLITE_LOCK_EXCLUSIVE) {
    CHECK(rc == SQLITE_BUSY);
    (void)sem_post(&refused);
    (void)wait_ms(&other_has_asked, LONG_ENOUGH_MS);
  }
}

static void ask_before_unlock(int level) {
  if (!is_other && level == SQLITE_LOCK_NONE) (void)wait_ms(&other_has_asked, LONG_ENOUGH_MS);
}

static void other_asked(void) {
  if (is_other) (void)sem_post(&other_has_asked);
}

static void *read_as_other(void *db) {
  static int rc;

  is_other = 1;
  CHECK(changed_rows(db, &rc) == -1); /* else half a transaction was read */
  return &rc;
}

static void who_is_refused_a_rollback_is_no_writer(void) {
  sqlite3 *a, *b;
  void *other_rc = NULL;
  pid_t reader;
  int rc;

  a = open_db();
  b = open_db();
  CHECK(changed_rows(a, &rc) == 0 && changed_rows(b, &rc) == 0); /* they know the schema */
  leave_hot_journal();
  reader = somebody_reads();
  when_locked = meet_at_pending;
  when_unlocking = ask_before_unlock;
  when_asked = other_asked;
  REQUIRE(pthread_create(&other_id, NULL, read_as_other, b) == 0);
  CHECK(wait_ms(&other_has_shared, 10000));
  CHECK(changed_rows(a, &rc) == -1 && rc == SQLITE_BUSY);
  (void)pthread_join(other_id, &other_rc);
  CHECK(other_rc && *(int *)other_rc == SQLITE_BUSY);
  when_locked = NULL;
  when_unlocking = NULL;
  when_asked = NULL;
  (void)kill(reader, SIGKILL);
  (void)waitpid(reader, NULL, 0);
  CHECK(changed_rows(a, &rc) == 0);
  CHECK(changed_rows(b, &rc) == 0);
  (void)sqlite3_close(a);
  (void)sqlite3_close(b);
}

/* ---- a lock that comes while a file is closed ---- */

static sem_t closing, other_is_done;
static atomic_int close_is_over;

static void *write_as_other(void *db) {
  CHECK(wait_ms(&closing, 10000));
  CHECK(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK);
  CHECK(close_is_over);
  (void)sem_post(&other_is_done);
  return NULL;
}

/* unixClose has looked, and is about to call close(2): nobody may have got a lock by then. */
static void let_other_lock(void) {
  (void)sem_post(&closing);
  (void)wait_ms(&other_is_done, LONG_ENOUGH_MS);
  close_is_over = 1;
}

static void nobody_gets_a_lock_while_a_file_is_closed(void) {
  sqlite3 *a = open_db(), *b = open_db();
  int rc;

  CHECK(changed_rows(a, &rc) == 0 && changed_rows(b, &rc) == 0);
  REQUIRE(pthread_create(&other_id, NULL, write_as_other, b) == 0);
  when_closing = let_other_lock;
  CHECK(sqlite3_close(a) == SQLITE_OK);
  when_closing = NULL;
  (void)pthread_join(other_id, NULL);
  (void)sqlite3_close(b);
}

/* ---- a fork meanwhile ---- */

static sem_t forked;

static void stay_until_forked(void) {
  if (!is_other) return;
  when_reading = NULL;
  CHECK(wait_ms(&forked, 10000));
}

/* Within xLock, for as long as the fork lets it; then, until it is over, where no mutex is held:
** SQLite's own are no child's to have. */
static void stay_in_lock(int level, int rc) {
  (void)rc;
  if (!is_other || level != SQLITE_LOCK_SHARED) return;
  when_reading = stay_until_forked;
  (void)sem_post(&other_has_shared);
  (void)wait_ms(&forked, LONG_ENOUGH_MS);
}

static void *read_for_long(void *db) {
  int rc;

  is_other = 1;
  CHECK(changed_rows(db, &rc) == 0);
  return NULL;
}

static void a_forked_child_opens_and_closes(void) {
  sqlite3 *a = open_db();
  int rc, status = 0;
  pid_t pid;

  CHECK(changed_rows(a, &rc) == 0);
  when_locked = stay_in_lock;
  REQUIRE(pthread_create(&other_id, NULL, read_for_long, a) == 0);
  CHECK(wait_ms(&other_has_shared, 10000));
  pid = fork();
  if (pid == 0) {
    sqlite3 *db;
    (void)alarm(10); /* else it hangs */
    when_locked = NULL;
    when_reading = NULL;
    db = open_db();
    unit_child_exit(changed_rows(db, &rc) == 0 && sqlite3_close(db) == SQLITE_OK);
  }
  (void)sem_post(&forked);
  (void)sem_post(&forked); /* xLock need not have given up */
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  (void)pthread_join(other_id, NULL);
  when_locked = NULL;
  (void)sqlite3_close(a);
}

/* ---- a unit that another process is writing ---- */

static void a_unit_that_is_being_written_is_read_again(void) {
  sqlite3 *db = open_db();
  int rc;

  meets = 8; /* readers of runs read it twice before they look again */
  CHECK(changed_rows(db, &rc) == 0);
  CHECK(meets == 0);
  meets = 1000; /* that is damage */
  (void)sqlite3_close(db);
  db = open_db();
  CHECK(changed_rows(db, &rc) == -1 && (rc & 0xff) == SQLITE_IOERR);
  meets = 0;
  (void)sqlite3_close(db);
}

/* ---- a file system that hangs ---- */

static sem_t hangs, answers;
static _Thread_local int is_lister;
static atomic_int held_up;

static void hang(void) {
  if (!is_lister || held_up) return;
  held_up = 1;
  (void)sem_post(&hangs);
  (void)wait_ms(&answers, 5000);
}

static void *list_databases(void *arg) {
  tde_open_database *list = NULL;
  int n = 0;

  (void)arg;
  is_lister = 1;
  CHECK(tde_open_databases(&list, &n) == SQLITE_OK);
  CHECK(n == 1 && !list[0].moved);
  tde_open_databases_free(list, n);
  return NULL;
}

static void *open_and_close(void *arg) {
  sqlite3 *db = open_db();
  int rc;

  (void)arg;
  CHECK(changed_rows(db, &rc) == 0);
  (void)sqlite3_close(db);
  (void)sem_post(&other_is_done);
  return NULL;
}

/* Whether open files were moved is asked of their file systems, any of which may hang: nobody else
** waits for it, but who closes that very file. */
static void a_hung_file_system_holds_up_no_other(void) {
  sqlite3 *db = open_db();
  pthread_t lister, opener;

  when_looked_for = hang;
  REQUIRE(pthread_create(&lister, NULL, list_databases, NULL) == 0);
  CHECK(wait_ms(&hangs, 5000));
  REQUIRE(pthread_create(&opener, NULL, open_and_close, NULL) == 0);
  CHECK(wait_ms(&other_is_done, 2000));
  (void)sem_post(&answers);
  (void)pthread_join(lister, NULL);
  (void)pthread_join(opener, NULL);
  when_looked_for = NULL;
  (void)sqlite3_close(db);
}

/* ---- free pages that a crash tore ---- */

static int told_healed;

static void count_healed(void *ctx, int code, const char *text) {
  (void)ctx, (void)code;
  told_healed += strstr(text, "were sealed anew") != NULL;
}

/* The last unit of the file, a free page that the next transaction does not journal, is torn. */
static sqlite3_int64 tear_last_unit(void) {
  struct stat sb;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  char bad[16] = "torn";

  CHECK(fd >= 0 && fstat(fd, &sb) == 0);
  CHECK(pwrite(fd, bad, sizeof(bad), sb.st_size - 200) == sizeof(bad));
  (void)close(fd);
  return sb.st_size - 200;
}

/* What could not be written is not told of as sealed. */
/* By its header a file is taken for a backup, whatever its name: until that is there it is none. */
static void a_copy_gets_its_header_when_its_units_are_safe(void) {
  char sql[330];
  sqlite3 *db = open_db();

  (void)snprintf(sql, sizeof(sql), "SELECT tde_backup('%s/one.bak')", root);
  unsafe_units = early_headers = headers = 0;
  CHECK(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK);
  CHECK(headers == 1 && early_headers == 0 && unsafe_units == 0);
  CHECK(sqlite3_close(db) == SQLITE_OK);
}

/* A key that no database has waits for nobody to use it. */
static void a_database_that_can_not_be_made_leaves_no_key(void) {
  char uri[330];
  sqlite3 *db;
  int before = tde_keyring_count();

  (void)snprintf(uri, sizeof(uri), "file:%s/none?vfs=tde&tde_base=gap", root);
  db = open_uri(uri);
  no_write_at = 32768 + 10; /* the second slot */
  CHECK(sqlite3_exec(db, "CREATE TABLE t(a)", NULL, NULL, NULL) != SQLITE_OK);
  no_write_at = 0;
  CHECK(tde_keyring_count() == before);
  CHECK(sqlite3_exec(db, "CREATE TABLE t(a)", NULL, NULL, NULL) == SQLITE_OK);
  CHECK(tde_keyring_count() == before + 1);
  CHECK(sqlite3_close(db) == SQLITE_OK);
}

static void pages_are_healed_when_they_are_written(void) {
  sqlite3 *db;
  int rc;

  run_and_die(
      "CREATE TABLE big(v); WITH RECURSIVE i(k) AS (SELECT 1 UNION ALL SELECT k+1 "
      "FROM i WHERE k<100) INSERT INTO big SELECT zeroblob(3000) FROM i; DELETE FROM big");
  run_and_die("PRAGMA cache_size=1; BEGIN; UPDATE t SET v=1");
  no_write_at = tear_last_unit();
  told_healed = 0;
  db = open_db();
  CHECK(changed_rows(db, &rc) == -1 && told_healed == 0);
  (void)sqlite3_close(db);
  no_write_at = 0;
  db = open_db();
  CHECK(changed_rows(db, &rc) == 0 && told_healed == 1);
  (void)sqlite3_close(db);
}

static int prepare(void) {
  (void)sqlite3_config(SQLITE_CONFIG_LOG, count_healed, NULL);
  if (make_root("locks", root, sizeof(root))) return 1;
  (void)snprintf(path, sizeof(path), "%s/app.db", root);
  for (int i = 0; i < 8; i++) {
    sem_t *all[] = {&other_has_shared, &refused, &other_has_asked, &closing,
                    &other_is_done,    &forked,  &hangs,           &answers};
    if (sem_init(all[i], 0, 0)) return 1;
  }
  make_vfs();
  return tde_register() != SQLITE_OK;
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"who_is_refused_a_rollback_is_no_writer", who_is_refused_a_rollback_is_no_writer},
      {"nobody_gets_a_lock_while_a_file_is_closed", nobody_gets_a_lock_while_a_file_is_closed},
      {"a_unit_that_is_being_written_is_read_again", a_unit_that_is_being_written_is_read_again},
      {"a_hung_file_system_holds_up_no_other", a_hung_file_system_holds_up_no_other},
      {"a_copy_gets_its_header_when_its_units_are_safe", a_copy_gets_its_header_when_its_units_are_safe},
      {"a_database_that_can_not_be_made_leaves_no_key", a_database_that_can_not_be_made_leaves_no_key},
      {"pages_are_healed_when_they_are_written", pages_are_healed_when_they_are_written},
      {"a_forked_child_opens_and_closes", a_forked_child_opens_and_closes},
  };
  int rc;

  if (prepare()) {
    perror("test_locks");
    return 1;
  }
  make_database();
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
