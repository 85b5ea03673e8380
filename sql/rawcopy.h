/*
** rawcopy.h: what tde_backup, tde_copy and the functions of secondaries have in common: a database in
** use is read as it is at one moment; and, for those that keep its DEK, a new file with its own
** records (vfs/replica.h).
*/
#ifndef TDE_SQL_RAWCOPY_H
#define TDE_SQL_RAWCOPY_H

#include "../vfs/replica.h"
#include "change.h"
#include "options.h"
#include "place.h"
#include "progress.h"

/* A read transaction of the source, and progress: the context of a tde_replica. */
typedef struct tde_reading {
  sqlite3 *db;
  const char *schema;
  sqlite3_stmt *hold;
  tde_job job;
} tde_reading;
int tde_reading_begin(void *ctx);
void tde_reading_end(void *ctx);
int tde_reading_progress(void *ctx, uint64_t done, uint64_t all);

/* One call. */
typedef struct tde_copying {
  tde_reading src; /* first: it is the context of a tde_replica, too */
  const char *path;
  tde_json *answer;
  int dek_changed; /* meanwhile: everything is done again */
} tde_copying;

/* The last argument's options; 0 when they are not understood: the error is the call's result. */
int tde_copying_options(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i,
                        const char *allowed, tde_options *o);
/* Runs the work (ctx: w), again where the DEK changed meanwhile, and answers. reading: as
** tde_change_run_reading. */
void tde_copying_run(sqlite3_context *ctx, const char *schema, const char *event, int reading,
                     tde_change_work work, tde_copying *w);
/* Takes the answer over; that of a try that came to nothing goes. */
void tde_copying_answer(tde_copying *w, tde_json *answer);
/* May the source be copied now? What stands in its log goes into the file first, as far as nobody is
** in the way; *settled: all of it did. An SQLite code; st tells. */
int tde_copying_ready(tde_change *c, int *settled, tde_status *st);
/* SQLITE_BUSY: a unit that was copied may be under a DEK that the copy's document does
** not name. */
int tde_copying_confirm(tde_copying *w, tde_change *c, tde_status *st);

/* Makes the copy's document out of the source's. */
typedef tde_class (*tde_make_document)(void *ctx, tde_keydoc *doc, tde_status *st);

/* The instance that has the copy's key: as the options say, otherwise the source's. */
const char *tde_copying_instance(const tde_options *o, const tde_change *c);

/* A new file with the source's records. */
typedef struct tde_rawcopy {
  tde_copying *w;
  tde_change *c;           /* the basis */
  const tde_key_info *key; /* that the copy needs; NULL: the basis's protector */
  tde_make_document make;
  void *ctx;
  int settled; /* see tde_copying_ready */
  tde_replica r;
  tde_place place;
} tde_rawcopy;

/* Writes it under its temporary name, as this operation; it is the caller's to publish, and k->place
** to end. An SQLite code; st tells. */
int tde_rawcopy_write(tde_rawcopy *k, const char *operation, tde_status *st);
/* What a call answers of it; NULL: no memory. */
tde_json *tde_rawcopy_answer(const tde_rawcopy *k, int64_t now);

#endif
