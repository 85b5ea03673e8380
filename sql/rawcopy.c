/*
** rawcopy.c: a database in use, and a file with its records; see rawcopy.h.
**
** What must hold: the header of a copy names every DEK epoch that a unit of it is
** under. A regeneration that begins or ends meanwhile makes the copy start over.
*/
#include "rawcopy.h"

#include <stdlib.h>
#include <string.h>

#include "result.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

#define EPOCH_TRIES 3

/* ---- the source ---- */

int tde_reading_begin(void *ctx) {
  tde_reading *s = ctx;
  char *sql = sqlite3_mprintf("SELECT count(*) FROM \"%w\".sqlite_schema", s->schema);
  int rc = sql ? sqlite3_prepare_v2(s->db, sql, -1, &s->hold, NULL) : SQLITE_NOMEM;

  sqlite3_free(sql);
  if (rc == SQLITE_OK && sqlite3_step(s->hold) != SQLITE_ROW) {
    rc = sqlite3_finalize(s->hold);
    s->hold = NULL;
  }
  return rc;
}

void tde_reading_end(void *ctx) {
  tde_reading *s = ctx;
  (void)sqlite3_finalize(s->hold);
  s->hold = NULL;
}

int tde_reading_progress(void *ctx, uint64_t done, uint64_t all) {
  tde_reading *s = ctx;
  return tde_job_step(&s->job, (int64_t)done, (int64_t)all);
}

/* What this connection has not committed is not copied: a page that its cache spilled
** would be. And what stands in the log goes into the file first, as far as nobody is
** in the way: records of the file are copied as they are, those of the log anew.
** *settled: all of it did. */
int tde_copying_ready(tde_change *c, int *settled, tde_status *st) {
  int logged = 0, done = 0, rc;

  if (sqlite3_txn_state(c->db, c->schema) == SQLITE_TXN_WRITE) {
    tde_fail(st, TDE_MISUSE, "COMMIT or ROLLBACK first",
             "%s: this connection has an open write transaction", c->info->path);
    return SQLITE_MISUSE;
  }
  rc = sqlite3_wal_checkpoint_v2(c->db, c->schema, SQLITE_CHECKPOINT_PASSIVE, &logged, &done);
  *settled = rc == SQLITE_OK && logged == done;
  return SQLITE_OK;
}

/* The epochs of the header in force. */
static int same_epochs(tde_change *c) {
  uint32_t then[TDE_EPOCHS_MAX];
  tde_file_info *now = sqlite3_malloc64(sizeof(*now));
  int n = tde_keydoc_epochs(c->doc, then, TDE_EPOCHS_MAX), same = 0;

  if (!now) return 0;
  tde_file_info_get(c->f, 1, now);
  same = now->facts.nepochs == n && now->facts.epoch == tde_keydoc_epoch(c->doc) &&
         memcmp(now->facts.epochs, then, (size_t)n * sizeof(then[0])) == 0;
  sqlite3_free(now);
  return same;
}

int tde_copying_confirm(tde_copying *w, tde_change *c, tde_status *st) {
  if (same_epochs(c)) return SQLITE_OK;
  w->dek_changed = 1;
  tde_fail(st, TDE_BUSY, "try again", "%s: its DEK changed while it was copied", c->info->path);
  return SQLITE_BUSY;
}

/* ---- a call ---- */

int tde_copying_options(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i,
                        const char *allowed, tde_options *o) {
  tde_status st;
  int rc;

  tde_status_clear(&st);
  rc = tde_options_read(o, sqlite3_context_db_handle(ctx), tde_arg_text(argc, argv, i), allowed,
                        &st);
  if (rc) tde_result_status(ctx, rc, &st);
  return rc == SQLITE_OK;
}

const char *tde_copying_instance(const tde_options *o, const tde_change *c) {
  return o->instance ? o->instance : tde_file_instance(c->f);
}

void tde_copying_answer(tde_copying *w, tde_json *answer) {
  tde_json_free(w->answer);
  w->answer = answer;
}

void tde_copying_run(sqlite3_context *ctx, const char *schema, const char *event, int reading,
                     tde_change_work work, tde_copying *w) {
  tde_status st;
  int rc = SQLITE_ERROR;

  for (int i = 0; i < EPOCH_TRIES; i++) {
    w->dek_changed = 0;
    rc = reading ? tde_change_run_reading(w->src.db, schema, event, work, w, &st)
                 : tde_change_run(w->src.db, schema, event, work, w, &st);
    if (!rc || !w->dek_changed) break;
  }
  if (rc) {
    tde_json_free(w->answer);
    tde_result_status(ctx, rc, &st);
  } else {
    tde_result_json(ctx, w->answer, w->answer == NULL);
  }
}

/* ---- a new file ---- */

static int write_once(tde_rawcopy *k, tde_status *st) {
  tde_keydoc *doc = NULL;
  char *text = NULL;
  size_t n = 0;
  int rc;
  tde_class cls = tde_keydoc_text(k->c->doc, &text, &n, st);

  if (cls == TDE_OK) cls = tde_keydoc_parse(text, n, &doc, st);
  free(text);
  text = NULL;
  if (cls == TDE_OK) cls = k->make(k->ctx, doc, st);
  if (cls == TDE_OK) cls = tde_keydoc_text(doc, &text, &n, st);
  tde_keydoc_free(doc);
  if (cls) return tde_class_rc(cls);
  k->r = (tde_replica){.doc = text,
                       .ndoc = n,
                       .ctx = &k->w->src,
                       .begin = tde_reading_begin,
                       .end = tde_reading_end,
                       .progress = tde_reading_progress,
                       .settled = k->settled};
  rc = tde_replica_write(k->c->f, k->place.temp, &k->r, st);
  free(text);
  return rc;
}

/* The file, with the epochs of its header. */
static int write_whole(tde_rawcopy *k, tde_status *st) {
  int rc = tde_place_fits(&k->place, 0, st);

  if (rc == SQLITE_OK) rc = write_once(k, st);
  if (rc == SQLITE_OK) {
    rc = tde_copying_confirm(k->w, k->c, st);
    if (rc) (void)tde_place_remove(&k->place, k->place.temp);
  }
  return rc;
}

int tde_rawcopy_write(tde_rawcopy *k, const char *operation, tde_status *st) {
  tde_reading *src = &k->w->src;
  int rc = tde_place_begin(&k->place, k->w->path, 0, st);

  if (rc) return rc;
  src->schema = k->c->schema;
  tde_job_begin(&src->job, src->db, operation, k->place.target);
  rc = write_whole(k, st);
  tde_job_end(&src->job);
  return rc;
}

tde_json *tde_rawcopy_answer(const tde_rawcopy *k, int64_t now) {
  tde_json *j = tde_json_object();
  int bad = tde_json_set_text(j, "path", k->place.target) |
            tde_json_set_int(j, "bytes", (int64_t)k->r.size) |
            tde_json_set_int(j, "units", (int64_t)k->r.units) | tde_view_set_time(j, "time", now);

  bad |= tde_key_put(j, k->key ? k->key : &k->c->protector, TDE_THUMB_SHOWN);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}
