/*
** secondary.c: tde_create_secondary and tde_sync_secondary.
**
** A secondary keeps the database's DEK and UUID: its units are the database's own records
** (vfs/replica.h). It has a protector of its own, and is brought up to date from its primary, which
** lists it.
**
** What must hold: a secondary is given a new DEK under the protector that its own DEKs vouch for, and
** its header gets that wrap only while it has this protector: whoever can write the file could name a
** key of theirs there, and have the DEK.
*/
#include "secondary.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "rawcopy.h"
#include "result.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

#define SECONDARIES_MAX 4

/* ---- the list ---- */

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

/* ---- tde_create_secondary(path [, options]) ---- */

typedef struct secondary_work {
  tde_copying b; /* first: tde_copying_run knows no more */
  const tde_options *o;
  const tde_instance *inst;
  const char *of;  /* its primary's path */
  tde_wraps wraps; /* when it gets a protector of its own */
} secondary_work;

/* The secondary's document: its primary's, with its own protector. */
static tde_class make_secondary(void *ctx, tde_keydoc *doc, tde_status *st) {
  secondary_work *w = ctx;
  tde_json *s = tde_json_object();
  int64_t now = (int64_t)time(NULL);
  tde_keydoc_asker who = tde_options_asker(w->o, doc, w->inst);
  int bad = tde_json_set_text(s, "of", w->of) | tde_json_set_int(s, "created", now) |
            tde_json_set_int(s, "synced", now);

  bad |= tde_keydoc_set_member(doc, "secondary", s) |
         tde_keydoc_set_member(doc, "secondaries", NULL) |
         tde_keydoc_set_member(doc, "regeneration", NULL) | tde_keydoc_set_auto_rotation(doc, 0);
  for (int i = 0; i < w->wraps.n; i++) {
    bad |= tde_keydoc_set_wrap(doc, w->wraps.epochs[i], &w->wraps.of[i], now);
  }
  if (w->wraps.n) {
    bad |= tde_keydoc_use_key(doc, &w->wraps.of[0].info, now) |
           tde_keydoc_set_mode(doc, "database");
  }
  bad |= tde_keydoc_set_identity(doc, &who);
  return bad ? tde_nomem(st) : TDE_OK;
}

/* Wraps every DEK under the protector that was asked for. */
static tde_class wrap_for(tde_change *c, secondary_work *w, tde_status *st) {
  tde_keydoc_asker who = tde_options_asker(w->o, c->doc, w->inst);
  tde_class cls = tde_instance_may_protect(w->inst, w->o->protector, st);

  return cls ? cls : tde_change_wrap(c, w->inst, w->o->protector, &who, &w->wraps, st);
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

/* Listed first: an entry without its file counts for nothing. */
static int publish(tde_rawcopy *k, tde_status *st) {
  const char *path = k->place.target;
  int64_t now = (int64_t)time(NULL);
  listing l = {.of = k->c->info->path,
               .path = path,
               .temp = k->place.temp + strlen(path),
               .created = now,
               .synced = now};
  int rc;

  tde_copying_answer(k->w, tde_rawcopy_answer(k, now));
  rc = tde_change_commit(k->c, edit_listing, &l, 1, 0, NULL, st);
  return rc ? rc : tde_place_publish(&k->place, st);
}

static int create_secondary(void *ctx, tde_change *c, tde_status *st) {
  secondary_work *w = ctx;
  tde_rawcopy k = {.w = &w->b, .c = c, .make = make_secondary, .ctx = w};
  int rc = may_have_another(c, st);

  w->of = c->info->path;
  if (rc == SQLITE_OK) {
    rc = tde_class_rc(tde_instance_open(tde_copying_instance(w->o, c), 0, &w->inst, st));
  }
  if (rc == SQLITE_OK) {
    rc = tde_options_identity(w->o, w->inst, tde_options_asker(w->o, c->doc, w->inst).identity, st);
  }
  if (rc == SQLITE_OK) rc = tde_copying_ready(c, &k.settled, st);
  if (rc == SQLITE_OK && w->o->protector) rc = tde_class_rc(wrap_for(c, w, st));
  if (w->wraps.of) k.key = &w->wraps.of[0].info;
  if (rc == SQLITE_OK) rc = tde_rawcopy_write(&k, "create-secondary", st);
  if (rc == SQLITE_OK && k.r.units == 0) rc = holds_nothing(c, st);
  if (rc == SQLITE_OK) rc = publish(&k, st);
  tde_place_end(&k.place);
  free(w->wraps.of);
  memset(&w->wraps, 0, sizeof(w->wraps));
  return rc;
}

void tde_sql_create_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_options o;
  secondary_work w = {.b = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                            .src.db = sqlite3_context_db_handle(ctx)},
                      .o = &o};

  if (!w.b.path) return;
  if (tde_copying_options(ctx, argc, argv, 1,
                          "schema instance protector identity federated_client_id", &o)) {
    tde_copying_run(ctx, o.schema, "create-secondary", 0, create_secondary, &w.b);
  }
  tde_options_end(&o);
}

/* ---- tde_sync_secondary(path [, options]) ---- */

typedef struct sync_work {
  tde_copying b;   /* first: the replica's context serves both */
  tde_place place; /* of the secondary, which is there: its full path */
  const tde_options *o;
  tde_change *c;
  const tde_keydoc *primary;
  uint32_t epochs[TDE_EPOCHS_MAX], current;
  int n;
  tde_op *wraps[TDE_EPOCHS_MAX]; /* of epochs that the secondary does not know */
  tde_key_info under;            /* its protector, which wrapped them */
  int listed, dropped;           /* keys of both lists, and those for which its header has no room */
  tde_replica r;
  int synced; /* times that all was done but the note in the primary */
} sync_work;

/* Does the secondary still have the protector that the new DEKs were wrapped under? */
static tde_class same_protector(sync_work *w, const tde_keydoc *doc, tde_status *st) {
  tde_key_info now;
  tde_class c = tde_keydoc_protector(doc, &now, st);

  if (c || (strcmp(now.base_id, w->under.base_id) == 0 &&
            strcmp(now.version, w->under.version) == 0)) {
    return c;
  }
  w->b.dek_changed = 1; /* all is done again, under the other one */
  return tde_fail(st, TDE_BUSY, "try again", "%s: its protector changed meanwhile", w->place.target);
}

/* The primary's key list comes to the secondary's, whose header may have less room: keys that were
** removed from the primary's are there still, and its own protector. */
static int take_list(sync_work *w, tde_keydoc *doc, int64_t now) {
  const tde_json *root = tde_keydoc_json(doc);
  int dropped, bad = tde_keydoc_merge_list(doc, w->primary, now);

  if (!w->listed) w->listed = (int)tde_json_count(tde_json_get(root, "keys"));
  bad |= tde_keydoc_fit(doc, &dropped);
  w->dropped = w->listed - (int)tde_json_count(tde_json_get(root, "keys"));
  return bad;
}

static tde_class take_epochs(sync_work *w, const char *text, size_t n, int keep, char **newdoc,
                             size_t *nnew, tde_status *st) {
  const tde_op *wraps[TDE_EPOCHS_MAX];
  int64_t now = (int64_t)time(NULL);
  tde_keydoc *doc = NULL;
  tde_json *s;
  int bad;
  tde_class c = tde_keydoc_parse(text, n, &doc, st);

  if (c == TDE_OK) c = same_protector(w, doc, st);
  if (c) {
    tde_keydoc_free(doc);
    return c;
  }
  for (int i = 0; i < w->n; i++) wraps[i] = w->wraps[i];
  bad = tde_keydoc_take_epochs(doc, w->epochs, wraps, w->n, w->current, keep, now);
  s = tde_json_copy(tde_json_get(tde_keydoc_json(doc), "secondary"));
  if (!keep) bad |= tde_json_set_int(s, "synced", now);
  bad |= tde_keydoc_set_member(doc, "secondary", s) | take_list(w, doc, now);
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
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class cls = dek ? tde_keydoc_protector(there, &w->under, st) : tde_nomem(st);

  tde_keydoc_asker_of(there, &who);
  if (cls == TDE_OK) cls = tde_instance_open(tde_copying_instance(w->o, c), 0, &inst, st);
  if (cls == TDE_OK) tde_key_full_id(&w->under, full);
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

static int fail_secondary(const char *path, int rc, int unknown, tde_status *st) {
  const char *remedy =
      rc == SQLITE_CORRUPT
          ? "remove it, and create it anew with tde_create_secondary()"
          : tde_errno_remedy(rc == SQLITE_CANTOPEN ? errno : 0,
                             "check its name and permissions; tde_create_secondary() makes a new one");

  (void)tde_view_fail(path, rc, unknown, st);
  if (rc != SQLITE_NOMEM) (void)sqlite3_snprintf(sizeof(st->remedy), st->remedy, "%s", remedy);
  return rc;
}

/* Is there a file that says it is one of this database? No more is believed of what it says: nothing
** has verified it. */
static int look_at_secondary(const sync_work *w, const tde_change *c, tde_status *st) {
  tde_peek peek;
  int rc = tde_header_peek(w->place.target, c->info->lower_vfs, &peek);

  if (rc) return fail_secondary(w->place.target, rc, peek.unknown, st);
  free(peek.doc);
  free(peek.other);
  if (memcmp(peek.uuid, c->info->uuid, TDE_UUID_BYTES) == 0) return SQLITE_OK;
  tde_fail(st, TDE_MISUSE, "create one with tde_create_secondary()",
           "%s is not a secondary of this database", w->place.target);
  return SQLITE_MISUSE;
}

/* Reads the secondary's header, and prepares what it will need. */
static int prepare_sync(sync_work *w, tde_change *c, tde_status *st) {
  const char *path = w->place.target;
  tde_keydoc *there = NULL;
  char *text = NULL;
  size_t n = 0;
  tde_class cls;
  int rc = look_at_secondary(w, c, st);

  if (rc == SQLITE_OK) {
    rc = tde_replica_document(c->f, path, tde_copying_instance(w->o, c), &text, &n, st);
  }
  if (rc) return rc;
  cls = tde_keydoc_parse(text, n, &there, st);
  free(text);
  w->c = c;
  w->primary = c->doc;
  w->n = tde_keydoc_epochs(c->doc, w->epochs, TDE_EPOCHS_MAX);
  w->current = tde_keydoc_epoch(c->doc);
  if (cls == TDE_OK) cls = wrap_new_epochs(w, c, there, st);
  tde_keydoc_free(there);
  return tde_class_rc(cls);
}

static int confirm_epochs(void *ctx, tde_status *st) {
  sync_work *w = ctx;
  return tde_copying_confirm(&w->b, w->c, st);
}

static tde_json *sync_answer(const sync_work *w) {
  tde_json *j = tde_json_object();
  int bad = tde_json_set_text(j, "path", w->place.target) |
            tde_json_set_int(j, "units", (int64_t)w->r.units) |
            tde_json_set_int(j, "changed", (int64_t)w->r.changed);

  if (w->dropped) bad |= tde_json_set_int(j, "keys_dropped", w->dropped);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

/* Notes it in the primary. By then the secondary is up to date: that the primary can not be written is
** no failure of the sync, but something to know of. */
static int note_sync(sync_work *w, tde_change *c, tde_status *st) {
  listing l = {
      .of = c->info->path, .path = w->place.target, .synced = (int64_t)time(NULL)};
  tde_json *answer = sync_answer(w);
  int rc = tde_change_commit(c, edit_listing, &l, 1, 0, NULL, st);

  /* What a crash cut short is rolled back by the next try. */
  if (rc == SQLITE_BUSY_RECOVERY && w->synced++ == 0) {
    tde_json_free(answer);
    return rc;
  }
  if (rc) {
    char *said = sqlite3_mprintf(
        "the secondary is up to date, but its primary could not note that: %s; sync it once more",
        st->message);
    tde_log_status(TDE_LOG_WARNING, "sync-secondary", st);
    if (!said || tde_json_set_text(answer, "warning", said)) {
      tde_json_free(answer);
      answer = NULL;
    }
    sqlite3_free(said);
    tde_change_tell(c); /* of what is done */
  }
  tde_copying_answer(&w->b, answer);
  return SQLITE_OK;
}

static int sync_secondary(void *ctx, tde_change *c, tde_status *st) {
  sync_work *w = ctx;
  int settled, rc = is_primary(c, "sync it from the primary", st);

  if (rc == SQLITE_OK) rc = tde_copying_ready(c, &settled, st);
  if (rc == SQLITE_OK) rc = prepare_sync(w, c, st);
  if (rc == SQLITE_OK) rc = tde_change_announce(c, st);
  if (rc == SQLITE_OK) {
    w->b.src.schema = c->schema;
    w->listed = w->dropped = 0;
    w->r = (tde_replica){.ctx = w,
                         .begin = tde_reading_begin,
                         .end = tde_reading_end,
                         .progress = tde_reading_progress,
                         .confirm = confirm_epochs,
                         .settled = settled};
    tde_job_begin(&w->b.src.job, w->b.src.db, "sync-secondary", w->place.target);
    rc = tde_replica_sync(c->f, w->place.target, tde_copying_instance(w->o, c), before_units,
                          after_units, &w->r, st);
    tde_job_end(&w->b.src.job);
  }
  if (rc == SQLITE_OK) rc = note_sync(w, c, st);
  for (int i = 0; i < w->n; i++) {
    free(w->wraps[i]);
    w->wraps[i] = NULL;
  }
  return rc;
}

void tde_sql_sync_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  tde_options o;
  sync_work w = {.b = {.path = tde_arg_needed(ctx, argc, argv, 0, "the path"),
                       .src.db = sqlite3_context_db_handle(ctx)},
                 .o = &o};
  tde_status st;

  if (!w.b.path) return;
  tde_status_clear(&st);
  if (tde_copying_options(ctx, argc, argv, 1, "schema instance", &o)) {
    if (tde_place_begin(&w.place, w.b.path, 1, &st) == SQLITE_OK) {
      tde_copying_run(ctx, o.schema, "sync-secondary", 0, sync_secondary, &w.b);
    } else {
      tde_result_status(ctx, tde_class_rc(st.code), &st);
    }
    tde_place_end(&w.place);
  }
  tde_options_end(&o);
}
