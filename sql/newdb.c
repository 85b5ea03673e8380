/*
** newdb.c: a new database with the content of another; see newdb.h.
*/
#include "newdb.h"

#include <errno.h>
#include <time.h>

#include "../ext/base/bytes.h"

SQLITE_EXTENSION_INIT3

#define PAGES_PER_STEP 512
/* A source that others keep changing is started over; then it is held. */
#define RESTARTS 5
/* So long is waited for a lock, beside what the connection's own busy handler waits. */
#define BUSY_SECONDS 5
#define BUSY_NAP_MS 20

#define CUT_SHORT "the source is cut short or damaged: name another backup, or take one"

/* What the database's file says of its last failure; of a source the remedy is another one. */
static void ask_file(sqlite3 *db, const char *schema, tde_status *st) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = db ? tde_subject_find(db, schema) : NULL;

  if (st->code == TDE_OK && info && f) {
    tde_file_info_get(f, 0, info);
    if (info->last.code) *st = info->last;
    if (st->code == TDE_TRUNCATED)
      (void)sqlite3_snprintf(sizeof(st->remedy), st->remedy, CUT_SHORT);
  }
  sqlite3_free(info);
}

static int explain(sqlite3 *db, int rc, const char *what, tde_status *st) {
  int busy = (rc & 0xff) == SQLITE_BUSY, corrupt = (rc & 0xff) == SQLITE_CORRUPT;
  int unopened = (rc & 0xff) == SQLITE_CANTOPEN;
  int err = (rc & 0xff) == SQLITE_FULL ? ENOSPC : db ? sqlite3_system_errno(db) : 0;

  ask_file(db, "main", st);
  if (st->code == TDE_OK) {
    tde_fail(st, busy ? TDE_BUSY : TDE_IO,
             busy      ? "try again when it is not in use"
             : corrupt ? CUT_SHORT
                       : tde_errno_remedy(err, unopened ? "check the path, and the permissions of the folder"
                                                        : "check the disk"),
             "%s: %s", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
  }
  return rc;
}

static char *uri_for(const tde_newdb *n, const char *path, const char *more) {
  const tde_uri_param params[] = {{"tde_instance", n->instance},
                                  {"tde_protector", n->protector},
                                  {"tde_identity", n->identity},
                                  {"tde_federated_client_id", n->federated_client_id}};

  return tde_uri_with(path, more, params, sizeof(params) / sizeof(params[0]));
}

static int open_new(const tde_newdb *n, const char *path, const char *more, int flags, sqlite3 **db,
                    tde_status *st) {
  char *uri = uri_for(n, path, more);
  int rc = uri ? sqlite3_open_v2(uri, db, flags | SQLITE_OPEN_URI, TDE_VFS_NAME) : SQLITE_NOMEM;

  sqlite3_free(uri);
  return rc ? explain(*db, rc, path, st) : SQLITE_OK;
}

static time_t seconds(void) {
  struct timespec t = {0, 0};

  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec;
}

/* In steps, between which others may write; SQLite starts over when they did. */
static int copy(tde_newdb *n, sqlite3 *to, tde_status *st) {
  sqlite3_backup *b = sqlite3_backup_init(to, "main", n->from, n->schema);
  int rc, left = 0, before = 0, restarts = 0;
  time_t moved = seconds();

  if (!b) return explain(to, sqlite3_errcode(to), "the copy can not begin", st);
  do {
    rc = sqlite3_backup_step(b, restarts < RESTARTS ? PAGES_PER_STEP : -1);
    n->pages = sqlite3_backup_pagecount(b);
    left = sqlite3_backup_remaining(b);
    if (before && left > before) restarts++;
    before = left;
    if (rc == SQLITE_OK) moved = seconds();
    if ((rc == SQLITE_BUSY || rc == SQLITE_LOCKED) && seconds() - moved < BUSY_SECONDS) {
      sqlite3_sleep(BUSY_NAP_MS);
      rc = SQLITE_OK;
    }
    if (rc == SQLITE_OK && tde_job_made(n->job, n->pages - left, n->pages)) rc = SQLITE_INTERRUPT;
  } while (rc == SQLITE_OK);
  (void)sqlite3_backup_finish(b);
  if (n->pages == 0) n->pages = 1; /* SQLite makes page 1 of an empty database (backup.c) */
  if (rc == SQLITE_DONE) return SQLITE_OK;
  if (rc == SQLITE_INTERRUPT) return tde_job_interrupted(st);
  /* The new file first: where it failed, the source did not. */
  ask_file(to, "main", st);
  ask_file(n->from, n->schema, st);
  return explain(to, rc, "the copy stopped", st);
}

static int sync_new(sqlite3 *to, tde_status *st) {
  sqlite3_file *file = NULL;
  int rc = sqlite3_file_control(to, "main", SQLITE_FCNTL_FILE_POINTER, &file);

  if (rc == SQLITE_OK) rc = file->pMethods->xSync(file, SQLITE_SYNC_FULL);
  return rc ? explain(to, rc, "the new database could not be synced", st) : SQLITE_OK;
}

/* Reads it back: each unit, and the number of pages. */
static int check_new(tde_newdb *n, const char *path, tde_status *st) {
  tde_verify_result r = {0};
  sqlite3_stmt *stmt = NULL;
  sqlite3 *db = NULL;
  tde_file *f = NULL;
  int pages = -1, rc = open_new(n, path, "&immutable=1", SQLITE_OPEN_READONLY, &db, st);

  if (rc == SQLITE_OK) rc = sqlite3_prepare_v2(db, "PRAGMA page_count", -1, &stmt, NULL);
  if (rc == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW) pages = sqlite3_column_int(stmt, 0);
  if (rc == SQLITE_OK) rc = sqlite3_finalize(stmt);
  if (rc == SQLITE_OK) rc = sqlite3_file_control(db, "main", TDE_FCNTL_FILE, &f);
  if (rc == SQLITE_OK && pages != n->pages) rc = SQLITE_IOERR_CORRUPTFS;
  if (rc == SQLITE_OK) rc = tde_file_verify(f, NULL, NULL, tde_job_read_back, n->job, &r, st);
  if (rc == SQLITE_INTERRUPT) rc = tde_job_interrupted(st);
  if (rc == SQLITE_OK && (r.bad || r.torn || r.truncated)) rc = SQLITE_CORRUPT;
  if (rc) (void)explain(db, rc, "the new database did not read back whole", st);
  (void)sqlite3_close(db);
  return rc;
}

/* Its document learns where it comes from. The audit hears of it from the caller, when
** the file has its name. */
static tde_class edit_origin(void *ctx, tde_keydoc *doc, tde_status *st) {
  tde_newdb *n = ctx;
  tde_json *origin = tde_json_object();
  tde_key_info p;
  tde_event e;
  char uuid[40];
  tde_class c = tde_keydoc_protector(doc, &p, st);
  int bad;

  tde_uuid_text(n->source_uuid, uuid);
  bad = tde_json_set_text(origin, "kind", n->event) | tde_json_set_text(origin, "uuid", uuid) |
        tde_json_set_int(origin, "time", n->source_time);
  bad |= tde_keydoc_set_member(doc, "origin", origin) |
         tde_keydoc_merge_list(doc, n->source, (int64_t)time(NULL));
  if (c) return c;
  tde_event_fill(&e, n->event, NULL, NULL, p.base_id, p.version, NULL);
  bad |= tde_keydoc_add_event(doc, &e);
  /* Under a protector with another id the source's list may be too long. */
  bad |= tde_keydoc_fit(doc, &n->dropped);
  return bad ? tde_nomem(st) : TDE_OK;
}

static int note_origin(void *ctx, tde_change *c, tde_status *st) {
  return tde_change_commit(c, edit_origin, ctx, 1, 1, NULL, st);
}

int tde_newdb_make(tde_newdb *n, tde_place *place, tde_status *st) {
  sqlite3 *to = NULL;
  int rc = tde_place_fits(place, 1, st);

  if (rc == SQLITE_OK) {
    rc = open_new(n, place->temp, "",
                  SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_EXCLUSIVE, &to, st);
  }
  /* Nobody refers to the temporary file: no journal; one sync at the end. */
  if (rc == SQLITE_OK) {
    rc = sqlite3_exec(to, "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF", NULL, NULL, NULL);
    if (rc) (void)explain(to, rc, "the new database can not be prepared", st);
  }
  if (rc == SQLITE_OK) rc = copy(n, to, st);
  if (rc == SQLITE_OK) rc = tde_change_run(to, "main", NULL, note_origin, n, st);
  if (rc == SQLITE_OK) rc = sync_new(to, st);
  (void)sqlite3_close(to);
  if (rc == SQLITE_OK) rc = check_new(n, place->temp, st);
  return rc ? rc : tde_place_publish(place, st);
}
