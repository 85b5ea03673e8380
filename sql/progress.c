/*
** progress.c: the list of long operations; see progress.h.
*/
#include "progress.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "views.h"

SQLITE_EXTENSION_INIT3

#define TELL_EVERY_MS 200
/* A person is shown a line when it takes longer than this. */
#define SHOW_AFTER_MS 1000

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  tde_job *first;
  int64_t last_id;
  tde_progress_callback callback;
  void *ctx;
} jobs = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void before_fork(void) {
  pthread_mutex_lock(&jobs.mutex);
}
static void after_fork(void) {
  pthread_mutex_unlock(&jobs.mutex);
}
/* Jobs lie on the stacks of the parent's threads, which are not here. */
static void in_child(void) {
  jobs.first = NULL;
  pthread_mutex_unlock(&jobs.mutex);
}
static void init(void) {
  (void)pthread_atfork(before_fork, after_fork, in_child);
}

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void tde_progress_set(tde_progress_callback callback, void *ctx) {
  pthread_mutex_lock(&jobs.mutex);
  jobs.callback = callback;
  jobs.ctx = ctx;
  pthread_mutex_unlock(&jobs.mutex);
}

void tde_job_begin(tde_job *j, sqlite3 *db, const char *operation, const char *path) {
  memset(j, 0, sizeof(*j));
  j->db = db;
  j->operation = operation;
  j->path = sqlite3_mprintf("%s", path ? path : "");
  j->started_ms = now_ms();
  j->started = (int64_t)time(NULL);
  /* sqlite3_is_interrupted() is younger than the SQLite that we run on. */
  (void)sqlite3_prepare_v2(db, "SELECT 1", -1, &j->probe, NULL);
  pthread_once(&jobs.once, init);
  pthread_mutex_lock(&jobs.mutex);
  j->id = ++jobs.last_id;
  j->next = jobs.first;
  jobs.first = j;
  pthread_mutex_unlock(&jobs.mutex);
}

void tde_job_end(tde_job *j) {
  pthread_mutex_lock(&jobs.mutex);
  for (tde_job **p = &jobs.first; *p; p = &(*p)->next) {
    if (*p != j) continue;
    *p = j->next;
    break;
  }
  pthread_mutex_unlock(&jobs.mutex);
  (void)sqlite3_finalize(j->probe);
  j->probe = NULL;
  sqlite3_free(j->path);
  j->path = NULL;
  if (j->shown) (void)fprintf(stderr, "\r\033[K");
  j->shown = 0;
}

static int percent_of(int64_t done, int64_t total) {
  if (total <= 0) return 0;
  return done >= total ? 100 : (int)(100.0 * (double)done / (double)total);
}

/* -1: not known yet. */
static int64_t seconds_left(const tde_job *j, int64_t now) {
  int64_t ms = now - j->started_ms;
  if (j->done <= 0 || j->total <= j->done || ms < 1000)
    return j->done && j->done >= j->total ? 0 : -1;
  return (int64_t)((double)ms / (double)j->done * (double)(j->total - j->done) / 1000);
}

/* A person at the sqlite3 shell, on a terminal? */
static int is_shell(void) {
  return strcmp(program_invocation_short_name, "sqlite3") == 0 && isatty(STDERR_FILENO) &&
         isatty(STDIN_FILENO);
}

static void show(tde_job *j, int64_t now) {
  int64_t left = seconds_left(j, now);

  if (now - j->started_ms < SHOW_AFTER_MS) return;
  j->shown = 1;
  if (left < 0) {
    (void)fprintf(stderr, "\r\033[K%s %d %%", j->operation, percent_of(j->done, j->total));
  } else {
    (void)fprintf(stderr, "\r\033[K%s %d %%, %lld s left", j->operation,
                  percent_of(j->done, j->total), (long long)left);
  }
  (void)fflush(stderr);
}

int tde_job_step(tde_job *j, int64_t done, int64_t total) {
  int64_t now = now_ms();
  tde_progress_callback callback;
  void *ctx;
  int rc = SQLITE_OK;

  pthread_mutex_lock(&jobs.mutex);
  j->done = done;
  j->total = total;
  callback = jobs.callback;
  ctx = jobs.ctx;
  pthread_mutex_unlock(&jobs.mutex);
  if (j->probe) {
    (void)sqlite3_step(j->probe);
    if (sqlite3_reset(j->probe) == SQLITE_INTERRUPT) rc = SQLITE_INTERRUPT;
  }
  if (rc == SQLITE_OK && now - j->told_ms >= TELL_EVERY_MS) {
    j->told_ms = now;
    if (callback) {
      if (callback(ctx, j->operation, j->path ? j->path : "", done, total)) rc = SQLITE_INTERRUPT;
    } else if (is_shell()) {
      show(j, now);
    }
  }
  return rc;
}

int tde_job_made(tde_job *j, int64_t done, int64_t n) {
  return tde_job_step(j, done, 2 * n);
}

int tde_job_read_back(void *ctx, uint64_t done, uint64_t all) {
  tde_job *j = ctx;
  int64_t half = j->total / 2;

  if (all == 0) return SQLITE_OK;
  return tde_job_step(j, half + (int64_t)((double)half * (double)done / (double)all), j->total);
}

int tde_job_interrupted(tde_status *st) {
  tde_status_clear(st);
  tde_fail(st, TDE_BUSY, "nothing was left behind; try again", "interrupted");
  return SQLITE_INTERRUPT;
}

tde_json *tde_progress_rows(void) {
  tde_json *list = tde_json_array();
  int64_t now = now_ms();
  int bad = !list;

  pthread_mutex_lock(&jobs.mutex);
  for (const tde_job *j = jobs.first; j && !bad; j = j->next) {
    tde_json *row = tde_json_object();
    int64_t left = seconds_left(j, now);
    bad |= tde_json_set_int(row, "id", j->id) | tde_json_set_text(row, "operation", j->operation) |
           tde_json_set_text(row, "path", j->path) | tde_view_set_time(row, "started", j->started) |
           tde_json_set_int(row, "done", j->done) | tde_json_set_int(row, "total", j->total) |
           tde_json_set_int(row, "percent", percent_of(j->done, j->total));
    bad |= left < 0 ? tde_json_set_text(row, "seconds_left", NULL)
                    : tde_json_set_int(row, "seconds_left", left);
    bad |= tde_json_append(list, row);
  }
  pthread_mutex_unlock(&jobs.mutex);
  if (!bad) return list;
  tde_json_free(list);
  return NULL;
}
