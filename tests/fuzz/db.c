/*
** db.c: the fuzz target that opens a whole database after an attack on its files.
**
** Input: scene (1), what to do (2), the edits (attack.c). What must hold:
**  - no crash, no endless run, no plaintext below the shim (memvfs.c) or in the log;
**  - bytes that come out of the shim are those that once stood at that place;
**  - every row read is one that was written;
**  - unless the attack mixed authentic parts of different moments: what a whole
**    read of the database gives is a state that it was in, or an error;
**  - without any edit, nothing fails.
*/
#include <stdio.h>
#include <stdlib.h>

#include "../../ext/base/bytes.h"
#include "../../vfs/tdevfs.h"
#include "attack.h"

enum {
  DO_LIVE = 1, /* the attack comes while the database is open */
  DO_READONLY = 2,
  DO_EXCLUSIVE = 4,
  DO_VERIFY_FIRST = 8,
  DO_VACUUM = 16,
  DO_SWITCH = 32, /* another journal mode */
  DO_UPDATE = 64, /* a header change */
  DO_REOPEN = 128,
  DO_TRUNCATE = 256, /* checkpoint to an empty WAL */
  DO_NO_WRITE = 512,
  DO_SMALL_CACHE = 1024,
  DO_INDEX = 2048 /* the wal-index is attacked, too, while it is in use */
};

typedef struct session {
  attack a;
  int what;
  sqlite3 *db;
  int known; /* state holds: read without error */
  uint64_t state;
  int emptied; /* by the attack: not one whole unit was left */
  int budget;  /* of SQLite's steps, in thousands */
} session;

#define NEW_ID 1000
#define NEW_DATA MEM_MARK "new"

static int on_progress(void *ctx) {
  session *se = ctx;
  return --se->budget <= 0;
}

static int open_db(session *se, int flags) {
  int rc = scene_open(flags, &se->db);

  if (se->db) sqlite3_progress_handler(se->db, 1000, on_progress, se);
  return rc;
}

static void close_db(session *se) {
  if (se->db) FUZZ_ASSERT(sqlite3_close(se->db) == SQLITE_OK);
  se->db = NULL;
  FUZZ_ASSERT(mem_open_count() == 0);
}

/* Without an edit, everything works. */
static void expect(const session *se, int rc) {
  if (rc && !se->a.edits && !(se->what & DO_READONLY)) {
    fprintf(stderr, "SQLite code %d: %s\n", rc, sqlite3_errmsg(se->db));
    FUZZ_ASSERT(!"an error without any edit");
  }
}

static int run_sql(session *se, const char *sql) {
  int rc = sqlite3_exec(se->db, sql, NULL, NULL, NULL);

  if (!sqlite3_get_autocommit(se->db)) (void)sqlite3_exec(se->db, "ROLLBACK", NULL, NULL, NULL);
  return rc;
}

/* ---- what was read ---- */

static int was_state(const scene *s, uint64_t state) {
  for (int i = s->first; i < s->nstates; i++) {
    if (s->state[i] == state) return 1;
  }
  return 0;
}

/* row: of an INSERT that may be in the state. */
static void judge(const session *se, uint64_t state, uint64_t row) {
  const scene *s = se->a.s;

  if (se->a.forged || se->a.mixed) return;
  if (!se->a.edits) {
    FUZZ_ASSERT(state == s->state[s->nstates - 1] + row);
    return;
  }
  if (was_state(s, state) || (row && was_state(s, state - row))) return;
  for (int i = 0; se->a.crossed && i < scene_count; i++) {
    if (was_state(&scenes[i], state)) return; /* it has become the other database */
  }
  if (state == STATE_EMPTY) FUZZ_ASSERT(se->emptied);
  if (state == STATE_EMPTY) return;
  FUZZ_ASSERT(!"a state that the database never had");
}

static void read_all(session *se, uint64_t row) {
  uint64_t state = 0;
  int rc = scene_read(se->db, se->a.forged || se->a.halves, &state);

  if (getenv("TDE_FUZZ_TRACE")) {
    const mem_file *f = mem_find(scene_file[SCENE_MAIN], 0);
    fprintf(stderr, "read: SQLite code %d, state %016llx, main file %zu\n", rc,
            (unsigned long long)state, f ? f->size : 0);
  }
  expect(se, rc);
  if (rc == SQLITE_OK) judge(se, state, row);
  se->known = rc == SQLITE_OK;
  se->state = state;
  if (!se->a.forged && !se->a.mixed) FUZZ_ASSERT(scene_index_agrees(se->db) != 0);
}

/* What a buffer holds before a read. */
#define UNTOUCHED 0xaa

/* Nothing came out: zeros, or, with an error that SQLite does not take for the
** end of the file, what was there before. */
static int nothing_read(int rc, const uint8_t *buf, size_t n) {
  if (tde_all_zero(buf, n)) return 1;
  return rc != SQLITE_OK && rc != SQLITE_IOERR_SHORT_READ && buf[0] == UNTOUCHED &&
         memcmp(buf, buf + 1, n - 1) == 0;
}

/* One read through the shim: chunks that were there once, or nothing. */
static void check_read(const session *se, sqlite3_file *pf, uint8_t *buf, size_t n,
                       sqlite3_int64 off) {
  const scene *s = se->a.s;
  int rc;

  memset(buf, UNTOUCHED, n);
  rc = pf->pMethods->xRead(pf, buf, (int)n, off);
  for (size_t k = 0; k + s->chunk <= n; k += s->chunk) {
    uint64_t i = ((uint64_t)off + k) / s->chunk;
    if (scene_seen(s, TDE_ROLE_MAIN, i, buf + k, s->chunk)) continue;
    FUZZ_ASSERT(nothing_read(rc, buf + k, s->chunk));
    /* Zeros without an error: only in free pages, and in those that share a unit with
    ** one that was written where the attacker had cut the file off (FORMAT.md). */
    FUZZ_ASSERT(rc != SQLITE_OK || scene_healed || (se->a.resized && s->page < s->unit));
  }
}

static void check_frames(const session *se) {
  const scene *s = se->a.s;
  size_t n = s->page + TDE_WAL_FRAME_HEAD;
  sqlite3_file *pf = NULL;
  sqlite3_int64 size = 0;
  uint8_t *buf = malloc(n);

  FUZZ_ASSERT(buf != NULL);
  if (s->now[SCENE_WAL].exists &&
      sqlite3_file_control(se->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &pf) == SQLITE_OK && pf &&
      pf->pMethods && pf->pMethods->xFileSize(pf, &size) == SQLITE_OK) {
    for (uint64_t k = 1; k < 200 && TDE_WAL_HEADER + k * n <= (uint64_t)size; k++) {
      int rc;
      memset(buf, UNTOUCHED, n);
      rc = pf->pMethods->xRead(pf, buf, (int)n, (sqlite3_int64)(TDE_WAL_HEADER + (k - 1) * n));
      FUZZ_ASSERT(scene_seen(s, TDE_ROLE_WAL, k, buf, n) || nothing_read(rc, buf, n));
    }
  }
  free(buf);
}

static void check_pages(const session *se) {
  sqlite3_file *pf = NULL;
  sqlite3_int64 size = 0;
  uint8_t *buf;

  if (se->a.forged || se->a.crossed) return;
  if (sqlite3_exec(se->db, "BEGIN; SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL) ==
          SQLITE_OK &&
      sqlite3_file_control(se->db, "main", SQLITE_FCNTL_FILE_POINTER, &pf) == SQLITE_OK && pf &&
      pf->pMethods && pf->pMethods->xFileSize(pf, &size) == SQLITE_OK && size <= MEM_FILE_MAX) {
    size_t all = size < 65536 ? (size_t)size : 65536;
    buf = malloc(65536);
    FUZZ_ASSERT(buf != NULL);
    if (all) check_read(se, pf, buf, all, 0);
    for (size_t at = 0; at < all; at += se->a.s->page) {
      if (at + se->a.s->page <= all) check_read(se, pf, buf, se->a.s->page, (sqlite3_int64)at);
    }
    free(buf);
    check_frames(se);
  }
  if (!sqlite3_get_autocommit(se->db)) (void)sqlite3_exec(se->db, "ROLLBACK", NULL, NULL, NULL);
}

/* What is in force of the header must be one of the two slots as they were; a
** commit that repaired a slot has counted on. */
static void check_header(const session *se) {
  const scene *s = se->a.s;
  tde_file *f = NULL;
  tde_file_info info;
  char *doc;
  size_t n = 0;
  int written = 0;

  if (se->a.forged || se->a.mixed || se->a.crossed || se->emptied) return;
  if (sqlite3_file_control(se->db, "main", TDE_FCNTL_FILE, &f) != SQLITE_OK || !f) return;
  tde_file_info_get(f, 0, &info);
  if (info.state != TDE_STATE_ONLINE) return;
  doc = tde_file_keydoc(f, &n);
  for (int i = 0; i < 2; i++) {
    const tde_header *h = &s->slot[i];
    if (h->doc && info.sequence - h->sequence <= 2 && info.facts.epoch == h->epoch &&
        n == h->ndoc && memcmp(doc, h->doc, n) == 0 &&
        memcmp(info.uuid, h->uuid, sizeof(info.uuid)) == 0 &&
        (info.unit_size == h->unit_size || info.unit_size == s->unit)) {
      written = 1;
    }
  }
  free(doc);
  FUZZ_ASSERT(written && "a header that nobody wrote is in force");
}

/* ---- the wal-index ---- */

/* wal.c, walHashGet: in the first region, the page of each frame, and the hash table's slots. */
#define INDEX_BYTES 32768u
#define INDEX_PAGE(k) (136 + 4 * ((k)-1))
#define INDEX_SLOTS_AT 16384u

/* Makes it say that what it has in frame a is in frame b. */
static void redirect(uint8_t *index, uint16_t a, uint16_t b) {
  memcpy(index + INDEX_PAGE(b), index + INDEX_PAGE(a), 4);
  for (size_t at = INDEX_SLOTS_AT; at < INDEX_BYTES; at += 2) {
    if (memcmp(index + at, &a, 2) == 0) memcpy(index + at, &b, 2);
  }
}

/* Each edit: a kind (1), then two frames (1, 1), or a place (2) and a byte (1). What comes of
** it are older pages, at the worst. */
static void strike_index(session *se, fuzz_reader *r) {
  uint8_t *index = mem_index();
  int edits = fuzz_u8(r) % 4;

  if (!index) return;
  se->a.mixed = 1;
  se->a.edits++;
  for (int i = 0; i <= edits; i++) {
    if (fuzz_u8(r) & 1) {
      uint16_t a = (uint16_t)(1 + fuzz_u8(r)), b = (uint16_t)(1 + fuzz_u8(r));
      redirect(index, a, b);
    } else {
      size_t at = fuzz_u16(r) % INDEX_BYTES;
      index[at] = fuzz_u8(r);
    }
  }
}

/* ---- what is done ---- */

static void look(session *se) {
  if (se->what & DO_VERIFY_FIRST) (void)run_sql(se, "SELECT tde_verify()");
  read_all(se, 0);
  check_header(se);
  check_pages(se);
  expect(se, run_sql(se, "PRAGMA integrity_check"));
  expect(se, run_sql(se, "SELECT tde_status()"));
  expect(se, run_sql(se, "SELECT tde_verify()"));
}

static void update_header(session *se) {
  tde_file *f = NULL;
  tde_status st;

  tde_status_clear(&st);
  if (sqlite3_file_control(se->db, "main", TDE_FCNTL_FILE, &f) == SQLITE_OK && f) {
    (void)tde_file_update_header(f, NULL, NULL, 0, &st);
    fuzz_check_status(&st);
  }
}

/* Returns the row's weight when the INSERT counts. */
static uint64_t write_row(session *se) {
  int known = se->known;
  uint64_t before = se->state, row = scene_row(NEW_ID, 1, NEW_DATA);
  int rc = scene_insert(se->db, NEW_ID, 1, NEW_DATA);

  if (getenv("TDE_FUZZ_TRACE"))
    fprintf(stderr, "insert: SQLite code %d, would be %016llx\n", rc,
            (unsigned long long)(before + row));
  if (!sqlite3_get_autocommit(se->db)) (void)sqlite3_exec(se->db, "ROLLBACK", NULL, NULL, NULL);
  if (se->a.s->nstates > 1) expect(se, rc);
  if (rc) row = 0;
  read_all(se, row);
  if (known && se->known && !se->a.forged && !se->a.mixed && !se->a.crossed)
    FUZZ_ASSERT(se->state == before + row);
  return row;
}

static uint64_t change(session *se) {
  uint64_t row;
  int rc;

  if (se->what & DO_UPDATE) update_header(se);
  row = se->what & DO_NO_WRITE ? 0 : write_row(se);
  /* A checkpoint that fails half way at a damaged frame has copied pages of the
  ** transactions behind it, which the next recovery will not find any more. */
  if (se->what & DO_LIVE && se->a.log) se->a.mixed = 1;
  if (se->what & DO_SWITCH) {
    (void)run_sql(se, se->a.s->now[SCENE_WAL].exists ? "PRAGMA journal_mode=DELETE"
                                                     : "PRAGMA journal_mode=WAL");
  }
  if (se->what & DO_VACUUM) (void)run_sql(se, "VACUUM");
  rc = run_sql(
      se, se->what & DO_TRUNCATE ? "PRAGMA wal_checkpoint(TRUNCATE)" : "PRAGMA wal_checkpoint");
  /* Right after a switch to WAL, SQLite itself says SQLITE_LOCKED. */
  if (rc != SQLITE_LOCKED || !(se->what & DO_SWITCH)) expect(se, rc);
  if (se->what & (DO_SWITCH | DO_VACUUM)) read_all(se, row);
  if ((se->what & (DO_NO_WRITE | DO_UPDATE | DO_VACUUM | DO_SWITCH)) == DO_NO_WRITE)
    check_pages(se);
  return row;
}

/* A file without one whole unit does not tell that there was a database. */
static void strike(session *se, fuzz_reader *r) {
  const mem_file *f;

  attack_apply(&se->a, r);
  f = mem_find(scene_file[SCENE_MAIN], 0);
  se->emptied = !f || f->size < (size_t)TDE_HEADER_BYTES + se->a.s->unit + TDE_UNIT_OVERHEAD;
}

static void run_db(const uint8_t *data, size_t size) {
  fuzz_reader r = {data, size};
  session se;
  uint64_t row = 0;
  int rc;

  memset(&se, 0, sizeof(se));
  se.a.s = &scenes[fuzz_u8(&r) % 16 % scene_count];
  se.what = fuzz_u16(&r);
  se.budget = 3000;
  scene_restore(se.a.s);
  fuzz_random_seed(UINT64_C(0x1000000));
  if (!(se.what & DO_LIVE)) strike(&se, &r);
  rc = open_db(&se, se.what & DO_READONLY ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE);
  expect(&se, rc);
  if (rc == SQLITE_OK) {
    if (se.what & DO_SMALL_CACHE) (void)run_sql(&se, "PRAGMA cache_size=1");
    if (se.what & DO_EXCLUSIVE) (void)run_sql(&se, "PRAGMA locking_mode=EXCLUSIVE");
    if (se.what & DO_LIVE) {
      read_all(&se, 0);
      if (se.what & DO_INDEX) strike_index(&se, &r);
      strike(&se, &r);
    }
    look(&se);
    row = change(&se);
  }
  close_db(&se);
  if (se.what & DO_REOPEN && open_db(&se, SQLITE_OPEN_READWRITE) == SQLITE_OK) read_all(&se, row);
  close_db(&se);
}

static const char *const db_words[] = {NULL};
const fuzz_target fuzz_db = {"db", scene_setup, run_db, 160, db_words};
