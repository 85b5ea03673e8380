/*
** crowd.c: processes that work on one database and are killed; see crowd.h.
*/
#include "crowd.h"

#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ext/tde.h"

static char *heard;

void *crowd_memory(size_t n) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

void crowd_hear(char *complaint) {
  heard = complaint;
}

void complain(const char *fmt, ...) {
  char text[CROWD_COMPLAINT];
  va_list ap;

  va_start(ap, fmt);
  (void)vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  /* The first character last: who sees it sees all of it. */
  if (heard[0]) return;
  memcpy(heard + 1, text + 1, sizeof(text) - 1);
  __atomic_store_n(heard, text[0], __ATOMIC_RELEASE);
}

static char last_words[300];

/* p: not NULL where every line is wished for. */
static void log_line(void *p, int code, const char *text) {
  if (p) (void)fprintf(stderr, "  [%d] log (%d) %s\n", (int)getpid(), code, text);
  if (code != SQLITE_NOTICE && strncmp(text, "tde: ", 5) == 0 &&
      strncmp(text, "tde: next step", 14) != 0) {
    (void)snprintf(last_words, sizeof(last_words), "%s", text);
  }
}

const char *crowd_last_words(void) {
  return last_words;
}

void crowd_start(int plain, int verbose) {
  int rc;

  (void)sqlite3_config(SQLITE_CONFIG_LOG, log_line, verbose ? "all" : NULL);
  (void)sqlite3_config(SQLITE_CONFIG_URI, 1);
  rc = plain ? SQLITE_OK : tde_register();
  if (rc == SQLITE_OK) return;
  complain("the extension can not be registered: %s", sqlite3_errstr(rc));
  _exit(1);
}

int crowd_wait(void *p, int times) {
  (void)usleep(200 + (unsigned)times % 16 * 50);
  return times < (int)(intptr_t)p;
}

int crowd_passing(sqlite3 *db) {
  static const char *const words[] = {"try again", "others write",  "RotationPending",
                                      "locked",    "OldThumbprint", "another connection"};
  int rc = sqlite3_errcode(db) & 0xff;

  if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED || rc == SQLITE_PROTOCOL) return 1;
  for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
    if (strstr(sqlite3_errmsg(db), words[i])) return 1;
  }
  return 0;
}

int crowd_ask(sqlite3 *db, const char *sql, char *out, size_t n) {
  sqlite3_stmt *q = NULL;
  int rc = sqlite3_prepare_v2(db, sql, -1, &q, NULL), row;

  row = rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW;
  (void)snprintf(out, n, "%s", row ? (const char *)sqlite3_column_text(q, 0) : sqlite3_errmsg(db));
  rc = sqlite3_finalize(q);
  return row ? SQLITE_OK : rc ? rc : SQLITE_ERROR;
}

void crowd_expect(sqlite3 *db, const char *sql, const char *want) {
  char got[300];

  if (crowd_ask(db, sql, got, sizeof(got)) || !strstr(got, want)) complain("%s: %s", sql, got);
}

pid_t crowd_child(void (*run)(void)) {
  pid_t pid = fork();
  if (pid == 0) {
    run();
    abort();
  }
  return pid;
}

void crowd_kill(pid_t *pid) {
  int status;
  pid_t it = *pid;

  *pid = 0;
  if (it <= 0) return;
  (void)kill(it, SIGKILL);
  if (waitpid(it, &status, 0) < 0) return;
  /* It ended by itself: its complaint is there, or it crashed. */
  if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
    complain("a worker died of signal %d", WTERMSIG(status));
  }
}

void crowd_join(pid_t pid, const char *what) {
  int status = 0;

  if (waitpid(pid, &status, 0) < 0 || status)
    complain("%s ended with 0x%x", what, (unsigned)status);
}

int crowd_stranger(const char *file, sqlite3 **db) {
  int rc = sqlite3_open_v2(file, db, SQLITE_OPEN_READWRITE, "unix");

  if (rc == SQLITE_OK) rc = sqlite3_exec(*db, "SELECT * FROM sqlite_schema", NULL, NULL, NULL);
  (void)sqlite3_wal_checkpoint_v2(*db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  return rc == SQLITE_OK;
}

void crowd_remove_database(const char *file) {
  static const char *const ends[] = {"", "-journal", "-wal", "-shm", "-tdelog"};
  char name[500];

  for (int i = 0; i < 5; i++) {
    (void)snprintf(name, sizeof(name), "%s%s", file, ends[i]);
    (void)unlink(name);
  }
}

long crowd_number(const char *text) {
  return strtol(text, NULL, 10);
}
