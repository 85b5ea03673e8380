/*
** protector.c: which key a database's DEKs are wrapped under; see protector.h.
*/
#include "protector.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../vfs/logview.h"
#include "follow.h"

SQLITE_EXTENSION_INIT3

/* ---- the rule of old thumbprints ---- */

#define OLD_THUMBPRINT "PerDatabaseCMKKeyRotationAttemptedWhileOldThumbprintInUse"

/* Is the log of another protector than the current one? An error must not pass for "yes", nor
** for "no". */
static int look_at_log(tde_change *c, tde_log_view *log, int *old, tde_status *st) {
  int rc = tde_file_log(c->f, 0, log);

  *old = rc == SQLITE_OK && log->exists && log->stamped && log->authentic && log->units > 0 &&
         memcmp(log->thumbprint, c->protector.thumbprint, TDE_THUMB_BYTES) != 0;
  if (rc) {
    tde_fail(st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO,
             "check the disk, and the file whose name ends in -wal",
             "%.300s: its log cannot be looked at: %s", c->info->path, sqlite3_errstr(rc));
  }
  return rc;
}

/* A WAL that was begun under another protector than the current one must go into
** the database first: a log may be one key behind, not two. */
static int settle_log(tde_change *c, tde_status *st) {
  char stamped[2 * TDE_THUMB_SHOWN + 1], current[2 * TDE_THUMB_SHOWN + 1], holders[256];
  tde_log_view log;
  int old, rc = look_at_log(c, &log, &old, st);

  if (rc || !old) return rc;
  (void)sqlite3_wal_checkpoint_v2(c->db, c->schema, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  rc = look_at_log(c, &log, &old, st);
  if (rc || !old) return rc;
  tde_hex(log.thumbprint, TDE_THUMB_SHOWN, stamped);
  tde_hex(c->protector.thumbprint, TDE_THUMB_SHOWN, current);
  tde_log_holders(c->info->path, holders, sizeof(holders));
  tde_fail(st, TDE_BUSY,
           "end the transactions that use the log, then try again: it is checkpointed first",
           OLD_THUMBPRINT
           ": the log of %.120s is stamped with thumbprint %s, the protector is %s; "
           "held by %.120s",
           c->info->path, stamped, current, holders[0] ? holders : "another connection");
  return SQLITE_BUSY;
}

/* ---- protector ---- */

/* What becomes of the mode. */
typedef enum protector_mode { MODE_STAYS, MODE_DATABASE, MODE_INHERIT } protector_mode;

typedef struct rewrap {
  tde_wraps wraps;
  protector_mode mode;
  const tde_instance *inst;    /* MODE_INHERIT: from here */
  const tde_keydoc_asker *who; /* or NULL: stays */
  int looked, switch_on;       /* a new version was looked for; auto-rotation is on from here */
  int64_t now;
} rewrap;

static tde_class edit_protector(void *ctx, tde_keydoc *doc, tde_status *st) {
  rewrap *r = ctx;
  int failed = 0;

  if (r->mode == MODE_DATABASE) failed |= tde_keydoc_set_mode(doc, "database");
  if (r->mode == MODE_INHERIT) failed |= tde_keydoc_inherit(doc, r->inst);
  for (int i = 0; i < r->wraps.n; i++) {
    failed |= tde_keydoc_set_wrap(doc, r->wraps.epochs[i], &r->wraps.of[i], r->now);
  }
  failed |= tde_keydoc_use_key(doc, &r->wraps.of[0].info, r->now);
  if (r->who) failed |= tde_keydoc_set_identity(doc, r->who);
  if (r->looked) {
    /* Nobody is there to make room on the list, and to stop rotating would be worse. */
    failed |= tde_keydoc_drop_versions(doc, &r->wraps.of[0].info, r->now) |
              tde_keydoc_rotation_checked(doc, r->now, 1, NULL);
  }
  if (r->switch_on) failed |= tde_keydoc_set_auto_rotation(doc, 1);
  return failed ? tde_nomem(st) : TDE_OK;
}

/* Does what a change was decided on still hold? May say anew what key it is. */
typedef int (*still_true)(void *ctx, const tde_change *c);

typedef struct protector_work {
  const char *key_id;
  protector_mode mode;
  const tde_keydoc_asker *who;
  tde_key_info *out;
  still_true still; /* looked at in each try, before anything is asked; NULL: nothing to see */
  void *ctx;        /* of still */
  int tried_again;  /* see tde_change */
  int gave_up;      /* it did not: nothing was changed */
  int looked, switch_on; /* see rewrap */
} protector_work;

static int set_protector(void *ctx, tde_change *c, tde_status *st) {
  protector_work *w = ctx;
  rewrap r = {.mode = w->mode,
              .inst = c->inst,
              .who = w->who,
              .looked = w->looked,
              .switch_on = w->switch_on,
              .now = (int64_t)time(NULL)};
  tde_keydoc_asker own;
  int rc = SQLITE_OK;

  c->tried_again = w->tried_again;
  w->gave_up = w->still && !w->still(w->ctx, c);
  if (w->gave_up) return SQLITE_OK;
  memset(&c->subject, 0, sizeof(c->subject));
  (void)sqlite3_snprintf(sizeof(c->subject.base_id), c->subject.base_id, "%s", w->key_id);
  if (w->mode == MODE_DATABASE) {
    rc = tde_class_rc(tde_instance_may_protect(c->inst, w->key_id, st));
  }
  if (rc == SQLITE_OK) rc = settle_log(c, st);
  if (rc) return rc;
  tde_keydoc_asker_of(c->doc, &own);
  rc = tde_class_rc(tde_change_wrap(c, c->inst, w->key_id, w->who ? w->who : &own, &r.wraps, st));
  if (rc == SQLITE_OK) {
    *w->out = c->subject = r.wraps.of[0].info;
    rc = tde_change_commit(c, edit_protector, &r, 0, 1, w->out, st);
  }
  free(r.wraps.of);
  return rc;
}

int tde_protector_set(sqlite3 *db, const char *schema, const char *key_id, const char *event,
                      tde_key_info *out, tde_status *st) {
  protector_work w = {.key_id = key_id, .mode = MODE_DATABASE, .out = out};

  memset(out, 0, sizeof(*out));
  return tde_change_run(db, schema, event, set_protector, &w, st);
}

/* Puts the database under its instance's default protector, or another key that w names. */
static int inherit(sqlite3 *db, const char *schema, const char *event, protector_work *w,
                   tde_status *st) {
  tde_keydoc_asker who = {.identity = NULL};
  const tde_instance *inst;
  int rc;
  tde_file *f = tde_subject_file(db, schema, st);
  tde_class c;

  if (!f) return SQLITE_ERROR;
  c = tde_instance_open(tde_file_instance(f), 0, &inst, st);
  if (c) return tde_class_rc(c);
  tde_instance_need_id(&inst);
  who.identity = tde_instance_default_identity(inst);
  if (!w->key_id) w->key_id = tde_instance_protector(inst);
  w->mode = MODE_INHERIT;
  w->who = &who;
  memset(w->out, 0, sizeof(*w->out));
  rc = tde_change_run(db, schema, event, set_protector, w, st);
  w->key_id = NULL; /* they end here */
  w->who = NULL;
  return rc;
}

int tde_protector_revert(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st) {
  protector_work w = {.out = out};

  return inherit(db, schema, "revert", &w, st);
}

static int inherits(void *ctx, const tde_change *c) {
  (void)ctx;
  return strcmp(tde_keydoc_mode(c->doc), "inherit") == 0;
}

int tde_protector_follow(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st) {
  protector_work w = {.out = out, .still = inherits};
  int rc = inherit(db, schema, "follow-instance", &w, st);

  if (rc || !w.gave_up) return rc;
  tde_fail(st, TDE_MISUSE,
           "tde_revert() goes back to a service-managed instance; to one with a key of its own "
           "the way is a restore without a protector",
           "%s: the database has a protector of its own",
           sqlite3_db_filename(db, schema ? schema : "main"));
  return SQLITE_MISUSE;
}

/* ---- auto-rotation ---- */

typedef struct looked {
  int64_t now;
  const char *error;
} looked;

static tde_class edit_looked(void *ctx, tde_keydoc *doc, tde_status *st) {
  looked *l = ctx;
  return tde_keydoc_rotation_checked(doc, l->now, 0, l->error) ? tde_nomem(st) : TDE_OK;
}

/* The newest version of a protector. */
typedef struct newest {
  const uint8_t *uuid; /* whose protector; NULL: that of the database that is open, on or off */
  tde_key_info info;
  tde_key_info from; /* the protector then */
  int moved;         /* another version than the protector's */
  int other;         /* the file is not the one that was meant, or is not to be rotated any more */
  looked l;
} newest;

static int is_protector(const tde_change *c, const tde_key_info *info) {
  return strcmp(c->protector.base_id, info->base_id) == 0 &&
         strcmp(c->protector.version, info->version) == 0;
}

static int may_rotate(const uint8_t *uuid, const tde_change *c) {
  const tde_key_facts *facts = &c->info->facts;

  if (!uuid) return 1; /* somebody called for it */
  return memcmp(uuid, c->info->uuid, TDE_UUID_BYTES) == 0 && facts->auto_rotation;
}

/* Writes down that somebody looked, so that the schedule survives. */
static int note_look(void *ctx, tde_change *c, tde_status *st) {
  newest *n = ctx;

  /* What another key's service answered, or none, is nothing to write down. */
  if (!may_rotate(n->uuid, c) || !is_protector(c, &n->from)) return SQLITE_OK;
  return tde_change_commit(c, edit_looked, &n->l, 1, 0, NULL, st);
}

static int look_for_newest(void *ctx, tde_change *c, tde_status *st) {
  newest *n = ctx;
  tde_op *op;
  tde_keydoc_asker who;
  tde_class cls;

  n->other = !may_rotate(n->uuid, c);
  if (n->other) return SQLITE_OK;
  op = calloc(1, sizeof(*op));
  if (!op) return SQLITE_NOMEM;
  tde_keydoc_asker_of(c->doc, &who);
  op->kind = TDE_OP_LATEST;
  op->instance = c->inst;
  op->identity = who.identity;
  op->federated_client_id = who.federated_client_id;
  n->from = c->protector;
  cls = tde_provider_run(op, c->protector.base_id, st);
  n->info = op->info;
  n->moved = strcmp(op->info.version, c->protector.version) != 0;
  free(op);
  return tde_class_rc(cls);
}

/* Between the look and the change, somebody may have set another protector, or another
** process a version that is newer still. */
static int is_as_looked(void *ctx, const tde_change *c) {
  const newest *n = ctx;

  return may_rotate(n->uuid, c) && is_protector(c, &n->from);
}

/* How a look ended is written down, as nobody waits for its answer. */
static int auto_rotate(sqlite3 *db, newest *n, tde_status *st) {
  char full[TDE_KEY_ID_MAX], why[640];
  tde_key_info out;
  tde_status ignored;
  protector_work w = {.out = &out, .still = is_as_looked, .ctx = n, .looked = 1};
  int rc = tde_change_run(db, "main", "auto-rotation", look_for_newest, n, st);

  if (n->other) return rc;
  if (rc == SQLITE_OK && n->moved) {
    tde_key_full_id(&n->info, full);
    w.key_id = full;
    memset(&out, 0, sizeof(out));
    rc = tde_change_run(db, "main", "auto-rotation", set_protector, &w, st);
    if (rc == SQLITE_OK) return rc; /* which notes the look, too */
  }
  if (rc) {
    (void)sqlite3_snprintf(sizeof(why), why, "%s%s%s", st->message, st->remedy[0] ? "; " : "",
                           st->remedy);
    n->l.error = why;
  }
  /* Not each look is an event: its failure was told already. */
  (void)tde_change_run(db, "main", NULL, note_look, n, &ignored);
  n->l.error = NULL;
  return rc;
}

static tde_class edit_on(void *ctx, tde_keydoc *doc, tde_status *st) {
  tde_class c = edit_looked(ctx, doc, st);

  if (c) return c;
  return tde_keydoc_set_auto_rotation(doc, 1) ? tde_nomem(st) : TDE_OK;
}

/* The look comes first, and all that it leads to is one change: a call that fails leaves what was. */
static int switch_on(void *ctx, tde_change *c, tde_status *st) {
  newest n = {.l.now = (int64_t)time(NULL)};
  char full[TDE_KEY_ID_MAX];
  tde_key_info out;
  protector_work w = {.key_id = full, .out = &out, .looked = 1, .switch_on = 1};
  int rc = look_for_newest(&n, c, st);

  (void)ctx;
  if (rc) return rc;
  if (!n.moved) return tde_change_commit(c, edit_on, &n.l, 0, 0, NULL, st);
  tde_key_full_id(&n.info, full);
  memset(&out, 0, sizeof(out));
  return set_protector(&w, c, st);
}

int tde_protector_auto_rotation_on(sqlite3 *db, const char *schema, tde_status *st) {
  return tde_change_run(db, schema, "auto-rotation-on", switch_on, NULL, st);
}

/* ---- the background job ---- */

/* A look in the future was made by a clock that was wrong. */
static int is_due(int64_t checked, int64_t every) {
  int64_t now = (int64_t)time(NULL);

  return checked > now || now - checked >= every;
}

/* What is to be done about a database that inherits. */
typedef struct following {
  const uint8_t *uuid;
  tde_follow what;
  char target[TDE_KEY_ID_MAX]; /* where a MOVE goes */
} following;

static tde_follow what_now(const tde_key_facts *facts, const tde_instance *inst,
                           char target[TDE_KEY_ID_MAX]) {
  tde_follow what = tde_follow_of(facts, inst, target);

  if (what == TDE_FOLLOW_MOVE && tde_follow_too_soon(facts, inst)) what = TDE_FOLLOW_NOTHING;
  return what;
}

/* Is this the database that was meant, and is the same to be done still? */
static int still_follows(void *ctx, const tde_change *c) {
  following *f = ctx;

  return memcmp(f->uuid, c->info->uuid, TDE_UUID_BYTES) == 0 &&
         what_now(&c->info->facts, c->inst, f->target) == f->what;
}

static tde_class edit_adopt(void *ctx, tde_keydoc *doc, tde_status *st) {
  return tde_keydoc_inherit(doc, ctx) ? tde_nomem(st) : TDE_OK;
}

/* Notes from which instance the database inherits. */
static int adopt(void *ctx, tde_change *c, tde_status *st) {
  c->tried_again = 1;
  if (!still_follows(ctx, c)) return SQLITE_OK;
  return tde_change_commit(c, edit_adopt, (void *)c->inst, 0, 0, NULL, st);
}

static void follow(sqlite3 *db, following *f) {
  tde_key_info out;
  protector_work w = {
      .key_id = f->target, .out = &out, .still = still_follows, .ctx = f, .tried_again = 1};
  tde_status st;
  int rc = SQLITE_OK;

  if (f->what == TDE_FOLLOW_MOVE) rc = inherit(db, "main", "follow-instance", &w, &st);
  if (f->what == TDE_FOLLOW_ADOPT) rc = tde_change_run(db, "main", "adopt-instance", adopt, f, &st);
  /* Whoever uses the database will have done so by some later check. */
  if (rc && st.code != TDE_BUSY) tde_log_status(TDE_LOG_WARNING, "follow-instance", &st);
}

/* By now another file may have the path: one with a protector of its own, or a backup. */
static int is_the_one(sqlite3 *db, const uint8_t *uuid) {
  tde_file_info *info = sqlite3_malloc64(sizeof(*info));
  tde_file *f = tde_subject_file(db, "main", NULL);
  int same = 0;

  if (f && info) {
    tde_file_info_get(f, 0, info);
    same = info->state == TDE_STATE_ONLINE && !info->facts.backup &&
           memcmp(info->uuid, uuid, TDE_UUID_BYTES) == 0;
  }
  sqlite3_free(info);
  return same;
}

static void run_job(sqlite3 *db, following *f, int rotate) {
  newest n = {.uuid = f->uuid, .l.now = (int64_t)time(NULL)};
  tde_status st;

  if (!is_the_one(db, f->uuid)) return;
  follow(db, f);
  if (rotate && auto_rotate(db, &n, &st)) {
    tde_log_status(TDE_LOG_WARNING, "auto-rotation", &st);
  }
}

void tde_protector_job(const uint8_t uuid[TDE_UUID_BYTES], const tde_key_facts *facts,
                       const tde_key_params *params) {
  following f = {.uuid = uuid};
  const tde_instance *inst;
  sqlite3 *db;
  int rotate;

  if (facts->backup || tde_instance_open(params->instance, 0, &inst, NULL) != TDE_OK) return;
  /* An older document is to name an instance. */
  if (strcmp(facts->mode, "inherit") == 0 && !facts->inherits_from[0] && !facts->secondary) {
    tde_instance_need_id(&inst);
  }
  f.what = what_now(facts, inst, f.target);
  if (f.what == TDE_FOLLOW_OTHER) tde_follow_tell(uuid, params->path, facts, inst);
  rotate = facts->auto_rotation &&
           is_due(facts->rotation_checked, tde_instance_policy(inst)->rotation_s);
  if (f.what != TDE_FOLLOW_MOVE && f.what != TDE_FOLLOW_ADOPT && !rotate) return;
  db = tde_change_open(params);
  if (!db) {
    tde_log(TDE_LOG_WARNING, "%s: could not be opened to follow its protector", params->path);
    return;
  }
  run_job(db, &f, rotate);
  (void)sqlite3_close(db);
}
