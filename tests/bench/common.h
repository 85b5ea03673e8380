/*
** common.h: what the benchmark's programs share: each check that fails ends the run
** with a message, so that a wrong run prints no time.
*/
#ifndef TDE_BENCH_COMMON_H
#define TDE_BENCH_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

static inline void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static inline void die(const char *fmt, ...) {
  va_list ap;
  fputs("bench: ", stderr);
  va_start(ap, fmt);
  vfprintf(stderr, fmt, ap);
  va_end(ap);
  fputc('\n', stderr);
  exit(1);
}

static inline double since(const struct timespec *t0) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)(t.tv_sec - t0->tv_sec) + (double)(t.tv_nsec - t0->tv_nsec) * 1e-9;
}

static inline uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

static inline void must(sqlite3 *db, int rc, const char *what) {
  if (rc != SQLITE_OK && rc != SQLITE_ROW && rc != SQLITE_DONE) {
    die("%s: %s (code %d)", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(rc),
        db ? sqlite3_extended_errcode(db) : rc);
  }
}

static inline void run(sqlite3 *db, const char *sql) {
  must(db, sqlite3_exec(db, sql, NULL, NULL, NULL), sql);
}

static inline sqlite3_stmt *compile(sqlite3 *db, const char *sql) {
  sqlite3_stmt *st = NULL;
  must(db, sqlite3_prepare_v2(db, sql, -1, &st, NULL), sql);
  return st;
}

static inline void close_db(sqlite3 *db) {
  if (sqlite3_close(db) != SQLITE_OK) die("close: statements left open");
}

static inline void remove_db(const char *path) {
  static const char *const suffix[] = {"", "-journal", "-wal", "-shm"};
  char name[4096];
  size_t i;
  for (i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
    snprintf(name, sizeof name, "%s%s", path, suffix[i]);
    if (unlink(name) != 0 && errno != ENOENT) die("unlink %s: %s", name, strerror(errno));
  }
}

/* Reads the file once, so that the timed run finds it in the OS cache. */
static inline void warm(const char *path) {
  static char buf[1 << 16];
  int fd = open(path, O_RDONLY);
  ssize_t n;
  if (fd < 0) die("open %s: %s", path, strerror(errno));
  do {
    n = read(fd, buf, sizeof buf);
  } while (n > 0);
  if (n < 0) die("read %s: %s", path, strerror(errno));
  close(fd);
}

#endif
