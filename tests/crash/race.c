/*
** race.c: another process acts at every single call of an operation.
**
** An operation of this process (a job) runs on the real VFS, with a VFS of ours
** between it and the shim that counts the calls. At call number k the rival, a
** process of its own with a connection to the same database, makes its move (a
** commit, a checkpoint, a VACUUM, another protector) while the job waits in that
** call, or one part of it there and the other some calls later; k grows until the
** job is over before it. Where locks keep the rival out it reports so, and the job
** goes on. After each:
**
**  - the job succeeded, or was told to come again;
**  - what it read is one state, and what it wrote is one state between the one it
**    began in and the last;
**  - every transaction of either process that was reported done is there,
**    integrity_check and tde_verify() are clean.
**
** The rival is forked before SQLite is used here, and reached by a pipe. With -t it
** is a thread of this process: it meets the job's locks and keys in memory, too. What
** holds a mutex while it waits for the disk keeps it out; the job goes on then, and the
** rival's move comes when it can.
*/
#include <dirent.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ext/tde.h"
#include "../../vfs/shim.h"
#include "../../vfs/watch.h"
#include "crowd.h"
#include "scratch.h"
#include "trap.h"

#define PATIENCE_MS 60000 /* a rival that does not answer hangs */
#define COMPLAINT 700
#define MUTEX_MS 200 /* a thread may be kept out for as long as the job waits */

/* A conversion has connections of its own, and the rival comes and goes. */
typedef enum kind { ON_IT, OF_PLAIN, OF_SEALED } kind;

typedef struct job {
  const char *name, *sql; /* of the file that it makes, or else the database; and of the latter */
  const char *makes;      /* the file that it makes or changes, or NULL */
  kind kind;
} job;

/* The parts of a job are statements of one connection; SEEN is looked at. */
#define SEEN \
  "SELECT (SELECT count(*) FROM t), (SELECT rows FROM n), (SELECT sum(length(pad)) FROM t)"
static const job jobs[] = {
    {"read", SEEN, NULL, ON_IT},
    {"read-twice", "BEGIN; " SEEN "; " SEEN "; COMMIT", NULL, ON_IT},
    {"write",
     "BEGIN IMMEDIATE; INSERT INTO t(pad) VALUES(randomblob(900)),(randomblob(900));"
     "UPDATE n SET rows=rows+2; COMMIT",
     NULL, ON_IT},
    {"vacuum", "VACUUM", NULL, ON_IT},
    {"checkpoint", "PRAGMA wal_checkpoint(TRUNCATE)", NULL, ON_IT},
    {"verify", "SELECT tde_verify()", NULL, ON_IT},
    {"status", "SELECT tde_status(), tde_keylist()", NULL, ON_IT},
    {"backup", "SELECT tde_backup('%q')", "out.bak", ON_IT},
    {"copy", "SELECT tde_copy('%q')", "out.db", ON_IT},
    {"secondary", "SELECT tde_create_secondary('%q')", "out.db", ON_IT},
    {"sync", "SELECT tde_sync_secondary('%q')", "second.db", ON_IT},
    {"protector", "SELECT tde_set_protector('local:second')", NULL, ON_IT},
    {"dek", "SELECT tde_rotate_dek()", NULL, ON_IT},
    {"encrypt", "SELECT tde_encrypt('file:%q?tde_base=" TRAP_VFS "')", NULL, OF_PLAIN},
    {"encrypt-to",
     "WITH f(made, it) AS (SELECT '%q', 'file:%q?tde_base=" TRAP_VFS "') "
     "SELECT tde_encrypt(it, made) FROM f",
     "out.db", OF_PLAIN},
    {"decrypt",
     "WITH f(made, it) AS (SELECT '%q', 'file:%q?tde_base=" TRAP_VFS "') "
     "SELECT tde_decrypt(it, made) FROM f",
     "out.db", OF_SEALED},
};
#define NJOBS (int)(sizeof(jobs) / sizeof(jobs[0]))

/* What the rival does, one letter each: c commits and lets the file grow, d deletes
** most, v VACUUM, P and T checkpoint, w changes to WAL mode, k takes another protector, g another DEK, h begins to
** and is interrupted; x begins a transaction as another process, spills pages into the file,
** and dies; r reads; l looks without the extension, and stays to the end, or until m. What
** follows the point is done up to GAP calls later, at each. */
#define GAP 24
static const char *const moves[] = {"cP",  "cPc", "cTc", "dvP", "k",  "Pck",  "cg",
                                    "gc",  "r",   "x",   "xc",  "gh", "w.cP", "c.P",
                                    "T.c", "T.g", "x.r", "l",   "lm", "cl"};
#define NMOVES (int)(sizeof(moves) / sizeof(moves[0]))
static const char *const journals[] = {"delete", "wal"};

/* Of a conversion: o comes (through the shim, whatever the file is then), p comes without
** the extension, z goes. Whoever is there in the end tries to commit. */
static const char *const visits[] = {"ocz", "o.c", "or.c", "oc.z", "pcz", "p.c", "pr.c", "pc.z"};
#define NVISITS (int)(sizeof(visits) / sizeof(visits[0]))

/* Shared with the rival. */
typedef struct board {
  char journal[8], move[8];
  int visits;   /* the job is a conversion */
  long commits; /* rows that the rival's reported commits added, net */
  int busy;     /* parts of the move that were refused as busy */
  char complaint[COMPLAINT];
} board;

static board *shared;
static char root[256], path[300], base[300];
static pthread_t rival_id;
static int verbose, threads, to_rival[2], from_rival[2];
static char why[COMPLAINT];

static void fail(char *out, size_t n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void fail(char *out, size_t n, const char *fmt, ...) {
  va_list ap;

  if (out[0]) return; /* the first counts */
  va_start(ap, fmt);
  (void)vsnprintf(out, n, fmt, ap);
  va_end(ap);
}
#define COMPLAIN(...) fail(shared->complaint, sizeof(shared->complaint), __VA_ARGS__)
#define FAIL(...) fail(why, sizeof(why), __VA_ARGS__)

static void log_line(void *p, int code, const char *text) {
  (void)p;
  if (verbose > 1) (void)fprintf(stderr, "    [%d] log (%d) %s\n", (int)getpid(), code, text);
}

/* SQLite waits 10 s for one that stands still with the lock of a restarted log, as the
** job does here, and says SQLITE_PROTOCOL then. Not so long. */
static int no_sleep(sqlite3_vfs *v, int us) {
  (void)v;
  return us;
}

static void quiet_start(void) {
  (void)sqlite3_config(SQLITE_CONFIG_LOG, log_line, NULL);
  (void)sqlite3_config(SQLITE_CONFIG_URI, 1);
  if (tde_register()) abort();
  sqlite3_vfs_find("unix")->xSleep = no_sleep;
  tde_watch_forbid(); /* calls are counted: nobody else's among them */
}

static int connect_to(const char *file, const char *below, sqlite3 **db) {
  char uri[500];

  (void)snprintf(uri, sizeof(uri), "file:%s?vfs=tde%s%s%s", file, below ? "&tde_base=" : "",
                 below ? below : "", shared && shared->visits ? "&tde_plain=allow" : "");
  return sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                         NULL);
}

/* A row of SEEN is one state; of others the first column may tell of damage. p: where
** the complaint goes. */
static int see(void *p, int n, char **value, char **name) {
  if (n == 3 && strstr(name[1], "rows")) {
    long rows = value[0] ? strtol(value[0], NULL, 10) : -1;
    if (!value[1] || rows != strtol(value[1], NULL, 10) || !value[2] ||
        strtol(value[2], NULL, 10) != rows * 900) {
      fail(p, COMPLAINT, "two states at once: %s rows, %s counted, %s bytes", value[0], value[1],
           value[2] ? value[2] : "no");
    }
  } else if (value[0] && strstr(value[0], "\"ok\":false")) {
    fail(p, COMPLAINT, "%.400s", value[0]);
  }
  return 0;
}

/* ---- the rival ---- */

static const char *sql_of(char letter) {
  switch (letter) {
    case 'c':
      return "BEGIN IMMEDIATE; WITH RECURSIVE i(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM i "
             "WHERE k<40) INSERT INTO t(pad) SELECT randomblob(900) FROM i;"
             "UPDATE n SET rows=rows+40; COMMIT";
    case 'd':
      return "BEGIN IMMEDIATE; DELETE FROM t WHERE id>10; UPDATE n SET rows=10; COMMIT";
    case 'v':
      return "VACUUM";
    case 'w':
      return "PRAGMA journal_mode=WAL";
    case 'P':
      return "PRAGMA wal_checkpoint(PASSIVE)";
    case 'T':
      return "PRAGMA wal_checkpoint(TRUNCATE)";
    case 'r':
      return SEEN;
    case 'g':
    case 'h':
      return "SELECT tde_rotate_dek()";
    case 'k':
      return "SELECT tde_set_protector('local:third')";
    default:
      return "";
  }
}

/* The newer of the header's two sequence numbers (FORMAT.md). Through the connection's own
** file: to close another one would drop its locks. */
static uint64_t header_sequence(sqlite3 *db) {
  tde_file *f = NULL;
  uint64_t newest = 0;

  if (sqlite3_file_control(db, "main", TDE_FCNTL_FILE, &f) || !f) return 0;
  for (int slot = 0; slot < 2; slot++) {
    uint64_t n = 0;
    if (LOWER(f)->xRead(f->lower, &n, sizeof(n),
                        (sqlite3_int64)slot * TDE_SLOT_STRIDE + TDE_SLOT_SEQUENCE_AT) ==
            SQLITE_OK &&
        n > newest)
      newest = n;
  }
  return newest;
}

static uint64_t sequence_before;

/* Interrupts an operation once it has written a header. */
static int header_changed(void *db) {
  return header_sequence(db) != sequence_before;
}

/* The connection is to what was the database, or is without the extension and meets an encrypted
** one, maybe with its log: it is told so. */
static int is_shut_out(sqlite3 *db) {
  int rc = sqlite3_errcode(db) & 0xff;

  return shared->visits && (rc == SQLITE_NOTADB || rc == SQLITE_CANTOPEN);
}

static int rival_runs(sqlite3 *db, char letter) {
  int rc;

  if (!db) return SQLITE_BUSY;
  sequence_before = header_sequence(db);
  if (letter == 'h') sqlite3_progress_handler(db, 1, header_changed, db);
  rc = sqlite3_exec(db, sql_of(letter), see, shared->complaint, NULL);
  sqlite3_progress_handler(db, 0, NULL, NULL);
  if (rc == SQLITE_OK) {
    if (letter == 'c') shared->commits += 40;
    return rc;
  }
  if (crowd_passing(db) || is_shut_out(db) || (letter == 'h' && header_changed(db))) {
    shared->busy++;
  } else {
    COMPLAIN("the rival's %c: %s (%d)", letter, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  }
  if (!sqlite3_get_autocommit(db)) (void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
  return rc;
}

/* Another process of this program: half a transaction stays behind. */
static void die_writing(const char *file) {
  static const char sql[] =
      "PRAGMA cache_size=1; PRAGMA synchronous=OFF; BEGIN IMMEDIATE; UPDATE n SET rows=rows-1;"
      "UPDATE t SET pad=zeroblob(900); DELETE FROM t WHERE id%2";
  sqlite3 *db = NULL;

  quiet_start();
  if (connect_to(file, NULL, &db) == SQLITE_OK) (void)sqlite3_exec(db, sql, NULL, NULL, NULL);
  _exit(0);
}

/* Runs this program with an option and a file; its exit status, or -1. rows: for -y. */
static int somebody(char *option, char *file, long rows) {
  char number[32];
  char *const argv[] = {"race", "-n", number, option, file, NULL};
  pid_t pid;
  int status;

  (void)snprintf(number, sizeof(number), "%ld", rows);
  if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) ||
      waitpid(pid, &status, 0) < 0)
    return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Another process of this program looks at a file: it knows the keys that the header
** names, and no others. rows: how many it must have; -1: any. Its exit status: 1 when
** something is wrong. */
static void look_afresh(const char *file, long rows) {
  char sql[300], complaint[COMPLAINT] = "";
  sqlite3 *db = NULL;

  (void)snprintf(sql, sizeof(sql),
                 "SELECT CASE WHEN integrity_check<>'ok' THEN '\"ok\":false '||integrity_check "
                 "WHEN %ld NOT IN (-1, (SELECT rows FROM n)) THEN '\"ok\":false rows '||"
                 "(SELECT rows FROM n) ELSE tde_verify() END FROM pragma_integrity_check LIMIT 1",
                 rows);
  quiet_start();
  if (connect_to(file, NULL, &db) || sqlite3_exec(db, sql, see, complaint, NULL) || complaint[0]) {
    (void)printf("%s: %s\n", file, complaint[0] ? complaint : sqlite3_errmsg(db));
    (void)fflush(stdout);
    _exit(1);
  }
  _exit(0);
}

static void rival_leaves(sqlite3 **db) {
  if (sqlite3_close(*db)) COMPLAIN("the rival's close: %s", sqlite3_errmsg(*db));
  *db = NULL;
}

static void rival_comes(sqlite3 **db, char letter) {
  int rc = letter == 'o' ? connect_to(path, NULL, db)
                         : sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE, "unix");

  if (rc) COMPLAIN("the rival's open: %s", sqlite3_errmsg(*db));
  (void)sqlite3_exec(*db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
}

static sqlite3 *stranger;

static void stranger_leaves(void) {
  (void)sqlite3_close(stranger);
  stranger = NULL;
}

static int rival_does(sqlite3 **db, char letter) {
  switch (letter) {
    case 'l':
      if (crowd_stranger(path, &stranger)) COMPLAIN("SQLite without the extension reads this");
      return SQLITE_OK;
    case 'm':
      stranger_leaves();
      return SQLITE_OK;
    case 'x':
      if (somebody("-x", path, -1)) COMPLAIN("the process that is to die could not be run");
      return SQLITE_OK;
    case 'o':
    case 'p':
      rival_comes(db, letter);
      return SQLITE_OK;
    case 'z':
      rival_leaves(db);
      return SQLITE_OK;
    default:
      return rival_runs(*db, letter);
  }
}

/* Opens, and leaves frames in the log that are not in the database file. */
static sqlite3 *rival_opens(void) {
  sqlite3 *db = NULL;
  char sql[100];

  if (connect_to(path, NULL, &db)) COMPLAIN("the rival's open: %s", sqlite3_errmsg(db));
  (void)snprintf(sql, sizeof(sql),
                 "PRAGMA synchronous=OFF; PRAGMA journal_mode=%s; "
                 "PRAGMA wal_autocheckpoint=0",
                 shared->journal);
  if (sqlite3_exec(db, sql, NULL, NULL, NULL)) COMPLAIN("%s: %s", sql, sqlite3_errmsg(db));
  (void)rival_does(&db, 'c');
  if (shared->visits) { /* the log stays, as after a crash */
    (void)sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    rival_leaves(&db);
  }
  return db;
}

static void rival(void) {
  sqlite3 *db = NULL;
  char order;

  while (read(to_rival[0], &order, 1) == 1) {
    if (order == 'O') db = rival_opens();
    for (const char *p = shared->move; order == 'M' && *p; p++) {
      /* d replaces what was there: only whole is it counted. */
      if (rival_does(&db, *p) == SQLITE_OK && *p == 'd') shared->commits = -1;
    }
    if (order == 'X') {
      rival_leaves(&db);
      stranger_leaves(); /* last of all */
    }
    if (write(from_rival[1], &order, 1) != 1) break;
  }
}

static void *rival_thread(void *p) {
  rival();
  return p;
}

static int awaited; /* an answer of the rival's is still to come */

static int hear(int ms) {
  struct pollfd p = {from_rival[0], POLLIN, 0};
  char answer;

  if (!awaited) return 1;
  if (poll(&p, 1, ms) != 1 || read(from_rival[0], &answer, 1) != 1) return 0;
  awaited = 0;
  return 1;
}

static void hangs(void) {
  (void)printf("the rival hangs or died; its move: %s\n0 passed, 1 failed, 0 skipped\n",
               shared->move);
  exit(1);
}

static void tell(char order) {
  if (!hear(PATIENCE_MS) || write(to_rival[1], &order, 1) != 1) hangs();
  awaited = 1;
  if (!hear(order == 'M' && threads ? MUTEX_MS : PATIENCE_MS) && !threads) hangs();
}

/* ---- the trap ---- */

/* Lets the rival make a part of its move, unless it is still busy with another. */
static int make_move(const char *move, int n) {
  if (awaited) return 0;
  (void)snprintf(shared->move, sizeof(shared->move), "%.*s", n, move);
  tell('M');
  return 1;
}

/* ---- the job ---- */

static void look(sqlite3 *db, const char *sql, const char *when) {
  if (sqlite3_exec(db, sql, see, why, NULL) && !crowd_passing(db))
    FAIL("%s: %.60s: %s (%d)", when, sql, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
}

static long rows_in(sqlite3 *db) {
  sqlite3_stmt *q = NULL;
  long n = -1;

  if (sqlite3_prepare_v2(db, "SELECT rows FROM n", -1, &q, NULL) == SQLITE_OK &&
      sqlite3_step(q) == SQLITE_ROW)
    n = (long)sqlite3_column_int64(q, 0);
  (void)sqlite3_finalize(q);
  return n;
}

static int has_at(const char *file, long at, const char *bytes, size_t n) {
  char there[16] = "";
  FILE *f = fopen(file, "rb");
  int same = f && n <= sizeof(there) && fseek(f, at, SEEK_SET) == 0 && fread(there, 1, n, f) == n &&
             memcmp(there, bytes, n) == 0;

  if (f) (void)fclose(f);
  return same;
}

static int is_sealed(const char *file) {
  return has_at(file, 0, "SQLite-TDE\r\n", 12);
}

/* Whole, and one state? at_least, at_most: the rows that it may have. */
static void inspect(const char *file, long at_least, long at_most) {
  sqlite3 *db = NULL;
  sqlite3_stmt *q = NULL;
  const char *text;
  long n;

  if (connect_to(file, NULL, &db)) FAIL("%s: %s", file, sqlite3_errmsg(db));
  look(db, SEEN, file);
  if (is_sealed(file)) look(db, "SELECT tde_verify()", file);
  if (sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &q, NULL) ||
      sqlite3_step(q) != SQLITE_ROW) {
    FAIL("%s: %s", file, sqlite3_errmsg(db));
  } else if (text = (const char *)sqlite3_column_text(q, 0), !text || strcmp(text, "ok")) {
    FAIL("%s: integrity_check: %s", file, text ? text : "nothing");
  }
  (void)sqlite3_finalize(q);
  n = rows_in(db);
  if (n < at_least || n > at_most) FAIL("%s: %ld rows, not %ld to %ld", file, n, at_least, at_most);
  if (sqlite3_close(db)) FAIL("%s: could not be closed", file);
}

static void remove_files(void) {
  static const char *const names[] = {"app.db", "out.bak", "out.db"};
  char name[400];

  for (int i = 0; i < 3; i++) {
    (void)snprintf(name, sizeof(name), "%s/%s", root, names[i]);
    crowd_remove_database(name);
  }
}

static int copy_file(const char *from, const char *to) {
  FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
  char b[65536];
  size_t n;
  int bad = !in || !out;

  while (!bad && (n = fread(b, 1, sizeof(b), in)) > 0) bad = fwrite(b, 1, n, out) != n;
  if (in) (void)fclose(in);
  if (out && fclose(out)) bad = 1;
  return bad;
}

/* The database that each race begins with, and a secondary of it that is behind; the same in
** plain. */
static void make_base(void) {
  sqlite3 *db = NULL;
  char *sql = sqlite3_mprintf(
      "SELECT tde_instance_new_key('second'), tde_instance_new_key('third');"
      "PRAGMA page_size=4096; CREATE TABLE t(id INTEGER PRIMARY KEY, pad); CREATE TABLE n(rows);"
      "INSERT INTO n VALUES(60); WITH RECURSIVE i(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM i "
      "WHERE k<60) INSERT INTO t(pad) SELECT randomblob(900) FROM i;"
      "SELECT tde_create_secondary('%q/second.base');"
      "UPDATE t SET pad=randomblob(900) WHERE id%%9=0;"
      "SELECT tde_decrypt('%q','%q/plain.base')",
      root, base, root);
  int rc = connect_to(base, NULL, &db);

  if (rc == SQLITE_OK) rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
  if (rc) FAIL("preparation: %s", sqlite3_errmsg(db));
  sqlite3_free(sql);
  (void)sqlite3_close(db);
}

/* The files as they are before each race; the rival opens the database, and commits. */
static void lay_out(const job *j, const char *journal) {
  char second[300], second_base[300], plain_base[300];

  why[0] = shared->complaint[0] = 0;
  remove_files();
  (void)snprintf(second, sizeof(second), "%s/second.db", root);
  (void)snprintf(second_base, sizeof(second_base), "%s/second.base", root);
  (void)snprintf(plain_base, sizeof(plain_base), "%s/plain.base", root);
  if (copy_file(j->kind == OF_PLAIN ? plain_base : base, path) || copy_file(second_base, second))
    FAIL("a copy failed");
  (void)snprintf(shared->journal, sizeof(shared->journal), "%s", journal);
  shared->visits = j->kind != ON_IT;
  shared->commits = 0;
  tell('O');
}

static sqlite3 *begin(const job *j, const char *journal) {
  sqlite3 *db = NULL;

  lay_out(j, journal);
  if (connect_to(path, TRAP_VFS, &db)) FAIL("open: %s", sqlite3_errmsg(db));
  look(db, "PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=10", "open");
  look(db, SEEN, "before");
  return db;
}

/* Runs the job with the rival's move at call k. Its code; fired: the move was made. */
static int perform(sqlite3 *db, const job *j, const char *file, const char *move, long k, long gap,
                   int *fired) {
  char *sql = sqlite3_mprintf(j->sql, file, path);
  int rc;

  trap_arm(move, k, gap);
  rc = sqlite3_exec(db, sql, see, why, NULL);
  *fired = trap_disarm();
  if (!hear(PATIENCE_MS)) hangs();
  if (rc && !crowd_passing(db)) FAIL("%s (%d)", sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  if (rc && verbose) (void)fprintf(stderr, "    %s: %s\n", j->name, sqlite3_errmsg(db));
  if (!sqlite3_get_autocommit(db)) (void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
  sqlite3_free(sql);
  return rc;
}

/* What would be left if all died now: a close would bring the log into the file by keys that
** nobody else has. */
static void inspect_outage(long rows) {
  static const char *const suffix[] = {"", "-wal", "-tdelog"};
  char from[400], to[400];

  for (int i = 0; i < 3; i++) {
    (void)snprintf(from, sizeof(from), "%s%s", path, suffix[i]);
    (void)snprintf(to, sizeof(to), "%s/left.db%s", root, suffix[i]);
    (void)unlink(to);
    if (access(from, F_OK) == 0 && copy_file(from, to)) FAIL("a copy failed");
  }
  (void)snprintf(to, sizeof(to), "%s/left.db", root);
  if (!why[0] && somebody("-y", to, rows)) FAIL("after an outage now this would be lost");
}

static int changes_keys(const job *j, const char *move) {
  return strpbrk(move, "ghk") || strcmp(j->name, "dek") == 0 || strcmp(j->name, "protector") == 0;
}

/* One race. 1: the move came while the job was at work. */
static int race(const job *j, const char *journal, const char *move, long k, long gap) {
  char file[400];
  sqlite3 *db;
  long first = 100, last; /* what rival_opens left */
  int rc, fired;

  (void)snprintf(file, sizeof(file), "%s/%s", root, j->makes ? j->makes : "app.db");
  db = begin(j, journal);
  rc = perform(db, j, file, move, k, gap, &fired);
  look(db, SEEN, "afterwards");
  last = rows_in(db);
  if (shared->commits >= 0) {
    long want = 60 + shared->commits + (rc == SQLITE_OK && strcmp(j->name, "write") == 0 ? 2 : 0);
    if (last != want) FAIL("%ld rows afterwards; %ld were committed", last, want);
  }
  if (!why[0] && changes_keys(j, move)) inspect_outage(last);
  if (sqlite3_close(db)) FAIL("could not be closed");
  tell('X');
  if (shared->complaint[0]) FAIL("%s", shared->complaint);
  inspect(path, last, last);
  if (j->makes && rc == SQLITE_OK)
    inspect(file, first < last ? first : last, first < last ? last : first);
  if (!why[0] && changes_keys(j, move) &&
      (somebody("-y", path, last) || (j->makes && rc == SQLITE_OK && somebody("-y", file, -1))))
    FAIL("who knows no keys but those in the header finds damage");
  if (j->makes && rc && strcmp(j->name, "sync") && access(file, F_OK) == 0)
    FAIL("the job failed, and %s is there", j->makes);
  return fired;
}

/* What a conversion must not leave: a file under a name of its own, and beside an encrypted
** database a log in plain, by somebody who took it for what it replaced. */
static void look_beside(void) {
  DIR *d = opendir(root);
  struct dirent *e;
  char log[400];

  while (d && (e = readdir(d))) {
    if (strstr(e->d_name, "-tde-")) FAIL("%s was left", e->d_name);
  }
  if (d) (void)closedir(d);
  (void)snprintf(log, sizeof(log), "%s-wal", path);
  /* The version of SQLite's own. */
  if (is_sealed(path) && has_at(log, 4, "\x00\x2d\xe2\x18", 4)) FAIL("the log is in plain");
}

/* One race of a conversion. 1: the move came while it was at work. */
static int race_conversion(const job *j, const char *journal, const char *move, long k, long gap) {
  char file[400];
  sqlite3 *db = NULL;
  int rc, fired;
  long last;

  (void)snprintf(file, sizeof(file), "%s/%s", root, j->makes ? j->makes : "app.db");
  lay_out(j, journal);
  if (sqlite3_open(":memory:", &db)) FAIL("open: %s", sqlite3_errmsg(db));
  rc = perform(db, j, file, move, k, gap, &fired);
  (void)sqlite3_close(db);
  (void)make_move("c", 1);
  tell('X');
  if (shared->complaint[0]) FAIL("%s", shared->complaint);
  last = 60 + shared->commits;
  look_beside();
  if (is_sealed(path) != (j->kind == OF_SEALED || (!j->makes && rc == SQLITE_OK)))
    FAIL("the database is %s", is_sealed(path) ? "encrypted" : "in plain");
  inspect(path, last, last);
  if (j->makes && (access(file, F_OK) == 0) != (rc == SQLITE_OK))
    FAIL("%s is %s", j->makes, rc ? "there" : "missing");
  if (j->makes && rc == SQLITE_OK) {
    if (is_sealed(file) != (j->kind == OF_PLAIN)) FAIL("%s is of the wrong kind", j->makes);
    inspect(file, 100, last);
  }
  return fired;
}

/* ---- all of them ---- */

static struct {
  const char *job, *journal, *move;
  long k, gap, rows;
  int coarse;
} opt;

static long passed, failures, refused;

/* One race, counted and reported. */
static int run_one(const job *j, const char *journal, const char *move, long k, long gap) {
  int fired;

  shared->busy = 0;
  fired = (j->kind == ON_IT ? race : race_conversion)(j, journal, move, k, gap);
  refused += shared->busy > 0;
  if (!why[0]) {
    passed++;
    return fired;
  }
  failures++;
  (void)printf(
      "FAIL %s, %s, the rival's move %s at call %ld: %s\n"
      "  again: race -s %s -w %s -m %s -k %ld -g %ld\n",
      j->name, journal, move, k, why, j->name, journal, move, k, gap);
  (void)fflush(stdout);
  return fired;
}

static void sweep(const job *j, const char *journal, const char *move) {
  long k = opt.k ? opt.k : 1, before = passed, step = 1 + 2 * opt.coarse;
  int fired = 1;

  if (j->kind != ON_IT) step += 4; /* most calls are writes of the copy, which nobody sees */
  while (fired && failures < 20) {
    long gap = opt.gap ? opt.gap : 1, last = strchr(move, '.') && !opt.gap ? GAP : gap;
    for (; gap <= last; gap += step) fired = run_one(j, journal, move, k, gap);
    if (opt.k) break;
    k += 1 + opt.coarse * (1 + k / 16);
  }
  if (verbose)
    (void)fprintf(stderr, "%-12s %-8s %-6s %ld\n", j->name, journal, move, passed - before);
}

static int prepare(void) {
  pid_t pid;

  if (scratch_make("race", root, sizeof(root))) return 1;
  (void)snprintf(path, sizeof(path), "%s/app.db", root);
  (void)snprintf(base, sizeof(base), "%s/base.db", root);
  shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED || pipe(to_rival) || pipe(from_rival)) return 1;
  pid = threads ? 1 : fork();
  if (pid == 0) {
    (void)close(to_rival[1]);
    quiet_start();
    rival();
    _exit(0);
  }
  quiet_start();
  trap_register(make_move);
  make_base();
  if (threads && pthread_create(&rival_id, NULL, rival_thread, NULL)) return 1;
  return pid < 0 || why[0];
}

static int options(int argc, char **argv) {
  int c;

  while ((c = getopt(argc, argv, "s:w:m:k:g:c:n:x:y:tv")) != -1) {
    if (c == 's') opt.job = optarg;
    if (c == 'w') opt.journal = optarg;
    if (c == 'm') opt.move = optarg;
    if (c == 'k') opt.k = strtol(optarg, NULL, 10);
    if (c == 'g') opt.gap = strtol(optarg, NULL, 10);
    if (c == 'c') opt.coarse = (int)strtol(optarg, NULL, 10);
    if (c == 'x') die_writing(optarg);
    if (c == 'n') opt.rows = strtol(optarg, NULL, 10);
    if (c == 'y') look_afresh(optarg, opt.rows);
    if (c == 't') threads = 1;
    if (c == 'v') verbose++;
    if (c == '?') {
      (void)fprintf(stderr,
                    "usage: race [-s job] [-w delete|wal] [-m move] [-k call] [-g gap] [-c coarse] "
                    "[-t] [-v]\n");
      return 1;
    }
  }
  return 0;
}

int main(int argc, char **argv) {
  if (options(argc, argv)) return 2;
  if (prepare()) {
    (void)fprintf(stderr, "race: %s\n", why[0] ? why : "the preparation failed");
    return 2;
  }
  for (int j = 0; j < NJOBS; j++) {
    for (int w = 0; w < 2; w++) {
      const char *const *list = jobs[j].kind == ON_IT ? moves : visits;
      int n = jobs[j].kind == ON_IT ? NMOVES : NVISITS;
      if ((opt.job && strcmp(opt.job, jobs[j].name)) ||
          (opt.journal && strcmp(opt.journal, journals[w])))
        continue;
      for (int m = 0; m < n; m++) {
        if (opt.move && strcmp(opt.move, list[m])) continue;
        sweep(&jobs[j], journals[w], list[m]);
      }
    }
  }
  (void)close(to_rival[1]);
  (void)(threads ? pthread_join(rival_id, NULL) : (int)wait(NULL));
  scratch_remove(root);
  if (verbose) (void)fprintf(stderr, "moves refused in part: %ld\n", refused);
  (void)printf("%ld passed, %ld failed, 0 skipped\n", passed, failures);
  return failures != 0;
}
