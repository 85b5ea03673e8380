/*
** views.c: builds the lists that views.h tells of.
*/
#include "views.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../keyprovider/instance_edit.h"
#include "../vfs/logview.h"
#include "options.h"
#include "progress.h"
#include "result.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

int tde_view_set_time(tde_json *obj, const char *name, int64_t t) {
  char text[32];
  struct tm tm;
  time_t at = (time_t)t;

  if (t <= 0 || !gmtime_r(&at, &tm) || !strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm)) {
    return tde_json_set_text(obj, name, NULL);
  }
  return tde_json_set_text(obj, name, text);
}

/* ---- sources ---- */

/* Nonsense there is as good as none. */
static tde_class parse_other(tde_view_db *v, tde_status *st) {
  tde_status why;
  tde_class c;

  tde_status_clear(&why);
  c = tde_keydoc_parse(v->head.other, v->head.nother, &v->other, &why);
  if (c != TDE_NOMEM) return TDE_OK;
  if (st) *st = why;
  return c;
}

int tde_view_fail(const char *path, int rc, int unknown, tde_status *st) {
  if (rc == SQLITE_NOTADB && unknown >= TDE_UNKNOWN_INDEX) {
    tde_fail(st, TDE_MISUSE, "rename it, if it is a database or a backup",
             "%s: was not opened, for it is, or is named as, the wal-index (-shm) of a database",
             path);
  } else if (rc == SQLITE_NOTADB) {
    tde_fail(st, TDE_NOT_ENCRYPTED, "check the file's name",
             "%s: no header of an encrypted database is to be found in it", path);
  } else if (rc == SQLITE_NOMEM) {
    tde_nomem(st);
  } else if (rc == SQLITE_CORRUPT) {
    tde_fail(st, TDE_DAMAGED_HEADER,
             "restore the file from a backup, or use a newer version of tde",
             "%s: its header is damaged, or of a newer format", path);
  } else {
    int err = rc == SQLITE_CANTOPEN ? errno : 0; /* of the open that failed */
    tde_fail(st, TDE_IO, tde_errno_remedy(err, "check the file's name and permissions"),
             "%s: cannot be read (%s)", path, sqlite3_errstr(rc));
  }
  return rc;
}

static int read_head(tde_view_db *v, const char *vfs, tde_status *st) {
  tde_class c;
  int rc;

  if (!v->schema && tde_is_uri(v->path, st)) return SQLITE_MISUSE;
  rc = tde_header_peek(v->path, vfs, &v->head);
  if (rc) return tde_view_fail(v->path, rc, v->head.unknown, st);
  c = tde_keydoc_parse(v->head.doc, v->head.ndoc, &v->doc, st);
  if (c == TDE_OK && v->head.other) c = parse_other(v, st);
  free(v->head.doc);
  free(v->head.other);
  v->head.doc = v->head.other = NULL;
  return tde_class_rc(c);
}

/* A schema or a path; NULL: "main". An SQLite code; st tells. */
static int open_source(tde_view_db *v, sqlite3 *db, const char *source, tde_status *st) {
  const char *vfs = NULL;

  memset(v, 0, sizeof(*v));
  v->db = db;
  if (!source) source = "main";
  if (!source[0]) {
    tde_fail(st, TDE_MISUSE, "name a schema of the connection or the path of a file",
             "the source is empty");
    return SQLITE_MISUSE;
  }
  if (tde_subject_is_schema(db, source)) {
    tde_file_info *info = sqlite3_malloc64(sizeof(*info));
    v->schema = source;
    v->f = info ? tde_subject_file(db, source, st) : NULL;
    if (v->f) {
      tde_file_info_get(v->f, 0, info);
      v->path = sqlite3_mprintf("%s", info->path);
      vfs = info->lower_vfs;
    }
    sqlite3_free(info);
    if (!v->f) return st->code ? SQLITE_ERROR : SQLITE_NOMEM;
  } else {
    v->path = sqlite3_mprintf("%s", source);
  }
  if (!v->path) return SQLITE_NOMEM;
  return read_head(v, vfs, st);
}

int tde_view_open_path(tde_view_db *v, sqlite3 *db, const char *path, const char *vfs,
                       tde_status *st) {
  memset(v, 0, sizeof(*v));
  v->db = db;
  v->path = sqlite3_mprintf("%s", path);
  return v->path ? read_head(v, vfs, st) : SQLITE_NOMEM;
}

void tde_view_close(tde_view_db *v) {
  tde_keydoc_free(v->doc);
  tde_keydoc_free(v->other);
  sqlite3_free(v->path);
  memset(v, 0, sizeof(*v));
}

/* ---- tde_keylist([filter [, source]]) ---- */

/* The filter: a time, or 0. *current: only the protector. */
static int64_t filter_time(sqlite3 *db, const char *filter, int *current, tde_status *st) {
  int64_t t;

  *current = 0;
  if (!filter || !filter[0]) return 0;
  *current = strcmp(filter, "current") == 0;
  if (*current) return 0;
  if (!tde_time_of_text(db, filter, &t)) {
    tde_fail(st, TDE_MISUSE, "give 'current', a Unix time, or a date such as '2026-01-31 12:00'",
             "the filter '%.60s' is neither 'current' nor a time", filter);
  }
  return t;
}

static int put_outcome(tde_json *row, const char *full) {
  tde_key_outcome o;

  if (!tde_provider_outcome(full, &o)) {
    return tde_json_set_text(row, "accessible", NULL) | tde_json_set_text(row, "last_error", NULL);
  }
  return tde_json_set_bool(row, "accessible", o.code == TDE_OK) |
         tde_json_set_text(row, "last_error", o.code ? o.message : NULL);
}

static tde_json *key_row(const tde_json *entry, const tde_key_info *protector) {
  const char *id = tde_json_get_text(entry, "key_id"), *ver = tde_json_get_text(entry, "version");
  const char *thumb = tde_json_get_text(entry, "thumbprint");
  char full[TDE_KEY_ID_MAX], shown[2 * TDE_THUMB_SHOWN + 1];
  int mine = strcmp(id, protector->base_id) == 0 && strcmp(ver, protector->version) == 0;
  tde_json *row = tde_json_object();
  int bad = 0;

  (void)snprintf(full, sizeof(full), "%s/%s", id, ver);
  (void)snprintf(shown, sizeof(shown), "%.*s", 2 * TDE_THUMB_SHOWN, thumb);
  bad |= tde_json_set_text(row, "key_id", id) | tde_json_set_text(row, "version", ver) |
         tde_json_set_text(row, "type", tde_json_get_text(entry, "type")) |
         tde_json_set_text(row, "thumbprint", shown);
  bad |= tde_view_set_time(row, "created", tde_json_get_int(entry, "created", 0)) |
         tde_view_set_time(row, "added", tde_json_get_int(entry, "added", 0)) |
         tde_view_set_time(row, "first_used", tde_json_get_int(entry, "first_used", 0)) |
         tde_view_set_time(row, "last_used", tde_json_get_int(entry, "last_used", 0));
  bad |= tde_json_set_bool(row, "is_protector", mine) | put_outcome(row, full);
  if (!bad) return row;
  tde_json_free(row);
  return NULL;
}

/* Was this key the protector at that time? */
static int used_at(const tde_json *entry, int64_t t) {
  int64_t first = tde_json_get_int(entry, "first_used", 0);
  int64_t last = tde_json_get_int(entry, "last_used", 0);
  return first > 0 && first <= t && (last == 0 || t <= last);
}

static int add_keys(tde_json *list, const tde_view_db *v, int current, int64_t t, tde_status *st) {
  const tde_json *keys = tde_json_get(tde_keydoc_json(v->doc), "keys");
  tde_key_info protector;

  if (tde_keydoc_protector(v->doc, &protector, st) != TDE_OK) return -1;
  for (size_t i = 0; i < tde_json_count(keys); i++) {
    const tde_json *e = tde_json_at(keys, i);
    int mine = strcmp(tde_json_get_text(e, "key_id"), protector.base_id) == 0 &&
               strcmp(tde_json_get_text(e, "version"), protector.version) == 0;
    if ((current && !mine) || (t && !used_at(e, t))) continue;
    if (tde_json_append(list, key_row(e, &protector))) return -1;
  }
  return 0;
}

static tde_json *rows_keylist(sqlite3 *db, const char *const *argv, tde_status *st) {
  tde_json *list = NULL;
  tde_view_db v;
  int current;
  int64_t t = filter_time(db, argv[0], &current, st);

  if (st->code) return NULL;
  if (open_source(&v, db, argv[1], st) == SQLITE_OK) list = tde_json_array();
  if (list && add_keys(list, &v, current, t, st)) {
    tde_json_free(list);
    list = NULL;
  }
  tde_view_close(&v);
  return list;
}

/* ---- tde_encryption_keys([source]) ---- */

/* sys.dm_database_encryption_keys: 3 encrypted, 4 key change in progress. */
#define ENCRYPTED 3
#define KEY_CHANGE 4

static int64_t wrap_time(const tde_keydoc *doc, uint32_t epoch, int64_t *dek_created) {
  const tde_json *deks = tde_json_get(tde_keydoc_json(doc), "deks");

  for (size_t i = 0; i < tde_json_count(deks); i++) {
    const tde_json *d = tde_json_at(deks, i), *wraps = tde_json_get(d, "wraps");
    if (tde_json_get_int(d, "epoch", 0) != (int64_t)epoch) continue;
    *dek_created = tde_json_get_int(d, "created", 0);
    return tde_json_get_int(tde_json_at(wraps, tde_json_count(wraps) - 1), "created", 0);
  }
  *dek_created = 0;
  return 0;
}

/* More than all counts as all. Nothing has verified the numbers: in integers 100 times one may be too
** many. */
int64_t tde_view_percent(const tde_json *regeneration) {
  int64_t done = tde_json_get_int(regeneration, "done", 0);
  int64_t all = tde_json_get_int(regeneration, "all", 0);

  return all > 0 ? (int64_t)(100.0 * (double)(done < all ? done : all) / (double)all) : 0;
}

static int put_scan(tde_json *row, const tde_json *regen) {
  return tde_json_set_int(row, "percent_complete", tde_view_percent(regen)) |
         tde_json_set_int(row, "encryption_scan_state", regen ? 1 : 4) |
         tde_json_set_text(row, "encryption_scan_state_desc", regen ? "RUNNING" : "COMPLETE");
}

static tde_json *encryption_row(const tde_view_db *v) {
  const tde_json *root = tde_keydoc_json(v->doc), *regen = tde_json_get(root, "regeneration");
  char uuid[40], thumb[2 * TDE_THUMB_SHOWN + 1];
  tde_json *row = tde_json_object();
  tde_key_info p;
  int64_t created, set = wrap_time(v->doc, tde_keydoc_epoch(v->doc), &created);
  int bad = tde_keydoc_protector(v->doc, &p, NULL) != TDE_OK;

  tde_uuid_text(v->head.uuid, uuid);
  tde_hex(p.thumbprint, TDE_THUMB_SHOWN, thumb);
  bad |= tde_json_set_text(row, "database", v->schema) | tde_json_set_text(row, "path", v->path) |
         tde_json_set_text(row, "uuid", uuid);
  bad |= tde_json_set_int(row, "encryption_state", regen ? KEY_CHANGE : ENCRYPTED) |
         tde_json_set_text(row, "encryption_state_desc",
                           regen ? "ENCRYPTION_KEY_CHANGE_IN_PROGRESS" : "ENCRYPTED");
  bad |= tde_view_set_time(row, "create_date", created) |
         tde_view_set_time(row, "regenerate_date", tde_json_get_int(root, "regenerated", 0)) |
         tde_view_set_time(row, "set_date", set);
  bad |= tde_json_set_text(row, "key_algorithm", "AES") | tde_json_set_int(row, "key_length", 256) |
         tde_json_set_int(row, "epoch", tde_keydoc_epoch(v->doc)) |
         tde_json_set_text(row, "encryptor_thumbprint", thumb) |
         tde_json_set_text(row, "encryptor_type",
                           strncmp(p.type, "RSA", 3) == 0 ? "ASYMMETRIC KEY" : "SYMMETRIC KEY") |
         tde_json_set_text(row, "encryptor_key_id", p.base_id) |
         tde_json_set_text(row, "encryptor_version", p.version);
  bad |= put_scan(row, regen);
  if (!bad) return row;
  tde_json_free(row);
  return NULL;
}

/* Adds what there is to see of one database. True: it failed, st tells unless there was no memory. */
typedef int (*add_rows)(tde_json *list, const tde_view_db *v, tde_status *st);

/* The schemas of the connection that the shim has, into list. */
static int each_schema(sqlite3 *db, add_rows one, tde_json *list, tde_status *why) {
  sqlite3_stmt *stmt = NULL;
  int bad = sqlite3_prepare_v2(db, "PRAGMA database_list", -1, &stmt, NULL) != SQLITE_OK;

  while (!bad && sqlite3_step(stmt) == SQLITE_ROW) {
    const char *schema = (const char *)sqlite3_column_text(stmt, 1);
    tde_status st;
    tde_view_db v;
    tde_status_clear(&st);
    if (schema && open_source(&v, db, schema, &st) == SQLITE_OK) bad = one(list, &v, why);
    if (schema) tde_view_close(&v);
  }
  (void)sqlite3_finalize(stmt);
  return bad;
}

static int add_encryption(tde_json *list, const tde_view_db *v, tde_status *st) {
  (void)st;
  return tde_json_append(list, encryption_row(v));
}

/* The rows that `one` makes of a source, or of every schema. */
static tde_json *rows_of(sqlite3 *db, const char *source, add_rows one, tde_status *st) {
  tde_json *list = tde_json_array();
  tde_view_db v;
  int bad = !list;

  if (!source) {
    bad |= each_schema(db, one, list, st);
  } else {
    int rc = open_source(&v, db, source, st);
    if (rc == SQLITE_OK) bad |= one(list, &v, st);
    if (rc) bad = 1;
    tde_view_close(&v);
  }
  if (!bad) return list;
  tde_json_free(list);
  return NULL;
}

static tde_json *rows_encryption_keys(sqlite3 *db, const char *const *argv, tde_status *st) {
  return rows_of(db, argv[0], add_encryption, st);
}

/* ---- tde_log_info([source]), tde_log_stats([source]) ---- */

/* An error must not pass for "there is none". */
static int look_at_log(const tde_view_db *v, int journal, tde_log_view *log, tde_status *st) {
  int rc = v->f ? tde_file_log(v->f, journal, log) : tde_log_peek(v->path, NULL, journal, log);

  if (rc == SQLITE_NOMEM) {
    tde_nomem(st);
  } else if (rc) {
    tde_fail(st, TDE_IO, "check that file, and its permissions",
             "%.300s: its %s can not be looked at (%s)", v->path, journal ? "-journal" : "-wal",
             sqlite3_errstr(rc));
  }
  return rc;
}

static tde_json *log_row(const tde_view_db *v, int journal, const tde_log_view *log) {
  char salt[2 * TDE_SALT_BYTES + 1], thumb[2 * TDE_THUMB_SHOWN + 1];
  tde_json *row = tde_json_object();
  int active = log->stamped && (!log->indexed || log->frames > log->restored);
  int bad;

  tde_hex(log->salt, TDE_SALT_BYTES, salt);
  tde_hex(log->thumbprint, TDE_THUMB_SHOWN, thumb);
  bad = tde_json_set_text(row, "database", v->schema) | tde_json_set_text(row, "path", v->path) |
        tde_json_set_text(row, "log", journal ? "journal" : "wal") |
        tde_json_set_text(row, "generation", log->stamped ? salt : NULL) |
        tde_json_set_int(row, "offset", 0) | tde_json_set_int(row, "size", (int64_t)log->bytes) |
        tde_json_set_bool(row, "active", active) |
        tde_json_set_text(row, "status",
                          !log->stamped ? "void"
                          : active      ? "active"
                                        : "checkpointed") |
        tde_json_set_text(row, "encryptor_thumbprint", log->stamped ? thumb : NULL) |
        tde_json_set_int(row, "epoch", log->epoch);
  if (log->indexed) {
    bad |= tde_json_set_int(row, "frames", log->frames) |
           tde_json_set_int(row, "checkpointed_frames", log->restored);
  } else {
    bad |= tde_json_set_int(row, "frames", journal ? 0 : (int64_t)log->units) |
           tde_json_set_text(row, "checkpointed_frames", NULL);
  }
  if (!bad) return row;
  tde_json_free(row);
  return NULL;
}

static int add_logs(tde_json *list, const tde_view_db *v, tde_status *st) {
  int bad = 0;

  for (int journal = 0; journal < 2 && !bad; journal++) {
    tde_log_view log;
    bad = look_at_log(v, journal, &log, st);
    if (!bad && log.exists) bad = tde_json_append(list, log_row(v, journal, &log));
  }
  return bad;
}

static tde_json *rows_log_info(sqlite3 *db, const char *const *argv, tde_status *st) {
  return rows_of(db, argv[0], add_logs, st);
}

/* Why the log is not empty, in the words of sys.dm_db_log_stats. */
static const char *holdup(const tde_log_view *wal, const tde_log_view *journal) {
  if (journal->exists && journal->stamped) return "ACTIVE_TRANSACTION";
  if (!wal->exists || !wal->stamped || !wal->units) return "NOTHING";
  if (!wal->indexed || wal->restored < wal->frames) return "CHECKPOINT";
  return "NOTHING";
}

static int add_log_stats(tde_json *list, const tde_view_db *v, tde_status *st) {
  char stamped[2 * TDE_THUMB_SHOWN + 1], current[2 * TDE_THUMB_SHOWN + 1], holders[256] = "";
  tde_log_view wal, journal;
  tde_json *row = tde_json_object();
  tde_key_info p;
  int bad = tde_keydoc_protector(v->doc, &p, NULL) != TDE_OK, old;

  if (look_at_log(v, 0, &wal, st) || look_at_log(v, 1, &journal, st)) {
    tde_json_free(row);
    return 1;
  }
  tde_hex(wal.thumbprint, TDE_THUMB_SHOWN, stamped);
  tde_hex(p.thumbprint, TDE_THUMB_SHOWN, current);
  if (v->f) tde_log_holders(v->path, holders, sizeof(holders));
  old = wal.stamped && wal.units > 0 && memcmp(wal.thumbprint, p.thumbprint, TDE_THUMB_BYTES) != 0;
  bad |= tde_json_set_text(row, "database", v->schema) | tde_json_set_text(row, "path", v->path) |
         tde_json_set_int(row, "total_log_size", (int64_t)(wal.bytes + journal.bytes)) |
         tde_json_set_int(row, "active_frames",
                          wal.indexed ? (int64_t)wal.frames - wal.restored : (int64_t)wal.units) |
         tde_json_set_text(row, "log_truncation_holdup_reason", holdup(&wal, &journal)) |
         tde_json_set_text(row, "log_thumbprint", wal.stamped ? stamped : NULL) |
         tde_json_set_text(row, "protector_thumbprint", current) |
         tde_json_set_bool(row, "old_thumbprint_in_use", old) |
         tde_json_set_text(row, "held_by", holders[0] ? holders : NULL);
  if (bad) {
    tde_json_free(row);
    return bad;
  }
  return tde_json_append(list, row);
}

static tde_json *rows_log_stats(sqlite3 *db, const char *const *argv, tde_status *st) {
  return rows_of(db, argv[0], add_log_stats, st);
}

/* ---- tde_events([source]) ---- */

static int copy_member(tde_json *to, const tde_json *from, const char *name) {
  const tde_json *v = tde_json_get(from, name);
  return tde_json_set_json(to, name, v ? tde_json_copy(v) : tde_json_null());
}

static tde_json *event_row(const tde_json *e, const char *path, const char *where) {
  static const char *const same[] = {"event",        "key_id",     "outcome", "http_status",
                                     "service_code", "request_id", "message"};
  const tde_json *time = tde_json_get(e, "time");
  tde_json *row = tde_json_object();
  int bad = tde_json_is_int(time) ? tde_view_set_time(row, "time", tde_json_get_int(e, "time", 0))
                                  : tde_json_set_text(row, "time", tde_json_get_text(e, "time"));

  for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) bad |= copy_member(row, e, same[i]);
  bad |= tde_json_set_text(row, "from", where) | tde_json_set_text(row, "path", path);
  if (!bad) return row;
  tde_json_free(row);
  return NULL;
}

static int same_member(const tde_json *a, const tde_json *b, const char *name) {
  return tde_same_text(tde_json_get_text(a, name), tde_json_get_text(b, name));
}

/* Is it in the list already? */
static int has_event(const tde_json *list, const tde_json *row) {
  for (size_t i = 0; i < tde_json_count(list); i++) {
    const tde_json *e = tde_json_at(list, i);
    if (same_member(e, row, "time") && same_member(e, row, "event") &&
        same_member(e, row, "outcome") && same_member(e, row, "key_id")) {
      return 1;
    }
  }
  return 0;
}

/* The events of this process (uuid NULL: of every database) that are not listed. */
static int add_recent(tde_json *list, const uint8_t *uuid) {
  tde_json *recent = tde_events_recent(uuid);
  int bad = !recent;

  for (size_t i = 0; !bad && i < tde_json_count(recent); i++) {
    const tde_json *e = tde_json_at(recent, i);
    tde_json *row = event_row(e, tde_json_get_text(e, "path"), "process");
    if (row && has_event(list, row)) {
      tde_json_free(row);
    } else {
      bad = tde_json_append(list, row);
    }
  }
  tde_json_free(recent);
  return bad;
}

/* The header's events, then those of this process that the header has not. */
static int add_events(tde_json *list, const tde_view_db *v, tde_status *st) {
  const tde_json *kept = tde_json_get(tde_keydoc_json(v->doc), "events");
  int bad = 0;

  (void)st;
  for (size_t i = 0; !bad && i < tde_json_count(kept); i++) {
    bad = tde_json_append(list, event_row(tde_json_at(kept, i), v->path, "header"));
  }
  return bad ? bad : add_recent(list, v->head.uuid);
}

/* Without a source, on a connection whose main database is not the shim's: what this
** process knows of all databases. */
static tde_json *rows_events(sqlite3 *db, const char *const *argv, tde_status *st) {
  tde_json *list;

  if (argv[0] || tde_subject_find(db, "main")) {
    return rows_of(db, argv[0] ? argv[0] : "main", add_events, st);
  }
  list = tde_json_array();
  if (list && add_recent(list, NULL) == 0) return list;
  tde_json_free(list);
  return NULL;
}

/* ---- tde_instance_keylist([instance]) ---- */

static tde_json *rows_instance_keylist(sqlite3 *db, const char *const *argv, tde_status *st) {
  const char *path = argv[0] ? argv[0] : tde_subject_instance(db, 0, NULL, 0);
  const tde_instance *inst;
  const char *protector;
  tde_json *list;
  int bad = 0;

  if (path && !path[0]) {
    tde_fail(st, TDE_MISUSE, "name it, or give NULL", "the instance directory's path is empty");
    return NULL;
  }
  if (tde_instance_open(path, 0, &inst, st)) {
    if (st->code == TDE_MISSING && argv[0]) {
      (void)snprintf(st->remedy, sizeof(st->remedy), "check the path");
    }
    return NULL;
  }
  list = tde_instance_keylist(inst);
  protector = tde_instance_protector(inst);
  for (size_t i = 0; i < tde_json_count(list) && !bad; i++) {
    tde_json *row = tde_json_at(list, i);
    const char *id = tde_json_get_text(row, "key_id"), *ver = tde_json_get_text(row, "version");
    char full[TDE_KEY_ID_MAX];
    /* The protector is asked for as it is set, perhaps without its version. */
    (void)snprintf(full, sizeof(full), "%s%s%s", id, ver ? "/" : "", ver ? ver : "");
    bad = tde_view_set_time(row, "created", tde_json_get_int(row, "created", 0)) |
          put_outcome(row, tde_json_get_bool(row, "is_protector", 0) ? protector : full);
  }
  if (!bad) return list;
  tde_json_free(list);
  return NULL;
}

/* ---- tde_progress() ---- */

static tde_json *rows_progress(sqlite3 *db, const char *const *argv, tde_status *st) {
  (void)db;
  (void)argv;
  (void)st;
  return tde_progress_rows();
}

/* ---- the table ---- */

const tde_view tde_views[] = {
    {"tde_keylist",
     "key_id,version,type,thumbprint,created,added,first_used,last_used,is_protector,accessible,"
     "last_error",
     "filter,source", rows_keylist},
    {"tde_encryption_keys",
     "database,path,uuid,encryption_state,encryption_state_desc,create_date,regenerate_date,"
     "set_date,key_algorithm,key_length,epoch,encryptor_thumbprint,encryptor_type,"
     "encryptor_key_id,encryptor_version,percent_complete,encryption_scan_state,"
     "encryption_scan_state_desc",
     "source", rows_encryption_keys},
    {"tde_log_info",
     "database,path,log,generation,offset,size,active,status,encryptor_thumbprint,epoch,frames,"
     "checkpointed_frames",
     "source", rows_log_info},
    {"tde_log_stats",
     "database,path,total_log_size,active_frames,log_truncation_holdup_reason,log_thumbprint,"
     "protector_thumbprint,old_thumbprint_in_use,held_by",
     "source", rows_log_stats},
    {"tde_events",
     "time,event,key_id,outcome,http_status,service_code,request_id,message,from,"
     "path",
     "source", rows_events},
    {"tde_instance_keylist",
     "key_id,version,type,thumbprint,created,is_protector,accessible,last_error", "instance",
     rows_instance_keylist},
    {"tde_progress", "id,operation,path,started,done,total,percent,seconds_left", "",
     rows_progress},
};
const int tde_nviews = sizeof(tde_views) / sizeof(tde_views[0]);
