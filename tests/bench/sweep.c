/*
** sweep.c: what one operation costs as databases grow, pages grow, or more of them are
** open. Run by sweep.py, once for each point of a curve.
**
**   sweep build --db PATH [--ext tde.so] --mb N [--page P]
**   sweep cost  --db PATH [--ext tde.so]           one database's operations
**   sweep read  --db PATH [--ext tde.so]           a scan and point reads
**   sweep many  --db PREFIX [--ext tde.so] --n N   N databases open at once
**
** What must hold: results are checked (row counts, verification, the copy's rows); a
** failure ends the run with its message. Each prints one JSON line. Times are
** milliseconds unless the name says otherwise.
*/
#include <sys/resource.h>
#include <sys/stat.h>

#include "common.h"

#define OPENS 31
#define POINTS 20000
#define ROUNDS 5

typedef struct sweep {
  const char *path, *ext, *vfs;
  long mb, page, n;
} sweep;

static void load(sweep *s) {
  sqlite3 *db = NULL;
  char *err = NULL;
  if (s->ext == NULL) return;
  must(db, sqlite3_open(":memory:", &db), "open");
  sqlite3_enable_load_extension(db, 1);
  if (sqlite3_load_extension(db, s->ext, "sqlite3_tde_init", &err) != SQLITE_OK) die("load: %s", err);
  s->vfs = "tde";
  close_db(db);
}

static sqlite3 *open_path(const sweep *s, const char *path) {
  sqlite3 *db = NULL;
  must(db, sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, s->vfs), path);
  return db;
}

static int64_t one_number(sqlite3 *db, const char *sql) {
  sqlite3_stmt *st = compile(db, sql);
  int64_t n;
  must(db, sqlite3_step(st), sql);
  n = sqlite3_column_int64(st, 0);
  sqlite3_finalize(st);
  return n;
}

static double now_ms(void) {
  struct timespec zero = {0, 0};
  return since(&zero) * 1e3;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *v, size_t n) {
  qsort(v, n, sizeof(*v), by_value);
  return v[n / 2];
}

/* A page holds one row, so that a row is a page wherever it stands. */
static void build(const sweep *s) {
  long page = s->page ? s->page : 4096, rows = s->mb * 1000000L / page, i;
  sqlite3 *db;
  sqlite3_stmt *st;
  char sql[64];
  remove_db(s->path);
  db = open_path(s, s->path);
  snprintf(sql, sizeof sql, "PRAGMA page_size=%ld", page);
  run(db, sql);
  run(db, "PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB); BEGIN");
  st = compile(db, "INSERT INTO t VALUES(?,?)");
  for (i = 1; i <= rows; i++) {
    sqlite3_bind_int64(st, 1, i);
    sqlite3_bind_zeroblob(st, 2, (int)(page * 3 / 4));
    must(db, sqlite3_step(st), "insert");
    sqlite3_reset(st);
  }
  sqlite3_finalize(st);
  run(db, "COMMIT");
  close_db(db);
}

static double point_us(sqlite3 *db, int64_t rows) {
  sqlite3_stmt *st = compile(db, "SELECT length(body) FROM t WHERE id=?");
  uint64_t seed = 88172645463325252u;
  double t0 = now_ms();
  run(db, "BEGIN");
  for (int i = 0; i < POINTS; i++) {
    sqlite3_bind_int64(st, 1, (int64_t)(next_random(&seed) % (uint64_t)rows) + 1);
    if (sqlite3_step(st) != SQLITE_ROW) die("point read: %s", sqlite3_errmsg(db));
    sqlite3_reset(st);
  }
  run(db, "COMMIT");
  t0 = now_ms() - t0;
  sqlite3_finalize(st);
  return t0 * 1e3 / POINTS;
}

/* A connection, its first read, and its end. */
static double open_us(const sweep *s) {
  double v[OPENS];
  for (int i = 0; i < OPENS; i++) {
    double t0 = now_ms();
    sqlite3 *db = open_path(s, s->path);
    (void)one_number(db, "SELECT id FROM t LIMIT 1");
    close_db(db);
    v[i] = now_ms() - t0;
  }
  return median(v, OPENS) * 1e3;
}

/* The extension's own backup, or SQLite's for a plain database. */
static double backup_ms(const sweep *s, sqlite3 *db, int64_t rows) {
  char copy[4096], *sql;
  sqlite3 *to;
  double t0;
  snprintf(copy, sizeof copy, "%s-copy", s->path);
  remove_db(copy);
  t0 = now_ms();
  if (s->ext != NULL) {
    sql = sqlite3_mprintf("SELECT tde_backup(%Q)", copy);
    run(db, sql);
    sqlite3_free(sql);
  } else {
    to = open_path(s, copy);
    run(to, "PRAGMA synchronous=OFF");
    sqlite3_backup *b = sqlite3_backup_init(to, "main", db, "main");
    if (b == NULL || sqlite3_backup_step(b, -1) != SQLITE_DONE) die("backup: %s", sqlite3_errmsg(to));
    sqlite3_backup_finish(b);
    close_db(to);
  }
  t0 = now_ms() - t0;
  to = open_path(s, copy);
  if (one_number(to, "SELECT max(id) FROM t") != rows) die("backup: rows are missing");
  close_db(to);
  remove_db(copy);
  return t0;
}

/* A new version of the protector, and the DEK wrapped with it. */
static double rotate_ms(sqlite3 *db) {
  double v[ROUNDS];
  for (int i = 0; i < ROUNDS; i++) {
    run(db, "SELECT tde_instance_new_key('sweep')");
    v[i] = now_ms();
    run(db, "SELECT tde_set_protector('local:sweep')");
    v[i] = now_ms() - v[i];
  }
  return median(v, ROUNDS);
}

static void cost(const sweep *s) {
  sqlite3 *db = open_path(s, s->path);
  int64_t rows = one_number(db, "SELECT max(id) FROM t");
  struct stat st;
  double verify = 0, dek = 0, rotate = 0, point, backup;
  run(db, "PRAGMA cache_size=-2048");
  point = point_us(db, rows);
  backup = backup_ms(s, db, rows);
  if (s->ext != NULL) {
    verify = now_ms();
    if (one_number(db, "SELECT tde_verify() ->> 'ok'") != 1) die("verify: not ok");
    verify = now_ms() - verify;
    rotate = rotate_ms(db);
    dek = now_ms();
    run(db, "SELECT tde_rotate_dek()");
    dek = now_ms() - dek;
  }
  close_db(db);
  if (stat(s->path, &st) != 0) die("stat %s", s->path);
  printf("{\"open_us\":%.1f,\"point_us\":%.3f,\"backup\":%.1f,\"verify\":%.1f,\"rotate\":%.2f,"
         "\"rotate_dek\":%.1f,\"bytes\":%lld}\n",
         open_us(s), point, backup, verify, rotate, dek, (long long)st.st_size);
}

static void reading(const sweep *s) {
  sqlite3 *db;
  double scan[ROUNDS], point[ROUNDS];
  int64_t rows;
  struct stat st;
  warm(s->path);
  db = open_path(s, s->path);
  run(db, "PRAGMA cache_size=-2048");
  rows = one_number(db, "SELECT max(id) FROM t");
  for (int i = 0; i < ROUNDS; i++) {
    scan[i] = now_ms();
    if (one_number(db, "SELECT count(length(body)) FROM t NOT INDEXED") != rows) die("scan: rows are missing");
    scan[i] = now_ms() - scan[i];
    point[i] = point_us(db, rows);
  }
  close_db(db);
  if (stat(s->path, &st) != 0) die("stat %s", s->path);
  printf("{\"scan\":%.2f,\"point_us\":%.3f,\"bytes\":%lld}\n", median(scan, ROUNDS), median(point, ROUNDS),
         (long long)st.st_size);
}

/* Resident memory of this process, KiB. */
static long resident_kib(void) {
  char line[256];
  long kib = -1;
  FILE *f = fopen("/proc/self/status", "r");
  if (f == NULL) die("cannot read /proc/self/status");
  while (fgets(line, sizeof line, f) != NULL) {
    if (sscanf(line, "VmRSS: %ld", &kib) == 1) break;
  }
  fclose(f);
  return kib;
}

static void allow_files(long n) {
  struct rlimit r;
  if (getrlimit(RLIMIT_NOFILE, &r) != 0) die("getrlimit: %s", strerror(errno));
  if (r.rlim_cur < (rlim_t)n + 64) r.rlim_cur = (rlim_t)n + 64;
  if (r.rlim_max < r.rlim_cur) r.rlim_max = r.rlim_cur;
  if (setrlimit(RLIMIT_NOFILE, &r) != 0) die("%ld open files are not allowed here: %s", n, strerror(errno));
}

/* Opens all, which unwraps each one's key; then, with all of them open, reads each once
** more, and opens a second connection to each. */
static void many(const sweep *s) {
  sqlite3 **db = calloc((size_t)s->n, sizeof(*db));
  char name[4096];
  double first, read, opened;
  long kib, i;
  if (db == NULL) die("out of memory");
  allow_files(s->n);
  for (i = 0; i < s->n; i++) {
    snprintf(name, sizeof name, "%s%05ld", s->path, i);
    if (access(name, F_OK) == 0) continue;
    db[0] = open_path(s, name);
    run(db[0], "PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, body); INSERT INTO t VALUES(1, 7)");
    close_db(db[0]);
  }
  db[0] = open_path(s, name); /* what the process itself needs, once */
  (void)one_number(db[0], "SELECT body FROM t");
  close_db(db[0]);
  kib = resident_kib();
  first = now_ms();
  for (i = 0; i < s->n; i++) {
    snprintf(name, sizeof name, "%s%05ld", s->path, i);
    db[i] = open_path(s, name);
    if (one_number(db[i], "SELECT body FROM t") != 7) die("%s: wrong row", name);
  }
  first = now_ms() - first;
  kib = resident_kib() - kib;
  read = now_ms();
  for (i = 0; i < s->n; i++) (void)one_number(db[i], "SELECT body FROM t");
  read = now_ms() - read;
  opened = now_ms();
  for (i = 0; i < s->n; i++) {
    sqlite3 *second;
    snprintf(name, sizeof name, "%s%05ld", s->path, i);
    second = open_path(s, name);
    (void)one_number(second, "SELECT body FROM t");
    close_db(second);
  }
  opened = now_ms() - opened;
  for (i = 0; i < s->n; i++) close_db(db[i]);
  free(db);
  printf("{\"first_us\":%.1f,\"open_us\":%.1f,\"read_us\":%.1f,\"kib_each\":%.2f}\n",
         first * 1e3 / (double)s->n, opened * 1e3 / (double)s->n, read * 1e3 / (double)s->n,
         (double)kib / (double)s->n);
}

static void usage(void) {
  fputs("usage: sweep build|cost|read|many --db PATH [--ext tde.so] [--mb N] [--page P] [--n N]\n", stderr);
  exit(2);
}

int main(int argc, char **argv) {
  sweep s = {.n = 1, .mb = 10};
  if (argc < 2) usage();
  for (int i = 2; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--db") == 0) {
      s.path = argv[i + 1];
    } else if (strcmp(argv[i], "--ext") == 0) {
      s.ext = argv[i + 1];
    } else if (strcmp(argv[i], "--mb") == 0) {
      s.mb = strtol(argv[i + 1], NULL, 10);
    } else if (strcmp(argv[i], "--page") == 0) {
      s.page = strtol(argv[i + 1], NULL, 10);
    } else if (strcmp(argv[i], "--n") == 0) {
      s.n = strtol(argv[i + 1], NULL, 10);
    } else {
      usage();
    }
  }
  if (s.path == NULL || s.n < 1 || s.mb < 1) usage();
  load(&s);
  if (strcmp(argv[1], "build") == 0) {
    build(&s);
  } else if (strcmp(argv[1], "cost") == 0) {
    cost(&s);
  } else if (strcmp(argv[1], "read") == 0) {
    reading(&s);
  } else if (strcmp(argv[1], "many") == 0) {
    many(&s);
  } else {
    usage();
  }
  return 0;
}
