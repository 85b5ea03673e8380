/*
** hooks.c: what the sealed files (sealed.h) of a database ask of it: its journal's order, and what a
** unit means that does not open, or can not be sealed.
*/
#include "../ext/base/log.h"
#include "redo.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

#define VERIFY "SELECT tde_verify() lists all damage; restore from a backup"

/* The journal's records must be in the file before the pages that they save:
** the process may die after this write (SQLite may not sync in between). */
static int journal_first(void *ctx) {
  tde_file *f = ctx;
  tde_file *j = f->db->journal;
  if (f->db->journal_lost) return SQLITE_IOERR_WRITE;
  return j && !j->plain && tde_sealed_pending(&j->s) ? tde_sealed_flush(&j->s) : SQLITE_OK;
}

static int is_damage(tde_class c) {
  return c == TDE_TAMPERED || c == TDE_TORN || c == TDE_TRUNCATED;
}

/* A record that a sweep was writing as it ended is whole in the sweep's log. */
static int lacks_its_log(tde_file *f, const tde_db *db) {
  return db && f->role == TDE_ROLE_MAIN && db->facts.regenerating && !tde_redo_exists(f);
}

static int bad_unit(void *ctx, uint64_t index, tde_class c) {
  tde_file *f = ctx;
  tde_db *db = f->role == TDE_ROLE_TEMP ? NULL : f->db;
  tde_status st, *s = db ? &db->last : &st;

  if (c == TDE_NOMEM) return SQLITE_NOMEM;
  /* Nothing is wrong with a unit whose epoch's key is not to be had: tde_db_learn_epoch says why. */
  if (db && !is_damage(c) && c == s->code) return tde_db_report(db);
  tde_status_clear(s);
  if (db) db->counters.units_rejected++;
  if (c == TDE_TAMPERED) {
    tde_fail(s, c,
             lacks_its_log(f, db)
                 ? "tde_rotate_dek was cut short: if the file was moved, put its -tdelog "
                   "beside it, too; else restore from a backup"
                 : VERIFY,
             "%s: %s unit %llu is not authentic (damaged or tampered with)", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index);
  } else if (c == TDE_TRUNCATED) {
    tde_fail(s, c, VERIFY, "%s: the file ends before %s unit %llu, which the database counts on",
             tde_path_of(f), tde_role_name(f->role), (unsigned long long)index);
  } else if (c == TDE_TORN) {
    tde_fail(s, c, VERIFY, "%s: the file ends within %s unit %llu", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index);
  } else {
    tde_fail(s, c, NULL, "%s: %s unit %llu could not be opened (%s)", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index, tde_class_name(c));
  }
  tde_log_status(TDE_LOG_ERROR, NULL, s);
  return tde_class_rc(c);
}

static int unsealed_unit(void *ctx, uint64_t index, tde_class c) {
  tde_file *f = ctx;
  tde_status st, *s = f->role == TDE_ROLE_TEMP ? &st : &f->db->last;

  if (c == TDE_NOMEM) return SQLITE_NOMEM;
  tde_status_clear(s);
  tde_fail(s, c, c == TDE_RANDOM ? TDE_RANDOM_REMEDY : NULL,
           "%s: %s unit %llu could not be sealed (%s)", tde_path_of(f), tde_role_name(f->role),
           (unsigned long long)index, tde_class_name(c));
  tde_log_status(TDE_LOG_ERROR, NULL, s);
  return tde_class_rc(c);
}

/* Under SHARED, of a database without a WAL, only a sweep writes (reseal.c), under RESERVED: SQLite needs
** EXCLUSIVE for that, and for the step to WAL mode. Whether that was made before is read in page 1. */
static int main_at_rest(void *ctx, uint64_t index) {
  tde_file *f = ctx;
  int reserved = 1;

  if (f->db->lock < SQLITE_LOCK_SHARED || f->db->wal || f->db->shm_open || index == 0) return 0;
  return tde_main_reserved(f->lower, &reserved) == SQLITE_OK && !reserved;
}

const tde_sealed_hooks tde_main_hooks = {.before_write = journal_first,
                                         .guard = tde_guard_put,
                                         .salvage = tde_guard_salvage,
                                         .absent = tde_wal_has_rest,
                                         .bad = bad_unit,
                                         .unsealed = unsealed_unit,
                                         .learn = tde_db_learn_epoch,
                                         .copy = tde_map_copy,
                                         .at_rest = main_at_rest};
const tde_sealed_hooks tde_log_hooks = {
    .bad = bad_unit, .unsealed = unsealed_unit, .trim = tde_journal_trim, .learn = tde_db_learn_epoch};
const tde_sealed_hooks tde_temp_hooks = {.bad = bad_unit, .unsealed = unsealed_unit};
