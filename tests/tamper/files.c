/*
** files.c: see files.h.
*/
#include "files.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/tree.h"

static char scratch[300];
static sqlite3 *keeper;

/* What cannot be set up makes every result worthless. */
static void give_up(const char *what, const char *name) {
  printf("tamper: %s: %s\n", what, name);
  fflush(stdout);
  abort();
}

const char *at(const char *name) {
  static char ring[8][400];
  static int next;
  char *out = ring[next++ % 8];

  snprintf(out, sizeof(ring[0]), "%s/%s", scratch, name);
  return out;
}

/* In memory where there is a place for it: some 100,000 files are written. */
int scratch_make(void) {
  const char *tmp = getenv("TMPDIR");

  if (!tmp) tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  snprintf(scratch, sizeof(scratch), "%s/tde-tamper-XXXXXX", tmp);
  if (!mkdtemp(scratch)) return -1;
  setenv("TDE_INSTANCE", at("instance"), 1);
  return 0;
}

void scratch_remove(void) {
  keep_key(NULL);
  remove_tree(scratch);
}

/* ---- images ---- */

image image_load(const char *name) {
  image i = {NULL, 0};
  int fd = open(at(name), O_RDONLY | O_CLOEXEC);
  struct stat sb;

  if (fd >= 0 && fstat(fd, &sb) == 0) {
    i.n = (size_t)sb.st_size;
    i.p = malloc(i.n + 1);
    if (!i.p || read(fd, i.p, i.n) != (ssize_t)i.n) give_up("can not be read", name);
  }
  if (fd >= 0) close(fd);
  return i;
}

image image_copy(const image *i) {
  image c = {malloc(i->n + 1), i->n};
  if (!c.p) give_up("no memory", "");
  memcpy(c.p, i->p, i->n);
  return c;
}

void image_free(image *i) {
  free(i->p);
  i->p = NULL;
  i->n = 0;
}

void image_store(const image *i, const char *name) {
  int fd = open(at(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  if (fd < 0 || write(fd, i->p, i->n) != (ssize_t)i->n) give_up("can not be written", name);
  close(fd);
}

void file_remove(const char *name) {
  (void)unlink(at(name));
}

void database_remove(const char *name) {
  static const char *const ends[] = {"", "-wal", "-journal", "-shm"};
  char full[100];

  for (int i = 0; i < 4; i++) {
    snprintf(full, sizeof(full), "%s%s", name, ends[i]);
    file_remove(full);
  }
}

/* ---- SQL ---- */

sqlite3 *open_tde(const char *name) {
  char uri[500];
  sqlite3 *db = NULL;

  snprintf(uri, sizeof(uri), "file:%s?vfs=tde", at(name));
  if (sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                      NULL) != SQLITE_OK) {
    give_up("can not be opened", name);
  }
  sqlite3_extended_result_codes(db, 1);
  sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
  return db;
}

void must(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK) give_up(sqlite3_errmsg(db), sql);
}

static uint64_t digest(uint64_t h, const void *p, size_t n) {
  const uint8_t *b = p;
  for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ull; /* FNV-1a */
  return h;
}

static uint64_t digest_rows(sqlite3 *db, const char *sql, uint64_t h, int *rc) {
  sqlite3_stmt *s = NULL;

  *rc = sqlite3_prepare_v2(db, sql, -1, &s, NULL);
  while (*rc == SQLITE_OK && (*rc = sqlite3_step(s)) == SQLITE_ROW) {
    for (int c = 0; c < sqlite3_column_count(s); c++) {
      const void *p = sqlite3_column_blob(s, c);
      h = digest(h, p, (size_t)sqlite3_column_bytes(s, c));
      h = digest(h, "|", 1);
    }
    *rc = SQLITE_OK;
  }
  if (*rc == SQLITE_DONE) *rc = SQLITE_OK;
  (void)sqlite3_finalize(s);
  return h;
}

uint64_t content_of(sqlite3 *db, int *rc) {
  uint64_t h = 0xcbf29ce484222325ull;

  h = digest_rows(db, "SELECT sql FROM sqlite_schema", h, rc);
  if (*rc == SQLITE_OK) h = digest_rows(db, "SELECT id, a, b FROM t NOT INDEXED", h, rc);
  if (*rc == SQLITE_OK) h = digest_rows(db, "SELECT a FROM t INDEXED BY ta ORDER BY a", h, rc);
  return h;
}

uint64_t content_at(const char *name, int *rc) {
  sqlite3 *db = open_tde(name);
  uint64_t h = content_of(db, rc);

  if (sqlite3_close(db) != SQLITE_OK) give_up("can not be closed", name);
  return h;
}

void keep_key(const char *name) {
  image i;

  (void)sqlite3_close(keeper);
  keeper = NULL;
  if (!name) return;
  i = image_load(name);
  database_remove("keeper.db");
  image_store(&i, "keeper.db");
  image_free(&i);
  keeper = open_tde("keeper.db");
  must(keeper, "PRAGMA user_version");
}

void fill(sqlite3 *db, int rows, int version) {
  char sql[500];

  snprintf(
      sql, sizeof(sql),
      "BEGIN; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a TEXT, b BLOB);"
      "CREATE INDEX IF NOT EXISTS ta ON t(a);"
      "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < %d)"
      "REPLACE INTO t SELECT i, 'row ' || i || ' version %d', printf('%%0*d', 40 + i %% 30, i * %d)"
      "FROM c; COMMIT",
      rows, version, version + 7);
  must(db, sql);
}

void fill_long(sqlite3 *db, int bytes) {
  char sql[250];

  snprintf(sql, sizeof(sql),
           "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB); CREATE INDEX ta ON t(a);"
           "INSERT INTO t VALUES(1, 'short', 'x');"
           "INSERT INTO t VALUES(3, 'long', hex(randomblob(%d)))",
           bytes);
  must(db, sql);
}
