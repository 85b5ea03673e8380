/*
** run.c: one workload on the simulated disk; see run.h.
*/
#include "run.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../vfs/header.h"
#include "crashvfs.h"

void run_fail(run *r, const char *fmt, ...) {
  va_list ap;

  r->stop = 1;
  if (r->why[0]) return; /* the first failure counts */
  va_start(ap, fmt);
  (void)vsnprintf(r->why, sizeof(r->why), fmt, ap);
  va_end(ap);
}

void run_failed(run *r, sqlite3 *db, int rc, const char *what) {
  r->stop = 1;
  if (disk_dead()) return;
  if ((rc & 0xff) == SQLITE_BUSY && turns_may_be_busy(r)) {
    r->busy = 1;
    return;
  }
  if (r->tolerant) {
    if (!r->rc) r->rc = db ? sqlite3_extended_errcode(db) : rc;
    return;
  }
  run_fail(r, "%.200s: %s (%d)", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(rc),
           db ? sqlite3_extended_errcode(db) : rc);
}

int run_exec(run *r, sqlite3 *db, const char *fmt, ...) {
  va_list ap;
  char *sql;
  int rc;

  if (r->stop) return SQLITE_ABORT;
  va_start(ap, fmt);
  sql = sqlite3_vmprintf(fmt, ap);
  va_end(ap);
  rc = sql ? sqlite3_exec(db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
  if (r->verbose) (void)fprintf(stderr, "[%ld] %s -> %d\n", disk_ops(), sql ? sql : "", rc);
  if (rc) run_failed(r, db, rc, sql ? sql : "");
  sqlite3_free(sql);
  return rc;
}

#define KEY_ONE "local:smk"
#define KEY_TWO "local:second"

int run_make_keys(void) {
  sqlite3 *db = NULL;
  int rc = sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, "unix");

  if (rc == SQLITE_OK) rc = sqlite3_exec(db, "SELECT tde_instance_new_key('second')", NULL, NULL, NULL);
  (void)sqlite3_close(db);
  return rc;
}

int run_ends(const scenario *sc) {
  return strpbrk(sc->mix, "CDEOUYZ") != NULL;
}

void run_init(run *r, const scenario *sc, uint64_t seed, int tde, const char *dir) {
  static const char *const modes[] = {"delete", "truncate", "persist"};

  memset(r, 0, sizeof(*r));
  r->sc = sc;
  r->seed = seed;
  r->tde = tde;
  r->r.s = seed * 1000003 + 17;
  r->journal = strcmp(sc->journal, "any") ? sc->journal : modes[rng_below(&r->r, 3)];
  r->main_form = tde ? FORM_SEALED : FORM_PLAIN;
  r->out_form = -1;
  (void)snprintf(r->path[0], sizeof(r->path[0]), "%s/main.db", dir);
  (void)snprintf(r->path[1], sizeof(r->path[1]), "%s/second.db", dir);
  (void)snprintf(r->out, sizeof(r->out), "%s/out.db", dir);
  (void)snprintf(r->backup, sizeof(r->backup), "%s/main.bak", dir);
  r->protector = r->protector_next = KEY_ONE;
  r->taking = 1;
  for (unsigned k = 0; k < TURNS_MAX; k++) {
    unsigned mode = (unsigned)(seed + k) % 3;
    r->turns[k].journal = k && strcmp(sc->journal, "any") == 0 ? modes[mode] : r->journal;
  }
}

/* ---- connections ---- */

static char *uri(const run *r, const char *path, int sealed, int real) {
  const char *base = real ? "&tde_base=unix" : "";
  const char *locks = r->sc->locks == LOCKS_NONE ? "&nolock=1" : "";

  if (sealed) return sqlite3_mprintf("file:%s?vfs=tde%s%s", path, base, locks);
  if (r->tde) {
    /* Beside an encrypted database a plain one goes through the shim, too. */
    return sqlite3_mprintf("file:%s?vfs=tde&tde_plain=allow%s%s", path, base, locks);
  }
  return sqlite3_mprintf("file:%s?vfs=%s%s", path, real ? "unix" : CRASH_VFS, locks);
}

static int open_path(run *r, const char *path, int sealed, int real, sqlite3 **db) {
  char *name = uri(r, path, sealed, real);
  int rc = name ? sqlite3_open_v2(
                      name, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL)
                : SQLITE_NOMEM;

  if (rc) {
    run_failed(r, *db, rc, "open");
    (void)sqlite3_close(*db); /* it can do nothing else */
    *db = NULL;
  }
  sqlite3_free(name);
  return rc;
}

/* A plain database beside the encrypted one must exist before the shim sees it. */
static void make_plain_second(run *r) {
  sqlite3 *db = NULL;
  inode *f = disk_find(r->path[1]);

  if (f && inode_size(f) > 0) return;
  (void)sqlite3_open_v2(r->path[1], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, CRASH_VFS);
  (void)run_exec(r, db, "PRAGMA synchronous=EXTRA; CREATE TABLE x(a); DROP TABLE x");
  (void)sqlite3_close(db);
}

static void pragmas(run *r) {
  static const int sizes[] = {512, 1024, 4096, 4096, 8192, 16384, 65536};
  const scenario *sc = r->sc;
  rng g = {r->seed};
  int page = sc->page_size ? sc->page_size : sizes[rng_below(&g, 7)];

  (void)run_exec(r, r->db, "PRAGMA page_size=%d; PRAGMA auto_vacuum=%d", page, sc->auto_vacuum);
  if (sc->locks == LOCKS_EXCLUSIVE) (void)run_exec(r, r->db, "PRAGMA locking_mode=EXCLUSIVE");
  (void)run_exec(r, r->db,
                 "PRAGMA synchronous=%s; PRAGMA cache_size=%d; "
                 "PRAGMA wal_autocheckpoint=%d",
                 sc->sync, sc->cache, sc->autocheckpoint);
  if (sc->attach) {
    char *name = uri(r, r->path[1], r->tde && sc->attach == 1, 0);
    if (sc->attach == 2 && r->tde) make_plain_second(r);
    (void)run_exec(r, r->db, "ATTACH '%q' AS second", name);
    (void)run_exec(r, r->db,
                   "PRAGMA second.synchronous=%s; PRAGMA second.cache_size=%d; "
                   "PRAGMA second.page_size=%d",
                   sc->sync, sc->cache, page == 4096 ? 1024 : 4096);
    sqlite3_free(name);
  }
}

/* The real VFS is met with nothing set: a user's first open after the outage. */
int run_connect(run *r, int real) {
  if (open_path(r, r->path[0], r->tde, real, &r->db)) return 1;
  if (!real) pragmas(r);
  return r->stop;
}

void run_close(run *r) {
  (void)sqlite3_close(r->reader);
  turns_close(r);
  if (r->db && sqlite3_close(r->db) != SQLITE_OK) run_fail(r, "the connection could not be closed");
  r->db = r->reader = NULL;
}

static int text_of(sqlite3 *db, const char *sql, char *out, size_t n) {
  sqlite3_stmt *s = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &s, NULL);

  out[0] = 0;
  if (rc == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW) {
    const char *t = (const char *)sqlite3_column_text(s, 0);
    (void)snprintf(out, n, "%s", t ? t : "");
  }
  return sqlite3_finalize(s);
}

/* ---- states ---- */

static int lowest(const run *r) {
  int low = r->committed - r->sc->slack;
  return low < r->floor ? r->floor : low;
}

/* The state of one schema; checks that it is one of those allowed. */
static int resolve_one(run *r, sqlite3 *db, const char *schema, int *txn) {
  int rc, bad = model_compare(db, schema, &r->m, r->top, txn, &rc, r->why, sizeof(r->why));

  if (bad < 0) {
    run_failed(r, db, rc, "reading the state");
  } else if (bad) {
    r->stop = 1;
  } else if (*txn < lowest(r)) {
    run_fail(r, "%s: transaction %d was committed and is lost; the state is that of %d", schema,
             r->committed, *txn);
  }
  return r->stop;
}

int run_resolve(run *r) {
  int txn, second;

  if (r->stop || resolve_one(r, r->db, "main", &txn)) return 1;
  if (r->sc->attach) {
    if (resolve_one(r, r->db, "second", &second)) return 1;
    if (txn != second) {
      run_fail(r, "main is in state %d, second in %d: half of a transaction", txn, second);
      return 1;
    }
  }
  r->floor = r->committed = r->top = txn;
  return 0;
}

/* ---- transactions ---- */

static void change_row(run *r, sqlite3 *db, state *s, const char *schema, int longest) {
  static uint8_t body[MODEL_BODY_MAX + 32];
  uint32_t id = rng_below(&r->r, MODEL_IDS), len = 24 + rng_below(&r->r, (uint32_t)longest);
  char *sql;
  sqlite3_stmt *stmt = NULL;
  int rc;

  if (r->stop) return;
  if (rng_below(&r->r, 5) == 0) {
    (void)run_exec(r, db, "DELETE FROM %s.t WHERE id=%u", schema, id);
    s->txn[id] = 0;
    return;
  }
  if (len > MODEL_BODY_MAX) len = MODEL_BODY_MAX;
  s->txn[id] = (uint32_t)r->txn;
  s->len[id] = (uint16_t)len;
  model_body(id, s->txn[id], len, body);
  sql = sqlite3_mprintf("INSERT OR REPLACE INTO %s.t VALUES(%u,%u,%u,?)", schema, id, s->txn[id],
                        len);
  rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
  if (rc == SQLITE_OK) {
    (void)sqlite3_bind_blob(stmt, 1, body, (int)len, SQLITE_STATIC);
    (void)sqlite3_step(stmt);
    rc = sqlite3_finalize(stmt);
  }
  if (rc) run_failed(r, db, rc, sql);
  sqlite3_free(sql);
}

/* The same changes in both databases of an attached pair. */
void run_change(run *r, sqlite3 *db, state *s, int longest) {
  state copy = *s;
  rng again = r->r;

  change_row(r, db, s, "main", longest);
  if (!r->sc->attach || r->stop) return;
  r->r = again;
  change_row(r, db, &copy, "second", longest);
}

state *run_begin(run *r, sqlite3 *db) {
  state *s;

  if (r->stop || r->committed >= MODEL_TXNS) {
    r->stop = 1;
    return NULL;
  }
  if (run_exec(r, db, "BEGIN IMMEDIATE")) return NULL;
  r->txn = r->committed + 1;
  s = &r->m.after[r->txn];
  *s = r->m.after[r->committed];
  (void)run_exec(r, db, "UPDATE main.meta SET txn=%d", r->txn);
  if (r->sc->attach) (void)run_exec(r, db, "UPDATE second.meta SET txn=%d", r->txn);
  return s;
}

void run_commit(run *r, sqlite3 *db) {
  if (r->stop) return;
  r->top = r->txn; /* from here on an outage may leave it */
  if (run_exec(r, db, "COMMIT") == SQLITE_OK) r->committed = r->top;
}

void run_rollback(run *r, sqlite3 *db) {
  (void)run_exec(r, db, "ROLLBACK");
}

void run_transaction(run *r, sqlite3 *db, int changes, int longest, int end) {
  state *s = run_begin(r, db);

  if (!s) return;
  for (int i = 0; i < changes && !r->stop; i++) run_change(r, db, s, longest);
  if (end == END_COMMIT) run_commit(r, db);
  if (end == END_ROLLBACK) run_rollback(r, db);
}

/* In WAL mode SQLite (3.40.1, for one; corrected in later releases) breaks its
** chain of frame checksums when a savepoint is rolled back that began before the
** first frame of the transaction was written a second time: iReCksum then lies
** behind the last frame. So let a frame be written twice first: row 1 of meta,
** with enough between to drive its page out of the cache. */
static void write_twice(run *r, state *s) {
  for (int k = 0; k < 3; k++) {
    for (int i = 0; i < 45; i++) run_change(r, r->db, s, 6000);
    (void)run_exec(r, r->db, "UPDATE meta SET txn=%d", r->txn);
  }
}

/* Savepoints: the inner one is rolled back or kept. In WAL mode with spill,
** frames of this transaction are then written again in their place. */
static void savepoints(run *r) {
  state *s = run_begin(r, r->db), kept;

  if (!s) return;
  if (strcmp(r->journal, "wal") == 0 && r->sc->cache <= 100) write_twice(r, s);
  for (int k = 0; k < 3 && !r->stop; k++) {
    for (int i = 0; i < 6; i++) run_change(r, r->db, s, 1500);
    kept = *s;
    (void)run_exec(r, r->db, "SAVEPOINT a");
    for (int i = 0; i < 25; i++) run_change(r, r->db, s, 2500);
    if (rng_below(&r->r, 3)) {
      (void)run_exec(r, r->db, "ROLLBACK TO a");
      *s = kept;
      for (int i = 0; i < 5; i++) run_change(r, r->db, s, 1500);
    }
    (void)run_exec(r, r->db, "RELEASE a");
  }
  run_commit(r, r->db);
}

static void delete_many(run *r) {
  state *s = run_begin(r, r->db);
  uint32_t from, n;

  if (!s) return;
  from = rng_below(&r->r, MODEL_IDS);
  n = MODEL_IDS / 2 + rng_below(&r->r, MODEL_IDS / 2);
  (void)run_exec(r, r->db, "DELETE FROM main.t WHERE id BETWEEN %u AND %u", from, from + n);
  if (r->sc->attach) {
    (void)run_exec(r, r->db, "DELETE FROM second.t WHERE id BETWEEN %u AND %u", from, from + n);
  }
  for (uint32_t i = from; i <= from + n && i < MODEL_IDS; i++) s->txn[i] = 0;
  run_commit(r, r->db);
}

/* One transaction that the backup API brings in: the new state is made in
** memory first. */
static void restore(run *r) {
  sqlite3 *mem = NULL;
  sqlite3_backup *b;
  int rc = sqlite3_open_v2(":memory:", &mem, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "unix");

  if (r->stop || rc) goto out;
  b = sqlite3_backup_init(mem, "main", r->db, "main");
  if (b) (void)sqlite3_backup_step(b, -1);
  rc = b ? sqlite3_backup_finish(b) : sqlite3_errcode(mem);
  if (rc) {
    run_failed(r, mem, rc, "backup");
    goto out;
  }
  run_transaction(r, mem, 12, 1500, END_COMMIT);
  if (r->stop) goto out;
  r->committed--; /* not in the database yet */
  b = sqlite3_backup_init(r->db, "main", mem, "main");
  while (b && (rc = sqlite3_backup_step(b, 7)) == SQLITE_OK) {
  }
  if (b) rc = sqlite3_backup_finish(b);
  if (!b || rc) {
    run_failed(r, r->db, rc, "restore");
  } else {
    r->committed++;
  }
out:
  (void)sqlite3_close(mem);
}

/* ---- steps ---- */

static void checkpoint(run *r, const char *mode) {
  (void)run_exec(r, r->db, "PRAGMA wal_checkpoint(%s)", mode);
}

static void page_size(run *r, int below_unit) {
  static const int sizes[] = {512, 1024, 2048, 4096, 8192, 16384};
  int n = sizes[rng_below(&r->r, below_unit ? 3 : 6)];
  (void)run_exec(r, r->db, "PRAGMA page_size=%d; VACUUM", n);
}

static void toggle_reader(run *r) {
  if (r->stop) return;
  if (r->reader) {
    (void)sqlite3_close(r->reader);
    r->reader = NULL;
    return;
  }
  if (open_path(r, r->path[0], r->tde, 0, &r->reader) == SQLITE_OK) {
    (void)run_exec(r, r->reader, "BEGIN; SELECT count(*) FROM meta");
  }
}

static void repair_header(run *r) {
  tde_file *f = NULL;
  tde_status st;
  int rc;

  if (r->stop || !r->tde) return;
  tde_status_clear(&st);
  rc = sqlite3_file_control(r->db, "main", TDE_FCNTL_FILE, &f);
  if (rc == SQLITE_OK) rc = tde_file_update_header(f, NULL, NULL, 0, &st);
  if (r->verbose) (void)fprintf(stderr, "[%ld] header repair -> %d\n", disk_ops(), rc);
  if (rc) run_failed(r, NULL, rc, "header repair");
}

/* tde_encrypt and tde_decrypt on a connection of their own. */
static void convert(run *r, char letter) {
  sqlite3 *helper = NULL;
  int rc;

  if (r->stop) return;
  run_close(r);
  rc = sqlite3_open_v2(":memory:", &helper, SQLITE_OPEN_READWRITE, NULL);
  if (rc == SQLITE_OK && letter == 'E') {
    r->main_form = FORM_EITHER;
    rc = run_exec(r, helper, "SELECT tde_encrypt('%q')", r->path[0]);
    if (rc == SQLITE_OK) r->main_form = FORM_SEALED;
  } else if (rc == SQLITE_OK) {
    r->out_form = letter == 'O' ? FORM_SEALED : FORM_PLAIN;
    rc = run_exec(r, helper, "SELECT tde_%s('%q','%q')", letter == 'O' ? "encrypt" : "decrypt",
                  r->path[0], r->out);
    if (rc == SQLITE_OK) r->out_must = 1;
  }
  (void)sqlite3_close(helper);
  r->stop = 1; /* a conversion is the last thing that is done */
}

/* ---- keys ---- */

/* The protector is the one that was set last, as far as that was reported. */
static void check_protector(run *r, sqlite3 *db) {
  char text[200];
  int rc;

  if (r->stop) return;
  rc = text_of(db, "SELECT json_extract(tde_status(), '$.protector')", text, sizeof(text));
  if (rc) run_failed(r, db, rc, "tde_status");
  if (r->stop) return;
  if (strcmp(text, r->protector) && strcmp(text, r->protector_next)) {
    run_fail(r, "the protector is %s; %s was set", text, r->protector);
  }
  r->protector = r->protector_next = strcmp(text, KEY_ONE) ? KEY_TWO : KEY_ONE;
}

static void set_protector(run *r) {
  const char *before;

  if (strcmp(r->protector, r->protector_next)) check_protector(r, r->db); /* as the outage left it */
  if (r->stop) return;
  before = r->protector;
  r->protector_next = strcmp(before, KEY_ONE) ? KEY_ONE : KEY_TWO;
  if (run_exec(r, r->db, "SELECT tde_set_protector('%s')", r->protector_next) == SQLITE_OK) {
    r->protector = r->protector_next;
  }
  if (r->busy) r->protector_next = before;
}

/* tde_backup, tde_copy, tde_create_secondary and tde_restore into out. */
static void make_out(run *r, char letter) {
  const char *call = letter == 'C'   ? "SELECT tde_backup('%q')"
                     : letter == 'Y' ? "SELECT tde_copy('%q')"
                     : letter == 'Z' ? "SELECT tde_create_secondary('%q')"
                                     : "SELECT tde_restore('%q','%q')";
  int rc;

  if (r->stop) return;
  r->out_form = FORM_SEALED;
  r->out_from = letter == 'D' ? r->backup_of : r->committed;
  rc = letter == 'D' ? run_exec(r, r->db, call, r->backup, r->out) : run_exec(r, r->db, call, r->out);
  if (rc == SQLITE_OK) r->out_must = 1;
  r->stop = 1;
}

static void backup(run *r) {
  if (run_exec(r, r->db, "SELECT tde_backup('%q')", r->backup) == SQLITE_OK) {
    r->backup_of = r->committed;
  }
}

static void sync_secondary(run *r) {
  const char *call = disk_find(r->out) ? "SELECT tde_sync_secondary('%q')"
                                       : "SELECT tde_create_secondary('%q')";
  if (r->stop) return;
  r->out_form = FORM_SEALED;
  if (run_exec(r, r->db, call, r->out)) return;
  r->out_must = 1;
  r->out_from = r->committed;
}

/* A journal deleted without syncing the directory may come back after an outage
** and undo what a WAL has got since; SQLite's answer is synchronous=EXTRA. */
static void journal_mode(run *r, const char *mode) {
  if (r->stop) return;
  (void)run_exec(r, r->db,
                 "PRAGMA main.synchronous=%s; PRAGMA main.journal_mode=%s; "
                 "PRAGMA main.synchronous=%s",
                 r->sc->death ? "OFF" : "EXTRA", mode, r->sc->sync);
  if (!r->sc->attach) return;
  (void)run_exec(r, r->db, "PRAGMA second.journal_mode=%s", mode);
}

/* To be set on each connection, but for the WAL mode. */
void run_set_journal(run *r) {
  journal_mode(r, r->journal);
}

static void reopen(run *r) {
  run_close(r);
  if (!disk_dead() && run_connect(r, 0) == 0) run_set_journal(r);
  if (disk_dead()) r->stop = 1;
}

/* Steps that change rows. Each of these says whether the letter is one of its own. */
static int step_rows(run *r, char letter) {
  switch (letter) {
    case 't':
      run_transaction(r, r->db, 1 + (int)rng_below(&r->r, 6), 900, END_COMMIT);
      return 1;
    case 'b':
      run_transaction(r, r->db, 40 + (int)rng_below(&r->r, 40), 4000, END_COMMIT);
      return 1;
    case 'r':
      run_transaction(r, r->db, 30, 3000, END_ROLLBACK);
      return 1;
    case 's':
      savepoints(r);
      return 1;
    case 'd':
      delete_many(r);
      return 1;
    case 'B':
      restore(r);
      return 1;
    default:
      return 0;
  }
}

/* Checkpoints, journal modes, and the shape of the file. */
static int step_file(run *r, char letter) {
  switch (letter) {
    case 'P':
      checkpoint(r, "PASSIVE");
      return 1;
    case 'F':
      checkpoint(r, "FULL");
      return 1;
    case 'R':
      checkpoint(r, "RESTART");
      return 1;
    case 'T':
      checkpoint(r, "TRUNCATE");
      return 1;
    case 'w':
      journal_mode(r, "wal");
      return 1;
    case 'j':
      journal_mode(r, r->journal);
      return 1;
    case 'k':
      journal_mode(r, "delete");
      return 1;
    case 'v':
      (void)run_exec(r, r->db, "VACUUM");
      return 1;
    case 'i':
      (void)run_exec(r, r->db, "PRAGMA incremental_vacuum(5)");
      return 1;
    case 'p':
    case 'q':
      page_size(r, letter == 'q');
      return 1;
    default:
      return 0;
  }
}

/* Connections, keys, copies. */
static int step_life(run *r, char letter) {
  switch (letter) {
    case 'x':
      reopen(r);
      return 1;
    case 'o':
      toggle_reader(r);
      return 1;
    case 'h':
      repair_header(r);
      return 1;
    case 'm':
      set_protector(r);
      return 1;
    case 'g':
      (void)run_exec(r, r->db, "SELECT tde_rotate_dek()");
      return 1;
    case 'M':
      /* What a control could learn from a map, SQLite's own tests know. */
      if (r->tde) {
        (void)run_exec(r, r->db, "PRAGMA mmap_size=%d", rng_below(&r->r, 4) ? 100000000 : 0);
      }
      return 1;
    case 'A':
      backup(r);
      return 1;
    case 'y':
      sync_secondary(r);
      return 1;
    default:
      return 0;
  }
}

void run_step(run *r, char letter) {
  if (step_rows(r, letter) || step_file(r, letter) || step_life(r, letter)) return;
  if (letter == '2' || letter == '3') {
    r->taking = letter - '0';
  } else if (strchr("EOU", letter)) {
    convert(r, letter);
  } else if (strchr("CDYZ", letter)) {
    make_out(r, letter);
  } else {
    run_fail(r, "no step %c", letter);
  }
}

/* ---- lives ---- */

/* The schema is transaction 1. */
void run_make_schema(run *r) {
  if (r->stop || r->committed > 0) return;
  r->txn = 1;
  if (run_exec(r, r->db, "BEGIN IMMEDIATE")) return;
  (void)run_exec(r, r->db, MODEL_SCHEMA("main"));
  if (r->sc->attach) (void)run_exec(r, r->db, MODEL_SCHEMA("second"));
  run_commit(r, r->db);
}

void run_life(run *r, int fresh, long armed) {
  int early = !fresh || !r->sc->create_safe;

  r->stop = 0;
  r->taking = 1;
  disk_power_fails_at(early ? armed : 0);
  if (fresh && r->sc->tde_only && strpbrk(r->sc->mix, "EO")) {
    r->tde = 0; /* a plain database first */
    r->main_form = FORM_PLAIN;
  }
  if (!fresh) turns_begin_life(r);
  if (!r->stop && (r->db || run_connect(r, 0) == 0)) {
    if (!fresh) (void)run_resolve(r);
    turns_set_journal(r);
    run_make_schema(r);
  }
  for (const char *p = fresh ? r->sc->first : ""; *p && !r->stop; p++) run_step(r, *p);
  if (!early && !r->stop) {
    disk_power_fails_at(0);
    (void)disk_sync_names();
    disk_power_fails_at(armed);
  }
  for (int i = 0; i < r->sc->steps && !r->stop; i++) {
    char letter = r->sc->mix[rng_below(&r->r, (uint32_t)strlen(r->sc->mix))];
    if (r->taking > 1) {
      turns_step(r, letter);
    } else {
      run_step(r, letter);
    }
  }
  run_close(r);
}

/* ---- after the outage, on the real VFS ---- */

static int wal_mode(sqlite3 *db) {
  char text[20];
  return text_of(db, "PRAGMA journal_mode", text, sizeof(text)) == SQLITE_OK &&
         strcmp(text, "wal") == 0;
}

static void check_whole(run *r, sqlite3 *db, int sealed, int in_use) {
  const char *when = in_use ? "in use again" : "after the outage";
  char text[400];
  int rc;

  if (r->stop) return;
  rc = text_of(db, "PRAGMA integrity_check", text, sizeof(text));
  if (rc || disk_dead()) {
    run_failed(r, db, rc, "integrity_check");
  } else if (strcmp(text, "ok")) {
    run_fail(r, "%s: integrity_check: %s", when, text);
  }
  if (!sealed || r->stop) return;
  if (!in_use && wal_mode(db)) return;
  rc = text_of(db, "SELECT tde_verify()", text, sizeof(text));
  if (rc) {
    run_failed(r, db, rc, "tde_verify");
  } else if (!strstr(text, "\"ok\":true")) {
    run_fail(r, "%s: tde_verify: %s", when, text);
  }
}

void run_check_whole(run *r, int in_use) {
  check_whole(r, r->db, r->tde && r->main_form == FORM_SEALED, in_use);
}

/* One file: its state, which must be allowed; then it must be usable. */
static int verify_file(run *r, const char *path, int sealed, int in_use) {
  sqlite3 *db = NULL;
  int txn = -1, again;

  if (open_path(r, path, sealed, 1, &db)) goto out;
  if (resolve_one(r, db, "main", &txn)) goto out;
  check_whole(r, db, sealed, 0);
  if (sealed && in_use && strchr(r->sc->mix, 'm')) check_protector(r, db);
  if (txn > 0 && in_use) {
    (void)run_exec(r, db, "CREATE TABLE extra AS SELECT randomblob(3000) FROM t LIMIT 20");
    (void)run_exec(r, db, "DROP TABLE extra; PRAGMA wal_checkpoint(TRUNCATE)");
  } else if (in_use) {
    (void)run_exec(r, db,
                   "CREATE TABLE extra(a); INSERT INTO extra VALUES(randomblob(9000));"
                   "DROP TABLE extra");
  }
  if (!r->stop && resolve_one(r, db, "main", &again) == 0 && again != txn) {
    run_fail(r, "a write after the outage changed state %d to %d", txn, again);
  }
  if (in_use) check_whole(r, db, sealed, 1);
out:
  if (sqlite3_close(db)) run_fail(r, "the connection could not be closed");
  return txn;
}

/* By the magic: the first page of a plain file may be torn and in its WAL. */
static int is_sealed_file(const char *path) {
  uint8_t head[16] = {0};
  FILE *f = fopen(path, "rb");
  size_t n = f ? fread(head, 1, sizeof(head), f) : 0;

  if (f) (void)fclose(f);
  return n == sizeof(head) && memcmp(head, tde_header_magic, sizeof(head)) == 0;
}

static int exists(const char *path) {
  FILE *f = fopen(path, "rb");
  if (f) (void)fclose(f);
  return f != NULL;
}

static void verify_out(run *r) {
  if (r->out_form < 0) return;
  if (!exists(r->out)) {
    if (r->out_must) run_fail(r, "%s: success was reported, and it is not there", r->out);
    return;
  }
  if (r->out_from) r->floor = r->committed = r->out_from;
  if (r->backup_of) r->top = r->backup_of;
  (void)verify_file(r, r->out, r->out_form == FORM_SEALED, 0);
}

void run_verify(run *r) {
  int sealed = r->main_form == FORM_SEALED, second_first = (int)(r->seed & 1), txn[2];

  r->stop = r->why[0] != 0;
  if (r->stop) return;
  if (r->main_form == FORM_EITHER) sealed = is_sealed_file(r->path[0]);
  if (!r->sc->attach) {
    (void)verify_file(r, r->path[0], sealed, 1);
    if (!r->stop) verify_out(r);
    return;
  }
  /* Each database is opened alone: its journal must find the other's by the
  ** super-journal. */
  for (int k = 0; k < 2 && !r->stop; k++) {
    int i = k ^ second_first;
    if (i == 1 && !exists(r->path[1])) {
      txn[1] = 0;
      continue;
    }
    txn[i] = verify_file(r, r->path[i], r->tde && (i == 0 || r->sc->attach == 1), 0);
  }
  if (!r->stop && txn[0] != txn[1]) {
    run_fail(r, "main is in state %d, second in %d: half of a transaction", txn[0], txn[1]);
  }
}
