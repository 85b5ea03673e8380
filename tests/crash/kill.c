/*
** kill.c: kill -9 at random moments.
**
** Several writers and a reader work on one database with the real VFS. Each
** round one of them is killed while the others go on; then a fresh process
** looks at the database. The operating system keeps what was written, so with
** any setting of synchronous (OFF, too) every transaction whose COMMIT returned
** must be there, and no half of another: what the shim holds back must have been
** handed down before COMMIT returns, and the journal before the database.
**
** A transaction of writer w with number s writes rows (w, s, k), k = 0 .. n-1,
** n and the rows following from w and s, removes those of s - KEPT, and sets
** progress(w) to s. A database is right when progress(w) is what the writer last
** reported (or one more, for the killed one) and all rows of the last KEPT
** transactions are there, byte for byte, and no others.
**
** Now and then a writer changes the protector or the DEK: the kill strikes there, too.
*/
#include <getopt.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crowd.h"
#include "disk.h"
#include "scratch.h"

#define WRITERS 3
#define KEPT 12
#define ROUNDS_EACH 25
#define BODY_MAX 6000

typedef struct setting {
  const char *journal, *sync;
  int page_size, small, cache, autocheckpoint, map;
} setting;

/* small: made with 4096 and then turned into pages of this size. map: everybody reads
** from maps, while auto_vacuum lets the file shrink and grow. */
static const setting settings[] = {
    {"delete", "OFF", 4096, 0, 200, 50, 0},       {"wal", "OFF", 4096, 0, 200, 50, 0},
    {"truncate", "OFF", 1024, 0, 5, 50, 0},       {"persist", "OFF", 4096, 0, 5, 50, 0},
    {"wal", "FULL", 1024, 0, 5, 20, 0},           {"delete", "FULL", 8192, 0, 200, 50, 0},
    {"wal", "NORMAL", 4096, 0, 5, 1000, 0},       {"delete", "OFF", 65536, 0, 10, 50, 0},
    {"persist", "NORMAL", 4096, 1024, 10, 50, 0}, {"wal", "OFF", 4096, 512, 20, 30, 0},
    {"delete", "OFF", 4096, 0, 5, 50, 1},         {"wal", "OFF", 1024, 0, 5, 10, 1},
};
#define NSETTINGS (int)(sizeof(settings) / sizeof(settings[0]))

/* Shared with the children. */
typedef struct board {
  volatile uint32_t begun[WRITERS], committed[WRITERS];
  volatile long reads, commits, keys;
  int second_key; /* the instance has it, from an earlier campaign, it may be */
  char complaint[CROWD_COMPLAINT];
} board;

static board *shared;
static const setting *now;
static char root[256], path[300];
static int plain, verbose, keep;

/* ---- what a transaction writes ---- */

static rng source_of(int w, uint32_t s, int k) {
  rng r = {((uint64_t)s << 20) ^ ((uint64_t)w << 12) ^ (uint64_t)(k + 1)};
  return r;
}

static int rows_of(int w, uint32_t s) {
  rng r = source_of(w, s, -1);
  return rng_below(&r, 6) ? 1 + (int)rng_below(&r, 5) : 40;
}

static int body_of(int w, uint32_t s, int k, uint8_t *out) {
  rng r = source_of(w, s, k);
  int n = 20 + (int)rng_below(&r, rng_below(&r, 8) ? 800 : BODY_MAX - 20);
  for (int i = 0; i < n; i++) out[i] = (uint8_t)(i % 8 ? out[i - 1] * 31u + 7u : rng_next(&r));
  return n;
}

/* ---- connections ---- */

/* In a child: SQLite and the shim begin here. */
static sqlite3 *start(void) {
  char uri[400];
  sqlite3 *db = NULL;
  int rc;

  crowd_start(plain, verbose);
  (void)snprintf(uri, sizeof(uri), "file:%s?vfs=%s", path, plain ? "unix" : "tde");
  rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                       NULL);
  if (rc) {
    complain("open: %s", db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    _exit(1);
  }
  (void)sqlite3_busy_handler(db, crowd_wait, (void *)100000);
  if (now->map) {
    (void)sqlite3_exec(db, "PRAGMA mmap_size=1000000000; PRAGMA cache_size=5", NULL, NULL, NULL);
  }
  return db;
}

/* Runs a text; a busy database is waited for. */
static void must(sqlite3 *db, const char *sql) {
  int rc;

  do {
    rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
  } while (rc == SQLITE_BUSY);
  if (rc) {
    complain("%s: %s (%d)", sql, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
    _exit(1);
  }
}

static void set_up(sqlite3 *db) {
  char sql[300];

  (void)snprintf(sql, sizeof(sql),
                 "PRAGMA synchronous=%s; PRAGMA cache_size=%d; "
                 "PRAGMA wal_autocheckpoint=%d; PRAGMA journal_mode=%s",
                 now->sync, now->cache, now->autocheckpoint, now->journal);
  must(db, sql);
}

static void create(void) {
  sqlite3 *db = start();
  char sql[400];

  if (!plain && !shared->second_key) {
    must(db, "SELECT tde_instance_new_key('second')");
    shared->second_key = 1;
  }
  (void)snprintf(sql, sizeof(sql),
                 "PRAGMA page_size=%d; PRAGMA auto_vacuum=%d; CREATE TABLE t(w INT, s INT, k INT, "
                 "body BLOB, PRIMARY KEY(w, s, k)); CREATE INDEX tb ON t(body);"
                 "CREATE TABLE progress(w INTEGER PRIMARY KEY, s INT);"
                 "INSERT INTO progress VALUES(0,0),(1,0),(2,0)",
                 now->page_size, now->map);
  must(db, sql);
  if (now->small) {
    (void)snprintf(sql, sizeof(sql), "PRAGMA page_size=%d; VACUUM", now->small);
    must(db, sql);
  }
  set_up(db);
  (void)sqlite3_close(db);
  _exit(0);
}

/* ---- the workers ---- */

static void write_rows(sqlite3 *db, int w, uint32_t s) {
  static uint8_t body[BODY_MAX];
  sqlite3_stmt *stmt = NULL;
  char sql[200];
  int rc = SQLITE_OK;

  (void)snprintf(sql, sizeof(sql), "INSERT INTO t VALUES(%d,%u,?,?)", w, s);
  if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL)) rc = SQLITE_ERROR;
  for (int k = 0; rc == SQLITE_OK && k < rows_of(w, s); k++) {
    int n = body_of(w, s, k, body);
    (void)sqlite3_bind_int(stmt, 1, k);
    (void)sqlite3_bind_blob(stmt, 2, body, n, SQLITE_STATIC);
    (void)sqlite3_step(stmt);
    rc = sqlite3_reset(stmt);
  }
  (void)sqlite3_finalize(stmt);
  if (rc) {
    complain("writer %d, insert: %s (%d)", w, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
    _exit(1);
  }
}

/* Another protector, or another DEK. What a crowd may be told: come again. */
static void change_keys(sqlite3 *db, uint32_t s) {
  const char *sql = s % 3 == 0   ? "SELECT tde_rotate_dek()"
                    : s % 3 == 1 ? "SELECT tde_set_protector('local:second')"
                                 : "SELECT tde_set_protector('local:smk')";
  int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);

  if (rc == SQLITE_OK) {
    shared->keys++;
    return;
  }
  if (crowd_passing(db)) return;
  complain("%s: %s (%d)", sql, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  _exit(1);
}

static void writer(int w, uint32_t s) {
  sqlite3 *db = start();
  char sql[200];

  set_up(db);
  for (;; s++) {
    must(db, "BEGIN IMMEDIATE");
    shared->begun[w] = s;
    write_rows(db, w, s);
    if (s % 7 == 3 && (strcmp(now->journal, "wal") != 0 || now->cache >= 200)) {
      /* A part of it is undone, after a spill with a small cache. Not so in WAL
      ** mode: SQLite (3.40.1, for one) then breaks its own chain of checksums,
      ** and committed transactions are lost in recovery (README.md). */
      must(db,
           "SAVEPOINT a; DELETE FROM t WHERE k>=0; UPDATE progress SET s=s+1000;"
           "ROLLBACK TO a; RELEASE a");
    }
    (void)snprintf(sql, sizeof(sql),
                   "DELETE FROM t WHERE w=%d AND s<=%d; "
                   "UPDATE progress SET s=%u WHERE w=%d",
                   w, (int)s - KEPT, s, w);
    must(db, sql);
    must(db, "COMMIT");
    shared->committed[w] = s;
    shared->commits++;
    if (!plain && (s + (uint32_t)w) % 11 == 5) change_keys(db, s);
    if (s % 50 == 49) must(db, "PRAGMA wal_checkpoint(TRUNCATE)");
  }
}

/* Compares one row with what it must be. 1: wrong. */
static int wrong_row(sqlite3_stmt *q) {
  static uint8_t body[BODY_MAX];
  int n = body_of(sqlite3_column_int(q, 0), (uint32_t)sqlite3_column_int(q, 1),
                  sqlite3_column_int(q, 2), body);
  return sqlite3_column_bytes(q, 3) != n || memcmp(sqlite3_column_blob(q, 3), body, (size_t)n) != 0;
}

/* Reads everything in the transaction that is open. progress gets each s. */
static int look(sqlite3 *db, uint32_t *progress) {
  sqlite3_stmt *q = NULL;
  int rc, w = 0, k = 0;
  int64_t rows = 0, want = 0;

  rc = sqlite3_prepare_v2(db, "SELECT s FROM progress ORDER BY w", -1, &q, NULL);
  for (; rc == SQLITE_OK && w < WRITERS && sqlite3_step(q) == SQLITE_ROW; w++) {
    progress[w] = (uint32_t)sqlite3_column_int(q, 0);
  }
  if (rc == SQLITE_OK) rc = sqlite3_finalize(q);
  for (w = 0; w < WRITERS; w++) {
    for (k = 0; k < KEPT && (int)progress[w] - k > 0; k++)
      want += rows_of(w, progress[w] - (uint32_t)k);
  }
  q = NULL;
  if (rc == SQLITE_OK) rc = sqlite3_prepare_v2(db, "SELECT w, s, k, body FROM t", -1, &q, NULL);
  while (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
    int rw = sqlite3_column_int(q, 0), rs = sqlite3_column_int(q, 1);
    rows++;
    if (rw < 0 || rw >= WRITERS || rs > (int)progress[rw] || rs <= (int)progress[rw] - KEPT ||
        wrong_row(q)) {
      complain("row (%d,%d,%d) is not as it should be; progress is %u", rw, rs,
               sqlite3_column_int(q, 2), rw >= 0 && rw < WRITERS ? progress[rw] : 0);
      break;
    }
  }
  if (rc == SQLITE_OK) rc = sqlite3_finalize(q);
  if (rc == SQLITE_OK && rows != want)
    complain("%lld rows instead of %lld", (long long)rows, (long long)want);
  return rc;
}

static void reader(void) {
  sqlite3 *db = start();
  uint32_t progress[WRITERS];
  int rc;

  for (;;) {
    must(db, "BEGIN");
    rc = look(db, progress);
    if (rc && rc != SQLITE_BUSY) {
      complain("reader: %s (%d)", sqlite3_errmsg(db), sqlite3_extended_errcode(db));
    }
    must(db, "COMMIT");
    if (shared->complaint[0]) _exit(1);
    shared->reads++;
    (void)usleep(1000);
  }
}

/* ---- after a kill ---- */

/* In a child. killed: the writer that was killed, WRITERS for all. before: what
** was committed before this look began. progress of a killed one is told. */
static void inspect(int killed, const uint32_t *before) {
  sqlite3 *db = start();
  uint32_t p[WRITERS] = {0};
  int rc;

  must(db, "BEGIN");
  while ((rc = look(db, p)) == SQLITE_BUSY) {
  }
  if (rc) complain("after the kill: %s (%d)", sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  for (int w = 0; w < WRITERS && rc == SQLITE_OK; w++) {
    if (p[w] < before[w]) {
      complain("writer %d committed %u; %u is there", w, before[w], p[w]);
    }
    if ((w == killed || killed == WRITERS) && p[w] > shared->begun[w]) {
      complain("writer %d began %u; %u is there", w, shared->begun[w], p[w]);
    }
    if (w == killed || killed == WRITERS) shared->committed[w] = p[w];
  }
  if (killed == WRITERS && !shared->complaint[0]) {
    crowd_expect(db, "PRAGMA integrity_check", "ok");
    must(db, "COMMIT");
    must(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    if (!plain) crowd_expect(db, "SELECT tde_verify()", "\"ok\":true");
  } else {
    must(db, "COMMIT");
  }
  (void)sqlite3_close(db);
  _exit(shared->complaint[0] != 0);
}

/* ---- the parent ---- */

static int next_writer;
static void run_writer(void) {
  writer(next_writer, shared->committed[next_writer] + 1);
}
static pid_t start_writer(int w) {
  next_writer = w;
  return crowd_child(run_writer);
}

static int inspect_killed;
static uint32_t inspect_before[WRITERS];
static void run_inspect(void) {
  inspect(inspect_killed, inspect_before);
}

/* 1: something is wrong. */
static int inspect_after(int killed) {
  inspect_killed = killed;
  for (int w = 0; w < WRITERS; w++) inspect_before[w] = shared->committed[w];
  crowd_join(crowd_child(run_inspect), "the inspection");
  return shared->complaint[0] != 0;
}

/* In a child, after a failure, everybody else being dead: does it last? */
static void afterwards(void) {
  sqlite3 *db = start();
  sqlite3_stmt *q = NULL;
  const char *sql = "PRAGMA integrity_check", *text = NULL;

  for (int i = 0; i < 2; i++) {
    int rc = sqlite3_prepare_v2(db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
      text = (const char *)sqlite3_column_text(q, 0);
    }
    (void)printf("  afterwards %s: %.200s\n", sql, text ? text : sqlite3_errmsg(db));
    (void)sqlite3_finalize(q);
    text = NULL;
    sql = plain ? "SELECT 'plain'" : "SELECT tde_verify()";
  }
  (void)fflush(stdout);
  _exit(0);
}

static void start_all(pid_t *pid) {
  for (int w = 0; w < WRITERS; w++) {
    if (!pid[w]) pid[w] = start_writer(w);
  }
  if (!pid[WRITERS]) pid[WRITERS] = crowd_child(reader);
}

/* Rounds with one setting. The number of rounds done without a complaint. */
static int campaign(rng *r, int rounds) {
  pid_t pid[WRITERS + 1] = {0};
  int done = 0;

  crowd_remove_database(path);
  memset(shared, 0, offsetof(board, second_key));
  shared->complaint[0] = 0;
  crowd_join(crowd_child(create), "the database's creation");
  while (done < rounds && !shared->complaint[0]) {
    int everybody = done % 5 == 4;
    int victim = everybody ? WRITERS : (int)rng_below(r, WRITERS + 1);
    start_all(pid);
    (void)usleep(3000 + rng_below(r, 1u << (9 + rng_below(r, 9))));
    for (int i = 0; everybody && i < WRITERS; i++) crowd_kill(&pid[i]);
    crowd_kill(&pid[victim]);
    /* A killed reader tells nothing of any writer. */
    if (inspect_after(everybody ? WRITERS : victim == WRITERS ? -1 : victim) == 0) done++;
  }
  for (int i = 0; i <= WRITERS; i++) crowd_kill(&pid[i]);
  return done;
}

static int prepare(void) {
  if (scratch_make("kill", root, sizeof(root))) return 1;
  (void)snprintf(path, sizeof(path), "%s/app.db", root);
  shared = crowd_memory(sizeof(*shared));
  if (!shared) return 1;
  crowd_hear(shared->complaint);
  return 0;
}

int main(int argc, char **argv) {
  int rounds = 20, c, done = 0, failed = 0, only = -1;
  uint64_t seed = 1;

  while ((c = getopt(argc, argv, "n:i:c:kpv")) != -1) {
    switch (c) {
      case 'n':
        rounds = (int)crowd_number(optarg);
        break;
      case 'i':
        seed = strtoull(optarg, NULL, 10);
        break;
      case 'c':
        only = (int)crowd_number(optarg);
        break;
      case 'k':
        keep = 1;
        break;
      case 'p':
        plain = 1;
        break;
      case 'v':
        verbose = 1;
        break;
      default:
        (void)fprintf(stderr,
                      "usage: kill [-n rounds] [-i seed] [-c setting] [-k keep] [-p plain] [-v]\n");
        return 2;
    }
  }
  if (prepare()) {
    perror("kill");
    return 2;
  }
  for (int i = 0; done < rounds && failed < 10; i++) {
    rng r = {seed + (uint64_t)i};
    int each = (rounds + NSETTINGS - 1) / NSETTINGS,
        k = only >= 0 ? only % NSETTINGS : i % NSETTINGS;
    if (each > ROUNDS_EACH) each = ROUNDS_EACH;
    now = &settings[k];
    done += campaign(&r, each);
    if (verbose)
      (void)fprintf(stderr, "%s %s: %ld commits, %ld reads, %ld key changes\n", now->journal,
                    now->sync, shared->commits, shared->reads, shared->keys);
    if (shared->complaint[0]) {
      failed++;
      done++;
      (void)printf("FAIL %s, synchronous=%s, pages of %d: %s\n  again: %s -c %d -i %llu -n %d%s\n",
                   now->journal, now->sync, now->small ? now->small : now->page_size,
                   shared->complaint, argv[0], k, (unsigned long long)(seed + (uint64_t)i), each,
                   plain ? " -p" : "");
      (void)fflush(stdout);
      if (keep) { /* as they are now: opening them would recover them */
        (void)printf("  its files are kept in %s\n", root);
        break;
      }
      (void)waitpid(crowd_child(afterwards), NULL, 0);
    }
  }
  if (!keep || !failed) scratch_remove(root);
  (void)printf("%d passed, %d failed, 0 skipped\n", done - failed, failed);
  return failed != 0;
}
