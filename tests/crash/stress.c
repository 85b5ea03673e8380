/*
** stress.c: several processes, each with several connections, do anything that may be done
** with one database, at random, and are killed, or stopped for a while, at any moment.
**
** Each connection, an actor, is the only one to change its own rows, and keeps in memory
** which ones it has. Its transaction n also sets progress(w) to n. Before COMMIT the digest
** of its rows as they will be goes to a board that all processes share, and n after it. So
** whoever reads, at any moment, in any transaction, can tell that
**
**  - each actor's n is at least what was reported committed when the reader began, and no
**    more than what was begun when it had read;
**  - the rows are those of n, byte for byte: nothing of a transaction that was rolled back,
**    no half of one, nothing older;
**  - a second look in the same transaction shows the same.
**
** Between transactions, and within, actors spill pages, roll back, undo statements and
** savepoints, checkpoint, change the journal mode, the page size and the keys, vacuum, back
** up and copy (the copy is read by the same rules), hold a snapshot or an exclusive lock,
** close and open again. In some campaigns each transaction changes a second database, too.
**
** The operating system keeps what was written, so this holds with any setting of
** synchronous. What an outage leaves is crash.c's.
*/
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crowd.h"
#include "disk.h"
#include "model.h"
#include "scratch.h"

#define PROCESSES 3
#define EACH 2 /* actors in a process */
#define ACTORS (PROCESSES * EACH)
#define ROWS 120    /* at most, of one actor */
#define STRIDE 1024 /* row ids: actor w has w * STRIDE .. */
#define RING 512    /* transactions of one actor whose digest is remembered */
#define ACTIONS 12  /* kills and stops of one campaign */
#define HANG_S 30
#define LONGEST 12000 /* bytes of a row's body */

/* Two databases, changed by the same transactions. */
typedef enum pair { ALONE, BOTH_SEALED, OTHER_PLAIN, MAIN_PLAIN } pair;

/* A campaign's settings, drawn from its seed. */
typedef struct plan {
  int page_size, small; /* small: turned into pages of this size once it is there */
  int auto_vacuum, rows;
  const char *journal;
  int modes; /* actors change the journal mode */
  int keys;  /* one of so many steps changes the keys; 0: none */
  pair pair;
} plan;

typedef struct entry {
  uint32_t n;
  uint64_t digest;
} entry;

/* Shared by all processes. */
typedef struct board {
  uint32_t begun[ACTORS], committed[ACTORS];
  entry ring[ACTORS][RING];
  long steps[PROCESSES], commits, looks, keys, copies;
  int second_key; /* the instance has a second key, from an earlier campaign, it may be */
  char complaint[CROWD_COMPLAINT];
} board;

typedef struct row {
  uint32_t seed, len; /* len 0: no such row */
} row;

typedef struct sight { /* what a look has found */
  uint32_t n[ACTORS];
  uint64_t digest[ACTORS];
} sight;

typedef enum stage { IDLE, READING, WRITING } stage;

typedef struct actor {
  int w;
  rng r;
  sqlite3 *db;
  stage at;
  int exclusive;
  row rows[ROWS], work[ROWS]; /* as committed; as the open transaction has it */
  uint32_t floor[ACTORS];     /* what was committed when the transaction began */
  sight seen;                 /* its first look */
  int has_seen;
  uint8_t *body;
} actor;

static board *shared;
static plan now;
static char root[256], path[300], other[300];
static int plain, verbose, keep, threads, process;
static uint64_t campaign_seed, life;

/* ---- what a database must hold ---- */

static uint64_t mix(uint64_t h, uint64_t v) {
  return (h ^ v) * 0x9e3779b97f4a7c15u + (h >> 29);
}

static uint64_t digest_row(uint64_t h, uint32_t j, uint32_t seed, uint32_t len) {
  return mix(mix(h, ((uint64_t)j << 32) | seed), len);
}

static uint64_t digest_of(const row *rows) {
  uint64_t h = 1;

  for (uint32_t j = 0; j < ROWS; j++) {
    if (rows[j].len) h = digest_row(h, j, rows[j].seed, rows[j].len);
  }
  return h;
}

/* Compares one row's body with what its seed makes of it, and counts it. */
static void see_row(actor *a, sqlite3_stmt *q, sight *s) {
  sqlite3_int64 id = sqlite3_column_int64(q, 0);
  uint32_t seed = (uint32_t)sqlite3_column_int64(q, 1), len = (uint32_t)sqlite3_column_int(q, 2);

  if (id < 0 || id >= ACTORS * STRIDE || len < 24 || len > LONGEST) {
    complain("row %lld of %u bytes is nobody's", (long long)id, len);
    return;
  }
  model_body((uint32_t)id, seed, len, a->body);
  if ((uint32_t)sqlite3_column_bytes(q, 3) != len ||
      memcmp(sqlite3_column_blob(q, 3), a->body, len) != 0) {
    complain("row %lld is not what was written", (long long)id);
  }
  s->digest[id / STRIDE] = digest_row(s->digest[id / STRIDE], (uint32_t)(id % STRIDE), seed, len);
}

/* The second database's n must be the first's. */
static int see_other(sqlite3 *db, const sight *s) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, "SELECT w, n FROM aux.other", -1, &q, NULL);

  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    int w = sqlite3_column_int(q, 0);
    uint32_t n = (uint32_t)sqlite3_column_int64(q, 1);
    rc = SQLITE_OK;
    if (n != s->n[w]) complain("actor %d: %u in one database, %u in the other", w, s->n[w], n);
  }
  (void)sqlite3_finalize(q);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Reads everything; the caller has a transaction open, or reads a file of its own. */
static int see(actor *a, sqlite3 *db, int with_other, sight *s) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, "SELECT n FROM progress ORDER BY w", -1, &q, NULL);
  int w = 0;

  for (int i = 0; i < ACTORS; i++) s->digest[i] = 1;
  for (; rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW && w < ACTORS; w++) {
    s->n[w] = (uint32_t)sqlite3_column_int64(q, 0);
    rc = SQLITE_OK;
  }
  (void)sqlite3_finalize(q);
  q = NULL;
  if (rc != SQLITE_DONE) return rc;
  if (w != ACTORS) complain("progress of %d actors instead of %d", w, ACTORS);
  rc = sqlite3_prepare_v2(db, "SELECT id, seed, len, body FROM t ORDER BY id", -1, &q, NULL);
  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    see_row(a, q, s);
    rc = SQLITE_OK;
  }
  (void)sqlite3_finalize(q);
  if (rc == SQLITE_DONE) rc = SQLITE_OK;
  if (rc == SQLITE_OK && with_other && now.pair) rc = see_other(db, s);
  return rc;
}

static uint32_t load(const uint32_t *p) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

/* What somebody has seen is committed, whether its writer lived to say so or not. */
static void raise_committed(int w, uint32_t n) {
  uint32_t had = load(&shared->committed[w]);

  while (had < n && !__atomic_compare_exchange_n(&shared->committed[w], &had, n, 0,
                                                 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
}

/* Judges what was read. own: the actor whose own transaction is open, or -1. */
static void judge(const actor *a, const sight *s, const uint32_t *floor, int own,
                  const char *what) {
  for (int w = 0; w < ACTORS; w++) {
    const entry *e = &shared->ring[w][s->n[w] % RING];
    uint64_t want = e->digest;

    if (s->n[w] < floor[w]) {
      complain("%s: actor %d had committed %u; %u is there", what, w, floor[w], s->n[w]);
    } else if (s->n[w] > load(&shared->begun[w])) {
      complain("%s: actor %d began %u; %u is there", what, w, shared->begun[w], s->n[w]);
    } else if (w == own ? s->digest[w] != digest_of(a->work)
                        : e->n == s->n[w] && s->digest[w] != want) {
      complain("%s: the rows are not those of actor %d's transaction %u", what, w, s->n[w]);
    }
    if (w != own) raise_committed(w, s->n[w]); /* its own COMMIT may have been refused */
  }
}

static void read_floor(uint32_t *floor) {
  for (int w = 0; w < ACTORS; w++) floor[w] = load(&shared->committed[w]);
}

/* ---- an actor's tools ---- */

static uint32_t below(actor *a, uint32_t n) {
  return rng_below(&a->r, n);
}

static void stop_here(void) {
  _exit(1);
}

/* Something has failed on a's connection. Comes back only where it may be tried again. */
static int must_be_passing(actor *a, const char *what) {
  if (crowd_passing(a->db)) return SQLITE_BUSY;
  complain("actor %d: %s: %s (%d) %s", a->w, what, sqlite3_errmsg(a->db),
           sqlite3_extended_errcode(a->db), crowd_last_words());
  stop_here();
  return SQLITE_ERROR;
}

static int try_sql(actor *a, const char *sql) {
  int rc = sqlite3_exec(a->db, sql, NULL, NULL, NULL);
  return rc == SQLITE_OK ? rc : must_be_passing(a, sql);
}

__attribute__((format(printf, 2, 3))) static int try_text(actor *a, const char *fmt, ...) {
  char sql[900];
  va_list ap;

  va_start(ap, fmt);
  (void)vsnprintf(sql, sizeof(sql), fmt, ap);
  va_end(ap);
  return try_sql(a, sql);
}

static void take_back(actor *a) {
  if (!sqlite3_get_autocommit(a->db)) (void)sqlite3_exec(a->db, "ROLLBACK", NULL, NULL, NULL);
  memcpy(a->work, a->rows, sizeof(a->work));
  a->at = IDLE;
}

static int main_is_sealed(void) {
  return !plain && now.pair != MAIN_PLAIN;
}

static int open_file(const char *file, int sealed, int flags, sqlite3 **db) {
  char uri[500];

  (void)snprintf(uri, sizeof(uri), "file:%s?vfs=%s", file, sealed ? "tde" : "unix");
  return sqlite3_open_v2(uri, db, flags | SQLITE_OPEN_URI, NULL);
}

/* Settings that nobody else notices. With OFF there is no super-journal, and two databases
** are committed one by one (vdbeCommit). */
static void tweak(actor *a) {
  static const int caches[] = {3, 5, 10, 40, 400}, checkpoints[] = {0, 5, 20, 60, 1000};
  static const char *const syncs[] = {"OFF", "OFF", "NORMAL", "FULL"};

  (void)try_text(a, "PRAGMA cache_size=%d; PRAGMA wal_autocheckpoint=%d; PRAGMA synchronous=%s",
                 caches[below(a, 5)], checkpoints[below(a, 5)],
                 syncs[now.pair ? 2 + below(a, 2) : below(a, 4)]);
  (void)try_text(a, "PRAGMA mmap_size=%d; PRAGMA secure_delete=%d",
                 below(a, 3) ? 0 : 1 << (16 + below(a, 12)), (int)below(a, 2));
}

static void connect_actor(actor *a) {
  int rc = open_file(path, main_is_sealed(), SQLITE_OPEN_READWRITE, &a->db);

  if (rc) {
    complain("open: %s", a->db ? sqlite3_errmsg(a->db) : sqlite3_errstr(rc));
    stop_here();
  }
  /* Those of one thread wait for each other in vain. */
  (void)sqlite3_busy_handler(a->db, crowd_wait, (void *)(intptr_t)(threads ? 200 : 4));
  a->at = IDLE;
  a->exclusive = 0;
  tweak(a);
  while (now.pair && try_text(a, "ATTACH 'file:%s?vfs=%s' AS aux", other,
                              plain || now.pair == OTHER_PLAIN ? "unix" : "tde") == SQLITE_BUSY) {
  }
}

/* ---- looking ---- */

static void begin_reading(actor *a) {
  read_floor(a->floor);
  a->has_seen = 0;
  if (try_sql(a, "BEGIN") == SQLITE_OK) a->at = READING;
}

/* The transaction's first look is judged, later ones must be the same. */
static void look(actor *a) {
  sight s;
  int rc = see(a, a->db, 1, &s);

  if (shared->complaint[0]) stop_here();
  if (rc) {
    (void)must_be_passing(a, "reading");
    take_back(a);
    return;
  }
  if (a->at == WRITING || !a->has_seen) {
    judge(a, &s, a->floor, a->at == WRITING ? a->w : -1, a->at == WRITING ? "writer" : "reader");
  } else if (memcmp(&s, &a->seen, sizeof(s)) != 0) {
    complain("actor %d: two looks in one transaction differ", a->w);
  }
  if (!a->has_seen) a->seen = s;
  a->has_seen = 1;
  __atomic_fetch_add(&shared->looks, 1, __ATOMIC_RELAXED);
}

static void stop_reading(actor *a) {
  (void)try_sql(a, "COMMIT");
  a->at = IDLE;
}

/* ---- writing ---- */

static void begin_writing(actor *a) {
  read_floor(a->floor);
  a->has_seen = 0;
  if (try_sql(a, "BEGIN IMMEDIATE") == SQLITE_OK) a->at = WRITING;
}

static int step_once(actor *a, sqlite3_stmt *q) {
  int rc = sqlite3_step(q);

  (void)sqlite3_finalize(q);
  if (rc == SQLITE_DONE) return SQLITE_OK;
  return rc == SQLITE_CONSTRAINT ? rc : must_be_passing(a, "writing");
}

static uint32_t some_length(actor *a) {
  switch (below(a, 8)) {
    case 0:
      return 24 + below(a, LONGEST - 24);
    case 1:
    case 2:
      return 24 + below(a, 4000);
    default:
      return 24 + below(a, 500);
  }
}

static void change_row(actor *a, uint32_t j) {
  sqlite3_int64 id = (sqlite3_int64)a->w * STRIDE + j;
  row made = {(uint32_t)rng_next(&a->r) & 0x7fffffff, below(a, 4) ? some_length(a) : 0};
  const char *sql = made.len ? "INSERT OR REPLACE INTO t VALUES(?,?,?,?)"
                             : "DELETE FROM t WHERE id=?";
  sqlite3_stmt *q = NULL;

  if (sqlite3_prepare_v2(a->db, sql, -1, &q, NULL)) {
    (void)must_be_passing(a, sql);
    return;
  }
  (void)sqlite3_bind_int64(q, 1, id);
  if (made.len) {
    model_body((uint32_t)id, made.seed, made.len, a->body);
    (void)sqlite3_bind_int64(q, 2, made.seed);
    (void)sqlite3_bind_int(q, 3, (int)made.len);
    (void)sqlite3_bind_blob(q, 4, a->body, (int)made.len, SQLITE_STATIC);
  }
  if (step_once(a, q) == SQLITE_OK) a->work[j] = made;
}

static void change_rows(actor *a, int n) {
  for (int i = 0; i < n; i++) change_row(a, below(a, (uint32_t)now.rows));
}

/* SQLite 3.40.1 loses committed WAL transactions when a savepoint or a statement is undone
** after a spill (README.md): not there. */
static int may_undo(actor *a) {
  sqlite3_stmt *q = NULL;
  int wal = 1;

  if (sqlite3_prepare_v2(a->db, "PRAGMA main.journal_mode", -1, &q, NULL) == SQLITE_OK &&
      sqlite3_step(q) == SQLITE_ROW) {
    wal = strcmp((const char *)sqlite3_column_text(q, 0), "wal") == 0;
  }
  (void)sqlite3_finalize(q);
  return !wal;
}

static void undo_savepoint(actor *a) {
  row before[ROWS];

  memcpy(before, a->work, sizeof(before));
  (void)try_sql(a, "SAVEPOINT a");
  change_rows(a, 1 + (int)below(a, below(a, 3) ? 5 : 60));
  (void)try_sql(a, "ROLLBACK TO a; RELEASE a");
  memcpy(a->work, before, sizeof(before));
}

/* Its last row is there already: what was inserted before it goes again. */
static void undo_statement(actor *a) {
  char sql[300];
  sqlite3_stmt *q = NULL;

  (void)snprintf(sql, sizeof(sql),
                 "INSERT INTO t SELECT id+%d, seed, len, body FROM t WHERE id/%d=%d "
                 "UNION ALL SELECT id, seed, len, body FROM t",
                 STRIDE / 2, STRIDE, a->w);
  if (sqlite3_prepare_v2(a->db, sql, -1, &q, NULL) == SQLITE_OK) (void)step_once(a, q);
}

static void announce(actor *a, uint32_t n) {
  entry *e = &shared->ring[a->w][n % RING];

  e->digest = digest_of(a->work);
  __atomic_store_n(&e->n, n, __ATOMIC_SEQ_CST);
  __atomic_store_n(&shared->begun[a->w], n, __ATOMIC_SEQ_CST);
}

static void commit(actor *a) {
  uint32_t n = load(&shared->committed[a->w]) + 1;
  int rc = try_text(a, "UPDATE progress SET n=%u WHERE w=%d", n, a->w);

  if (rc == SQLITE_OK && now.pair) {
    rc = try_text(a, "UPDATE aux.other SET n=%u, body=randomblob(%u) WHERE w=%d", n, below(a, 3000),
                  a->w);
  }
  if (rc == SQLITE_OK) {
    announce(a, n);
    rc = try_sql(a, "COMMIT");
  }
  if (rc) { /* readers are in the way: it may be tried again */
    if (below(a, 4) == 0) take_back(a);
    return;
  }
  memcpy(a->rows, a->work, sizeof(a->rows));
  raise_committed(a->w, n);
  a->at = IDLE;
  __atomic_fetch_add(&shared->commits, 1, __ATOMIC_RELAXED);
}

/* ---- what else may be done ---- */

static void checkpoint(actor *a) {
  static const char *const kinds[] = {"PASSIVE", "PASSIVE", "FULL", "RESTART", "TRUNCATE"};
  (void)try_text(a, "PRAGMA main.wal_checkpoint(%s)", kinds[below(a, 5)]);
}

static void change_mode(actor *a) {
  static const char *const modes[] = {"WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST"};
  /* Of two databases in WAL mode each commits by itself. */
  (void)try_text(a, "PRAGMA main.journal_mode=%s", modes[now.pair ? 2 + below(a, 3) : below(a, 5)]);
}

static void vacuum(actor *a) {
  switch (below(a, 4)) {
    case 0:
      (void)try_sql(a, "VACUUM");
      break;
    case 1: /* has no effect in WAL mode */
      (void)try_text(a, "PRAGMA page_size=%d; VACUUM", 512 << below(a, 5));
      break;
    default:
      (void)try_text(a, "PRAGMA incremental_vacuum(%u)", below(a, 30));
  }
}

static void change_keys(actor *a) {
  static const char *const calls[] = {"SELECT tde_rotate_dek()", "SELECT tde_rotate_dek()",
                                      "SELECT tde_set_protector('local:second')",
                                      "SELECT tde_set_protector('local:smk')",
                                      "SELECT tde_revalidate()"};

  if (main_is_sealed() && try_sql(a, calls[below(a, 5)]) == SQLITE_OK) {
    __atomic_fetch_add(&shared->keys, 1, __ATOMIC_RELAXED);
  }
}

static void verify(actor *a) {
  if (below(a, 2) || !main_is_sealed()) {
    if (try_sql(a, "BEGIN") == SQLITE_OK && try_sql(a, "SELECT 1 FROM progress") == SQLITE_OK) {
      crowd_expect(a->db, "PRAGMA main.integrity_check", "ok");
    }
    take_back(a);
  } else {
    sqlite3_stmt *q = NULL;
    if (sqlite3_prepare_v2(a->db, "SELECT tde_verify()", -1, &q, NULL) == SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW &&
        !strstr((const char *)sqlite3_column_text(q, 0), "\"ok\":true")) {
      complain("tde_verify: %.600s", (const char *)sqlite3_column_text(q, 0));
    }
    (void)sqlite3_finalize(q);
  }
}

/* SQLite's backup API, page by page, into a file that is closed again. */
static int by_pages(actor *a, const char *file) {
  sqlite3 *to = NULL;
  sqlite3_backup *b = NULL;
  int rc = open_file(file, main_is_sealed(), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &to);

  if (rc == SQLITE_OK) b = sqlite3_backup_init(to, "main", a->db, "main");
  for (int i = 0; b && i < 2000; i++) {
    rc = sqlite3_backup_step(b, 1 + (int)below(a, 60));
    if (rc == SQLITE_DONE) break;
    if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED) (void)usleep(200);
  }
  if (b && sqlite3_backup_finish(b) == SQLITE_OK && rc == SQLITE_DONE) rc = SQLITE_OK;
  if (rc == SQLITE_OK)
    rc = sqlite3_close(to);
  else
    (void)sqlite3_close(to);
  return rc == SQLITE_OK ? SQLITE_OK : SQLITE_BUSY;
}

/* A copy must be one state between those at its begin and its end. */
static void look_at_copy(actor *a, const char *file, const uint32_t *floor, const char *how) {
  sqlite3 *db = NULL;
  sight s;
  int rc = open_file(file, main_is_sealed(), SQLITE_OPEN_READONLY, &db);

  if (rc == SQLITE_OK) rc = see(a, db, 0, &s);
  if (rc) {
    complain("%s: %s (%d)", how, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  } else {
    judge(a, &s, floor, -1, how);
    crowd_expect(db, "PRAGMA integrity_check", "ok");
  }
  (void)sqlite3_close(db);
}

static void remove_database(const char *file) {
  static const char *const ends[] = {"", "-journal", "-wal", "-shm", "-tdelog"};
  char name[500];

  for (int i = 0; i < 5; i++) {
    (void)snprintf(name, sizeof(name), "%s%s", file, ends[i]);
    (void)unlink(name);
  }
}

static void copy(actor *a) {
  static const char *const ways[] = {"tde_copy", "tde_backup", "tde_create_secondary"};
  uint32_t way = below(a, !main_is_sealed() ? 2 : a->w < 2 ? 6 : 5), floor[ACTORS];
  char file[400];
  int rc;

  (void)snprintf(file, sizeof(file), "%s/%s-%d.db", root, way == 5 ? "second" : "copy", a->w);
  read_floor(floor);
  if (way == 5 && access(file, F_OK) == 0) {
    rc = try_text(a, "SELECT tde_sync_secondary('%s')", file);
  } else {
    remove_database(file);
    rc = way == 0   ? by_pages(a, file)
         : way == 1 ? try_text(a, "VACUUM main INTO 'file:%s?vfs=%s'", file,
                               main_is_sealed() ? "tde&tde_protector=local:smk" : "unix")
                    : try_text(a, "SELECT %s('%s')", ways[way == 5 ? 2 : way % 2], file);
  }
  if (rc) return;
  look_at_copy(a, file, floor, way == 0 ? "backup API" : way == 1 ? "VACUUM INTO" : "copy");
  __atomic_fetch_add(&shared->copies, 1, __ATOMIC_RELAXED);
}

static void open_again(actor *a) {
  int rc = sqlite3_close(a->db);

  if (rc) complain("close: %s", sqlite3_errstr(rc));
  memcpy(a->work, a->rows, sizeof(a->work));
  connect_actor(a);
}

/* Takes every lock for itself, or gives it up with the next read. */
static void toggle_exclusive(actor *a) {
  a->exclusive = !a->exclusive;
  (void)try_text(a, "PRAGMA main.locking_mode=%s; SELECT count(*) FROM progress",
                 a->exclusive ? "EXCLUSIVE" : "NORMAL");
}

/* ---- one step ---- */

static void step_idle(actor *a) {
  uint32_t d = below(a, 1000);

  if (a->exclusive && below(a, 3) == 0) {
    toggle_exclusive(a);
  } else if (now.keys && below(a, (uint32_t)now.keys) == 0) {
    change_keys(a);
  } else if (d < 450) {
    begin_writing(a);
  } else if (d < 700) {
    begin_reading(a);
  } else if (d < 800) {
    checkpoint(a);
  } else if (d < 830) {
    if (now.modes) change_mode(a);
  } else if (d < 880) {
    tweak(a);
  } else if (d < 910) {
    open_again(a);
  } else if (d < 940) {
    vacuum(a);
  } else if (d < 965) {
    verify(a);
  } else if (d < 990) {
    copy(a);
  } else {
    toggle_exclusive(a);
  }
}

static void step_reading(actor *a) {
  uint32_t d = below(a, 100);

  if (d < 55) {
    look(a);
  } else if (d < 90) {
    stop_reading(a);
  } else if (d < 95) { /* becomes a writer, unless others wrote meanwhile */
    row before[ROWS];
    memcpy(before, a->work, sizeof(before));
    change_rows(a, 1);
    if (memcmp(before, a->work, sizeof(before)) == 0) {
      take_back(a);
    } else {
      a->at = WRITING;
    }
  } else {
    open_again(a);
  }
}

static void step_writing(actor *a) {
  uint32_t d = below(a, 100);

  if (d < 45) {
    change_rows(a, 1 + (int)below(a, 6));
  } else if (d < 52) {
    change_rows(a, now.rows);
  } else if (d < 60) {
    if (may_undo(a)) undo_savepoint(a);
  } else if (d < 63) {
    if (may_undo(a)) undo_statement(a);
  } else if (d < 67) {
    look(a);
  } else if (d < 90) {
    commit(a);
  } else if (d < 98) {
    take_back(a);
  } else {
    open_again(a);
  }
}

static void act(actor *a) {
  if (shared->complaint[0]) stop_here();
  switch (a->at) {
    case IDLE:
      step_idle(a);
      break;
    case READING:
      step_reading(a);
      break;
    case WRITING:
      step_writing(a);
      break;
  }
  __atomic_fetch_add(&shared->steps[process], 1, __ATOMIC_RELAXED);
}

/* ---- a process ---- */

/* The rows that the database has of this actor: an earlier process may have died anywhere. */
static int adopt(actor *a) {
  sqlite3_stmt *q = NULL;
  int rc;

  memset(a->rows, 0, sizeof(a->rows));
  rc = sqlite3_prepare_v2(a->db, "SELECT id, seed, len FROM t WHERE id/1024=?", -1, &q, NULL);
  (void)sqlite3_bind_int(q, 1, a->w);
  while (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
    row *r = &a->rows[sqlite3_column_int(q, 0) % STRIDE % ROWS];
    r->seed = (uint32_t)sqlite3_column_int64(q, 1);
    r->len = (uint32_t)sqlite3_column_int(q, 2);
    rc = SQLITE_OK;
  }
  (void)sqlite3_finalize(q);
  memcpy(a->work, a->rows, sizeof(a->work));
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static void arrive(actor *a, int w) {
  memset(a, 0, sizeof(*a));
  a->w = w;
  a->r.s = campaign_seed ^ (life << 20) ^ ((uint64_t)w << 40);
  a->body = malloc(MODEL_BODY_MAX + 32);
  if (!a->body) abort();
  connect_actor(a);
  do {
    begin_reading(a);
    if (a->at == READING) look(a);
    if (a->at == READING && adopt(a)) take_back(a);
  } while (a->at != READING);
  stop_reading(a);
}

static void *run_actor(void *p) {
  for (;;) act(p);
  return NULL;
}

/* One that keeps others out goes on more often. */
static actor *choose(rng *r, actor *actors) {
  for (int i = 0; i < EACH; i++) {
    if (actors[i].at == WRITING && rng_below(r, 3)) return &actors[i];
  }
  return &actors[rng_below(r, EACH)];
}

static void run_process(void) {
  static actor actors[EACH];
  rng r = {campaign_seed ^ life};

  crowd_start(plain, verbose > 1);
  for (int i = 0; i < EACH; i++) arrive(&actors[i], process * EACH + i);
  for (int i = 1; threads && i < EACH; i++) {
    pthread_t id;
    if (pthread_create(&id, NULL, run_actor, &actors[i])) abort();
  }
  if (threads) (void)run_actor(&actors[0]);
  for (;;) act(choose(&r, actors));
}

static void must(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK) return;
  complain("%s: %s", sql, sqlite3_errmsg(db));
  stop_here();
}

static void create(void) {
  sqlite3 *db = NULL;
  char sql[600];
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;

  crowd_start(plain, verbose > 1);
  if (open_file(path, main_is_sealed(), flags, &db)) complain("create: %s", sqlite3_errmsg(db));
  (void)snprintf(sql, sizeof(sql),
                 "PRAGMA page_size=%d; PRAGMA auto_vacuum=%d; CREATE TABLE t(id INTEGER PRIMARY "
                 "KEY, seed INT, len INT, body BLOB); CREATE INDEX ts ON t(seed); CREATE INDEX tb "
                 "ON t(substr(body,1,200)); CREATE TABLE progress(w INTEGER PRIMARY KEY, n INT);"
                 "INSERT INTO progress VALUES(0,0),(1,0),(2,0),(3,0),(4,0),(5,0)",
                 now.page_size, now.auto_vacuum);
  must(db, sql);
  if (now.small) {
    (void)snprintf(sql, sizeof(sql), "PRAGMA page_size=%d; VACUUM", now.small);
    must(db, sql);
  }
  if (main_is_sealed() && !shared->second_key) {
    must(db, "SELECT tde_instance_new_key('second')");
    shared->second_key = 1;
  }
  (void)snprintf(sql, sizeof(sql), "PRAGMA journal_mode=%s", now.journal);
  must(db, sql);
  (void)sqlite3_close(db);
  db = NULL;
  if (now.pair) {
    if (open_file(other, !plain && now.pair != OTHER_PLAIN, flags, &db)) complain("create");
    must(db,
         "CREATE TABLE other(w INTEGER PRIMARY KEY, n INT, body);"
         "INSERT INTO other VALUES(0,0,0),(1,0,0),(2,0,0),(3,0,0),(4,0,0),(5,0,0)");
    (void)sqlite3_close(db);
  }
  _exit(shared->complaint[0] != 0);
}

/* With everybody else dead: all is there, whole, and goes on. */
static void inspect(void) {
  static actor a;

  crowd_start(plain, verbose > 1);
  threads = 1; /* nobody here to wait for */
  arrive(&a, 0);
  crowd_expect(a.db, "PRAGMA main.integrity_check", "ok");
  if (below(&a, 2)) (void)try_sql(&a, "PRAGMA main.wal_checkpoint(TRUNCATE)");
  if (main_is_sealed()) crowd_expect(a.db, "SELECT tde_verify()", "\"ok\":true");
  (void)sqlite3_close(a.db);
  _exit(shared->complaint[0] != 0);
}

/* ---- the parent ---- */

/* With everybody dead: no file of a sealed database may hold a row's text. */
static void search_for_plaintext(const char *file) {
  static const char *const ends[] = {"", "-journal", "-wal"};
  char name[500];

  for (int i = 0; i < 3; i++) {
    struct stat st;
    FILE *f;
    char *all;

    (void)snprintf(name, sizeof(name), "%s%s", file, ends[i]);
    if (stat(name, &st) || !(f = fopen(name, "rb"))) continue;
    all = malloc((size_t)st.st_size + 1);
    if (all && fread(all, 1, (size_t)st.st_size, f) == (size_t)st.st_size &&
        memmem(all, (size_t)st.st_size, MODEL_MARK, strlen(MODEL_MARK))) {
      complain("%s holds plaintext", name);
    }
    free(all);
    (void)fclose(f);
  }
}

static rng draw_plan(uint64_t seed) {
  static const int pages[] = {512, 1024, 4096, 4096, 4096, 8192, 65536};
  static const char *const journals[] = {"WAL", "WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST"};

  rng all = {seed}, *r = &all;

  memset(&now, 0, sizeof(now));
  now.page_size = pages[rng_below(r, 7)];
  now.small = rng_below(r, 4) ? 0 : 512 << rng_below(r, 2);
  if (now.small) now.page_size = 4096;
  now.auto_vacuum = rng_below(r, 2) ? 0 : 1 + (int)rng_below(r, 2);
  now.rows = rng_below(r, 2) ? 12 : ROWS;
  now.journal = journals[rng_below(r, 6)];
  now.modes = rng_below(r, 3) == 0;
  now.keys = rng_below(r, 4) ? 20 << rng_below(r, 4) : 0;
  now.pair = rng_below(r, 6) == 0 ? 1 + rng_below(r, 3) : ALONE;
  if (now.pair) now.journal = journals[3 + rng_below(r, 3)];
  return all;
}

static const char *plan_text(void) {
  static char text[200];

  (void)snprintf(
      text, sizeof(text), "pages of %d%s, auto_vacuum %d, %d rows, %s%s, keys %d, pair %d",
      now.small ? now.small : now.page_size, now.small ? " (below a unit)" : "", now.auto_vacuum,
      now.rows, now.journal, now.modes ? " and others" : "", now.keys, (int)now.pair);
  return text;
}

static pid_t pids[PROCESSES];

/* Also those that have killed themselves, or failed. */
static void start_missing(void) {
  for (int i = 0; i < PROCESSES; i++) {
    if (pids[i]) continue;
    process = i;
    life++;
    pids[i] = crowd_child(run_process);
  }
}

static void kill_all(void) {
  for (int i = 0; i < PROCESSES; i++) crowd_kill(&pids[i]);
}

/* Everybody makes progress, or hangs. */
static void look_for_hangs(long *steps, int *idle_us, int waited_us) {
  for (int i = 0; i < PROCESSES; i++) {
    long there = __atomic_load_n(&shared->steps[i], __ATOMIC_RELAXED);
    idle_us[i] = there == steps[i] ? idle_us[i] + waited_us : 0;
    steps[i] = there;
    if (idle_us[i] > HANG_S * 1000000) complain("process %d has done nothing for %d s", i, HANG_S);
  }
}

static void inspect_all(void) {
  kill_all();
  if (shared->complaint[0]) return;
  if (main_is_sealed()) search_for_plaintext(path);
  if (now.pair == BOTH_SEALED || now.pair == MAIN_PLAIN) {
    if (!plain) search_for_plaintext(other);
  }
  life++;
  crowd_join(crowd_child(inspect), "the inspection");
}

static void disturb(rng *r) {
  int victim = (int)rng_below(r, PROCESSES);

  switch (rng_below(r, 8)) {
    case 0:
      inspect_all();
      break;
    case 1:
    case 2:
    case 3: /* others meet its locks for a while */
      (void)kill(pids[victim], SIGSTOP);
      (void)usleep(1000 + rng_below(r, 60000));
      (void)kill(pids[victim], rng_below(r, 2) ? SIGCONT : SIGKILL);
      (void)kill(pids[victim], SIGCONT);
      break;
    default:
      crowd_kill(&pids[victim]);
  }
}

/* Reaps what has ended meanwhile, so that it is started again. */
static void reap(void) {
  for (int i = 0; i < PROCESSES; i++) {
    int status;
    if (!pids[i] || waitpid(pids[i], &status, WNOHANG) != pids[i]) continue;
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
      complain("process %d died of signal %d", i, WTERMSIG(status));
    } else if (WIFEXITED(status) && !shared->complaint[0]) {
      complain("process %d ended with %d", i, WEXITSTATUS(status));
    }
    pids[i] = 0;
  }
}

static void forget_files(void) {
  char file[400];

  remove_database(path);
  remove_database(other);
  for (int w = 0; w < ACTORS; w++) {
    (void)snprintf(file, sizeof(file), "%s/copy-%d.db", root, w);
    remove_database(file);
    (void)snprintf(file, sizeof(file), "%s/second-%d.db", root, w);
    remove_database(file);
  }
}

static void campaign(uint64_t seed) {
  rng r = draw_plan(seed);
  long steps[PROCESSES] = {0};
  int idle_us[PROCESSES] = {0};

  forget_files();
  memset(shared, 0, offsetof(board, second_key));
  shared->complaint[0] = 0;
  for (int w = 0; w < ACTORS; w++) shared->ring[w][0].digest = 1;
  campaign_seed = rng_next(&r);
  crowd_join(crowd_child(create), "the creation");
  for (int i = 0; i < ACTIONS && !shared->complaint[0]; i++) {
    int us = 2000 + (int)rng_below(&r, 1u << (11 + rng_below(&r, 8)));
    start_missing();
    (void)usleep((unsigned)us);
    look_for_hangs(steps, idle_us, us);
    reap();
    start_missing();
    if (!shared->complaint[0]) disturb(&r);
    reap();
  }
  inspect_all();
}

static int prepare(void) {
  if (scratch_make("stress", root, sizeof(root))) return 1;
  (void)snprintf(path, sizeof(path), "%s/app.db", root);
  (void)snprintf(other, sizeof(other), "%s/other.db", root);
  shared = crowd_memory(sizeof(*shared));
  if (!shared) return 1;
  crowd_hear(shared->complaint);
  return 0;
}

static int usage(void) {
  (void)fprintf(stderr,
                "usage: stress [-n campaigns] [-i seed] [-m text in the plan] [-t threads] "
                "[-p plain] [-k keep] [-v [-v]]\n");
  return 2;
}

int main(int argc, char **argv) {
  int campaigns = 10, c, failed = 0, done = 0;
  uint64_t seed = 1;
  const char *only = NULL;

  while ((c = getopt(argc, argv, "n:i:m:tpkv")) != -1) {
    if (c == 'n')
      campaigns = (int)crowd_number(optarg);
    else if (c == 'i')
      seed = strtoull(optarg, NULL, 10);
    else if (c == 'm')
      only = optarg;
    else if (c == 't')
      threads = 1;
    else if (c == 'p')
      plain = 1;
    else if (c == 'k')
      keep = 1;
    else if (c == 'v')
      verbose++;
    else
      return usage();
  }
  if (prepare()) {
    perror("stress");
    return 2;
  }
  for (; done < campaigns && failed < 10 && !(keep && failed); done++, seed++) {
    while (only && (draw_plan(seed), !strstr(plan_text(), only))) seed++;
    campaign(seed);
    if (verbose) {
      (void)fprintf(stderr, "%s: %ld commits, %ld looks, %ld key changes, %ld copies\n",
                    plan_text(), shared->commits, shared->looks, shared->keys, shared->copies);
    }
    if (!shared->complaint[0]) continue;
    failed++;
    (void)printf("FAIL %s\n  %s\n  again, some times: %s -i %llu -n 1%s%s\n", shared->complaint,
                 plan_text(), argv[0], (unsigned long long)seed, threads ? " -t" : "",
                 plain ? " -p" : "");
    (void)fflush(stdout);
  }
  if (keep && failed)
    (void)printf("  its files are kept in %s\n", root);
  else
    scratch_remove(root);
  (void)printf("%d passed, %d failed, 0 skipped\n", done - failed, failed);
  return failed != 0;
}
