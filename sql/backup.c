/*
** backup.c: tde_backup and tde_copy.
**
** A backup keeps the database's DEK and UUID: its units are the database's own records
** (vfs/replica.h), so what did not change is the same bytes. Its header says which keys it needs, for
** good: nobody re-wraps it. A copy is a new database (newdb.h).
*/
#include "backup.h"

#include <string.h>
#include <time.h>

#include "newdb.h"
#include "rawcopy.h"

SQLITE_EXTENSION_INIT3

/* ---- tde_backup(path [, options]) ---- */

static tde_class mark_backup(void *ctx, tde_keydoc *doc, tde_status *st) {
  tde_json *b = tde_json_object();
  struct timespec t = {0, 0};
  int64_t *now = ctx;

  (void)clock_gettime(CLOCK_REALTIME, &t);
  *now = (int64_t)t.tv_sec;
  if (tde_json_set_int(b, "time", *now) | tde_json_set_int(b, "nanoseconds", t.tv_nsec) |
      tde_keydoc_set_member(doc, "backup", b) | tde_keydoc_set_member(doc, "secondaries", NULL) |
      tde_keydoc_set_member(doc, "secondary", NULL)) {
    return tde_nomem(st);
  }
  return TDE_OK;
}

static int backup(void *ctx, tde_change *c, tde_status *st) {
  tde_copying *w = ctx;
  int64_t now = 0;
  tde_rawcopy k = {.w = w, .c = c, .make = mark_backup, .ctx = &now};
  int rc = tde_copying_ready(c, &k.settled, st);

  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) rc = tde_rawcopy_write(&k, "backup", st);
  if (rc == SQLITE_OK) rc = tde_place_publish(&k.place, st);
  if (rc == SQLITE_OK) {
    tde_copying_answer(w, tde_rawcopy_answer(&k, now));
    tde_change_tell(c);
  }
  tde_place_end(&k.place);
  return rc;
}

void tde_sql_backup(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_copying w = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                   .src.db = sqlite3_context_db_handle(ctx)};
  tde_options o;

  if (!w.path) return;
  if (tde_copying_options(ctx, argc, argv, 1, "schema", &o)) {
    tde_copying_run(ctx, o.schema, "backup", 1, backup, &w);
  }
  tde_options_end(&o);
}

/* ---- tde_copy(path [, options]) ---- */

typedef struct copy_work {
  tde_copying b; /* first */
  const tde_options *o;
} copy_work;

/* Under which key the copy is to be, and who asks for it. full: room for the source's. */
static int choose_key(const copy_work *w, const tde_change *c, char full[TDE_KEY_ID_MAX],
                      tde_newdb *n, tde_status *st) {
  const tde_instance *inst = NULL;
  tde_keydoc_asker who;
  int rc;

  n->instance = tde_copying_instance(w->o, c);
  rc = tde_class_rc(tde_instance_open(n->instance, 0, &inst, st));
  if (rc) return rc;
  who = tde_options_asker(w->o, c->doc, inst);
  n->protector = w->o->protector;
  n->identity = who.identity;
  n->federated_client_id = who.federated_client_id;
  /* A copy of a database at database level is at database level. */
  if (!n->protector && strcmp(tde_keydoc_mode(c->doc), "database") == 0) {
    tde_key_full_id(&c->protector, full);
    n->protector = full;
  }
  return tde_options_identity(w->o, inst, who.identity, st);
}

static tde_json *copy_answer(const tde_newdb *n, const char *path) {
  tde_json *j = tde_json_object();
  int bad = tde_json_set_text(j, "path", path) | tde_json_set_int(j, "pages", n->pages);

  if (n->dropped) bad |= tde_json_set_int(j, "keys_dropped", n->dropped);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

static int copy(void *ctx, tde_change *c, tde_status *st) {
  copy_work *w = ctx;
  char full[TDE_KEY_ID_MAX];
  tde_place place = {.target = NULL};
  tde_newdb n = {.from = w->b.src.db,
                 .schema = c->schema,
                 .event = "copy",
                 .source = c->doc,
                 .source_uuid = c->info->uuid,
                 .source_time = (int64_t)time(NULL),
                 .job = &w->b.src.job};
  int settled, rc = choose_key(w, c, full, &n, st);

  if (rc == SQLITE_OK) rc = tde_copying_ready(c, &settled, st);
  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) rc = tde_place_begin(&place, w->b.path, 0, st);
  if (rc == SQLITE_OK) {
    tde_job_begin(n.job, n.from, "copy", place.target);
    rc = tde_newdb_make(&n, &place, st);
    tde_job_end(n.job);
  }
  if (rc == SQLITE_OK) {
    tde_copying_answer(&w->b, copy_answer(&n, place.target));
    tde_change_tell(c);
  }
  tde_place_end(&place);
  return rc;
}

void tde_sql_copy(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_options o;
  copy_work w = {.b = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                       .src.db = sqlite3_context_db_handle(ctx)},
                 .o = &o};

  if (!w.b.path) return;
  if (tde_copying_options(ctx, argc, argv, 1,
                          "schema instance protector identity federated_client_id", &o)) {
    tde_copying_run(ctx, o.schema, "copy", 1, copy, &w.b);
  }
  tde_options_end(&o);
}
