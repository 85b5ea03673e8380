/*
** restore.c: tde_restore_check and tde_restore.
**
** A backup says which keys it needs (needed.h). What is not found is named, all of it, and
** nothing is left behind.
**
** A folder stands for the newest of its backups. Which one that is, files say whose headers nothing has
** verified yet: who can write the folder could have an old one taken for the newest. So the one that was
** chosen must have, in the header that its DEKs verify, the very time that it was chosen by. (Whoever
** takes the newest away, or damages it beyond recognition, leaves an older one: the answer says which
** file it was, and of when.)
**
** A restored database is a new one (newdb.h): with the protector that was asked for,
** or at the instance's level. Who reads the backup's keys has no part in that: the identity
** of the call asks for the new protector only where the call names one, too. Nothing of the
** source changes.
*/
#include "restore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../keyprovider/files.h"
#include "../vfs/header.h"
#include "needed.h"
#include "newdb.h"
#include "options.h"
#include "result.h"
#include "views.h"

SQLITE_EXTENSION_INIT3

typedef struct restore {
  sqlite3 *db;
  const tde_options *o;
  const char *instance; /* as an argument of tde_instance_open */
  tde_needed keys;      /* .inst: the instance, NULL: there is none */
  tde_view_db v;        /* the backup, as nothing verified it */
  tde_keydoc *source;   /* ... as its DEKs verify it, and which database it is of */
  uint8_t uuid[TDE_UUID_BYTES];
  int chosen; /* it stands for a folder, by this time */
  int64_t time, nanoseconds;
} restore;

/* ---- which backup ---- */

/* When a file was made as a backup: its mark, or its own time. */
static int64_t backup_time(const char *path, const tde_keydoc *doc) {
  const tde_json *b = tde_json_get(tde_keydoc_json(doc), "backup");
  struct stat sb;

  if (b) return tde_json_get_int(b, "time", 0);
  return stat(path, &sb) == 0 ? (int64_t)sb.st_mtime : 0;
}

static int is_uuid(const char *text) {
  static const size_t groups[] = {8, 4, 4, 4, 12}; /* RFC 4122, section 3 */

  for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
    if (i && *text++ != '-') return 0;
    if (strspn(text, "0123456789abcdefABCDEF") < groups[i]) return 0;
    text += groups[i];
  }
  return *text == 0;
}

static int check_given(const restore *r, tde_status *st) {
  for (size_t i = 0; i < tde_json_count(r->o->keys); i++) {
    if (!tde_subject_key(tde_json_text_at(r->o->keys, i), st)) return SQLITE_MISUSE;
  }
  if (!r->o->uuid || is_uuid(r->o->uuid)) return SQLITE_OK;
  tde_fail(st, TDE_MISUSE, "tde_encryption_keys and tde_status() show a database's UUID",
           "the option \"uuid\" is no UUID: %.60s", r->o->uuid);
  return SQLITE_MISUSE;
}

static int is_of(const restore *r, const uint8_t uuid[TDE_UUID_BYTES]) {
  char text[40];

  tde_uuid_text(uuid, text);
  return !r->o->uuid || sqlite3_stricmp(text, r->o->uuid) == 0;
}

typedef struct candidate {
  char *path, *unread; /* one that could not be looked at */
  char *rival;         /* of the same second; which of the two is newer is not known */
  int64_t time, nanoseconds;
  uint8_t uuid[TDE_UUID_BYTES], other[TDE_UUID_BYTES];
  int found, several; /* backups of more than one database */
  int oom;            /* one may be missing here for want of memory */
} candidate;

static char *copy_of(candidate *best, const char *path) {
  char *copy = sqlite3_mprintf("%s", path);

  best->oom |= !copy;
  return copy;
}

static int is_regular(const char *path) {
  struct stat sb;
  return stat(path, &sb) == 0 && S_ISREG(sb.st_mode);
}

/* Backups of earlier releases have no part of a second. */
static int64_t nanoseconds_of(const tde_keydoc *doc) {
  return tde_json_get_int(tde_json_get(tde_keydoc_json(doc), "backup"), "nanoseconds", -1);
}

/* Takes it if it is the newest so far. Of the same moment are copies of one backup. */
static void choose_newer(candidate *best, const char *path, const tde_keydoc *doc) {
  int64_t t = backup_time(path, doc), ns = nanoseconds_of(doc);
  int same_second = best->path && t == best->time;

  if (same_second && (ns < 0 || best->nanoseconds < 0)) {
    if (!best->rival) best->rival = copy_of(best, path);
  } else if (!best->path || t > best->time || (same_second && ns > best->nanoseconds)) {
    if (!same_second) {
      sqlite3_free(best->rival);
      best->rival = NULL;
    }
    sqlite3_free(best->path);
    best->path = copy_of(best, path);
    best->time = t;
    best->nanoseconds = ns;
  }
}

/* Does it count that a file without a header may be a backup all the same, whose header is gone?
** A log beside its database may begin with zeros. */
static int may_be_backup(const char *path, int unknown) {
  return unknown == TDE_UNKNOWN_NAME || (unknown == TDE_UNKNOWN_BYTES && tde_place_is_beside(path) != 1);
}

/* Is this file of the folder a better choice? Only what was made as a backup counts: others
** may be in use, or being made. */
static void consider(restore *r, const char *path, candidate *best) {
  tde_peek peek;
  tde_keydoc *doc = NULL;
  int rc, unread;

  if (tde_place_is_temporary(path)) return;
  rc = tde_header_peek(path, NULL, &peek);
  unread = rc && (rc != SQLITE_NOTADB || may_be_backup(path, peek.unknown)) && is_regular(path);
  if (!rc) unread = tde_keydoc_parse(peek.doc, peek.ndoc, &doc, NULL) != TDE_OK;
  if (unread && !best->unread) best->unread = copy_of(best, path);
  if (rc) return;
  if (doc && tde_json_get(tde_keydoc_json(doc), "backup") && is_of(r, peek.uuid)) {
    if (!best->found) {
      memcpy(best->uuid, peek.uuid, TDE_UUID_BYTES);
    } else if (memcmp(best->uuid, peek.uuid, TDE_UUID_BYTES) != 0) {
      best->several = 1;
      memcpy(best->other, peek.uuid, TDE_UUID_BYTES);
    }
    best->found = 1;
    if (!r->o->at || backup_time(path, doc) <= r->o->at) choose_newer(best, path, doc);
  }
  tde_keydoc_free(doc);
  free(peek.doc);
  free(peek.other);
}

/* Backups of several databases: it is not said which is meant. */
static void tell_several(const char *folder, const candidate *c, tde_status *st) {
  char a[40], b[40];

  tde_uuid_text(c->uuid, a);
  tde_uuid_text(c->other, b);
  tde_fail(st, TDE_MISUSE, "say which by the option \"uuid\"",
           "%s: has backups of several databases, of %s and %s for two", folder, a, b);
}

/* Why none can be chosen; what the candidate has of others is freed. */
static int in_doubt(const char *folder, candidate *best, tde_status *st) {
  int doubt = best->unread || best->several || best->rival;

  if (best->unread) {
    tde_fail(st, TDE_IO, "name the backup itself, or take that file out of the folder",
             "%.200s can not be read, or its header is damaged: it may be the newest backup",
             best->unread);
  } else if (best->several) {
    tell_several(folder, best, st);
  } else if (best->rival) {
    tde_fail(st, TDE_MISUSE, "name the backup itself",
             "%.200s and %.200s are of the same second: which is newer can not be told", best->path,
             best->rival);
  }
  sqlite3_free(best->unread);
  sqlite3_free(best->rival);
  return doubt;
}

/* A folder stands for its newest backup at or before the moment asked for. NULL with
** st set: there is none. */
static char *choose(restore *r, const char *folder, tde_status *st) {
  candidate best = {.path = NULL};
  DIR *d = opendir(folder);
  const char *name;
  int more = -1, doubt;

  while (d && (more = tde_dir_next(d, &name)) > 0) {
    char *path;
    if (name[0] == '.') continue;
    path = sqlite3_mprintf("%s/%s", folder, name);
    if (path) consider(r, path, &best);
    best.oom |= !path;
    sqlite3_free(path);
  }
  if (more < 0) {
    tde_fail(st, TDE_IO, d ? "check the disk" : "check the folder's permissions", "%s: %s", folder,
             strerror(errno));
  }
  if (d) (void)closedir(d);
  doubt = in_doubt(folder, &best, more < 0 ? NULL : st);
  if (best.oom && more == 0) tde_nomem(st);
  if (best.oom || doubt || more < 0) {
    sqlite3_free(best.path);
    return NULL;
  }
  if (!best.path) {
    tde_fail(st, TDE_MISSING,
             "name another moment, database or folder; what is no backup is named by its own path",
             "%s: no backup%s%s is in this folder", folder,
             r->o->at ? " at or before that moment" : "", r->o->uuid ? " of that database" : "");
  }
  r->chosen = 1;
  r->time = best.time;
  r->nanoseconds = best.nanoseconds;
  return best.path;
}

/* A backup that says it has units, and has none, would be restored as an empty database. One
** that has too few of them is noticed by SQLite. */
static int is_cut_short(const restore *r) {
  struct stat sb;

  return r->v.head.unit_size && tde_json_get(tde_keydoc_json(r->v.doc), "backup") &&
         stat(r->v.path, &sb) == 0 &&
         sb.st_size < (off_t)(TDE_HEADER_BYTES + r->v.head.unit_size + TDE_UNIT_OVERHEAD);
}

/* A single file must be whole, and of the database that was asked for. */
static int check_file(const restore *r, tde_status *st) {
  char text[40];

  if (is_cut_short(r)) {
    tde_fail(st, TDE_TRUNCATED, "take another backup, or copy this one anew from where it came",
             "%s: is cut short: it has a header and no page", r->v.path);
    return SQLITE_CORRUPT;
  }
  if (is_of(r, r->v.head.uuid)) return SQLITE_OK;
  tde_uuid_text(r->v.head.uuid, text);
  tde_fail(st, TDE_MISUSE, "name another file, or leave \"uuid\" out", "%s: is of the database %s",
           r->v.path, text);
  return SQLITE_MISUSE;
}

static int is_folder(const char *path) {
  struct stat sb;
  return stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
}

/* Which keys are needed can be told on a computer that has none. */
static int open_instance(restore *r, tde_status *st) {
  tde_class c = tde_instance_open(r->instance, 0, &r->keys.inst, st);

  if (c == TDE_MISSING && !r->o->instance && !r->o->identity) {
    r->keys.no_instance = *st;
    tde_status_clear(st);
    return SQLITE_OK;
  }
  return c ? tde_class_rc(c) : tde_options_identity(r->o, r->keys.inst, r->o->identity, st);
}

/* Opens the backup's header and finds its keys. */
static int prepare(restore *r, const char *source, tde_status *st) {
  char *chosen = NULL;
  int rc;

  rc = check_given(r, st);
  if (rc) return rc;
  r->instance = r->o->instance ? r->o->instance : tde_subject_instance(r->db, 0, NULL, 0);
  rc = open_instance(r, st);
  if (rc) return rc;
  if (is_folder(source)) {
    chosen = choose(r, source, st);
    if (!chosen) return SQLITE_CANTOPEN;
    source = chosen;
  } else if (r->o->at) {
    tde_fail(st, TDE_MISUSE, "name a folder", "%s is one backup: \"at\" chooses among several",
             source);
    return SQLITE_MISUSE;
  }
  /* A path, whatever schemas there are. */
  rc = tde_view_open_path(&r->v, r->db, source, NULL, st);
  sqlite3_free(chosen);
  if (rc == SQLITE_OK) rc = check_file(r, st);
  if (rc) return rc;
  r->keys.doc = r->v.doc;
  r->keys.uuid = r->v.head.uuid;
  return tde_needed_look(&r->keys, st);
}

/* ---- tde_restore_check(source [, options]) ---- */

static tde_json *needed_row(const restore *r, const tde_needed_key *k) {
  char remedy[320] = "";
  tde_json *j = tde_json_object();
  const tde_status *why = k->as[0] ? &k->asked : &k->tried;
  int ok = k->as[0] && k->was_asked && k->asked.code == TDE_OK, bad;

  if (!k->as[0]) tde_needed_remedy(&r->keys, k, remedy, sizeof(remedy));
  bad = tde_key_put(j, &k->info, TDE_THUMB_SHOWN) |
        tde_json_set_text(j, "found_as", k->as[0] ? k->as : NULL) |
        tde_json_set_text(j, "found_in", k->where) |
        tde_json_set_text(j, "state",
                          !k->as[0] ? "missing"
                          : ok      ? "reachable"
                                    : "unreachable") |
        tde_json_set_text(j, "error", ok || !why->code ? NULL : why->message) |
        tde_json_set_text(j, "remedy",
                          ok         ? NULL
                          : k->as[0] ? why->remedy
                                     : remedy);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

static tde_json *check_answer(const restore *r) {
  tde_json *j = tde_json_object(), *list = tde_json_array();
  char uuid[40];
  int bad = 0, ok = 1;

  tde_uuid_text(r->v.head.uuid, uuid);
  for (int i = 0; i < r->keys.n; i++) {
    const tde_needed_key *k = &r->keys.key[i];
    ok &= k->as[0] && k->asked.code == TDE_OK;
    bad |= tde_json_append(list, needed_row(r, k));
  }
  bad |= tde_json_set_text(j, "path", r->v.path) | tde_json_set_text(j, "uuid", uuid) |
         tde_view_set_time(j, "time", backup_time(r->v.path, r->v.doc)) |
         tde_json_set_bool(j, "ok", ok) | tde_json_set_json(j, "needed", list);
  if (!bad) return j;
  tde_json_free(j);
  return NULL;
}

/* Reads the options, at argument i; those allowed. An SQLite code. */
static int begin(restore *r, sqlite3_context *ctx, tde_options *o, const char *options,
                 const char *allowed, tde_status *st) {
  tde_status_clear(st);
  memset(r, 0, sizeof(*r));
  r->db = sqlite3_context_db_handle(ctx);
  r->o = r->keys.o = o;
  return tde_options_read(o, r->db, options, allowed, st);
}

static void end(restore *r) {
  tde_keydoc_free(r->source);
  tde_needed_end(&r->keys);
  tde_view_close(&r->v);
  sqlite3_free(r);
}

void tde_sql_restore_check(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *source = tde_arg_needed(ctx, argc, argv, 0, "the source's path");
  restore *r = source ? sqlite3_malloc64(sizeof(*r)) : NULL;
  tde_options o;
  tde_status st;
  int rc;

  if (!r) {
    if (source) sqlite3_result_error_nomem(ctx);
    return;
  }
  rc = begin(r, ctx, &o, tde_arg_text(argc, argv, 1),
             "keys instance identity federated_client_id at uuid", &st);
  if (rc == SQLITE_OK) rc = prepare(r, source, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    tde_json *j = check_answer(r);
    tde_result_json(ctx, j, j == NULL);
  }
  end(r);
  tde_options_end(&o);
}

/* ---- tde_restore(source, path [, options]) ---- */

/* The backup's URI, asking for its key under the id it was found as, and by whom. */
static char *source_uri(const restore *r) {
  const tde_needed_key *k = &r->keys.key[0];
  const tde_uri_param params[] = {{"tde_instance", r->instance},
                                  {"tde_key", r->keys.n == 1 ? k->as : NULL},
                                  {"tde_identity", k->who.identity},
                                  {"tde_federated_client_id", k->who.federated_client_id}};

  return tde_uri_with(r->v.path, "", params, sizeof(params) / sizeof(params[0]));
}

/* Was it chosen among others for what its DEKs vouch for? */
static tde_class check_chosen(const restore *r, tde_status *st) {
  if (!r->chosen || (backup_time(r->v.path, r->source) == r->time &&
                     nanoseconds_of(r->source) == r->nanoseconds)) {
    return TDE_OK;
  }
  return tde_fail(st, TDE_NOT_AUTHENTIC,
                  "name the backup itself, or take that file out of the folder, which somebody has changed",
                  "%.200s: its key does not vouch for the time that it says it is of, by which it was "
                  "chosen from its folder",
                  r->v.path);
}

/* What the header says that is in force, now that its DEKs are at hand: a new database's header is
** not to vouch for what somebody has put into the other slot. */
static int read_source(restore *r, tde_file *f, const tde_file_info *info, tde_status *st) {
  tde_class c = tde_subject_keydoc(f, &r->source, st);

  memcpy(r->uuid, info->uuid, sizeof(r->uuid));
  if (c == TDE_OK) c = check_chosen(r, st);
  return tde_class_rc(c);
}

/* Opens the backup for reading. */
static int open_source(restore *r, sqlite3 **db, tde_status *st) {
  char *uri = source_uri(r);
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = NULL;
  int rc = uri && info
               ? sqlite3_open_v2(uri, db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, TDE_VFS_NAME)
               : SQLITE_NOMEM;

  if (rc == SQLITE_OK) rc = sqlite3_file_control(*db, "main", TDE_FCNTL_FILE, &f);
  if (rc == SQLITE_OK) {
    tde_file_info_get(f, 0, info);
    if (info->state != TDE_STATE_ONLINE) {
      *st = info->last;
      rc = tde_class_rc(info->last.code) ? tde_class_rc(info->last.code) : SQLITE_ERROR;
    } else {
      rc = read_source(r, f, info, st);
    }
  }
  if (rc && !st->code) {
    tde_fail(st, TDE_IO, tde_errno_remedy(*db ? sqlite3_system_errno(*db) : 0, "check the file"),
             "%s: cannot be opened: %s", r->v.path,
             *db ? sqlite3_errmsg(*db) : sqlite3_errstr(rc));
  }
  sqlite3_free(info);
  sqlite3_free(uri);
  return rc;
}

static const tde_audit *event_of(const restore *r, const char *path, const tde_status *st,
                                 tde_event *e) {
  tde_key_info p;

  memset(&p, 0, sizeof(p));
  if (r->v.doc) (void)tde_keydoc_protector(r->v.doc, &p, NULL);
  tde_event_fill(e, "restore", r->v.doc ? r->v.head.uuid : NULL, path, p.base_id, p.version, st);
  return r->keys.inst ? tde_instance_audit(r->keys.inst) : NULL;
}

static void tell(const restore *r, const char *path, const tde_status *st) {
  tde_event e;
  const tde_audit *audit = event_of(r, path, st, &e);

  if (!audit) { /* perhaps for the instance itself */
    const tde_instance *inst = tde_instance_now_or_last(r->instance);
    audit = inst ? tde_instance_audit(inst) : NULL;
  }
  (void)tde_event_emit(audit, &e, NULL);
}

static int announce(const restore *r, const char *path, tde_status *st) {
  tde_event e;
  const tde_audit *audit = event_of(r, path, NULL, &e);

  return tde_class_rc(tde_event_announce(audit, &e, st));
}

static int run_restore(restore *r, const char *source, const char *path, int *pages, int *dropped,
                       tde_status *st) {
  sqlite3 *from = NULL;
  tde_place place;
  tde_job job;
  tde_newdb n = {.schema = "main", .event = "restore", .job = &job};
  char *full = tde_place_path(path); /* as it is told of; the call's place is taken later */
  int rc = full ? prepare(r, source, st) : SQLITE_NOMEM;

  memset(&place, 0, sizeof(place));
  if (rc == SQLITE_OK && tde_needed_missing(&r->keys, st)) rc = SQLITE_IOERR_AUTH;
  if (rc == SQLITE_OK && !r->keys.inst) { /* with which nothing could be opened */
    *st = r->keys.no_instance;
    rc = tde_class_rc(st->code);
  }
  for (int i = 0; i < r->keys.n && rc == SQLITE_OK; i++) {
    if (r->keys.key[i].asked.code == TDE_OK) continue;
    *st = r->keys.key[i].asked;
    rc = tde_class_rc(st->code);
  }
  if (rc == SQLITE_OK) rc = announce(r, full, st);
  if (rc == SQLITE_OK) rc = tde_place_begin(&place, path, 0, st);
  if (rc == SQLITE_OK) rc = open_source(r, &from, st);
  if (rc == SQLITE_OK) {
    n.from = from;
    n.instance = r->instance;
    n.protector = r->o->protector;
    if (n.protector) {
      n.identity = r->o->identity;
      n.federated_client_id = r->o->federated_client_id;
    }
    n.source = r->source;
    n.source_uuid = r->uuid;
    n.source_time = backup_time(r->v.path, r->source);
    tde_job_begin(&job, r->db, "restore", place.target);
    rc = tde_newdb_make(&n, &place, st);
    tde_job_end(&job);
    *pages = n.pages;
    *dropped = n.dropped;
  }
  (void)sqlite3_close(from);
  tell(r, full ? full : path, rc ? st : NULL);
  tde_place_end(&place);
  sqlite3_free(full);
  return rc;
}

void tde_sql_restore(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  const char *source = tde_arg_needed(ctx, argc, argv, 0, "the source's path");
  const char *path = source ? tde_arg_needed(ctx, argc, argv, 1, "the new database's path") : NULL;
  restore *r = path ? sqlite3_malloc64(sizeof(*r)) : NULL;
  tde_options o;
  tde_status st;
  int rc, pages = 0, dropped = 0;

  if (!r) {
    if (path) sqlite3_result_error_nomem(ctx);
    return;
  }
  rc = begin(r, ctx, &o, tde_arg_text(argc, argv, 2),
             "keys instance identity federated_client_id protector at uuid", &st);
  if (rc == SQLITE_OK) rc = run_restore(r, source, path, &pages, &dropped, &st);
  if (rc) {
    tde_result_status(ctx, rc, &st);
  } else {
    tde_json *j = tde_json_object();
    int bad = tde_json_set_text(j, "path", path) | tde_json_set_text(j, "source", r->v.path) |
              tde_view_set_time(j, "time", backup_time(r->v.path, r->source)) |
              tde_json_set_int(j, "pages", pages) |
              tde_json_set_text(j, "mode", o.protector ? "database" : "inherit");
    if (dropped) bad |= tde_json_set_int(j, "keys_dropped", dropped);
    tde_result_json(ctx, j, bad);
  }
  end(r);
  tde_options_end(&o);
}
