/*
** logs.c: WAL and rollback journal, changed in every way.
**
** Must hold: what recovery reads of a changed WAL is the state after the last
** commit before the change, no other; a frame that the wal-index names and
** that does not open is SQLITE_IOERR_DATA; a journal of which a part does not
** open plays back what comes before it, so that every page is as it was before
** the transaction or as the transaction left it, and nothing else. That is what
** plain SQLite does with a torn log. By design an attacker can therefore cut
** committed transactions off a WAL, or a roll-back short, as by deleting the file.
*/
#include "cases.h"
#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define P 512u /* page size of all databases here */
#define FRAME (24 + P + OVERHEAD)
#define COMMITS 3

static void put(int fd, const void *p, size_t n, size_t off) {
  if (pwrite(fd, p, n, (off_t)off) != (ssize_t)n) abort();
}

/* ---- WAL ---- */

typedef struct wal_set {
  image db, wal;
  uint64_t state[COMMITS + 1]; /* content after each commit; 0: of the main file */
  size_t end[COMMITS + 1];     /* the WAL's size then */
} wal_set;

static size_t size_of(const char *name) {
  struct stat sb;
  return stat(at(name), &sb) == 0 ? (size_t)sb.st_size : 0;
}

/* Three transactions in the WAL, one more in the main file. */
static wal_set wal_made(void) {
  wal_set w;
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  must(db, "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
  fill(db, 12, 1);
  must(db, "PRAGMA wal_checkpoint(TRUNCATE)");
  w.state[0] = content_of(db, &rc);
  w.end[0] = 0;
  for (int k = 1; k <= COMMITS; k++) {
    fill(db, 12 + k, 1 + k);
    w.state[k] = content_of(db, &rc);
    w.end[k] = size_of("made.db-wal");
  }
  (void)sqlite3_close(db);
  w.db = image_load("made.db");
  w.wal = image_load("made.db-wal");
  keep_key("made.db");
  return w;
}

static void wal_free(wal_set *w) {
  image_free(&w->db);
  image_free(&w->wal);
}

/* Commits that are whole before this byte of the WAL. */
static int commits_before(const wal_set *w, size_t off) {
  int k = COMMITS;
  while (k > 0 && w->end[k] > off) k--;
  return k;
}

static void store_with(const image *db, const image *log, const char *log_name) {
  database_remove("case.db");
  image_store(db, "case.db");
  image_store(log, log_name);
}

static void store_both(const image *db, const image *wal) {
  store_with(db, wal, "case.db-wal");
}

/* Recovers from this WAL: the content must be the state after commit k. */
static void recovers_to(tally *t, const wal_set *w, const image *wal, int k, const char *what,
                        size_t a, size_t b) {
  uint64_t got;
  int rc;

  image_store(wal, "case.db-wal");
  got = content_at("case.db", &rc);
  judge(t, rc == SQLITE_OK && got == w->state[k], "%s (%zu, %zu): code %d%s", what, a, b, rc,
        rc ? "" : ", another state");
}

/* Every bit from a to b of the WAL, before recovery. */
static void bits_before_recovery(tally *t, const wal_set *w, size_t a, size_t b) {
  int fd = open(at("case.db-wal"), O_RDWR | O_CLOEXEC);

  for (size_t bit = 8 * a; bit < 8 * b; bit++) {
    uint8_t x = w->wal.p[bit / 8] ^ (uint8_t)(1u << bit % 8);
    int k = commits_before(w, bit / 8), rc;
    uint64_t got;
    put(fd, &x, 1, bit / 8);
    got = content_at("case.db", &rc);
    put(fd, w->wal.p + bit / 8, 1, bit / 8);
    /* In the prefix as elsewhere: the log ends before what is not whole. */
    judge(t, rc == SQLITE_OK && got == w->state[k], "WAL byte %zu bit %zu: code %d%s", bit / 8,
          bit % 8, rc, rc ? "" : ", another state");
  }
  close(fd);
}

tally wal_bits(void) {
  wal_set w = wal_made();
  tally t = {0, 0};
  uint64_t got;
  int rc;

  store_both(&w.db, &w.wal);
  bits_before_recovery(&t, &w, 0, 208);
  bits_before_recovery(&t, &w, w.end[1], w.end[1] + FRAME); /* commit 2's first */
  bits_before_recovery(&t, &w, w.end[3] - FRAME, w.end[3]); /* commit 3's last */
  got = content_at("case.db", &rc);
  judge(&t, rc == 0 && got == w.state[COMMITS], "restored: code %d", rc);
  wal_free(&w);
  return t;
}

/* Changes while a connection has the wal-index: SQLite checks no checksum of its
** own then. Every reader must be refused, not be given other data. */
tally wal_live(void) {
  wal_set w = wal_made();
  tally t = {0, 0};
  sqlite3 *holder;
  int rc, fd;

  store_both(&w.db, &w.wal);
  holder = open_tde("case.db");
  judge(&t, content_of(holder, &rc) == w.state[COMMITS], "before: code %d", rc);
  fd = open(at("case.db-wal"), O_RDWR | O_CLOEXEC);
  for (size_t bit = 0; bit < 8 * (128 + 2 * FRAME); bit++) {
    /* The prefix, and the first and the last frame of the last commit. */
    size_t n = bit / 8, off = n < 128           ? n
                              : n < 128 + FRAME ? w.end[2] + n - 128
                                                : w.end[3] - FRAME + n - 128 - FRAME;
    uint8_t x = w.wal.p[off] ^ (uint8_t)(1u << bit % 8);
    put(fd, &x, 1, off);
    (void)content_at("case.db", &rc);
    put(fd, w.wal.p + off, 1, off);
    judge(&t, rc == SQLITE_IOERR_DATA || (n < 128 && rc == SQLITE_IOERR_AUTH),
          "live WAL byte %zu bit %zu: code %d", off, bit % 8, rc);
  }
  judge(&t, content_at("case.db", &rc) == w.state[COMMITS], "restored: code %d", rc);
  /* Frames of the last commit exchanged; one zeroed; one cut off. */
  put(fd, w.wal.p + w.end[2], FRAME, w.end[3] - FRAME);
  put(fd, w.wal.p + w.end[3] - FRAME, FRAME, w.end[2]);
  (void)content_at("case.db", &rc);
  judge(&t, rc == SQLITE_IOERR_DATA, "live frames exchanged: code %d", rc);
  put(fd, w.wal.p, w.wal.n, 0);
  if (ftruncate(fd, (off_t)(w.end[3] - FRAME)) != 0) abort();
  (void)content_at("case.db", &rc);
  judge(&t, rc != SQLITE_OK, "live WAL cut by a frame: code %d", rc);
  if (ftruncate(fd, (off_t)(w.end[3] - 7)) != 0) abort();
  (void)content_at("case.db", &rc);
  judge(&t, rc != SQLITE_OK, "live WAL cut within a frame: code %d", rc);
  close(fd);
  (void)sqlite3_close(holder);
  wal_free(&w);
  return t;
}

tally wal_moves(void) {
  wal_set other = wal_made(), w = wal_made();
  size_t n = (w.wal.n - 208) / FRAME;
  tally t = {0, 0};
  image c;
  int rc;

  store_both(&w.db, &w.wal);
  for (size_t a = 1; a <= n; a++) {
    size_t x = frame_at(P, a);
    for (size_t b = a + 1; b <= n; b++) {
      size_t y = frame_at(P, b);
      c = image_copy(&w.wal);
      memcpy(c.p + x, w.wal.p + y, FRAME);
      memcpy(c.p + y, w.wal.p + x, FRAME);
      recovers_to(&t, &w, &c, commits_before(&w, x), "frames swapped", a, b);
      image_free(&c);
    }
    for (int kind = 0; kind < 3; kind++) {
      c = image_copy(&w.wal);
      if (kind == 0) memcpy(c.p + x, other.wal.p + x, FRAME);
      if (kind == 1) memset(c.p + x, 0, FRAME);
      if (kind == 2) memcpy(c.p + x, w.db.p + main_at(P, a % 4), P + OVERHEAD);
      recovers_to(&t, &w, &c, commits_before(&w, x),
                  kind == 0   ? "another database's frame"
                  : kind == 1 ? "frame of zeros"
                              : "main unit as frame",
                  a, (size_t)kind);
      image_free(&c);
    }
  }
  c = image_copy(&w.wal);
  memcpy(c.p + 128, other.wal.p + 128, 80);
  recovers_to(&t, &w, &c, 0, "another database's WAL header", 0, 0);
  memcpy(c.p, "\0SQLite-TDE\1", 12);
  recovers_to(&t, &w, &c, 0, "a journal's magic", 0, 0);
  image_free(&c);
  /* Another database's WAL: named as that; under this one's UUID it is not authentic. */
  image_store(&other.wal, "case.db-wal");
  (void)content_at("case.db", &rc);
  judge(&t, rc == SQLITE_IOERR_AUTH, "another database's WAL: code %d", rc);
  c = image_copy(&other.wal);
  memcpy(c.p + 32, w.wal.p + 32, 16);
  recovers_to(&t, &w, &c, 0, "another database's WAL under this UUID", 0, 0);
  memcpy(c.p, w.wal.p, PREFIX);
  recovers_to(&t, &w, &c, 0, "another database's frames behind this prefix", 0, 0);
  image_free(&c);
  wal_free(&other);
  wal_free(&w);
  return t;
}

/* Frames of the generation before, put back at their places. */
static void old_frames(tally *t, const wal_set *w, const image *now, const image *main_now,
                       uint64_t state_now) {
  size_t first = 208, n = 0; /* frames of the new generation */
  sqlite3 *holder;
  uint64_t got;
  int rc, fd;

  store_both(main_now, now);
  got = content_at("case.db", &rc);
  judge(t, rc == 0 && got == state_now, "the new generation: code %d", rc);
  while (memcmp(now->p + first + n * FRAME, w->wal.p + first + n * FRAME, FRAME) != 0) n++;
  judge(t, n >= 2, "it has %zu frames", n);
  for (size_t k = 0; k < n; k++) {
    image c = image_copy(now);
    memcpy(c.p + first + k * FRAME, w->wal.p + first + k * FRAME, FRAME);
    recovers_to(t, w, &c, COMMITS, "frame of the generation before", k, 0);
    image_free(&c);
  }
  /* With a wal-index, SQLite itself would take them. */
  image_store(now, "case.db-wal");
  holder = open_tde("case.db");
  (void)content_of(holder, &rc);
  fd = open(at("case.db-wal"), O_RDWR | O_CLOEXEC);
  for (size_t k = 0; k < n; k++) {
    put(fd, w->wal.p + first + k * FRAME, FRAME, first + k * FRAME);
    (void)content_at("case.db", &rc);
    judge(t, rc == SQLITE_IOERR_DATA, "live frame %zu of the generation before: code %d", k + 1,
          rc);
    put(fd, now->p + first + k * FRAME, FRAME, first + k * FRAME);
  }
  put(fd, w->wal.p, PREFIX, 0);
  (void)content_at("case.db", &rc);
  judge(t, rc == SQLITE_IOERR_DATA, "live prefix of the generation before: code %d", rc);
  close(fd);
  (void)sqlite3_close(holder);
}

/* One more transaction, in a generation of its own. */
typedef struct next_set {
  image db, wal;
  uint64_t state;
} next_set;

static next_set next_made(const image *main_file, const image *wal, const char *text) {
  next_set next;
  char sql[100];
  sqlite3 *db;
  int rc;

  store_both(main_file, wal);
  db = open_tde("case.db");
  must(db, "PRAGMA wal_autocheckpoint=0; PRAGMA wal_checkpoint(RESTART)");
  snprintf(sql, sizeof(sql), "UPDATE t SET b = '%s'", text);
  must(db, sql);
  next.state = content_of(db, &rc);
  (void)sqlite3_close(db);
  next.db = image_load("case.db");
  next.wal = image_load("case.db-wal");
  return next;
}

static void next_free(next_set *next) {
  image_free(&next->db);
  image_free(&next->wal);
}

tally wal_generations(void) {
  wal_set w = wal_made();
  next_set next = next_made(&w.db, &w.wal, "newest");
  tally t = {0, 0};
  image c;

  judge(&t, next.wal.n == w.wal.n, "the WAL was begun anew in the same file");
  old_frames(&t, &w, &next.wal, &next.db, next.state);
  c = image_copy(&next.wal);
  memcpy(c.p, w.wal.p, PREFIX);
  recovers_to(&t, &w, &c, COMMITS, "prefix of the generation before", 0, 0);
  memcpy(c.p, next.wal.p, PREFIX);
  memcpy(c.p + PREFIX, w.wal.p + PREFIX, 80);
  recovers_to(&t, &w, &c, COMMITS, "WAL header of the generation before", 0, 0);
  /* The whole of the older WAL is accepted, by design: as if this one were deleted. */
  recovers_to(&t, &w, &w.wal, COMMITS, "the older WAL", 0, 0);
  image_free(&c);
  next_free(&next);
  wal_free(&w);
  return t;
}

static int code_of(sqlite3 *db, const char *sql) {
  (void)sqlite3_exec(db, sql, NULL, NULL, NULL);
  return sqlite3_extended_errcode(db);
}

static int finds_damage(sqlite3 *db) {
  sqlite3_stmt *s = NULL;
  int found = 0;

  must(db, "SELECT tde_verify()"); /* it tells what it found, and does not fail */
  if (sqlite3_prepare_v2(db, "SELECT NOT json_extract(tde_verify(), '$.ok')", -1, &s, NULL) == 0 &&
      sqlite3_step(s) == SQLITE_ROW) {
    found = sqlite3_column_int(s, 0);
  }
  (void)sqlite3_finalize(s);
  return found;
}

/* Another log in the place of the one that this connection uses. It is as large, so that
** nothing but what it holds tells. */
static void replaced_beside(tally *t, sqlite3 *db, const image *other, const next_set *next,
                            const char *how) {
  char sql[500];
  uint64_t got;
  image then;
  int rc, fd = open(at("case.db-wal"), O_RDWR | O_CLOEXEC);

  got = content_of(db, &rc);
  judge(t, rc == SQLITE_OK && got == next->state, "%s: before: code %d", how, rc);
  put(fd, other->p, other->n, 0);
  must(db, "PRAGMA cache_size=1; PRAGMA shrink_memory");
  (void)content_of(db, &rc);
  judge(t, rc == SQLITE_IOERR_DATA, "%s: read: code %d", how, rc);
  judge(t, finds_damage(db), "%s: tde_verify finds nothing", how);
  (void)unlink(at("copy.db"));
  snprintf(sql, sizeof(sql), "SELECT tde_backup('%s')", at("copy.db"));
  rc = code_of(db, sql);
  judge(t, rc != SQLITE_OK, "%s: tde_backup: code %d", how, rc);
  rc = code_of(db, "PRAGMA wal_checkpoint");
  judge(t, rc == SQLITE_IOERR_DATA, "%s: checkpoint: code %d", how, rc);
  then = image_load("case.db");
  judge(t, then.n == next->db.n && memcmp(then.p, next->db.p, then.n) == 0,
        "%s: the database was changed", how);
  image_free(&then);
  put(fd, next->wal.p, next->wal.n, 0);
  got = content_of(db, &rc);
  judge(t, rc == SQLITE_OK && got == next->state, "%s: put back: code %d", how, rc);
  close(fd);
}

/* SQLite takes each page from where the log in use had it: in the oldest log are other pages,
** in the one before the same, as they were. */
tally wal_replaced(void) {
  wal_set w = wal_made();
  next_set before = next_made(&w.db, &w.wal, "before");
  next_set now = next_made(&before.db, &before.wal, "newest");
  tally t = {0, 0};
  sqlite3 *holder, *db;
  uint64_t got;
  int rc;

  store_both(&now.db, &now.wal);
  holder = open_tde("case.db");
  (void)content_of(holder, &rc);
  replaced_beside(&t, holder, &w.wal, &now, "the oldest WAL");
  replaced_beside(&t, holder, &before.wal, &now, "the WAL before");
  image_store(&before.wal, "case.db-wal");
  (void)content_at("case.db", &rc);
  judge(&t, rc == SQLITE_IOERR_DATA, "the WAL before, a new connection: code %d", rc);
  image_store(&now.wal, "case.db-wal");
  got = content_at("case.db", &rc);
  judge(&t, rc == SQLITE_OK && got == now.state, "put back: code %d", rc);
  (void)sqlite3_close(holder);

  store_both(&now.db, &now.wal);
  db = open_tde("case.db");
  must(db, "PRAGMA locking_mode=EXCLUSIVE");
  replaced_beside(&t, db, &w.wal, &now, "the oldest WAL, under EXCLUSIVE");
  (void)sqlite3_close(db);
  store_both(&now.db, &now.wal);
  db = open_tde("case.db");
  must(db, "PRAGMA locking_mode=EXCLUSIVE");
  replaced_beside(&t, db, &before.wal, &now, "the WAL before, under EXCLUSIVE");
  (void)sqlite3_close(db);
  next_free(&before);
  next_free(&now);
  wal_free(&w);
  return t;
}

/* wal.c: where frame k's page stands in the wal-index's first region, and the hash table's slot. */
#define INDEX_AT 32768 /* behind the sign for others, vfs/walindex.c */
#define INDEX_PAGE(k) (INDEX_AT + 136 + 4 * ((k)-1))
#define INDEX_SLOT(i) (INDEX_AT + 16384 + 2 * (i))
#define INDEX_SLOTS 8192u
#define INDEX_FRAMES 60u

static uint16_t slot_at(const image *shm, size_t i) {
  uint16_t k;
  memcpy(&k, shm->p + INDEX_SLOT(i), sizeof(k));
  return k;
}

static uint32_t page_of(const image *shm, size_t k) {
  uint32_t page;
  memcpy(&page, shm->p + INDEX_PAGE(k), sizeof(page));
  return page;
}

/* Makes the wal-index say that what it has in frame a is in frame b; 0: in none. */
static void redirect(int fd, const image *shm, uint16_t a, uint16_t b) {
  uint32_t page = page_of(shm, a);

  if (b) put(fd, &page, sizeof(page), INDEX_PAGE(b));
  for (size_t i = 0; i < INDEX_SLOTS; i++) {
    if (slot_at(shm, i) == a) put(fd, &b, sizeof(b), INDEX_SLOT(i));
  }
}

/* The wal-index leads to the frame of another page. */
tally wal_index(void) {
  wal_set w = wal_made();
  next_set next = next_made(&w.db, &w.wal, "newest");
  tally t = {0, 0};
  uint16_t frames = 0;
  sqlite3 *holder;
  image shm;
  int rc, fd;

  store_both(&next.db, &next.wal);
  holder = open_tde("case.db");
  judge(&t, content_of(holder, &rc) == next.state, "before: code %d", rc);
  shm = image_load("case.db-shm");
  while (frames < INDEX_FRAMES && page_of(&shm, frames + 1u)) frames++;
  judge(&t, frames >= 2 && frames < INDEX_FRAMES, "%u frames", frames);
  fd = open(at("case.db-shm"), O_RDWR | O_CLOEXEC);
  for (uint16_t a = 1; a <= frames; a++) {
    for (uint16_t b = 1; b <= frames; b++) {
      if (page_of(&shm, a) == page_of(&shm, b)) continue;
      redirect(fd, &shm, a, b);
      (void)content_at("case.db", &rc);
      judge(&t, rc == SQLITE_IOERR_DATA, "frame %u for frame %u: code %d", b, a, rc);
      put(fd, shm.p + INDEX_PAGE(1), shm.n - INDEX_PAGE(1), INDEX_PAGE(1));
    }
    /* A frame can be hidden, by design: its page is as it was before. */
    redirect(fd, &shm, a, 0);
    judge(&t, content_at("case.db", &rc) != next.state && (rc == 0 || rc == SQLITE_CORRUPT),
          "frame %u hidden: code %d", a, rc);
    put(fd, shm.p + INDEX_PAGE(1), shm.n - INDEX_PAGE(1), INDEX_PAGE(1));
  }
  judge(&t, content_of(holder, &rc) == next.state, "restored: code %d", rc);
  close(fd);
  image_free(&shm);
  (void)sqlite3_close(holder);
  next_free(&next);
  wal_free(&w);
  return t;
}

/* Cut at every byte: the commits that are whole. With bytes behind: all. */
tally wal_length(void) {
  wal_set w = wal_made();
  tally t = {0, 0};

  store_both(&w.db, &w.wal);
  for (size_t n = 0; n <= w.wal.n; n++) {
    image c = {w.wal.p, n};
    recovers_to(&t, &w, &c, commits_before(&w, n), "WAL cut", n, w.wal.n);
  }
  for (size_t more = 1; more < 2 * FRAME; more += 13) {
    image c = {malloc(w.wal.n + more), w.wal.n + more};
    memcpy(c.p, w.wal.p, w.wal.n);
    memset(c.p + w.wal.n, (int)more, more);
    recovers_to(&t, &w, &c, COMMITS, "bytes behind the WAL", more, 0);
    image_free(&c);
  }
  wal_free(&w);
  return t;
}

/* The content after a checkpoint, whether that goes through or not. */
static uint64_t content_checkpointed(const char *name, int *rc) {
  sqlite3 *db = open_tde(name);

  (void)sqlite3_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL);
  (void)sqlite3_close(db);
  return content_at(name, rc);
}

/* The content through a connection that has no shared memory to look into. */
static uint64_t content_exclusively(const char *name, int *rc) {
  sqlite3 *db = open_tde(name);
  uint64_t h;

  must(db, "PRAGMA locking_mode=EXCLUSIVE");
  h = content_of(db, rc);
  (void)sqlite3_close(db);
  return h;
}

/* Made so that zeros in place of the last pages of t would go unnoticed: they end a long
** row, whose last page is the first of eight in a unit. behind: of a page behind those the
** WAL has a newer version, so that a checkpoint writes beyond what was cut off. small:
** pages are smaller than units, and zeros in the unit that the checkpoint writes to go
** unnoticed, by design. */
static void main_cut(tally *t, int behind, int small) {
  unsigned unnoticed = 0;
  uint64_t state, got;
  image db_image, wal;
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  if (small) must(db, "CREATE TABLE first(a); DROP TABLE first; PRAGMA page_size=512; VACUUM");
  must(db, "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
  fill_long(db, 3700);
  if (behind) must(db, "CREATE TABLE z(a)");
  must(db, "PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET a = 'changed' WHERE id = 1");
  if (behind) must(db, "INSERT INTO z VALUES(1)");
  state = content_of(db, &rc);
  (void)sqlite3_close(db);
  keep_key("made.db");
  db_image = image_load("made.db");
  wal = image_load("made.db-wal");
  store_both(&db_image, &wal);
  judge(t, content_at("case.db", &rc) == state && rc == 0, "whole: code %d", rc);
  for (size_t n = HEADER; n < db_image.n; n += 80) {
    image c = {db_image.p, n};
    store_both(&c, &wal);
    got = content_at("case.db", &rc);
    /* Cut to nothing SQLite takes it for a new database, and deletes the WAL. */
    judge(t,
          n == HEADER       ? rc == SQLITE_ERROR
          : rc == SQLITE_OK ? got == state
                            : rc != SQLITE_ERROR,
          "main cut to %zu of %zu below a WAL: code %d", n, db_image.n, rc);
    if (n == HEADER) continue;
    store_both(&c, &wal);
    got = content_exclusively("case.db", &rc);
    judge(t, rc == SQLITE_OK ? got == state : rc != SQLITE_ERROR,
          "main cut to %zu of %zu, opened exclusively: code %d", n, db_image.n, rc);
    store_both(&c, &wal);
    got = content_checkpointed("case.db", &rc);
    if (rc == SQLITE_OK && got != state) unnoticed++;
    judge(t, rc == SQLITE_OK ? got == state || small : rc != SQLITE_ERROR,
          "main cut to %zu of %zu, then a checkpoint: code %d", n, db_image.n, rc);
  }
  judge(t, (unnoticed > 0) == small, "%u cuts were not noticed after a checkpoint", unnoticed);
  image_free(&db_image);
  image_free(&wal);
}

/* The main file cut short below a WAL that names more pages: pages that are
** nowhere must not read as zeros. */
tally wal_main_cut(void) {
  tally t = {0, 0};

  main_cut(&t, 0, 0);
  main_cut(&t, 1, 0);
  main_cut(&t, 1, 1);
  return t;
}

/* ---- rollback journal ---- */

typedef struct journal_set {
  image db, journal; /* in the middle of a transaction */
  image old_journal; /* of the transaction before, in the same file */
  uint64_t content;  /* before the transaction */
  image before, mid; /* logical pages before, and as the transaction left them */
  image older;       /* ... and before the transaction before */
} journal_set;

/* The database's pages as SQLite would read them; a page that does not open
** leaves p NULL. */
static image pages_of(const char *name) {
  sqlite3 *db = open_tde(name);
  sqlite3_file *f = NULL;
  sqlite3_int64 size = 0;
  image i = {NULL, 0};

  if (sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &f) == SQLITE_OK &&
      f->pMethods->xFileSize(f, &size) == SQLITE_OK) {
    i.n = (size_t)size;
    i.p = malloc(i.n + P);
    for (size_t off = 0; i.p && off < i.n; off += P) {
      if (f->pMethods->xRead(f, i.p + off, (int)P, (sqlite3_int64)off) != SQLITE_OK) {
        free(i.p);
        i.p = NULL;
      }
    }
  }
  (void)sqlite3_close(db);
  return i;
}

static journal_set journal_made(void) {
  journal_set j;
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  must(db, "PRAGMA page_size=512; PRAGMA journal_mode=PERSIST");
  fill(db, 70, 1);
  j.older = pages_of("made.db");
  must(db, "PRAGMA cache_size=2; BEGIN; UPDATE t SET a = a || 'older'");
  j.old_journal = image_load("made.db-journal");
  must(db, "COMMIT");
  j.content = content_of(db, &rc);
  must(db, "BEGIN; UPDATE t SET a = 'changed' || a, b = b || 'x'");
  j.db = image_load("made.db");
  j.journal = image_load("made.db-journal");
  must(db, "ROLLBACK");
  (void)sqlite3_close(db);
  keep_key("made.db");
  database_remove("case.db");
  image_store(&j.db, "case.db");
  j.mid = pages_of("case.db");
  image_store(&j.journal, "case.db-journal");
  if (content_at("case.db", &rc) != j.content || rc) abort();
  j.before = pages_of("case.db");
  return j;
}

static void journal_free(journal_set *j) {
  image_free(&j->db);
  image_free(&j->journal);
  image_free(&j->old_journal);
  image_free(&j->before);
  image_free(&j->mid);
  image_free(&j->older);
}

static int is_page_of(const image *pages, size_t off, const uint8_t *page) {
  return off < pages->n && memcmp(page, pages->p + off, P) == 0;
}

/* Every page is as before the transaction or as the transaction left it; with
** older, or as before the one before. */
static int pages_authentic(const journal_set *j, const image *older) {
  image now = pages_of("case.db");
  int ok = now.p != NULL;

  for (size_t off = 0; ok && off < now.n; off += P) {
    const uint8_t *page = now.p + off;
    ok = is_page_of(&j->before, off, page) || is_page_of(&j->mid, off, page) ||
         (older && is_page_of(older, off, page));
  }
  image_free(&now);
  return ok;
}

/* Opens with this journal; how far was it rolled back? */
typedef enum rolled { ROLLED_BACK, ROLLED_PARTLY, ROLLED_NOT, ROLLED_REFUSED } rolled;

static rolled roll_back(const journal_set *j, const image *journal, int *authentic) {
  rolled r = ROLLED_PARTLY;
  uint64_t got;
  image now;
  int rc;

  image_store(&j->db, "case.db");
  image_store(journal, "case.db-journal");
  got = content_at("case.db", &rc);
  if (rc == SQLITE_OK && got == j->content) r = ROLLED_BACK;
  if (rc == SQLITE_IOERR_AUTH || rc == SQLITE_IOERR_DATA) r = ROLLED_REFUSED;
  file_remove("case.db-journal");
  *authentic = pages_authentic(j, journal->p == j->old_journal.p ? &j->older : NULL);
  now = image_load("case.db");
  if (r == ROLLED_PARTLY && now.n == j->db.n && memcmp(now.p, j->db.p, now.n) == 0) r = ROLLED_NOT;
  image_free(&now);
  return r;
}

static void every_journal_bit(tally *t, const journal_set *j, size_t a, size_t b) {
  for (size_t bit = 8 * a; bit < 8 * b; bit++) {
    int authentic, right;
    rolled r;
    j->journal.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
    r = roll_back(j, &j->journal, &authentic);
    j->journal.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
    /* The prefix and the journal's header: as if there were no journal. */
    right = bit / 8 < 688 ? r == ROLLED_NOT : r == ROLLED_PARTLY;
    judge(t, authentic && right, "journal byte %zu bit %zu: outcome %d, pages %s", bit / 8, bit % 8,
          (int)r, authentic ? "authentic" : "FORGED");
  }
}

tally journal_bits(void) {
  journal_set j = journal_made();
  tally t = {0, 0};
  int authentic;
  rolled r = roll_back(&j, &j.journal, &authentic);

  image none = {NULL, 0};

  judge(&t, r == ROLLED_BACK && authentic, "untouched: outcome %d", (int)r);
  r = roll_back(&j, &none, &authentic);
  judge(&t, r == ROLLED_NOT && authentic, "no journal: outcome %d", (int)r);
  every_journal_bit(&t, &j, 0, journal_at(1));
  every_journal_bit(&t, &j, journal_at(3), journal_at(4));
  journal_free(&j);
  return t;
}

/* A change to what the roll-back needs must not give a whole one; whatever is
** changed, no page that never was may come of it. */
static rolled partly(tally *t, const journal_set *j, const image *journal, int needed,
                     const char *what, size_t a, size_t b) {
  int authentic;
  rolled r = roll_back(j, journal, &authentic);

  judge(t, authentic && !(needed && r == ROLLED_BACK), "%s (%zu, %zu): outcome %d, pages %s", what,
        a, b, (int)r, authentic ? "authentic" : "FORGED");
  return r;
}

#define RECORD (JOURNAL_UNIT + OVERHEAD)
#define UNITS_MAX 200

/* Which units the roll-back needs: those whose loss it shows. The file's tail
** holds pages that are not changed on disk yet, and an older generation. */
static size_t find_needed(tally *t, const journal_set *j, int needed[UNITS_MAX]) {
  size_t n = (j->journal.n - PREFIX) / RECORD, count = 0;

  if (n > UNITS_MAX) n = UNITS_MAX;
  for (size_t a = 0; a < n; a++) {
    image c = image_copy(&j->journal);
    memset(c.p + journal_at(a), 0, RECORD);
    needed[a] = partly(t, j, &c, 0, "unit of zeros", a, 0) != ROLLED_BACK;
    count += (size_t)needed[a];
    image_free(&c);
  }
  judge(t, count > n / 2, "only %zu of %zu units are needed", count, n);
  return n;
}

/* Units of other origin at unit a's place. */
static void foreign_units(tally *t, const journal_set *j, const journal_set *other, size_t a,
                          int needed) {
  const image *const from[] = {&other->journal, &j->old_journal, &j->db};
  const char *const what[] = {"another database's unit", "unit of the generation before",
                              "main unit as journal unit"};

  for (size_t kind = 0; kind < 3; kind++) {
    size_t y = kind == 2 ? main_at(512, a) : journal_at(a);
    image c;
    if (y + RECORD > from[kind]->n ||
        memcmp(from[kind]->p + y, j->journal.p + journal_at(a), RECORD) == 0) {
      continue;
    }
    c = image_copy(&j->journal);
    memcpy(c.p + journal_at(a), from[kind]->p + y, RECORD);
    (void)partly(t, j, &c, needed, what[kind], a, kind);
    image_free(&c);
  }
}

/* Both have units of 512 bytes: only role and key tell them apart. */
static void journal_unit_as_main(tally *t, const journal_set *j, size_t a) {
  int authentic, rc;
  image c;

  (void)roll_back(j, &j->journal, &authentic);
  c = image_load("case.db");
  if (main_at(512, a) + RECORD <= c.n) {
    memcpy(c.p + main_at(512, a), j->journal.p + journal_at(a), RECORD);
    image_store(&c, "case.db");
    (void)content_at("case.db", &rc);
    judge(t, rc == SQLITE_IOERR_DATA, "journal unit %zu as main unit: code %d", a, rc);
  }
  image_free(&c);
}

tally journal_moves(void) {
  journal_set other = journal_made(), j = journal_made();
  int needed[UNITS_MAX], authentic;
  tally t = {0, 0};
  size_t n = find_needed(&t, &j, needed);
  image c;

  for (size_t a = 0; a < n; a++) {
    for (size_t b = a + 1; b < n; b++) {
      c = image_copy(&j.journal);
      memcpy(c.p + journal_at(a), j.journal.p + journal_at(b), RECORD);
      memcpy(c.p + journal_at(b), j.journal.p + journal_at(a), RECORD);
      (void)partly(&t, &j, &c, needed[a] || needed[b], "units swapped", a, b);
      image_free(&c);
    }
    foreign_units(&t, &j, &other, a, needed[a]);
    journal_unit_as_main(&t, &j, a);
  }
  judge(&t, roll_back(&j, &other.journal, &authentic) == ROLLED_REFUSED,
        "another database's journal");
  c = image_copy(&other.journal);
  memcpy(c.p + 32, j.journal.p + 32, 16);
  (void)partly(&t, &j, &c, 1, "another database's journal under this UUID", 0, 0);
  image_free(&c);
  /* An older journal is accepted, by design: as an older unit at its place. */
  (void)partly(&t, &j, &j.old_journal, 1, "the journal of the transaction before", 0, 0);
  journal_free(&other);
  journal_free(&j);
  return t;
}

/* The main file cut short below a hot journal: the roll-back makes it as long again as it
** was, and what neither the journal nor the file has must not read as zeros. */
tally journal_main_cut(void) {
  tally t = {0, 0};
  uint64_t state, got;
  image whole, db_image, journal;
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  must(db, "PRAGMA page_size=512");
  fill_long(db, 3000);
  state = content_of(db, &rc);
  whole = image_load("made.db");
  must(db,
       "PRAGMA cache_size=2; BEGIN; UPDATE t SET a = 'changed' WHERE id = 1;"
       "INSERT INTO t VALUES(9, 'more', hex(randomblob(60000)))");
  db_image = image_load("made.db");
  journal = image_load("made.db-journal");
  must(db, "ROLLBACK");
  (void)sqlite3_close(db);
  keep_key("made.db");
  judge(&t, db_image.n > whole.n, "the transaction made the file longer");
  for (size_t n = HEADER; n <= db_image.n; n += n < whole.n ? 80 : 4000) {
    image c = {db_image.p, n};
    store_with(&c, &journal, "case.db-journal");
    got = content_at("case.db", &rc);
    /* Cut to nothing SQLite takes it for a new database, and deletes the journal. */
    judge(&t,
          n == HEADER       ? rc == SQLITE_ERROR
          : rc == SQLITE_OK ? got == state
                            : n < whole.n && rc != SQLITE_ERROR,
          "main cut to %zu of %zu below a journal: code %d", n, whole.n, rc);
  }
  image_free(&whole);
  image_free(&db_image);
  image_free(&journal);
  return t;
}

/* What a transaction that makes the file shorter may leave, when it is interrupted: pages
** which the journal does not have, because they were free. They are not missed. */
tally journal_free_cut(void) {
  tally t = {0, 0};
  uint64_t state;
  image before, c, journal, now;
  sqlite3 *db;
  int rc;

  database_remove("made.db");
  db = open_tde("made.db");
  must(db, "PRAGMA page_size=512; PRAGMA auto_vacuum=INCREMENTAL");
  fill(db, 70, 1);
  must(db,
       "INSERT INTO t VALUES(900, 'long', hex(randomblob(20000))); DELETE FROM t WHERE id = 900");
  state = content_of(db, &rc);
  before = image_load("made.db");
  must(db,
       "PRAGMA cache_size=2; BEGIN; PRAGMA incremental_vacuum; UPDATE t SET a = a || 'changed'");
  c = image_load("made.db");
  journal = image_load("made.db-journal");
  must(db, "COMMIT");
  now = image_load("made.db");
  (void)sqlite3_close(db);
  keep_key("made.db");
  judge(&t, now.n + 30 * RECORD < before.n, "the transaction made the file shorter");
  c.n = now.n;
  image_free(&now);
  store_with(&c, &journal, "case.db-journal");
  judge(&t, content_at("case.db", &rc) == state && rc == SQLITE_OK, "rolled back: code %d", rc);
  now = image_load("case.db");
  judge(&t, now.n == before.n, "as long as before");
  image_free(&now);
  now = pages_of("case.db");
  judge(&t, now.p != NULL, "every page opens");
  image_free(&now);
  image_free(&before);
  image_free(&c);
  image_free(&journal);
  return t;
}

tally journal_length(void) {
  journal_set j = journal_made();
  tally t = {0, 0};
  int authentic;
  rolled r;

  for (size_t n = 0; n <= j.journal.n; n += 3) {
    image c = {j.journal.p, n};
    r = roll_back(&j, &c, &authentic);
    judge(&t, authentic && r != ROLLED_REFUSED, "journal cut to %zu of %zu: outcome %d, pages %s",
          n, j.journal.n, (int)r, authentic ? "authentic" : "FORGED");
  }
  for (size_t more = 1; more < 2000; more += 61) {
    image c = {malloc(j.journal.n + more), j.journal.n + more};
    memcpy(c.p, j.journal.p, j.journal.n);
    memset(c.p + j.journal.n, (int)more, more);
    r = roll_back(&j, &c, &authentic);
    judge(&t, authentic && r == ROLLED_BACK, "%zu bytes behind the journal: outcome %d", more,
          (int)r);
    image_free(&c);
  }
  journal_free(&j);
  return t;
}
