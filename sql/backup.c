/*
** backup.c: tde_backup, tde_create_secondary, tde_sync_secondary, tde_copy.
**
** A backup and a secondary keep the database's DEK and UUID: their units are the
** database's own records (vfs/replica.h), so what did not change is the same bytes.
** A backup's header says which keys it needs, for good: nobody re-wraps it. A
** secondary has a protector of its own, and is brought up to date from its primary.
** A copy is a new database (newdb.h).
**
** What must hold: the header of a copy names every DEK epoch that a unit of it is
** under. A regeneration that begins or ends meanwhile makes the copy start over.
*/
#include "backup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "../vfs/replica.h"
#include "newdb.h"
#include "options.h"
#include "result.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

#define EPOCH_TRIES 3
#define SECONDARIES_MAX 4

/* A read transaction of the source, and progress. */
typedef struct source {
  sqlite3 *db;
  const char *schema;
  sqlite3_stmt *hold;
  tde_job job;
} source;

static int begin_read(void *ctx) {
  source *s = ctx;
  char *sql = sqlite3_mprintf("SELECT count(*) FROM \"%w\".sqlite_schema", s->schema);
  int rc = sql ? sqlite3_prepare_v2(s->db, sql, -1, &s->hold, NULL) : SQLITE_NOMEM;

  sqlite3_free(sql);
  if (rc == SQLITE_OK && sqlite3_step(s->hold) != SQLITE_ROW) {
    rc = sqlite3_finalize(s->hold);
    s->hold = NULL;
  }
  return rc;
}

static void end_read(void *ctx) {
  source *s = ctx;
  (void)sqlite3_finalize(s->hold);
  s->hold = NULL;
}

static int on_progress(void *ctx, uint64_t done, uint64_t all) {
  source *s = ctx;
  return tde_job_step(&s->job, (int64_t)done, (int64_t)all);
}

/* What this connection has not committed is not copied: a page that its cache spilled
** would be. And what stands in the log goes into the file first, as far as nobody is
** in the way: records of the file are copied as they are, those of the log anew.
** *settled: all of it did. */
static int ready(tde_change *c, int *settled, tde_status *st) {
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

/* ---- a copy of records, with a document that fits it ---- */

typedef struct backup_work {
  const char *path;
  sqlite3 *db;
  const char *schema;
  tde_json *answer;
  int dek_changed; /* meanwhile: everything is done again */
} backup_work;

/* That of a try that came to nothing goes. */
static void set_answer(backup_work *w, tde_json *answer) {
  tde_json_free(w->answer);
  w->answer = answer;
}

/* Makes the copy's document out of the source's. */
typedef tde_class (*make_document)(void *ctx, tde_keydoc *doc, tde_status *st);

typedef struct raw_copy {
  source src;
  backup_work *w;
  tde_change *c;           /* the basis */
  const tde_key_info *key; /* that the copy needs; NULL: the basis's protector */
  make_document make;
  void *ctx;
  int settled; /* see ready() */
  tde_replica r;
  tde_place place;
} raw_copy;

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

static int write_once(raw_copy *k, tde_status *st) {
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
                       .ctx = &k->src,
                       .begin = begin_read,
                       .end = end_read,
                       .progress = on_progress,
                       .settled = k->settled};
  rc = tde_replica_write(k->c->f, k->place.temp, &k->r, st);
  free(text);
  return rc;
}

/* SQLITE_BUSY: a unit that was copied may be under a DEK that the copy's document does
** not name. */
static int still_same_epochs(backup_work *w, tde_change *c, tde_status *st) {
  if (same_epochs(c)) return SQLITE_OK;
  w->dek_changed = 1;
  tde_fail(st, TDE_BUSY, "try again", "%s: its DEK changed while it was copied", c->info->path);
  return SQLITE_BUSY;
}

/* Writes the file under its temporary name; it is the caller's to publish. */
static int write_raw(raw_copy *k, tde_status *st) {
  int rc = tde_place_fits(&k->place, 0, st);

  if (rc == SQLITE_OK) rc = write_once(k, st);
  if (rc == SQLITE_OK) {
    rc = still_same_epochs(k->w, k->c, st);
    if (rc) (void)tde_place_remove(&k->place, k->place.temp);
  }
  return rc;
}

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

static tde_json *backup_answer(const raw_copy *k, int64_t now) {
  tde_json *j = tde_json_object();
  int bad = tde_json_set_text(j, "path", k->place.target) |
            tde_json_set_int(j, "bytes", (int64_t)k->r.size) |
            tde_json_set_int(j, "units", (int64_t)k->r.units) | tde_view_set_time(j, "time", now);

  bad |= tde_key_put(j, k->key ? k->key : &k->c->protector, TDE_THUMB_SHOWN);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

static int backup(void *ctx, tde_change *c, tde_status *st) {
  backup_work *w = ctx;
  raw_copy k;
  int64_t now = 0;
  int rc;

  memset(&k, 0, sizeof(k));
  k.w = w;
  k.c = c;
  k.make = mark_backup;
  k.ctx = &now;
  k.src.db = w->db;
  k.src.schema = c->schema;
  rc = ready(c, &k.settled, st);
  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) rc = tde_place_begin(&k.place, w->path, 0, st);
  if (rc == SQLITE_OK) {
    tde_job_begin(&k.src.job, w->db, "backup", k.place.target);
    rc = write_raw(&k, st);
    tde_job_end(&k.src.job);
  }
  if (rc == SQLITE_OK) rc = tde_place_publish(&k.place, st);
  if (rc == SQLITE_OK) {
    set_answer(w, backup_answer(&k, now));
    tde_change_tell(c);
  }
  tde_place_end(&k.place);
  return rc;
}

/* The last argument's options; 0 when they are not understood. */
static int options_of(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i,
                      const char *allowed, tde_options *o) {
  tde_status st;
  int rc;

  tde_status_clear(&st);
  rc = tde_options_read(o, sqlite3_context_db_handle(ctx), tde_arg_text(argc, argv, i), allowed,
                        &st);
  if (rc) tde_result_status(ctx, rc, &st);
  return rc == SQLITE_OK;
}

/* Runs the work, again where the DEK changed meanwhile, and answers. */
static void run(sqlite3_context *ctx, const char *schema, const char *event, int reading,
                tde_change_work work, backup_work *w) {
  tde_status st;
  int rc = SQLITE_ERROR;

  for (int i = 0; i < EPOCH_TRIES; i++) {
    w->dek_changed = 0;
    rc = reading ? tde_change_run_reading(w->db, schema, event, work, w, &st)
                 : tde_change_run(w->db, schema, event, work, w, &st);
    if (!rc || !w->dek_changed) break;
  }
  if (rc) {
    tde_json_free(w->answer);
    tde_result_status(ctx, rc, &st);
  } else {
    tde_result_json(ctx, w->answer, w->answer == NULL);
  }
}

void tde_sql_backup(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  backup_work w = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                   .db = sqlite3_context_db_handle(ctx)};
  tde_options o;

  if (!w.path) return;
  if (options_of(ctx, argc, argv, 1, "schema", &o)) run(ctx, o.schema, "backup", 1, backup, &w);
  tde_options_end(&o);
}

/* ---- secondaries ---- */

typedef struct secondary_work {
  backup_work b; /* first: run() knows no more */
  const tde_options *o;
  const tde_instance *inst;
  tde_op *wraps; /* of every epoch, when it gets a protector of its own */
} secondary_work;

/* Only what is surely gone is: a folder may be out of reach for a while, or to this user. */
static int is_gone(const char *path) {
  return access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR);
}

/* A file that is being made has its temporary name first: that one is looked for first. */
static int is_made(const tde_json *e, const char *path) {
  const char *temp = tde_json_get_text(e, "temp");
  char *name = temp ? sqlite3_mprintf("%s%s", path, temp) : NULL;
  int made = temp && (!name || !is_gone(name));

  sqlite3_free(name);
  return made || !is_gone(path);
}

/* The entries of secondaries[] whose file is still there, or will be, without one path. */
static tde_json *living(const tde_keydoc *doc, const char *without) {
  const tde_json *have = tde_json_get(tde_keydoc_json(doc), "secondaries");
  tde_json *list = tde_json_array();

  for (size_t i = 0; i < tde_json_count(have); i++) {
    const tde_json *e = tde_json_at(have, i);
    const char *path = tde_json_get_text(e, "path");
    if (!path || strcmp(path, without) == 0 || !is_made(e, path)) continue;
    if (tde_json_append(list, tde_json_copy(e))) {
      tde_json_free(list);
      return NULL;
    }
  }
  return list;
}

/* Notes a secondary in its primary's document. */
typedef struct listing {
  const char *of, *path;
  const char *temp;        /* a new one has this behind its path until it is published; or NULL */
  int64_t created, synced; /* created 0: as it was */
} listing;

static tde_class too_many(const char *path, size_t n, tde_status *st) {
  return tde_fail(st, TDE_MISUSE, "remove one of their files first",
                  "%s: has %d secondaries, which is the most", path, (int)n);
}

static tde_class edit_listing(void *ctx, tde_keydoc *doc, tde_status *st) {
  const listing *l = ctx;
  const tde_json *have = tde_json_get(tde_keydoc_json(doc), "secondaries");
  tde_json *list = living(doc, l->path), *e = tde_json_object();
  int64_t created = l->created;
  int bad = !list;

  if (created && tde_json_count(list) >= SECONDARIES_MAX) { /* others were faster */
    tde_class c = too_many(l->of, tde_json_count(list), st);
    tde_json_free(list);
    tde_json_free(e);
    return c;
  }
  for (size_t i = 0; i < tde_json_count(have) && !created; i++) {
    const char *path = tde_json_get_text(tde_json_at(have, i), "path");
    if (path && strcmp(path, l->path) == 0) {
      created = tde_json_get_int(tde_json_at(have, i), "created", 0);
    }
  }
  bad |= tde_json_set_text(e, "path", l->path) |
         tde_json_set_int(e, "created", created ? created : l->synced) |
         tde_json_set_int(e, "synced", l->synced);
  if (l->temp) bad |= tde_json_set_text(e, "temp", l->temp);
  bad |= tde_json_append(list, e);
  bad |= tde_keydoc_set_member(doc, "secondaries", list);
  return bad ? tde_nomem(st) : TDE_OK;
}

/* Who is to ask for a copy's key: as the options say, otherwise as for the source's, if the
** instance knows that one. Who is federated has a name. */
static tde_keydoc_asker asker_for(const tde_options *o, const tde_keydoc *doc,
                                  const tde_instance *inst) {
  tde_keydoc_asker who;

  tde_keydoc_asker_of(doc, &who);
  if (who.identity && !tde_cloud_identity(tde_instance_cloud(inst), who.identity, NULL)) {
    memset(&who, 0, sizeof(who));
  }
  if (o->identity || o->federated_client_id) who.federated_client_id = o->federated_client_id;
  if (o->identity) who.identity = o->identity;
  if (!who.identity && who.federated_client_id) who.identity = tde_instance_asker(inst);
  return who;
}

/* The secondary's document: its primary's, with its own protector. */
static tde_class make_secondary(void *ctx, tde_keydoc *doc, tde_status *st) {
  secondary_work *w = ctx;
  tde_json *s = tde_json_object();
  int64_t now = (int64_t)time(NULL);
  uint32_t epochs[TDE_EPOCHS_MAX];
  int n = tde_keydoc_epochs(doc, epochs, TDE_EPOCHS_MAX);
  tde_keydoc_asker who = asker_for(w->o, doc, w->inst);
  int bad = tde_json_set_text(s, "of", w->b.schema) | tde_json_set_int(s, "created", now) |
            tde_json_set_int(s, "synced", now);

  bad |= tde_keydoc_set_member(doc, "secondary", s) |
         tde_keydoc_set_member(doc, "secondaries", NULL) |
         tde_keydoc_set_member(doc, "regeneration", NULL) | tde_keydoc_set_auto_rotation(doc, 0);
  if (w->wraps) {
    for (int i = 0; i < n; i++) bad |= tde_keydoc_set_wrap(doc, epochs[i], &w->wraps[i], now);
    bad |= tde_keydoc_use_key(doc, &w->wraps[0].info, now) | tde_keydoc_set_mode(doc, "database");
  }
  bad |= tde_keydoc_set_identity(doc, &who);
  return bad ? tde_nomem(st) : TDE_OK;
}

/* Wraps every DEK under the protector that was asked for. */
static tde_class wrap_for(tde_change *c, secondary_work *w, tde_status *st) {
  uint32_t epochs[TDE_EPOCHS_MAX];
  int n = tde_keydoc_epochs(c->doc, epochs, TDE_EPOCHS_MAX);
  tde_keydoc_asker who = asker_for(w->o, c->doc, w->inst);
  char full[TDE_KEY_ID_MAX];
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class cls = dek ? TDE_OK : tde_nomem(st);

  if (cls == TDE_OK) cls = tde_instance_may_protect(w->inst, w->o->protector, st);
  w->wraps = calloc((size_t)n, sizeof(*w->wraps));
  if (cls == TDE_OK && !w->wraps) cls = tde_nomem(st);
  for (int i = 0; i < n && cls == TDE_OK; i++) {
    cls = tde_change_dek(c, epochs[i], dek, st);
    if (cls == TDE_OK) {
      cls = tde_keydoc_wrap(w->inst, i ? full : w->o->protector, &who, c->info->uuid, dek,
                            &w->wraps[i], st);
    }
    /* All epochs under one version, whatever the latest is a moment later. */
    if (cls == TDE_OK && i == 0) tde_key_full_id(&w->wraps[0].info, full);
  }
  tde_secret_free(dek);
  return cls;
}

static int holds_nothing(const tde_change *c, tde_status *st) {
  tde_fail(st, TDE_MISUSE, "write to it first", "%s: holds nothing yet", c->info->path);
  return SQLITE_ERROR;
}

/* No chains: what a secondary has may be older than what another one has. */
static int is_primary(const tde_change *c, const char *remedy, tde_status *st) {
  if (!tde_keydoc_is_secondary(c->doc)) return SQLITE_OK;
  tde_fail(st, TDE_MISUSE, remedy, "%s: is a secondary itself", c->info->path);
  return SQLITE_MISUSE;
}

static int may_have_another(tde_change *c, tde_status *st) {
  tde_json *list = living(c->doc, "");
  size_t n = tde_json_count(list);
  int rc = is_primary(c, "create it from the primary", st);

  tde_json_free(list);
  if (rc) return rc;
  if (c->info->unit_size == 0) return holds_nothing(c, st); /* which its secondaries share */
  return n < SECONDARIES_MAX ? SQLITE_OK : tde_class_rc(too_many(c->info->path, n, st));
}

static int create_secondary(void *ctx, tde_change *c, tde_status *st) {
  secondary_work *w = ctx;
  raw_copy k;
  listing l;
  int rc = may_have_another(c, st);

  memset(&k, 0, sizeof(k));
  k.w = &w->b;
  k.c = c;
  k.make = make_secondary;
  k.ctx = w;
  k.src.db = w->b.db;
  k.src.schema = c->schema;
  w->b.schema = c->info->path;
  if (rc == SQLITE_OK) {
    rc = tde_class_rc(tde_instance_open(
        w->o->instance ? w->o->instance : tde_file_instance(c->f), 0, &w->inst, st));
  }
  if (rc == SQLITE_OK) {
    rc = tde_options_identity(w->o, w->inst, asker_for(w->o, c->doc, w->inst).identity, st);
  }
  if (rc == SQLITE_OK) rc = ready(c, &k.settled, st);
  if (rc == SQLITE_OK && w->o->protector) rc = tde_class_rc(wrap_for(c, w, st));
  if (w->wraps) k.key = &w->wraps[0].info;
  if (rc == SQLITE_OK) rc = tde_place_begin(&k.place, w->b.path, 0, st);
  if (rc == SQLITE_OK) {
    tde_job_begin(&k.src.job, w->b.db, "create-secondary", k.place.target);
    rc = write_raw(&k, st);
    tde_job_end(&k.src.job);
  }
  if (rc == SQLITE_OK && k.r.units == 0) rc = holds_nothing(c, st);
  if (rc == SQLITE_OK) {
    /* Listed first: an entry without its file counts for nothing. */
    l.of = c->info->path;
    l.path = k.place.target;
    l.temp = k.place.temp + strlen(l.path);
    l.created = l.synced = (int64_t)time(NULL);
    set_answer(&w->b, backup_answer(&k, l.synced));
    rc = tde_change_commit(c, edit_listing, &l, 1, 0, NULL, st);
  }
  if (rc == SQLITE_OK) rc = tde_place_publish(&k.place, st);
  tde_place_end(&k.place);
  free(w->wraps);
  w->wraps = NULL;
  return rc;
}

void tde_sql_create_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_options o;
  secondary_work w = {.b = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                            .db = sqlite3_context_db_handle(ctx)},
                      .o = &o};

  if (!w.b.path) return;
  if (options_of(ctx, argc, argv, 1, "schema instance protector identity federated_client_id",
                 &o)) {
    run(ctx, o.schema, "create-secondary", 0, create_secondary, &w.b);
  }
  tde_options_end(&o);
}

/* ---- tde_sync_secondary(path [, options]) ---- */

typedef struct sync_work {
  source src; /* first: the replica's context serves both */
  backup_work b;
  const tde_options *o;
  char *path; /* full */
  tde_change *c;
  const tde_keydoc *primary;
  uint32_t epochs[TDE_EPOCHS_MAX], current;
  int n;
  tde_op *wraps[TDE_EPOCHS_MAX]; /* of epochs that the secondary does not know */
  tde_replica r;
} sync_work;

static tde_class take_epochs(sync_work *w, const char *text, size_t n, int keep, char **newdoc,
                             size_t *nnew, tde_status *st) {
  const tde_op *wraps[TDE_EPOCHS_MAX];
  int64_t now = (int64_t)time(NULL);
  tde_keydoc *doc = NULL;
  tde_json *s;
  int bad;
  tde_class c = tde_keydoc_parse(text, n, &doc, st);

  if (c) return c;
  for (int i = 0; i < w->n; i++) wraps[i] = w->wraps[i];
  bad = tde_keydoc_take_epochs(doc, w->epochs, wraps, w->n, w->current, keep, now) |
        tde_keydoc_merge_list(doc, w->primary);
  s = tde_json_copy(tde_json_get(tde_keydoc_json(doc), "secondary"));
  if (!keep) bad |= tde_json_set_int(s, "synced", now);
  bad |= tde_keydoc_set_member(doc, "secondary", s);
  c = bad ? tde_nomem(st) : tde_keydoc_text(doc, newdoc, nnew, st);
  tde_keydoc_free(doc);
  return c;
}

static tde_class before_units(void *ctx, const char *doc, size_t n, char **newdoc, size_t *nnew,
                              tde_status *st) {
  return take_epochs(ctx, doc, n, 1, newdoc, nnew, st);
}

static tde_class after_units(void *ctx, const char *doc, size_t n, char **newdoc, size_t *nnew,
                             tde_status *st) {
  return take_epochs(ctx, doc, n, 0, newdoc, nnew, st);
}

/* DEKs that the secondary's header does not have are wrapped under its protector. */
static tde_class wrap_new_epochs(sync_work *w, tde_change *c, tde_keydoc *there, tde_status *st) {
  const tde_instance *inst = NULL;
  uint32_t known[TDE_EPOCHS_MAX];
  int nknown = tde_keydoc_epochs(there, known, TDE_EPOCHS_MAX);
  char full[TDE_KEY_ID_MAX];
  tde_keydoc_asker who;
  tde_key_info p;
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class cls = dek ? tde_keydoc_protector(there, &p, st) : tde_nomem(st);

  tde_keydoc_asker_of(there, &who);
  if (cls == TDE_OK) {
    cls = tde_instance_open(w->o->instance ? w->o->instance : tde_file_instance(c->f), 0, &inst,
                            st);
  }
  if (cls == TDE_OK) tde_key_full_id(&p, full);
  for (int i = 0; i < w->n && cls == TDE_OK; i++) {
    int has = 0;
    for (int k = 0; k < nknown; k++) has |= known[k] == w->epochs[i];
    if (has) continue;
    w->wraps[i] = calloc(1, sizeof(*w->wraps[i]));
    if (!w->wraps[i]) cls = tde_nomem(st);
    if (cls == TDE_OK) cls = tde_change_dek(c, w->epochs[i], dek, st);
    if (cls == TDE_OK) {
      cls = tde_keydoc_wrap(inst, full, &who, c->info->uuid, dek, w->wraps[i], st);
    }
  }
  tde_secret_free(dek);
  return cls;
}

static int fail_secondary(const char *path, int rc, tde_status *st) {
  if (rc == SQLITE_NOMEM) {
    tde_nomem(st);
  } else if (rc == SQLITE_NOTADB) {
    tde_fail(st, TDE_MISUSE, "create it with tde_create_secondary()",
             "%s: is no secondary, nor any encrypted database", path);
  } else if (rc == SQLITE_CORRUPT) {
    tde_fail(st, TDE_DAMAGED_HEADER, "remove it, and create it anew with tde_create_secondary()",
             "%s: its header is damaged, or of a newer format", path);
  } else {
    tde_fail(st, TDE_IO, "check its name and permissions; tde_create_secondary() makes a new one",
             "%s: the secondary cannot be read (%s)", path, sqlite3_errstr(rc));
  }
  return rc;
}

/* Reads the secondary's header, and prepares what it will need. */
static int prepare_sync(sync_work *w, tde_change *c, tde_status *st) {
  tde_peek peek;
  tde_keydoc *there = NULL;
  tde_class cls;
  int rc = tde_header_peek(w->path, c->info->lower_vfs, &peek);

  if (rc) return fail_secondary(w->path, rc, st);
  cls = tde_keydoc_parse(peek.doc, peek.ndoc, &there, st);
  if (cls == TDE_OK && memcmp(peek.uuid, c->info->uuid, TDE_UUID_BYTES) != 0) {
    cls = tde_fail(st, TDE_MISUSE, "create one with tde_create_secondary()",
                   "%s is not a secondary of this database", w->path);
  }
  w->c = c;
  w->primary = c->doc;
  w->n = tde_keydoc_epochs(c->doc, w->epochs, TDE_EPOCHS_MAX);
  w->current = tde_keydoc_epoch(c->doc);
  if (cls == TDE_OK) cls = wrap_new_epochs(w, c, there, st);
  tde_keydoc_free(there);
  free(peek.doc);
  free(peek.other);
  return tde_class_rc(cls);
}

static int confirm_epochs(void *ctx, tde_status *st) {
  sync_work *w = ctx;
  return still_same_epochs(&w->b, w->c, st);
}

static tde_json *sync_answer(const sync_work *w) {
  tde_json *j = tde_json_object();
  int bad = tde_json_set_text(j, "path", w->path) |
            tde_json_set_int(j, "units", (int64_t)w->r.units) |
            tde_json_set_int(j, "changed", (int64_t)w->r.changed);

  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

static int sync_secondary(void *ctx, tde_change *c, tde_status *st) {
  sync_work *w = ctx;
  listing l = {.of = c->info->path, .path = w->path};
  int settled, rc = is_primary(c, "sync it from the primary", st);

  if (rc == SQLITE_OK) rc = ready(c, &settled, st);
  if (rc == SQLITE_OK) rc = prepare_sync(w, c, st);
  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) {
    const char *instance = w->o->instance ? w->o->instance : tde_file_instance(c->f);
    w->src.db = w->b.db;
    w->src.schema = c->schema;
    w->r = (tde_replica){.ctx = w,
                         .begin = begin_read,
                         .end = end_read,
                         .progress = on_progress,
                         .confirm = confirm_epochs,
                         .settled = settled};
    tde_job_begin(&w->src.job, w->b.db, "sync-secondary", w->path);
    rc = tde_replica_sync(c->f, w->path, instance, before_units, after_units, &w->r, st);
    tde_job_end(&w->src.job);
  }
  if (rc == SQLITE_OK) {
    set_answer(&w->b, sync_answer(w));
    l.synced = (int64_t)time(NULL);
    rc = tde_change_commit(c, edit_listing, &l, 1, 0, NULL, st);
  }
  for (int i = 0; i < w->n; i++) {
    free(w->wraps[i]);
    w->wraps[i] = NULL;
  }
  return rc;
}

/* The full path, as it is listed: the caller's, NULL with st set. */
static char *full_path(const char *path, tde_status *st) {
  tde_place place;
  char *full;

  if (tde_place_begin(&place, path, 1, st)) {
    tde_place_end(&place);
    return NULL;
  }
  full = sqlite3_mprintf("%s", place.target);
  tde_place_end(&place);
  if (!full) (void)tde_nomem(st);
  return full;
}

void tde_sql_sync_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *path = tde_arg_needed(ctx, argc, argv, 0, "the path");
  tde_options o;
  tde_status st;
  sync_work *w;
  int rc = SQLITE_NOMEM;

  if (!path) return;
  tde_status_clear(&st);
  w = sqlite3_malloc64(sizeof(*w));
  if (!options_of(ctx, argc, argv, 1, "schema instance", &o)) {
    sqlite3_free(w);
    tde_options_end(&o);
    return;
  }
  if (w) {
    memset(w, 0, sizeof(*w));
    w->b.db = sqlite3_context_db_handle(ctx);
    w->o = &o;
    w->path = full_path(path, &st);
    if (!w->path) rc = tde_class_rc(st.code);
    for (int i = 0; w->path && i < EPOCH_TRIES; i++) {
      w->b.dek_changed = 0;
      rc = tde_change_run(w->b.db, o.schema, "sync-secondary", sync_secondary, w, &st);
      if (!rc || !w->b.dek_changed) break;
    }
  }
  if (rc || !w) {
    tde_result_status(ctx, rc, &st);
    if (w) tde_json_free(w->b.answer);
  } else {
    tde_result_json(ctx, w->b.answer, w->b.answer == NULL);
  }
  if (w) sqlite3_free(w->path);
  sqlite3_free(w);
  tde_options_end(&o);
}

/* ---- tde_copy(path [, options]) ---- */

typedef struct copy_work {
  backup_work b; /* first */
  const tde_options *o;
} copy_work;

static int copy(void *ctx, tde_change *c, tde_status *st) {
  copy_work *w = ctx;
  char full[TDE_KEY_ID_MAX];
  const tde_instance *inst = NULL;
  tde_keydoc_asker who;
  tde_place place;
  tde_job job;
  tde_newdb n = {.from = w->b.db,
                 .schema = c->schema,
                 .event = "copy",
                 .source = c->doc,
                 .source_uuid = c->info->uuid,
                 .source_time = (int64_t)time(NULL),
                 .job = &job};
  int settled, rc;

  tde_key_full_id(&c->protector, full);
  n.instance = w->o->instance ? w->o->instance : tde_file_instance(c->f);
  rc = tde_class_rc(tde_instance_open(n.instance, 0, &inst, st));
  if (rc) return rc;
  who = asker_for(w->o, c->doc, inst);
  rc = tde_options_identity(w->o, inst, who.identity, st);
  if (rc) return rc;
  n.protector = w->o->protector;
  n.identity = who.identity;
  n.federated_client_id = who.federated_client_id;
  /* A copy of a database at database level is at database level. */
  if (!n.protector && strcmp(tde_keydoc_mode(c->doc), "database") == 0) n.protector = full;
  memset(&place, 0, sizeof(place));
  rc = ready(c, &settled, st);
  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) rc = tde_place_begin(&place, w->b.path, 0, st);
  if (rc == SQLITE_OK) {
    tde_job_begin(&job, w->b.db, "copy", place.target);
    rc = tde_newdb_make(&n, &place, st);
    tde_job_end(&job);
  }
  if (rc == SQLITE_OK) {
    set_answer(&w->b, tde_json_object());
    if (tde_json_set_text(w->b.answer, "path", place.target) |
        tde_json_set_int(w->b.answer, "pages", n.pages) |
        (n.dropped ? tde_json_set_int(w->b.answer, "keys_dropped", n.dropped) : 0)) {
      set_answer(&w->b, NULL);
    }
    tde_change_tell(c);
  }
  tde_place_end(&place);
  return rc;
}

void tde_sql_copy(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_options o;
  copy_work w = {.b = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                       .db = sqlite3_context_db_handle(ctx)},
                 .o = &o};

  if (!w.b.path) return;
  if (options_of(ctx, argc, argv, 1, "schema instance protector identity federated_client_id", &o)) {
    run(ctx, o.schema, "copy", 1, copy, &w.b);
  }
  tde_options_end(&o);
}
