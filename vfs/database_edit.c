/*
** database_edit.c: creates and changes a main database's header.
**
** What must hold: it is created and changed under RESERVED on this connection's own lower handle, so
** that processes take turns; the slot in force stays whole until the other one is durable and read
** back. (The unit size alone is put there without a sync of its own: tde_db_fix_unit.)
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "shim.h"
#include "slots.h"

SQLITE_EXTENSION_INIT3

/* ---- telling of it ---- */

/* Tells the key ring what header is in force, as it is on disk. */
static int note_written(tde_file *f) {
  tde_db *db = f->db;
  uint8_t *slot = sqlite3_malloc64(TDE_SLOT_BYTES);
  tde_slot_info info;
  tde_header h;
  tde_class c;

  if (!slot) return SQLITE_NOMEM;
  memset(&h, 0, sizeof(h));
  c = tde_keys_slot_build(db->keys, &tde_source, &db->header, slot);
  if (c == TDE_OK) c = tde_slot_parse(slot, &h, &info);
  if (c == TDE_OK) {
    memcpy(db->header.sha, h.sha, TDE_HASH_BYTES);
    memcpy(db->header.mac, h.mac, TDE_HASH_BYTES);
    memcpy(db->header.maced, h.maced, TDE_SLOT_MACED);
    db->header.version = h.version;
    c = tde_keyring_follow(db->keys, &tde_source, &db->params, &h, 1, &db->facts, &db->last);
    tde_db_take_facts(db);
  }
  tde_header_clear(&h);
  sqlite3_free(slot);
  return tde_class_rc(c);
}

/* The header is in force whether the ring hears of it or not. What memory was short for now is
** told when the header is read anew: by the next transaction, or here. anyhow: what was asked for
** is done, and must not be said to have failed. */
static int tell_ring(tde_file *f, int anyhow) {
  tde_db *db = f->db;
  int rc = note_written(f);

  if (rc == SQLITE_OK) return SQLITE_OK;
  memset(db->seen[!db->header.slot], 0, TDE_SLOT_FIXED); /* so that it looks: tde_db_follow */
  if (anyhow && tde_db_load(f, 0) == SQLITE_OK) return SQLITE_OK;
  tde_log(TDE_LOG_WARNING, "%s: the new header, which is in force, could not be taken note of: %s",
          tde_path_of(f), sqlite3_errstr(rc));
  return anyhow ? SQLITE_OK : rc;
}

/* ---- a new one ---- */

/* Draws the identity and key of a new database. On success h and keys are set. */
static tde_class invent(tde_db *db, tde_header *h, tde_keys **keys) {
  uint8_t *dek = tde_secret_alloc(TDE_KEY_BYTES);
  tde_class c;

  if (!dek) return tde_fail(&db->last, TDE_NOMEM, NULL, "no memory for a new database's key");
  c = tde_random(h->uuid, TDE_UUID_BYTES, &db->last);
  /* RFC 4122 section 4.4: version 4, variant 1. */
  h->uuid[6] = (uint8_t)((h->uuid[6] & 0x0f) | 0x40);
  h->uuid[8] = (uint8_t)((h->uuid[8] & 0x3f) | 0x80);
  if (c == TDE_OK) {
    c = tde_source.create(tde_source.ctx, &db->params, h->uuid, dek, &h->doc, &h->ndoc, &db->last);
  }
  if (c == TDE_OK) {
    c = tde_source.describe(tde_source.ctx, h->doc, h->ndoc, &db->facts, &db->last);
  }
  if (c == TDE_OK) {
    h->epoch = db->facts.epoch;
    h->sequence = 1;
    c = tde_keyring_adopt(&tde_source, &db->params, h->uuid, h->epoch, dek, keys, &db->last);
  }
  tde_secret_free(dek);
  return c;
}

/* How a creation that was announced ended. */
static void tell_created(const tde_db *db, const uint8_t *uuid, const tde_status *st) {
  tde_key_event e = {"create", uuid, db->facts.key_id, db->facts.key_version, st};
  tde_source.event(tde_source.ctx, &db->params, &e);
}

static void tell_not_created(const tde_db *db, const uint8_t *uuid, int rc) {
  tde_status st;

  tde_status_clear(&st);
  tde_fail(&st, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO, "check the disk",
           "the new database's header could not be written: %s", sqlite3_errstr(rc));
  tell_created(db, uuid, &st);
}

static int create(tde_file *f, int anyhow) {
  tde_db *db = f->db;
  tde_header h;
  tde_keys *keys = NULL;
  tde_class c;
  int rc;

  if (db->state != TDE_STATE_NEW) return SQLITE_OK;
  rc = tde_db_load(f, 0); /* another process may have been first */
  if (rc || db->state == TDE_STATE_ONLINE) return rc;
  if (db->state != TDE_STATE_NEW) return tde_db_report(db);
  if (db->unwanted) return tde_db_not_made(db);
  memset(&h, 0, sizeof(h));
  tde_status_clear(&db->last);
  c = invent(db, &h, &keys);
  if (c) {
    db->last.code = c;
    rc = tde_db_report(db);
    if (h.doc) tell_created(db, h.uuid, &db->last);
    tde_header_clear(&h);
    return rc;
  }
  rc = tde_slots_create(f, &h, keys);
  if (rc) {
    (void)LOWER(f)->xTruncate(f->lower, 0);
    tell_not_created(db, h.uuid, rc);
    tde_keyring_discard(keys);
    tde_header_clear(&h);
    return rc;
  }
  for (int i = 0; i < 2; i++) {
    db->slot[i].valid = 1;
    db->slot[i].sequence = 1;
    (void)snprintf(db->slot[i].found, sizeof(db->slot[i].found), "valid");
  }
  tde_db_take_header(db, &h, keys);
  db->slot_durable = 1; /* slot 0 is */
  db->state = TDE_STATE_ONLINE;
  f->s.size_known = 0;
  tell_created(db, db->header.uuid, NULL);
  return tell_ring(f, anyhow);
}

/* A transaction begins, and has written nothing: one that cannot go on leaves an empty database. */
int tde_db_create(tde_file *f) {
  return create(f, 0);
}

int tde_file_make_header(tde_file *f, const char *protector, const char *identity, tde_status *st) {
  tde_db *db = f->db;
  char *had[2] = {db->params.protector, db->params.identity};
  int rc, before;

  tde_file_enter(f);
  rc = tde_db_reserve(f, &before);
  if (rc == SQLITE_OK) {
    if (protector) db->params.protector = (char *)protector;
    if (identity) db->params.identity = (char *)identity;
    rc = db->state == TDE_STATE_NEW ? create(f, 1) : SQLITE_MISUSE;
    db->params.protector = had[0];
    db->params.identity = had[1];
    tde_db_unreserve(f, before);
  }
  if (rc && st) *st = db->last;
  tde_file_leave(f);
  return rc;
}

/* ---- the other slot ---- */

/* Writes db->header with changes as the next sequence into the other slot. */
static int next_slot(tde_file *f, tde_header *h, int verify) {
  tde_db *db = f->db;
  int slot = !db->header.slot, rc;

  if (!db->slot_durable) {
    /* The slot in force may be in the system's cache alone, whoever wrote it:
    ** with both torn by a power loss nothing would be left. */
    rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
    db->counters.lower_syncs++;
    if (rc) return rc;
  }
  h->sequence = db->header.sequence + 1;
  db->slot_durable = 0;
  rc = tde_slot_write(f, h, slot, db->keys, verify);
  if (rc) return rc;
  db->slot_durable = verify;
  h->slot = slot;
  db->slot_lost = 0;
  db->slot[slot].valid = 1;
  db->slot[slot].sequence = h->sequence;
  (void)snprintf(db->slot[slot].found, sizeof(db->slot[slot].found), "valid");
  return SQLITE_OK;
}

/* The first page write of an empty database fixes U. Not synced by itself:
** the slot in force stays whole, the units that depend on this one are synced
** in the same file by the same commit, and before that the database is empty
** (the hot journal says so). The other slot follows after that sync, so that
** either slot alone tells U. */
int tde_db_fix_unit(tde_file *f, int64_t first_write) {
  tde_db *db = f->db;
  tde_header h;
  int rc;

  if (db->header.unit_size) return SQLITE_OK;
  rc = LOWER(f)->xTruncate(f->lower, TDE_HEADER_BYTES); /* leftovers of a crash */
  if (rc) return rc;
  h = db->header;
  h.unit_size = tde_main_unit_for(first_write);
  rc = next_slot(f, &h, 0);
  if (rc) return rc;
  db->header = h;
  db->slot_behind = 1;
  tde_geometry_init(&f->s.geo, TDE_ROLE_MAIN, h.unit_size);
  f->s.size_known = 0;
  return SQLITE_OK;
}

/* The slot in force is durable: bring the other one up to it. Read anew under
** the lock: another process may have done it, or more. */
static int catch_up_slot(tde_file *f) {
  tde_db *db = f->db;
  tde_header h;
  int rc = tde_db_load(f, 0);

  if (rc || db->state != TDE_STATE_ONLINE || !db->slot_behind) return rc;
  h = db->header;
  rc = next_slot(f, &h, 0);
  if (rc) return rc;
  db->header = h;
  db->slot_behind = 0;
  return SQLITE_OK;
}

int tde_db_after_sync(tde_file *f) {
  tde_db *db = f->db;
  int rc = SQLITE_OK;

  db->slot_durable = 1;
  if (db->slot_behind && db->lock >= SQLITE_LOCK_RESERVED) rc = catch_up_slot(f);
  return rc == SQLITE_OK ? tde_guard_clear(f) : rc;
}

/* ---- another document ---- */

/* Puts h, whose document is this one, into the next slot, synced and read back;
** with both, into the other one as well. Takes doc over when it is in force. */
static int put_document(tde_file *f, char **doc, size_t ndoc, int both, tde_status *st) {
  tde_db *db = f->db;
  tde_header h = db->header;
  tde_class c;
  int rc;

  if (*doc) {
    h.doc = *doc;
    h.ndoc = ndoc;
    c = tde_source.describe(tde_source.ctx, *doc, ndoc, &db->facts, st);
    if (c) return tde_class_rc(c);
    h.epoch = db->facts.epoch;
  }
  rc = next_slot(f, &h, 1);
  if (rc) {
    tde_fail(st, TDE_IO, "check the disk; the header in force is untouched",
             "%s: the new header could not be written: %s", tde_path_of(f), sqlite3_errstr(rc));
    return rc;
  }
  if (*doc) {
    free(db->header.doc);
    *doc = NULL;
  }
  db->header = h;
  for (int r = 0; r < TDE_ROLE_KEYS; r++) db->crypt[r].current = h.epoch;
  /* The change is in force and durable. Should the second slot fail, it keeps the
  ** state before, and the next change repairs it. */
  db->slot_behind = 1;
  if (both && next_slot(f, &h, 1) == SQLITE_OK) {
    db->header = h;
    db->slot_behind = 0;
  }
  return tell_ring(f, 1);
}

static int update_header(tde_file *f, tde_mutation mutate, void *ctx, int both, tde_status *st) {
  tde_db *db = f->db;
  char *doc = NULL;
  size_t ndoc = 0;
  int rc, before;

  if (db->read_only) {
    tde_fail(st, TDE_IO, "open it for writing", "%s: the database is read-only", tde_path_of(f));
    return SQLITE_READONLY;
  }
  rc = tde_db_reserve(f, &before);
  if (rc) {
    tde_fail(st, (rc & 0xff) == SQLITE_BUSY ? TDE_BUSY : TDE_IO, "try again",
             rc == SQLITE_BUSY_RECOVERY
                 ? "%s: a transaction that was cut short is to be rolled back first"
                 : "%s: another connection is writing",
             tde_path_of(f));
    return rc;
  }
  rc = tde_db_load(f, 0);
  if (rc == SQLITE_OK && db->state != TDE_STATE_ONLINE) {
    rc = tde_db_not_online(db, st);
  } else if (rc) {
    tde_fail(st, TDE_IO, "check the disk", "%s: the header could not be read: %s", tde_path_of(f),
             sqlite3_errstr(rc));
  }
  if (rc == SQLITE_OK && db->facts.backup) {
    (void)tde_fail_backup(f, st);
    rc = SQLITE_READONLY;
  }
  if (rc == SQLITE_OK) {
    if (mutate) rc = tde_class_rc(mutate(ctx, db->header.doc, db->header.ndoc, &doc, &ndoc, st));
    if (rc == SQLITE_OK && (doc || !mutate)) {
      rc = put_document(f, &doc, ndoc, both, st);
      if (rc) (void)tde_db_load(f, 0); /* what is on disk is in force */
    }
    if (rc) tde_keys_abandon_epochs(db->keys, &db->facts);
  }
  free(doc);
  tde_db_unreserve(f, before);
  return rc;
}

int tde_file_update_header(tde_file *f, tde_mutation mutate, void *ctx, int both, tde_status *st) {
  int rc;

  tde_file_enter(f);
  rc = update_header(f, mutate, ctx, both, st);
  tde_file_leave(f);
  return rc;
}

/* A connection that never synced (synchronous=OFF) leaves a slot behind. */
void tde_db_before_close(tde_file *f) {
  tde_db *db = f->db;
  tde_status st;

  if (!db || !db->slot_behind || db->read_only || db->facts.backup) return;
  if (db->state != TDE_STATE_ONLINE) return;
  if (update_header(f, NULL, NULL, 0, &st) == SQLITE_OK) db->slot_behind = 0;
}
