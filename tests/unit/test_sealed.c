/*
** test_sealed.c: a temporary file beside a model of it, a buffer: whatever is written, read
** and cut off in whatever order, both hold the same (vfs/sealed.c). And a database whose units
** can not be sealed, or do not open.
*/
#include <sqlite3.h>
#include <stdint.h>

#include "ext/base/crypto.h"
#include "ext/tde.h"
#include "tests/unit/database.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define MODEL_BYTES 400000
#define LONGEST 70000
#define UNIT 4096
#define FILES 40
#define STEPS 1500

static char root[256];
static uint8_t model[MODEL_BYTES + UNIT], bytes[LONGEST];
static int64_t model_size;
static uint64_t state;
static sqlite3_file *file;

static uint32_t below(uint32_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33) % n;
}

static int open_file(uint64_t seed) {
  sqlite3_vfs *vfs = sqlite3_vfs_find("tde");
  const int flags = SQLITE_OPEN_TEMP_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                    SQLITE_OPEN_EXCLUSIVE | SQLITE_OPEN_DELETEONCLOSE;

  state = seed;
  memset(model, 0, sizeof(model));
  model_size = 0;
  file = vfs ? sqlite3_malloc(vfs->szOsFile) : NULL;
  return !file || vfs->xOpen(vfs, NULL, file, flags, NULL);
}

static void close_file(void) {
  CHECK(file->pMethods->xClose(file) == SQLITE_OK);
  sqlite3_free(file);
}

static int put(int64_t at, int n) {
  for (int i = 0; i < n; i++) bytes[i] = (uint8_t)(below(255) + 1);
  memcpy(model + at, bytes, (size_t)n);
  if (at + n > model_size) model_size = at + n;
  return file->pMethods->xWrite(file, bytes, n, at) == SQLITE_OK;
}

static int cut(int64_t size) {
  memset(model + size, 0, (size_t)(model_size - size));
  model_size = size;
  return file->pMethods->xTruncate(file, size) == SQLITE_OK;
}

static int same(int64_t at, int n) {
  int rc = file->pMethods->xRead(file, bytes, n, at);

  return rc == (at + n <= model_size ? SQLITE_OK : SQLITE_IOERR_SHORT_READ) &&
         memcmp(bytes, model + at, (size_t)n) == 0;
}

static int whole(void) {
  sqlite3_int64 size = -1;
  int ok = file->pMethods->xFileSize(file, &size) == SQLITE_OK && size == model_size;

  for (int64_t at = 0; ok && at < model_size; at += UNIT) ok = same(at, UNIT);
  return ok;
}

/* Units wait at the new end, and a part of one before them that the file has. */
static void what_waits_before_a_new_end_stays(void) {
  REQUIRE(open_file(1) == 0);
  CHECK(put(0, 3 * UNIT));
  CHECK(file->pMethods->xSync(file, SQLITE_SYNC_NORMAL) == SQLITE_OK);
  CHECK(put(3 * UNIT, 5 * UNIT));
  CHECK(put(UNIT + 512, 512));
  CHECK(cut(6 * UNIT));
  CHECK(whole());
  close_file();
}

static int64_t bytes_of(const char *path) {
  FILE *f = fopen(path, "rb");
  int64_t n = f && fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;

  if (f) (void)fclose(f);
  return n;
}

/* What SQLite says of sizes to come is about files that it sees: below, nobody would seal those bytes. */
static void hints_make_no_bytes_below(void) {
  sqlite3 *db = open_below(root, "hints");
  sqlite3_int64 hint = 1 << 20;
  int chunk = 1 << 20;
  char path[300];

  (void)snprintf(path, sizeof(path), "%s/hints", root);
  CHECK(run_sql(db, "PRAGMA mmap_size=100000; CREATE TABLE t(a)") == SQLITE_OK);
  CHECK(sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk) == SQLITE_OK);
  CHECK(sqlite3_file_control(db, "main", SQLITE_FCNTL_SIZE_HINT, &hint) == SQLITE_OK);
  CHECK(run_sql(db, "INSERT INTO t VALUES(zeroblob(9000))") == SQLITE_OK);
  CHECK(sqlite3_close(db) == SQLITE_OK);
  CHECK(bytes_of(path) == 65536 + 4 * (UNIT + 48));
  REQUIRE(open_file(3) == 0);
  CHECK(put(0, 3 * UNIT));
  CHECK(file->pMethods->xFileControl(file, SQLITE_FCNTL_CHUNK_SIZE, &chunk) == SQLITE_OK);
  CHECK(file->pMethods->xFileControl(file, SQLITE_FCNTL_SIZE_HINT, &hint) == SQLITE_OK);
  CHECK(cut(UNIT + 5));
  CHECK(whole());
  close_file();
}

static int step(void) {
  int n = 1 + (int)below(below(3) ? 30 : LONGEST);
  int64_t at = below(3) ? below((uint32_t)model_size + 2) : below(MODEL_BYTES);

  if (at + n > MODEL_BYTES) return 1;
  switch (below(10)) {
    case 0:
      return below(4) || cut(below((uint32_t)model_size + 1));
    case 1:
      return below(60) || file->pMethods->xSync(file, SQLITE_SYNC_NORMAL) == SQLITE_OK;
    case 2:
    case 3:
    case 4:
      return same(at, n);
    default:
      return put(at, n);
  }
}

static void anything_in_any_order(void) {
  for (uint64_t seed = 0; seed < FILES; seed++) {
    int i = 0;
    REQUIRE(open_file(seed) == 0);
    while (i < STEPS && step()) i++;
    if (!CHECK(i == STEPS) || !CHECK(whole())) printf("seed %d, step %d\n", (int)seed, i);
    close_file();
  }
}

/* ---- no randomness any more ---- */

#define LOGGED 2000

static char logged[LOGGED];

static void keep_log(void *ctx, int code, const char *line) {
  size_t used = strlen(logged);

  (void)ctx;
  (void)code;
  (void)snprintf(logged + used, LOGGED - used, "%s\n", line);
}

static int refuse(size_t n) {
  return n > 0;
}

/* A unit that waits is written anew, which fails: it is still there as it was. */
static void what_waits_outlives_a_sealing_that_fails(void) {
  uint8_t before[UNIT];
  int ok = 1;

  REQUIRE(open_file(2) == 0);
  CHECK(put(0, UNIT));
  tde_test_random_hook = refuse;
  for (int i = 0; i < 4096 && ok; i++) {
    memcpy(before, model, UNIT);
    ok = put(0, UNIT);
  }
  tde_test_random_hook = NULL;
  CHECK(!ok);
  memcpy(model, before, UNIT);
  CHECK(whole());
  close_file();
}

/* Does PRAGMA tde_status speak of this? */
static int status_has(sqlite3 *db, const char *what) {
  sqlite3_stmt *stmt = NULL;
  int has = sqlite3_prepare_v2(db, "PRAGMA tde_status", -1, &stmt, NULL) == SQLITE_OK &&
            sqlite3_step(stmt) == SQLITE_ROW &&
            strstr((const char *)sqlite3_column_text(stmt, 0), what) != NULL;

  (void)sqlite3_finalize(stmt);
  return has;
}

/* Nonces and salts come in batches, so that a write fails some time after the source did. */
static void what_cannot_be_sealed_is_told(void) {
  static const char *const modes[] = {"delete", "wal"};

  for (size_t m = 0; m < COUNT(modes); m++) {
    char sql[100];
    sqlite3 *db = open_below(root, modes[m]);
    int rc = SQLITE_OK;

    (void)snprintf(sql, sizeof(sql), "PRAGMA journal_mode=%s; CREATE TABLE t(a)", modes[m]);
    CHECK(run_sql(db, sql) == SQLITE_OK);
    logged[0] = 0;
    tde_test_random_hook = refuse;
    for (int i = 0; i < 64 && rc == SQLITE_OK; i++) {
      rc = run_sql(db, "INSERT INTO t VALUES(randomblob(3000))");
    }
    tde_test_random_hook = NULL;
    CHECK(rc == SQLITE_IOERR);
    CHECK(status_has(db, "\"class\":\"random\"") && status_has(db, "getrandom"));
    CHECK(strstr(logged, "[random]") != NULL && strstr(logged, "getrandom") != NULL);
    CHECK(run_sql(db, "INSERT INTO t VALUES(1)") == SQLITE_OK);
    CHECK(sqlite3_close(db) == SQLITE_OK);
  }
}

/* ---- half of the file is gone ---- */

#define LOST_BYTES (16 * 1024 * 1024)
#define UNITS_NAMED 1000 /* by tde_verify() */
#define NAPS_A_UNIT 4

static unsigned naps;

/* The C library's, for all that is linked in here. */
int usleep(useconds_t usec) {
  (void)usec;
  naps++;
  return 0;
}

static int64_t number_of(sqlite3 *db, const char *sql) {
  sqlite3_stmt *stmt = NULL;
  int64_t n = -1;

  if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK &&
      sqlite3_step(stmt) == SQLITE_ROW) {
    n = sqlite3_column_int64(stmt, 0);
  }
  (void)sqlite3_finalize(stmt);
  return n;
}

static void what_is_lost_is_not_waited_for_unit_by_unit(void) {
  const int64_t units = LOST_BYTES / UNIT;
  char path[300];
  sqlite3 *db = open_below(root, "lost");
  FILE *f;
  int64_t bad;

  CHECK(run_sql(db, "CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(20000000))") == SQLITE_OK);
  (void)snprintf(path, sizeof(path), "%s/lost", root);
  f = fopen(path, "r+b");
  REQUIRE(f && fseek(f, 1000000, SEEK_SET) == 0);
  for (int64_t i = 0; i < units; i++) CHECK(fwrite(bytes, 1, UNIT, f) == UNIT);
  CHECK(fclose(f) == 0);
  naps = 0;
  bad = number_of(db, "SELECT json_extract(tde_verify(), '$.bad')");
  CHECK(bad > units - units / 50 && bad < units);
  CHECK(naps >= NAPS_A_UNIT * UNITS_NAMED);
  CHECK(naps < NAPS_A_UNIT * (UNITS_NAMED + 100));
  CHECK(sqlite3_close(db) == SQLITE_OK);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"what_waits_before_a_new_end_stays", what_waits_before_a_new_end_stays},
      {"hints_make_no_bytes_below", hints_make_no_bytes_below},
      {"anything_in_any_order", anything_in_any_order},
      {"what_waits_outlives_a_sealing_that_fails", what_waits_outlives_a_sealing_that_fails},
      {"what_cannot_be_sealed_is_told", what_cannot_be_sealed_is_told},
      {"what_is_lost_is_not_waited_for_unit_by_unit", what_is_lost_is_not_waited_for_unit_by_unit},
  };
  int rc;

  if (make_root("sealed", root, sizeof(root)) ||
      sqlite3_config(SQLITE_CONFIG_LOG, keep_log, NULL) != SQLITE_OK ||
      tde_register() != SQLITE_OK) {
    perror("test_sealed");
    return 1;
  }
  rc = unit_main(argc, argv, tests, COUNT(tests));
  remove_tree(root);
  return rc;
}
