/*
** file.c: what the rest of the product asks of an open database; see tdevfs.h. (What changes its
** header is in database_edit.c, what asks for its key anew in database.c.)
*/
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shim.h"

SQLITE_EXTENSION_INIT3

/* ---- whose turn it is ---- */

/* Whoever wipes is out again at once. */
#define YIELDS 100

void tde_file_wait(tde_file *f) {
  struct timespec ms = {0, 1000000};

  for (int i = 0; !tde_file_try_enter(f); i++) {
    if (i < YIELDS) {
      (void)sched_yield();
    } else {
      (void)nanosleep(&ms, NULL);
    }
  }
}

/* ---- what is known of it ---- */

void tde_file_info_get(tde_file *f, int refresh, tde_file_info *out) {
  tde_db *db = f->db;
  int writes;

  memset(out, 0, sizeof(*out));
  tde_file_enter(f);
  /* Not under a write transaction, whose units are sealed as it began, and which may end although
  ** the key was lost. */
  writes = tde_db_in_write(db);
  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) {
    if (writes) {
      tde_db_note_loss(db);
    } else {
      tde_db_lose(db);
    }
  }
  if (refresh && !writes) {
    const tde_status was = db->last;
    int keep = refresh == TDE_REFRESH_KEEP && db->state == TDE_STATE_ONLINE;
    (void)tde_db_load(f, 1);
    if (keep && db->state == TDE_STATE_ONLINE && !db->last.code) db->last = was;
  }
  out->state = db->state;
  out->last = db->last;
  out->format_version = db->header.version ? db->header.version : TDE_FORMAT_VERSION;
  memcpy(out->uuid, db->header.uuid, TDE_UUID_BYTES);
  out->sequence = db->header.sequence;
  out->unit_size = db->header.unit_size;
  out->facts = db->facts;
  out->slot[0] = db->slot[0];
  out->slot[1] = db->slot[1];
  out->counters = db->counters;
  out->path = f->path;
  out->lower_vfs = f->lower_vfs->zName;
  tde_file_leave(f);
}

char *tde_file_keydoc(tde_file *f, size_t *n) {
  char *doc = NULL;

  tde_file_enter(f);
  *n = f->db->header.ndoc;
  if (f->db->header.doc) doc = malloc(*n + 1);
  if (doc) memcpy(doc, f->db->header.doc, *n);
  if (doc) doc[*n] = 0;
  tde_file_leave(f);
  return doc;
}

int tde_file_report(tde_file *f, tde_key_report *out) {
  int is;

  tde_file_enter(f);
  is = f->db->keys != NULL;
  if (is) tde_keys_report(f->db->keys, out);
  tde_file_leave(f);
  return is;
}

const char *tde_file_instance(tde_file *f) {
  return f->db->params.instance;
}

const char *tde_file_path(const tde_file *f) {
  return f->path;
}

int tde_file_copy_params(tde_file *f, tde_key_params *out) {
  int ok;

  tde_file_enter(f);
  ok = tde_key_params_copy(out, &f->db->params);
  tde_file_leave(f);
  return ok;
}

int tde_file_read_only(tde_file *f) {
  int is;

  tde_file_enter(f);
  is = tde_db_is_read_only(f->db);
  tde_file_leave(f);
  return is;
}

int tde_file_is_locked(tde_file *f) {
  int is;

  tde_file_enter(f);
  is = tde_db_in_write(f->db);
  tde_file_leave(f);
  return is;
}

int tde_file_has_moved(tde_file *f) {
  int is;

  tde_file_enter(f);
  is = tde_has_moved(f);
  tde_file_leave(f);
  return is;
}

tde_class tde_fail_backup(const tde_file *f, tde_status *st) {
  return tde_fail(st, TDE_MISUSE, "tde_restore() makes a database of it",
                  "%s: is a backup, which is only read", tde_path_of(f));
}

/* ---- its DEKs ---- */

static tde_class dek_of(const tde_file *f, uint32_t epoch, uint8_t *dek, tde_status *st) {
  const tde_db *db = f->db;
  tde_class c = db->keys ? tde_keys_dek(db->keys, epoch, dek) : TDE_WRONG_KEY;

  if (c == TDE_OK) return c;
  if (db->last.code) {
    if (st) *st = db->last;
    return c;
  }
  return tde_fail(st, c, NULL, "%s: the DEK of epoch %u is not at hand", tde_path_of(f), epoch);
}

tde_class tde_file_dek(tde_file *f, uint32_t epoch, uint8_t *dek, tde_status *st) {
  tde_class c;

  tde_file_enter(f);
  c = dek_of(f, epoch, dek, st);
  tde_file_leave(f);
  return c;
}

tde_class tde_file_add_epoch(tde_file *f, uint32_t epoch, const uint8_t *dek, tde_status *st) {
  tde_class c = f->db->keys ? tde_keys_add_epoch(f->db->keys, epoch, dek, 1) : TDE_WRONG_KEY;

  if (c == TDE_WRONG_KEY) {
    return tde_fail(st, c, "close all connections to the database, and open it again",
                    "%s: was replaced while it was open: epoch %u has another key here",
                    tde_path_of(f), (unsigned)epoch);
  }
  return c ? tde_fail(st, c, NULL, "%s: no room for a new DEK epoch", tde_path_of(f)) : TDE_OK;
}
