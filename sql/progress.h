/*
** progress.h: long operations: what runs, how far it is, and how to stop it.
**
** Each long operation of the process is in a list while it runs (tde_progress).
** From time to time it tells its host (tde_set_progress in tde.h, or a line on the
** terminal of a person at the sqlite3 shell), and asks whether sqlite3_interrupt was
** called for its connection.
*/
#ifndef TDE_SQL_PROGRESS_H
#define TDE_SQL_PROGRESS_H

#include <stdint.h>

#include "../ext/base/status.h"
#include "../keyprovider/json.h"
#include "sqlite3ext.h"

typedef struct tde_job {
  struct tde_job *next;
  sqlite3 *db;
  sqlite3_stmt *probe; /* a statement that says whether there was an interrupt */
  int64_t id;
  const char *operation; /* a literal */
  char *path;            /* NULL: no memory */
  int64_t started_ms, started; /* monotonic; Unix time */
  int64_t told_ms;
  int64_t done, total;
  int shown; /* a line is on the terminal */
} tde_job;

/* Enters and leaves the list. end may be called twice. */
void tde_job_begin(tde_job *j, sqlite3 *db, const char *operation, const char *path);
void tde_job_end(tde_job *j);
/* done of total units. SQLITE_OK, or SQLITE_INTERRUPT: the caller stops and cleans up. */
int tde_job_step(tde_job *j, int64_t done, int64_t total);

/* For an operation that makes a file and reads it back: two halves of n units each. The
** second is a callback of tde_file_verify; ctx: the job. */
int tde_job_made(tde_job *j, int64_t done, int64_t n);
int tde_job_read_back(void *ctx, uint64_t done, uint64_t all);
/* Says so in st, over what it said. SQLITE_INTERRUPT. */
int tde_job_interrupted(tde_status *st);

tde_json *tde_progress_rows(void);

/* The host's callback, told at most some times a second; NULL: none. A result other
** than 0 interrupts. */
typedef int (*tde_progress_callback)(void *ctx, const char *operation, const char *path,
                                     long long done, long long total);
void tde_progress_set(tde_progress_callback callback, void *ctx);

#endif
