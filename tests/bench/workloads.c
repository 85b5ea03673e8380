/*
** workloads.c: the benchmark's workloads, each a plain SQLite program.
**
**   workloads NAME --db PATH [--ext tde.so | --key SQL] [--vfs V] [--scale F]
**             [--threads N] [--prepare]
**
** Without --ext the database is plain, on the default VFS. With --ext the
** extension is loaded and the database is opened through the VFS "tde"; that
** is the only difference between the two runs, so the ratio of their times is
** what encryption costs. run.py alternates them and takes medians. Linked with a
** library that encrypts by itself, --key gives the pragmas that each connection
** runs first.
**
** What must hold:
**  - one run is one process, and prints its measurement as one JSON line;
**  - every workload checks what it read or wrote, and afterwards that the file
**    is sealed, or plain, as the mode demands: a wrong run prints no time;
**  - only the work is timed. Building the database, opening the connection and
**    the first use of the key stay outside, except in speedtest1, which is
**    taken whole, and in opens, which is about just that;
**  - --prepare builds what scan, point and opens read (kept between runs).
**
** speedtest1 is SQLite's own program, linked with its main() renamed.
*/
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

#include "common.h"

#if defined(__has_include)
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif
#endif
#ifndef CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_START_INSTRUMENTATION ((void)0)
#define CALLGRIND_STOP_INSTRUMENTATION ((void)0)
#endif

/* Sizes at --scale 1. */
#define SPEEDTEST_SIZE 50
#define READ_ROWS 976560     /* 8 a page of 4 KiB: 500 MB */
#define READ_BODY 480        /* bytes */
#define POINT_READS 200000
#define COMMITS 20000
#define BULK_ROWS 1000000
#define OPENS 1000
#define SMALL_CACHE "PRAGMA cache_size=-2048"
#define MAPPED "PRAGMA mmap_size=2000000000"
#define BARE "?tde_functions=off" /* means nothing in plain */

typedef struct bench {
  const char *path;     /* of the database; opens: of its databases, less a number */
  const char *ext;      /* the extension, or NULL: plain */
  const char *vfs;      /* NULL: the default one */
  const char *key;      /* pragmas that key a connection, or NULL */
  int threads;          /* of the workload readers */
  double scale;
  int prepare;
  struct timespec t0;
  struct rusage u0;
  double wall, user, sys, first;    /* seconds; first: see opens */
  long work;            /* rows, reads, commits or databases */
} bench;

int speedtest1_main(int argc, char **argv);

/* ---- the clock ---- */

static double elapsed(const struct timeval *from, const struct timeval *to) {
  return (double)(to->tv_sec - from->tv_sec) + (double)(to->tv_usec - from->tv_usec) * 1e-6;
}

static void start(bench *b) {
  getrusage(RUSAGE_SELF, &b->u0);
  clock_gettime(CLOCK_MONOTONIC, &b->t0);
  CALLGRIND_START_INSTRUMENTATION;
}

static void stop(bench *b) {
  struct rusage u;
  CALLGRIND_STOP_INSTRUMENTATION;
  b->wall = since(&b->t0);
  getrusage(RUSAGE_SELF, &u);
  b->user = elapsed(&b->u0.ru_utime, &u.ru_utime);
  b->sys = elapsed(&b->u0.ru_stime, &u.ru_stime);
}

/* ---- SQLite ---- */

/* The value that row id holds: fixed, so that every reader can check it. */
static int64_t value_of(int64_t id) {
  uint64_t x = (uint64_t)id * 0x9e3779b97f4a7c15u;
  return (int64_t)((x >> 40) ^ (x >> 20)) & 0xffffff;
}

static sqlite3 *open_path(const bench *b, const char *path) {
  sqlite3 *db = NULL;
  int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, b->vfs);
  must(db, rc, path);
  return db;
}

/* A time is only worth printing for a file that is what the mode says. */
static void check_sealed(const bench *b, const char *path) {
  char head[16] = {0};
  int plain;
  FILE *f = fopen(path, "rb");
  if (f == NULL || fread(head, 1, sizeof head, f) != sizeof head) die("cannot read %s", path);
  fclose(f);
  plain = memcmp(head, "SQLite format 3", 16) == 0;
  if (plain != (b->ext == NULL && b->key == NULL)) die("%s is %s", path, plain ? "plaintext" : "not plaintext");
}

/* The extension stays loaded for the process: its VFS outlives this connection. */
static void load_extension(bench *b) {
  sqlite3 *db = NULL;
  char *err = NULL;
  must(db, sqlite3_open(":memory:", &db), "open");
  if (b->ext != NULL) {
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, b->ext, "sqlite3_tde_init", &err) != SQLITE_OK) {
      die("load %s: %s", b->ext, err ? err : "no reason given");
    }
    b->vfs = "tde";
    if (sqlite3_vfs_find(b->vfs) == NULL) die("%s registered no VFS \"tde\"", b->ext);
  }
  close_db(db);
}

/* Runs at the end of each sqlite3_open, also of those in speedtest1. */
static const char *key_pragmas;
static int key_connection(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  (void)api;
  return sqlite3_exec(db, key_pragmas, NULL, NULL, error);
}

static void key_connections(const bench *b) {
  if (b->key == NULL) return;
  key_pragmas = b->key;
  must(NULL, sqlite3_auto_extension((void (*)(void))key_connection), "auto extension");
}

static long scaled(const bench *b, long n) {
  long s = (long)((double)n * b->scale);
  return s < 1 ? 1 : s;
}

/* ---- 1, 2: speedtest1 ---- */

static void speedtest(bench *b, const char *journal) {
  char size[32], *argv[16];
  int argc = 0;
  snprintf(size, sizeof size, "%ld", scaled(b, SPEEDTEST_SIZE));
  argv[argc++] = (char *)"speedtest1";
  argv[argc++] = (char *)"--size";
  argv[argc++] = size;
  argv[argc++] = (char *)"--journal";
  argv[argc++] = (char *)journal;
  if (b->vfs != NULL) {
    argv[argc++] = (char *)"--vfs";
    argv[argc++] = (char *)b->vfs;
  }
  argv[argc++] = (char *)b->path;
  argv[argc] = NULL;
  remove_db(b->path);
  start(b);
  if (speedtest1_main(argc, argv) != 0) die("speedtest1 failed");
  stop(b);
  b->work = scaled(b, SPEEDTEST_SIZE);
}

static void speedtest_rollback(bench *b) { speedtest(b, "delete"); }
static void speedtest_wal(bench *b) { speedtest(b, "wal"); }

/* ---- 3, 4: reading ---- */

static void prepare_read(bench *b) {
  long i, n = scaled(b, READ_ROWS);
  uint64_t seed = 88172645463325252u, body[READ_BODY / 8];
  size_t w;
  sqlite3 *db;
  sqlite3_stmt *st;
  remove_db(b->path);
  db = open_path(b, b->path);
  run(db, "PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, body BLOB); BEGIN");
  st = compile(db, "INSERT INTO t VALUES(?,?,?)");
  for (i = 1; i <= n; i++) {
    for (w = 0; w < READ_BODY / 8; w++) body[w] = next_random(&seed);
    sqlite3_bind_int64(st, 1, i);
    sqlite3_bind_int64(st, 2, value_of(i));
    sqlite3_bind_blob(st, 3, body, sizeof body, SQLITE_STATIC);
    must(db, sqlite3_step(st), "insert");
    sqlite3_reset(st);
  }
  sqlite3_finalize(st);
  run(db, "COMMIT");
  close_db(db);
}

/* Every table leaf is read once, in order; two columns of each row are used. */
static void scan(bench *b) {
  long i, n = scaled(b, READ_ROWS);
  int64_t want = 0;
  sqlite3 *db;
  sqlite3_stmt *st;
  warm(b->path);
  db = open_path(b, b->path);
  run(db, SMALL_CACHE);
  st = compile(db, "SELECT count(*), sum(k) FROM t");
  for (i = 1; i <= n; i++) want += value_of(i);
  start(b);
  must(db, sqlite3_step(st), "scan");
  stop(b);
  if (sqlite3_column_int64(st, 0) != n || sqlite3_column_int64(st, 1) != want) {
    die("scan: wrong result");
  }
  b->work = n;
  sqlite3_finalize(st);
  close_db(db);
}

/* n reads by random rowid in one transaction. */
static void read_points(sqlite3 *db, sqlite3_stmt *st, long rows, long n, uint64_t seed) {
  long i;
  run(db, "BEGIN");
  for (i = 0; i < n; i++) {
    int64_t id = (int64_t)(next_random(&seed) % (uint64_t)rows) + 1;
    sqlite3_bind_int64(st, 1, id);
    must(db, sqlite3_step(st), "point read");
    if (sqlite3_column_int64(st, 0) != value_of(id) || sqlite3_column_blob(st, 1) == NULL ||
        sqlite3_column_bytes(st, 1) != READ_BODY) {
      die("point: row %lld is wrong", (long long)id);
    }
    sqlite3_reset(st);
  }
  run(db, "COMMIT");
}

static void point_as(bench *b, const char *pragmas) {
  sqlite3 *db;
  sqlite3_stmt *st;
  warm(b->path);
  db = open_path(b, b->path);
  run(db, pragmas);
  st = compile(db, "SELECT k, body FROM t WHERE id=?");
  start(b);
  read_points(db, st, scaled(b, READ_ROWS), scaled(b, POINT_READS), 88172645463325252u);
  stop(b);
  b->work = scaled(b, POINT_READS);
  sqlite3_finalize(st);
  close_db(db);
}

static void point(bench *b) {
  point_as(b, SMALL_CACHE);
}

static void point_map(bench *b) {
  point_as(b, SMALL_CACHE "; " MAPPED);
}

/* Each thread has a connection of its own, and all of point's reads to do. */
typedef struct reader {
  const bench *b;
  pthread_t thread;
  pthread_barrier_t *go;
  uint64_t seed;
} reader;

static void *reader_main(void *arg) {
  reader *r = arg;
  sqlite3 *db = open_path(r->b, r->b->path);
  sqlite3_stmt *st;
  run(db, SMALL_CACHE);
  st = compile(db, "SELECT k, body FROM t WHERE id=?");
  pthread_barrier_wait(r->go);
  read_points(db, st, scaled(r->b, READ_ROWS), scaled(r->b, POINT_READS), r->seed);
  pthread_barrier_wait(r->go);
  sqlite3_finalize(st);
  close_db(db);
  return NULL;
}

static void readers(bench *b) {
  reader all[64];
  pthread_barrier_t go;
  int i;
  if (b->threads < 1 || b->threads > 64) die("readers: --threads is 1 to 64");
  warm(b->path);
  pthread_barrier_init(&go, NULL, (unsigned)b->threads + 1);
  for (i = 0; i < b->threads; i++) {
    all[i] = (reader){.b = b, .go = &go, .seed = 88172645463325252u + (uint64_t)i};
    if (pthread_create(&all[i].thread, NULL, reader_main, &all[i]) != 0) die("no thread");
  }
  pthread_barrier_wait(&go);
  start(b);
  pthread_barrier_wait(&go);
  stop(b);
  for (i = 0; i < b->threads; i++) pthread_join(all[i].thread, NULL);
  pthread_barrier_destroy(&go);
  b->work = scaled(b, POINT_READS) * b->threads;
}

/* ---- 5, 6: writing ---- */

static sqlite3 *fresh_wal(bench *b) {
  sqlite3 *db;
  remove_db(b->path);
  db = open_path(b, b->path);
  run(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
          "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT)");
  return db;
}

static void check_rows(const bench *b, long n) {
  sqlite3 *db = open_path(b, b->path);
  sqlite3_stmt *st = compile(db, "SELECT count(*), sum(k) FROM t");
  int64_t want = 0;
  long i;
  for (i = 1; i <= n; i++) want += value_of(i);
  must(db, sqlite3_step(st), "check");
  if (sqlite3_column_int64(st, 0) != n || sqlite3_column_int64(st, 1) != want) {
    die("check: the rows are not those that were written");
  }
  sqlite3_finalize(st);
  close_db(db);
}

static void insert_rows(sqlite3 *db, long n) {
  static const char text[] = "a row of a table like many, with some sixty bytes of text in it";
  sqlite3_stmt *st = compile(db, "INSERT INTO t VALUES(?,?,?)");
  long i;
  for (i = 1; i <= n; i++) {
    sqlite3_bind_int64(st, 1, i);
    sqlite3_bind_int64(st, 2, value_of(i));
    sqlite3_bind_text(st, 3, text, sizeof text - 1, SQLITE_STATIC);
    must(db, sqlite3_step(st), "insert");
    sqlite3_reset(st);
  }
  sqlite3_finalize(st);
}

static void commits(bench *b) {
  sqlite3 *db = fresh_wal(b);
  b->work = scaled(b, COMMITS);
  start(b);
  insert_rows(db, b->work);
  stop(b);
  close_db(db);
  check_rows(b, b->work);
}

static void bulk(bench *b) {
  sqlite3 *db = fresh_wal(b);
  b->work = scaled(b, BULK_ROWS);
  start(b);
  run(db, "BEGIN");
  insert_rows(db, b->work);
  run(db, "COMMIT; PRAGMA wal_checkpoint(TRUNCATE)");
  stop(b);
  close_db(db);
  check_rows(b, b->work);
}

/* ---- 7: opening ---- */

static const char *nth_path(const bench *b, long i) {
  static char name[4096];
  snprintf(name, sizeof name, "%s%04ld", b->path, i);
  return name;
}

static void prepare_opens(bench *b) {
  long i, n = scaled(b, OPENS);
  for (i = 0; i < n; i++) {
    sqlite3 *db;
    remove_db(nth_path(b, i));
    db = open_path(b, nth_path(b, i));
    run(db, "PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT);"
            "INSERT INTO t VALUES(1, 7, 'one row')");
    close_db(db);
    check_sealed(b, nth_path(b, i));
  }
}

static void open_each(bench *b, const char *parameters) {
  char uri[5000];
  long i;
  for (i = 0; i < b->work; i++) {
    sqlite3 *db;
    sqlite3_stmt *st;
    snprintf(uri, sizeof uri, "file:%s%s", nth_path(b, i), parameters);
    db = open_path(b, uri);
    st = compile(db, "SELECT k FROM t");
    must(db, sqlite3_step(st), "read after open");
    if (sqlite3_column_int(st, 0) != 7) die("%s: wrong row", nth_path(b, i));
    sqlite3_finalize(st);
    close_db(db);
  }
}

/* Two passes: the first one unwraps every DEK (b->first), the second one, which
** is the measurement, finds them live. */
static void opens_as(bench *b, const char *parameters) {
  struct timespec t0;
  b->work = scaled(b, OPENS);
  clock_gettime(CLOCK_MONOTONIC, &t0);
  open_each(b, parameters);
  b->first = since(&t0);
  start(b);
  open_each(b, parameters);
  stop(b);
}

static void opens(bench *b) {
  opens_as(b, "");
}

static void opens_bare(bench *b) {
  opens_as(b, BARE);
}

/* ---- the program ---- */

static const struct workload {
  const char *name;
  void (*run)(bench *);
  void (*prepare)(bench *);
} workloads[] = {
  {"speedtest1", speedtest_rollback, NULL},
  {"speedtest1-wal", speedtest_wal, NULL},
  {"scan", scan, prepare_read},
  {"point", point, prepare_read},
  {"point-map", point_map, prepare_read},
  {"readers", readers, prepare_read},
  {"commits", commits, NULL},
  {"bulk", bulk, NULL},
  {"opens", opens, prepare_opens},
  {"opens-bare", opens_bare, prepare_opens},
};

/* Prints the one text that sql gives, as JSON. False: there is none. */
static int print_text(const char *sql) {
  sqlite3 *db = NULL;
  sqlite3_stmt *st = NULL;
  int found;
  must(db, sqlite3_open(":memory:", &db), "open");
  found = sqlite3_prepare_v2(db, sql, -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW;
  if (found) printf("\"%s\"", (const char *)sqlite3_column_text(st, 0));
  sqlite3_finalize(st);
  close_db(db);
  return found;
}

/* The version of a library that encrypts by itself, or null. */
static void print_peer(void) {
  printf(",\"peer\":");
  if (!print_text("SELECT sqlite3mc_version()") && !print_text("PRAGMA cipher_version")) {
    printf("null");
  }
  printf("}\n");
}

/* Versions of what runs here, as JSON; the engine is in tde_version(). */
static void facts(const bench *b) {
  const char *(*version)(int) = NULL;
  void *lib = dlopen("libcrypto.so.3", RTLD_LAZY | RTLD_NOLOAD);
  void *sym = lib != NULL ? dlsym(lib, "OpenSSL_version") : NULL;
  memcpy(&version, &sym, sizeof version);
  printf("{\"sqlite\":\"%s\",\"openssl\":\"%s\",\"tde\":", sqlite3_libversion(),
         version != NULL ? version(0) : "not loaded");
  if (b->ext != NULL) {
    sqlite3 *db = NULL;
    sqlite3_stmt *st;
    must(db, sqlite3_open(":memory:", &db), "open");
    sqlite3_enable_load_extension(db, 1);
    must(db, sqlite3_load_extension(db, b->ext, "sqlite3_tde_init", NULL), b->ext);
    st = compile(db, "SELECT json_quote(CAST(tde_version() AS TEXT))");
    must(db, sqlite3_step(st), "tde_version");
    printf("%s", (const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    close_db(db);
  } else {
    printf("null");
  }
  print_peer();
}

static void report(const bench *b, const char *name) {
  const char *path = b->first > 0 ? nth_path(b, 0) : b->path;
  struct stat s;
  check_sealed(b, path);
  if (stat(path, &s) != 0) die("stat %s: %s", path, strerror(errno));
  printf("{\"workload\":\"%s\",\"mode\":\"%s\",\"seconds\":%.6f,\"user\":%.6f,\"system\":%.6f,"
         "\"first_pass\":%.6f,\"work\":%ld,\"file_bytes\":%lld}\n",
         name, b->ext != NULL ? "tde" : b->key != NULL ? "keyed" : "plain", b->wall, b->user, b->sys, b->first, b->work,
         (long long)s.st_size);
}

static void usage(void) {
  size_t i;
  fputs("usage: workloads NAME --db PATH [--ext tde.so | --key SQL] [--vfs V] [--scale F]\n"
        "                 [--threads N] [--prepare]\n"
        "       workloads facts [--ext tde.so]\nNAME:", stderr);
  for (i = 0; i < sizeof workloads / sizeof workloads[0]; i++) {
    fprintf(stderr, " %s", workloads[i].name);
  }
  fputc('\n', stderr);
  exit(2);
}

static void parse(bench *b, int argc, char **argv) {
  int i;
  for (i = 2; i < argc; i++) {
    if (strcmp(argv[i], "--prepare") == 0) {
      b->prepare = 1;
    } else if (i + 1 == argc) {
      usage();
    } else if (strcmp(argv[i], "--db") == 0) {
      b->path = argv[++i];
    } else if (strcmp(argv[i], "--ext") == 0) {
      b->ext = argv[++i];
    } else if (strcmp(argv[i], "--key") == 0) {
      b->key = argv[++i];
    } else if (strcmp(argv[i], "--vfs") == 0) {
      b->vfs = argv[++i];
    } else if (strcmp(argv[i], "--threads") == 0) {
      b->threads = (int)strtol(argv[++i], NULL, 10);
    } else if (strcmp(argv[i], "--scale") == 0) {
      b->scale = strtod(argv[++i], NULL);
    } else {
      usage();
    }
  }
  if (!(b->scale > 0)) usage();
}

int main(int argc, char **argv) {
  bench b = {.scale = 1, .threads = 1};
  size_t i;
  if (argc < 2) usage();
  parse(&b, argc, argv);
  load_extension(&b);
  if (strcmp(argv[1], "facts") == 0) {
    facts(&b);
    return 0;
  }
  if (b.path == NULL) usage();
  key_connections(&b);
  for (i = 0; i < sizeof workloads / sizeof workloads[0]; i++) {
    const struct workload *w = &workloads[i];
    if (strcmp(w->name, argv[1]) != 0) continue;
    if (b.prepare) {
      if (w->prepare != NULL) w->prepare(&b);
    } else {
      w->run(&b);
      report(&b, w->name);
    }
    return 0;
  }
  usage();
}
