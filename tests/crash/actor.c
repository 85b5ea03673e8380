/*
** actor.c: what one connection of stress.c does, and how what it reads is judged; see there.
*/
#include "actor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

#define UNTIL_CLOSED 2    /* an actor's exclusive: SQLite does not give it up before */
#define LONGEST 12000     /* bytes of a row's body */
#define PATIENCE_MS 15000 /* so long after the keys came back must the databases be there again */

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

int64_t actor_clock(void) {
  struct timespec t;

  return clock_gettime(CLOCK_MONOTONIC, &t) ? 0 : t.tv_sec * (int64_t)1000 + t.tv_nsec / 1000000;
}

static int away_lately(void) {
  int64_t back = __atomic_load_n(&shared->back, __ATOMIC_SEQ_CST);

  return now.losses && (!back || actor_clock() - back < PATIENCE_MS);
}

/* The database is refused because its key is, or was a moment ago, away: SQLite says I/O
** error, whatever it was about to do (of VACUUM it keeps the plain code alone), and the
** functions name the key. */
static int key_is_away(sqlite3 *db) {
  int rc = sqlite3_extended_errcode(db);

  return away_lately() && (rc == SQLITE_IOERR_AUTH || rc == SQLITE_IOERR ||
                           strstr(sqlite3_errmsg(db), "is not in the instance"));
}

/* As crowd_expect, unless the key is away. */
static void expect(sqlite3 *db, const char *sql, const char *want) {
  char got[600];

  if (crowd_ask(db, sql, got, sizeof(got))) {
    if (!key_is_away(db)) complain("%s: %s", sql, got);
  } else if (!strstr(got, want)) { /* integrity_check tells of I/O errors in its rows */
    if (!away_lately() || !strstr(got, "error code=7178")) complain("%s: %s", sql, got);
  }
}

/* Something has failed on a's connection. Comes back only where it may be tried again. */
static int must_be_passing(actor *a, const char *what) {
  if (crowd_passing(a->db)) return SQLITE_BUSY;
  if (key_is_away(a->db)) {
    __atomic_fetch_add(&shared->refusals, 1, __ATOMIC_RELAXED);
    if (below(a, 3) == 0) (void)sqlite3_exec(a->db, "SELECT tde_revalidate()", NULL, NULL, NULL);
    return SQLITE_BUSY;
  }
  complain("actor %d: %s: %s (%d) %s", a->w, what, sqlite3_errmsg(a->db),
           sqlite3_extended_errcode(a->db), crowd_last_words());
  stop_here();
  return SQLITE_ERROR;
}

int actor_try(actor *a, const char *sql) {
  int rc = sqlite3_exec(a->db, sql, NULL, NULL, NULL);
  return rc == SQLITE_OK ? rc : must_be_passing(a, sql);
}

__attribute__((format(printf, 2, 3))) static int try_text(actor *a, const char *fmt, ...) {
  char sql[900];
  va_list ap;

  va_start(ap, fmt);
  (void)vsnprintf(sql, sizeof(sql), fmt, ap);
  va_end(ap);
  return actor_try(a, sql);
}

static void take_back(actor *a) {
  if (!sqlite3_get_autocommit(a->db)) (void)sqlite3_exec(a->db, "ROLLBACK", NULL, NULL, NULL);
  memcpy(a->work, a->rows, sizeof(a->work));
  a->at = IDLE;
}

/* SQLite has rolled the transaction back by itself, as it does after some errors. */
static int is_over(actor *a) {
  if (a->at == IDLE || !sqlite3_get_autocommit(a->db)) return 0;
  take_back(a);
  return 1;
}

int actor_main_is_sealed(void) {
  return !plain && now.pair != MAIN_PLAIN;
}

int actor_open_file(const char *file, int sealed, int flags, sqlite3 **db) {
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

/* alone: under EXCLUSIVE from the first read on, so that SQLite keeps a wal-index of its own. */
static void connect_actor(actor *a, int alone) {
  int rc = actor_open_file(path, actor_main_is_sealed(), SQLITE_OPEN_READWRITE, &a->db);

  if (rc) {
    complain("open: %s (%d) %s", a->db ? sqlite3_errmsg(a->db) : sqlite3_errstr(rc),
             a->db ? sqlite3_extended_errcode(a->db) : rc, crowd_last_words());
    stop_here();
  }
  /* Those of one thread wait for each other in vain. */
  (void)sqlite3_busy_handler(a->db, crowd_wait, (void *)(intptr_t)(threads ? 200 : 4));
  a->at = IDLE;
  a->exclusive = alone ? UNTIL_CLOSED : 0;
  if (alone) (void)actor_try(a, "PRAGMA main.locking_mode=EXCLUSIVE");
  tweak(a);
  while (now.pair && try_text(a, "ATTACH 'file:%s?vfs=%s' AS aux", other,
                              plain || now.pair == OTHER_PLAIN ? "unix" : "tde") == SQLITE_BUSY) {
  }
}

/* ---- looking ---- */

static void begin_reading(actor *a) {
  read_floor(a->floor);
  a->has_seen = 0;
  if (actor_try(a, "BEGIN") == SQLITE_OK) a->at = READING;
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
  (void)actor_try(a, "COMMIT");
  a->at = IDLE;
}

/* ---- writing ---- */

static void begin_writing(actor *a) {
  read_floor(a->floor);
  a->has_seen = 0;
  if (actor_try(a, "BEGIN IMMEDIATE") == SQLITE_OK) a->at = WRITING;
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

  if (is_over(a)) return;
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
  for (int i = 0; i < n && a->at != IDLE; i++) change_row(a, below(a, (uint32_t)now.rows));
}

/* SQLite 3.40.1 loses committed WAL transactions when a savepoint or a statement is undone
** after a spill, once the log must be recovered (README.md): not there, unless nobody is killed,
** and who closes last has the key, and brings the log into the database. */
static int may_undo(actor *a) {
  sqlite3_stmt *q = NULL;
  int wal = 1;

  if (now.gentle && !now.losses) return 1;
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
  if (actor_try(a, "SAVEPOINT a")) return;
  change_rows(a, 1 + (int)below(a, below(a, 3) ? 5 : 60));
  if (a->at == IDLE || is_over(a)) return;
  if (actor_try(a, "ROLLBACK TO a; RELEASE a")) {
    take_back(a);
  } else {
    memcpy(a->work, before, sizeof(before));
  }
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
  int rc;

  if (is_over(a)) return;
  rc = try_text(a, "UPDATE progress SET n=%u WHERE w=%d", n, a->w);

  if (rc == SQLITE_OK && now.pair) {
    rc = try_text(a, "UPDATE aux.other SET n=%u, body=randomblob(%u) WHERE w=%d", n, below(a, 3000),
                  a->w);
  }
  if (rc == SQLITE_OK) {
    announce(a, n);
    rc = actor_try(a, "COMMIT");
  }
  if (rc) { /* readers are in the way: it may be tried again */
    if (!is_over(a) && below(a, 4) == 0) take_back(a);
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
      (void)actor_try(a, "VACUUM");
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

  if (actor_main_is_sealed() && actor_try(a, calls[below(a, 5)]) == SQLITE_OK) {
    __atomic_fetch_add(&shared->keys, 1, __ATOMIC_RELAXED);
  }
}

static void verify(actor *a) {
  if (below(a, 2) || !actor_main_is_sealed()) {
    if (actor_try(a, "BEGIN") == SQLITE_OK && actor_try(a, "SELECT 1 FROM progress") == SQLITE_OK) {
      expect(a->db, "PRAGMA main.integrity_check", "ok");
    }
    take_back(a);
  } else {
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(a->db, "SELECT tde_verify()", -1, &q, NULL);

    if (rc || sqlite3_step(q) != SQLITE_ROW) {
      (void)must_be_passing(a, "tde_verify");
    } else if (!strstr((const char *)sqlite3_column_text(q, 0), "\"ok\":true")) {
      complain("tde_verify: %.600s", (const char *)sqlite3_column_text(q, 0));
    }
    (void)sqlite3_finalize(q);
  }
}

/* SQLite's backup API, page by page, into a file that is closed again. */
static int by_pages(actor *a, const char *file) {
  sqlite3 *to = NULL;
  sqlite3_backup *b = NULL;
  int rc = actor_open_file(file, actor_main_is_sealed(), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                           &to);

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
  int rc = actor_open_file(file, actor_main_is_sealed(), SQLITE_OPEN_READONLY, &db);

  if (rc == SQLITE_OK) rc = see(a, db, 0, &s);
  if (rc == SQLITE_OK) {
    judge(a, &s, floor, -1, how);
    expect(db, "PRAGMA integrity_check", "ok");
  } else if (!key_is_away(db)) {
    complain("%s: %s (%d)", how, sqlite3_errmsg(db), sqlite3_extended_errcode(db));
  }
  (void)sqlite3_close(db);
}

static void copy(actor *a) {
  static const char *const ways[] = {"tde_copy", "tde_backup", "tde_create_secondary"};
  uint32_t way = below(a, !actor_main_is_sealed() ? 2 : a->w < 2 ? 6 : 5), floor[ACTORS];
  char file[400];
  int rc;

  (void)snprintf(file, sizeof(file), "%s/%s-%d.db", root, way == 5 ? "second" : "copy", a->w);
  read_floor(floor);
  if (way == 5 && access(file, F_OK) == 0) {
    rc = try_text(a, "SELECT tde_sync_secondary('%s')", file);
  } else {
    crowd_remove_database(file);
    rc = way == 0   ? by_pages(a, file)
         : way == 1 ? try_text(a, "VACUUM main INTO 'file:%s?vfs=%s'", file,
                               actor_main_is_sealed() ? "tde&tde_protector=local:smk" : "unix")
                    : try_text(a, "SELECT %s('%s')", ways[way == 5 ? 2 : way % 2], file);
  }
  if (rc) return;
  look_at_copy(a, file, floor, way == 0 ? "backup API" : way == 1 ? "VACUUM INTO" : "copy");
  __atomic_fetch_add(&shared->copies, 1, __ATOMIC_RELAXED);
}

static void disconnect_actor(actor *a) {
  int rc = sqlite3_close(a->db);

  if (rc) complain("close: %s", sqlite3_errstr(rc));
}

void actor_leave(actor *a) {
  take_back(a);
  disconnect_actor(a);
  (void)sqlite3_close(a->stranger); /* after the others, it may be */
}

static void open_again(actor *a) {
  disconnect_actor(a);
  memcpy(a->work, a->rows, sizeof(a->work));
  connect_actor(a, !now.pair && below(a, 6) == 0);
}

/* Takes every lock for itself, or gives it up with the next read. */
static void toggle_exclusive(actor *a) {
  if (a->exclusive == UNTIL_CLOSED) {
    open_again(a);
    return;
  }
  a->exclusive = !a->exclusive;
  (void)try_text(a, "PRAGMA main.locking_mode=%s; SELECT count(*) FROM progress",
                 a->exclusive ? "EXCLUSIVE" : "NORMAL");
}

/* Somebody without the extension comes, may do nothing, and harms nothing; or goes. */
static void toggle_stranger(actor *a) {
  if (a->stranger) {
    (void)sqlite3_close(a->stranger);
    a->stranger = NULL;
    return;
  }
  if (crowd_stranger(path, &a->stranger)) complain("SQLite without the extension reads this");
}

/* ---- one step ---- */

static void step_idle(actor *a) {
  uint32_t d = below(a, 1000);

  if (a->exclusive && below(a, 3) == 0) {
    toggle_exclusive(a);
  } else if (now.keys && below(a, (uint32_t)now.keys) == 0) {
    change_keys(a);
  } else if (actor_main_is_sealed() && below(a, 60) == 0) {
    toggle_stranger(a);
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
    if (a->at == IDLE) return;
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

void actor_step(actor *a) {
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

/* ---- coming ---- */

/* The rows that the database has of this actor: an earlier process may have died anywhere. */
static int adopt(actor *a) {
  sqlite3_stmt *q = NULL;
  int rc;

  memset(a->rows, 0, sizeof(a->rows));
  rc = sqlite3_prepare_v2(a->db, "SELECT id, seed, len FROM t WHERE id/?=?", -1, &q, NULL);
  (void)sqlite3_bind_int(q, 1, STRIDE);
  (void)sqlite3_bind_int(q, 2, a->w);
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

void actor_arrive(actor *a, int w) {
  memset(a, 0, sizeof(*a));
  a->w = w;
  a->r.s = campaign_seed ^ (life << 20) ^ ((uint64_t)w << 40);
  a->body = malloc(MODEL_BODY_MAX + 32);
  if (!a->body) abort();
  connect_actor(a, 0);
  do {
    begin_reading(a);
    if (a->at == READING) look(a);
    if (a->at == READING && adopt(a)) take_back(a);
  } while (a->at != READING);
  stop_reading(a);
}
