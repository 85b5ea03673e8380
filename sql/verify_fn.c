/*
** verify_fn.c: the SQL function tde_verify(); see verify_fn.h.
**
** What was damaged may be what SQLite needs to make a connection useful: with its schema, or the
** header, not to be read, SQLite of today prepares no SELECT there (parse.y, cmd ::= select). So the
** argument may be a file, too, which another connection has verified, through one of the function's
** own.
*/
#include "verify_fn.h"

#include <string.h>

#include "../keyprovider/json.h"
#include "../vfs/tdevfs.h"
#include "progress.h"
#include "result.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

/* How many bad units are listed; all are counted. */
#define BAD_LISTED 1000

/* So long a connection of its own waits for a lock. */
#define WAIT_MS 5000

typedef struct bad_list {
  tde_json *list;
  int listed, failed;
  tde_job job;
} bad_list;

static int list_bad(void *p, const tde_bad_unit *bad) {
  bad_list *b = p;
  tde_json *o;

  if (b->listed >= BAD_LISTED) return 0;
  b->listed++;
  o = tde_json_object();
  b->failed |= tde_json_set_text(o, "role", bad->role);
  b->failed |= tde_json_set_int(o, "unit", (int64_t)bad->index);
  b->failed |= tde_json_set_text(o, "class", tde_class_name(bad->code));
  b->failed |= tde_json_append(b->list, o);
  return 0;
}

static int verify_progress(void *p, uint64_t done, uint64_t all) {
  bad_list *b = p;
  return tde_job_step(&b->job, (int64_t)done, (int64_t)all);
}

static void verify_result(sqlite3_context *ctx, const tde_verify_result *r, bad_list *b) {
  tde_json *j = tde_json_object();
  int bad = b->failed;

  bad |= tde_json_set_bool(j, "ok", r->bad == 0 && !r->torn && !r->truncated);
  bad |= tde_json_set_int(j, "main_units", (int64_t)r->main_units);
  bad |= tde_json_set_int(j, "wal_units", (int64_t)r->wal_units);
  bad |= tde_json_set_int(j, "wal_stale", (int64_t)r->wal_stale);
  bad |= tde_json_set_int(j, "wal_cut", (int64_t)r->wal_cut);
  bad |= tde_json_set_int(j, "superseded", (int64_t)r->superseded);
  bad |= tde_json_set_int(j, "bad", (int64_t)r->bad);
  bad |= tde_json_set_bool(j, "torn", r->torn);
  bad |= tde_json_set_bool(j, "truncated", r->truncated);
  bad |= tde_json_set_json(j, "bad_units", b->list);
  tde_result_json(ctx, j, bad);
}

/* A verification: its read transaction keeps the WAL where it is. */
typedef struct verification {
  sqlite3 *caller; /* may interrupt it */
  sqlite3 *db;     /* the caller, or a connection to a file that it does not have */
  const char *schema;
  tde_file *f;
  sqlite3_stmt *hold;
  tde_verify_log log;
  int unshared; /* log is to be used */
  int failed;   /* SQLite's checkpoint did, so */
  tde_verify_result r;
} verification;

/* A damaged page 1 must not keep the verification from reporting it; a lock must: what
** others change meanwhile would look like damage. One row, also of a schema that is empty: the
** transaction ends with the last; and of one that is large no more than its first page. */
static int hold_still(verification *v, tde_status *st) {
  char *sql = sqlite3_mprintf("SELECT (SELECT 1 FROM \"%w\".sqlite_schema)", v->schema);
  int rc = sql ? sqlite3_prepare_v2(v->db, sql, -1, &v->hold, NULL) : SQLITE_NOMEM;

  if (rc == SQLITE_OK) rc = sqlite3_step(v->hold);
  sqlite3_free(sql);
  rc &= 0xff;
  if (rc == SQLITE_NOMEM) tde_nomem(st);
  if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED) {
    tde_fail(st, TDE_BUSY, "try again", "%s: not verified: another connection holds it",
             sqlite3_db_filename(v->db, v->schema));
  }
  return rc == SQLITE_BUSY || rc == SQLITE_LOCKED || rc == SQLITE_NOMEM ? rc : SQLITE_OK;
}

static void let_go(verification *v) {
  (void)sqlite3_finalize(v->hold);
  v->hold = NULL;
}

/* With locking_mode=EXCLUSIVE SQLite alone knows how far the log has come, and tells when
** it brings it into the file. Who may not write has brought nothing. */
static int ask_sqlite(verification *v, tde_status *st) {
  int frames = 0, restored = 0, rc;

  let_go(v);
  rc = sqlite3_wal_checkpoint_v2(v->db, v->schema, SQLITE_CHECKPOINT_PASSIVE, &frames, &restored);
  if (rc == SQLITE_OK) {
    v->unshared = frames >= 0;
    v->log.frames = (uint32_t)frames;
    v->log.restored = (uint32_t)restored;
  } else if ((rc & 0xff) == SQLITE_LOCKED || (rc & 0xff) == SQLITE_BUSY) {
    tde_fail(st, TDE_BUSY, "COMMIT or ROLLBACK first, and finish what reads it",
             "%s: with locking_mode=EXCLUSIVE its log is brought into the file to verify it, which "
             "this connection's transaction prevents",
             sqlite3_db_filename(v->db, v->schema));
    return rc;
  } else if ((rc & 0xff) != SQLITE_READONLY) {
    v->failed = rc;
  }
  return hold_still(v, st);
}

/* What the checkpoint stumbled over is to be among what was found. */
static int stumbled(const verification *v, tde_status *st) {
  if (!v->failed || v->r.bad || v->r.torn || v->r.truncated) return SQLITE_OK;
  tde_fail(st, TDE_IO, "check the disk",
           "%s: not verified: its log can not be brought into the file: %s",
           sqlite3_db_filename(v->db, v->schema), sqlite3_errstr(v->failed));
  return v->failed;
}

static int run(verification *v, bad_list *b, tde_status *st) {
  int rc = hold_still(v, st);

  if (rc == SQLITE_OK && tde_file_log_unshared(v->f)) rc = ask_sqlite(v, st);
  if (rc == SQLITE_OK) {
    tde_job_begin(&b->job, v->caller, "verify", sqlite3_db_filename(v->db, v->schema));
    rc = tde_file_verify(v->f, v->unshared ? &v->log : NULL, list_bad, verify_progress, b, &v->r,
                         st);
    tde_job_end(&b->job);
  }
  let_go(v);
  if (rc == SQLITE_INTERRUPT) return tde_job_interrupted(st);
  return rc ? rc : stumbled(v, st);
}

/* Why a file could not be opened. */
static void fail_open(int rc, const char *source, sqlite3 *db, tde_status *st) {
  if ((rc & 0xff) == SQLITE_CANTOPEN && strncmp(source, "file:", 5) != 0) {
    tde_fail(st, TDE_MISUSE, "PRAGMA database_list names the schemas; or check the path",
             "there is no schema named '%.300s' on this connection, and no file of that path can be "
             "opened",
             source);
    return;
  }
  tde_fail(st, TDE_IO,
           (rc & 0xff) == SQLITE_MISUSE ? "a URI parameter or its value does not exist; README.md "
                                          "lists them"
                                        : "check the path; SQLite's error log may say more",
           "%.300s: can not be opened: %s", source, db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
}

/* Opens a file by its path or URI. */
static int open_file(verification *v, const char *source, tde_status *st) {
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_PRIVATECACHE;
  char *uri = strncmp(source, "file:", 5) == 0 ? tde_uri_private(source) : tde_uri_of(source, "");
  int rc = uri ? sqlite3_open_v2(uri, &v->db, flags, TDE_VFS_NAME) : SQLITE_NOMEM;

  sqlite3_free(uri);
  if (rc == SQLITE_NOMEM) {
    tde_nomem(st);
  } else if (rc) {
    fail_open(rc, source, v->db, st);
  } else {
    v->schema = "main";
    (void)sqlite3_busy_timeout(v->db, WAIT_MS);
  }
  return rc;
}

static int find(verification *v, const char *source, tde_status *st) {
  int rc = SQLITE_OK;

  if (source && !source[0]) {
    tde_fail(st, TDE_MISUSE, "name a schema of the connection or the path of a file",
             "the source is empty");
    return SQLITE_MISUSE;
  }
  v->schema = source ? source : "main";
  v->db = v->caller;
  if (!tde_subject_is_schema(v->db, v->schema)) {
    v->db = NULL;
    rc = open_file(v, v->schema, st);
  }
  if (rc == SQLITE_OK) v->f = tde_subject_file(v->db, v->schema, st);
  return rc == SQLITE_OK && !v->f ? SQLITE_ERROR : rc;
}

void tde_sql_verify(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
  verification v = {.caller = sqlite3_context_db_handle(ctx)};
  bad_list b = {0};
  tde_status st;
  int rc;

  tde_status_clear(&st);
  rc = find(&v, tde_arg_text(argc, argv, 0), &st);
  if (rc == SQLITE_OK) {
    b.list = tde_json_array();
    rc = run(&v, &b, &st);
  }
  if (rc) {
    tde_json_free(b.list);
    tde_result_status(ctx, rc, &st);
  } else {
    verify_result(ctx, &v.r, &b);
  }
  if (v.db != v.caller) (void)sqlite3_close(v.db);
}
