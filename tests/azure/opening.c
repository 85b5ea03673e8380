/*
** opening.c: how long it takes to open a database whose key is in a vault.
**
**   opening SERVER CONFIG [ROUNDS]
**
** Measures, with the DEK live in the process, an open that reads one row, against the
** same for a plain database; and the first open of a new process, which signs in and
** has the DEK unwrapped (loopback: a real vault is farther away). Prints times; what
** they should be is told in tests/bench/README.md.
*/
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ext/tde.h"
#include "server.h"

#define COLD_ROUNDS 20

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void must(int ok, const char *what, sqlite3 *db) {
  if (ok) return;
  fprintf(stderr, "%s: %s\n", what, db != NULL ? sqlite3_errmsg(db) : "failed");
  exit(2);
}

/* Opens, reads one row, closes; the time in microseconds. */
static double one_open(const char *uri) {
  sqlite3 *db = NULL;
  sqlite3_stmt *stmt = NULL;
  double began = now_us();
  int rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL);
  if (rc == SQLITE_OK) rc = sqlite3_prepare_v2(db, "SELECT a FROM t", -1, &stmt, NULL);
  must(rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW, "open", db);
  sqlite3_finalize(stmt);
  sqlite3_close(db);
  return now_us() - began;
}

static sqlite3 *make(const char *uri) {
  sqlite3 *db = NULL;
  int rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                           NULL);
  if (rc == SQLITE_OK)
    rc = sqlite3_exec(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)", NULL, NULL, NULL);
  must(rc == SQLITE_OK, "create", db);
  return db;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double report(const char *what, double *times, int n) {
  qsort(times, (size_t)n, sizeof *times, ascending);
  double median = times[n / 2];
  printf("%-44s %9.0f %9.0f\n", what, median, times[n * 95 / 100]);
  return median;
}

/* The time of an open in a process that knows nothing; it tells it through a pipe. */
static double cold_open(const char *uri) {
  int fd[2];
  double us = 0;
  must(pipe(fd) == 0, "pipe", NULL);
  pid_t pid = fork();
  if (pid == 0) {
    must(tde_register() == SQLITE_OK, "tde_register", NULL);
    us = one_open(uri);
    _exit(write(fd[1], &us, sizeof us) != sizeof us);
  }
  must(pid > 0 && read(fd[0], &us, sizeof us) == sizeof us, "a new process", NULL);
  waitpid(pid, NULL, 0);
  close(fd[0]);
  close(fd[1]);
  return us;
}

int main(int argc, char **argv) {
  server s;
  char plain[600], sealed[900];
  int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 4000;
  double *a = calloc((size_t)rounds, sizeof *a), *b = calloc((size_t)rounds, sizeof *b);
  double cold[COLD_ROUNDS];
  must(argc > 2 && rounds > 0 && a != NULL && b != NULL, "usage: opening SERVER CONFIG [ROUNDS]",
       NULL);
  must(server_start(&s, argv[1], argv[2]) == 0 && server_instance(&s, "bench", 10000, "") != NULL,
       "the test key server", NULL);
  snprintf(plain, sizeof plain, "file:%s/plain.db", s.state);
  snprintf(
      sealed, sizeof sealed,
      "file:%s/sealed.db?vfs=tde&tde_instance=%s/bench&tde_identity=secret&tde_protector=https://"
      "beta.vault.localtest/keys/tde",
      s.state, s.state);
  sqlite3_close(make(plain));
  /* Made in a process of its own, so that the first opens below are cold. */
  pid_t pid = fork();
  if (pid == 0) {
    must(tde_register() == SQLITE_OK, "tde_register", NULL);
    sqlite3_close(make(sealed));
    _exit(0);
  }
  waitpid(pid, NULL, 0);
  for (int i = 0; i < COLD_ROUNDS; i++) cold[i] = cold_open(sealed);
  must(tde_register() == SQLITE_OK, "tde_register", NULL);
  one_open(sealed);
  server_do(&s, "DELETE", "log", NULL);
  for (int i = 0; i < rounds; i++) { /* in turns: what disturbs one disturbs the other */
    a[i] = one_open(plain);
    b[i] = one_open(sealed);
  }
  int asked = server_count(&s, "unwrapKey", 0) + server_count(&s, "token", 0);
  printf("%-44s %9s %9s\n", "open, read a row, close (microseconds)", "median", "95 %");
  double p = report("plain", a, rounds);
  double q = report("encrypted, the DEK is live", b, rounds);
  report("encrypted, first open of a process", cold, COLD_ROUNDS);
  printf("%-44s %9.0f\n", "what encryption adds, the DEK is live", q - p);
  printf("requests while the DEK was live: %d\n", asked);
  free(a);
  free(b);
  return server_stop(&s) != 0 || asked != 0;
}
