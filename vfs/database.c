/*
** database.c: a main database's header, keys and locks.
**
** What must hold:
**  - The header is created and changed under RESERVED on this connection's own
**    lower handle, so that processes take turns; the slot in force stays whole
**    until the other one is durable and read back.
**  - A database that is not Online lets nobody begin a transaction: xLock and
**    xShmLock are refused (tde_db_gate), since SQLite may still hold pages in
**    its cache. It can always be opened, and its status asked.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "epochs.h"
#include "redo.h"
#include "shim.h"
#include "slots.h"
#include "watch.h"

SQLITE_EXTENSION_INIT3

/* An inaccessible database asks for its key again at most this often. */
#define RETRY_MS 1000

const char *tde_state_name(tde_state s) {
  switch (s) {
    case TDE_STATE_NEW:
      return "New";
    case TDE_STATE_ONLINE:
      return "Online";
    case TDE_STATE_INACCESSIBLE:
      return "Inaccessible";
    case TDE_STATE_NOT_ENCRYPTED:
      return "NotEncrypted";
    case TDE_STATE_PLAIN:
      return "Plain";
    case TDE_STATE_NEWER_FORMAT:
      return "NewerFormat";
    case TDE_STATE_DAMAGED:
      return "DamagedHeader";
  }
  return "Unknown";
}

int tde_class_rc(tde_class c) {
  switch (c) {
    case TDE_OK:
      return SQLITE_OK;
    case TDE_NOMEM:
      return SQLITE_NOMEM;
    case TDE_BUSY:
      return SQLITE_BUSY;
    case TDE_MISUSE:
      return SQLITE_MISUSE;
    case TDE_NOT_ENCRYPTED:
    case TDE_DAMAGED_HEADER:
      return SQLITE_NOTADB;
    case TDE_NEWER_FORMAT:
      return SQLITE_CANTOPEN;
    case TDE_TAMPERED:
      return SQLITE_IOERR_DATA;
    case TDE_TORN:
      return SQLITE_IOERR_READ;
    case TDE_TRUNCATED:
      return SQLITE_IOERR_CORRUPTFS; /* SQLite's VDBE makes SQLITE_CORRUPT of it */
    case TDE_NOT_AUTHENTIC:
    case TDE_WRONG_KEY:
    case TDE_CORRUPT:
    case TDE_UNREACHABLE:
    case TDE_THROTTLED:
    case TDE_UNAUTHENTICATED:
    case TDE_DENIED:
    case TDE_DISABLED:
    case TDE_MISSING:
    case TDE_UNSUPPORTED:
    case TDE_MISCONFIGURED:
      return SQLITE_IOERR_AUTH;
    default:
      return SQLITE_IOERR;
  }
}

/* The file's name without its folder, unless the message has the path. */
static const char *subject_of(const tde_file *f, const tde_status *st) {
  const char *slash;

  if (!f->path || strstr(st->message, f->path)) return NULL;
  slash = strrchr(f->path, '/');
  return slash ? slash + 1 : f->path;
}

int tde_db_report(tde_db *db) {
  tde_log_status(TDE_LOG_ERROR, subject_of(db->file, &db->last), &db->last);
  return tde_class_rc(db->last.code);
}

/* ---- the header ---- */

/* Asks for the key as the URI's tde_key= says, with the identity beside it. */
static void ask_as_opened(tde_db *db) {
  db->params.as_key = db->as_key;
  db->params.as_identity = db->as_key ? db->params.identity : NULL;
  db->params.as_federated = db->as_key ? db->params.federated_client_id : NULL;
}

/* tde_key= was said of the protector that the header named then. */
static void outlive_key(tde_db *db) {
  if (!db->as_key) return;
  if (!db->as_known) {
    memcpy(db->as_of, db->facts.thumbprint, TDE_THUMB_BYTES);
    db->as_known = 1;
  } else if (memcmp(db->as_of, db->facts.thumbprint, TDE_THUMB_BYTES) != 0) {
    sqlite3_free(db->as_key);
    db->as_key = NULL;
    ask_as_opened(db);
  }
}

/* A generation under an epoch that the header names no more is judged anew. Where this connection
** is alone nobody else can have dropped it. */
static void drop_generation(const tde_db *db, tde_file *log) {
  if (!log || log->gen.alone) return;
  log->gen.checked = 0;
  if (!tde_epoch_is_named(&db->named, log->s.epoch)) log->gen.valid = 0;
}

/* db->facts are those of the header that is in force now; they are another's where one could not
** be taken. What is sealed under an epoch that it names no more was put there by somebody else. */
static void take_epochs(tde_db *db) {
  db->named.n = db->facts.nepochs;
  memcpy(db->named.epoch, db->facts.epochs, sizeof(db->named.epoch));
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_prune(&db->crypt[r]);
  drop_generation(db, db->wal);
  drop_generation(db, db->journal);
}

/* Puts a parsed header in force with the keys that verify it; db->facts are its already. AEADs
** stay while the keys, and its epochs, do: somebody further up may be using one. */
static void take_header(tde_db *db, tde_header *h, tde_keys *keys) {
  tde_file *f = db->file;

  if (db->header.slot != h->slot || db->header.sequence != h->sequence) db->slot_durable = 0;
  tde_header_clear(&db->header);
  db->header = *h;
  db->slot_lost = 0;
  memset(h, 0, sizeof(*h));
  for (int r = 0; r < TDE_ROLE_KEYS; r++) {
    if (db->crypt[r].keys != keys) {
      tde_cryptor_clear(&db->crypt[r]);
      tde_cryptor_init(&db->crypt[r], (tde_role)(r + 1), keys, &db->named, db->header.epoch);
    }
    db->crypt[r].current = db->header.epoch;
  }
  if (keys != db->keys) {
    tde_keyring_release(db->keys);
    db->keys = keys;
  }
  if (db->header.unit_size && db->header.unit_size != f->s.geo.unit) {
    tde_geometry_init(&f->s.geo, TDE_ROLE_MAIN, db->header.unit_size);
  }
  db->head_valid = 0;
  take_epochs(db);
  outlive_key(db);
}

/* The newest whole header that the file has now, to be cleared by the caller; its doc is NULL
** where there is none, or it could not be read. False: a slot could not be looked at. */
static int read_newest(tde_db *db, tde_header *now) {
  tde_slots both;
  int ok;

  memset(now, 0, sizeof(*now));
  tde_slots_init(&both);
  ok = tde_slots_read(db->file->lower, &db->counters, &both) == SQLITE_OK &&
       tde_slots_newest(&both, now) == TDE_OK;
  tde_slots_clear(&both);
  return ok;
}

static int is_on_disk(tde_db *db, const tde_header *h) {
  tde_header now;
  int same = read_newest(db, &now) && now.doc && memcmp(now.sha, h->sha, TDE_HASH_BYTES) == 0;

  tde_header_clear(&now);
  return same;
}

/* How the key of this header is asked for: the key of tde_key= stands for one protector, and
** this may be another's. */
static tde_key_params way_for(const tde_db *db, const tde_header *h) {
  tde_key_params p = db->params;
  tde_key_facts *facts;

  if (!db->as_key || p.as_key != db->as_key || !db->as_known) return p;
  facts = sqlite3_malloc64(sizeof(*facts));
  if (facts && tde_source.describe(tde_source.ctx, h->doc, h->ndoc, facts, NULL) == TDE_OK &&
      memcmp(facts->thumbprint, db->as_of, TDE_THUMB_BYTES) != 0) {
    p.as_key = p.as_identity = p.as_federated = NULL;
  }
  sqlite3_free(facts);
  return p;
}

/* Unlocks one slot; on success it is in force. forced: a revalidation. */
static tde_class try_slot(tde_db *db, tde_header *h, int forced) {
  tde_key_params params = way_for(db, h);
  tde_keys *keys = NULL;
  tde_class c = TDE_NOT_AUTHENTIC;

  if (db->keys && tde_keys_live(db->keys) && !forced) {
    c = tde_keyring_follow(db->keys, &tde_source, &params, h, 0, &db->facts, &db->last);
    if (c == TDE_OK) keys = db->keys;
  }
  if (c == TDE_NOT_AUTHENTIC || c == TDE_WRONG_KEY) { /* or another database in this one's place */
    c = tde_keyring_unlock(&tde_source, &params, h, forced, &db->facts, &keys, &db->last);
    if (keys && keys == db->keys) tde_keyring_release(keys); /* a reference is held already */
  }
  if (c == TDE_OK) {
    uint64_t ahead = tde_keyring_ahead(keys, h);
    if (ahead && is_on_disk(db, h)) {
      c = tde_keyring_go_back(keys, h, ahead, &db->facts, &db->last);
    }
  }
  if (c) {
    /* Status shows whose file it is, although nothing verified that. */
    memcpy(db->header.uuid, h->uuid, TDE_UUID_BYTES);
    if (keys && keys != db->keys) {
      for (int r = 0; r < TDE_ROLE_KEYS; r++) {
        uint32_t current = db->crypt[r].current;
        tde_cryptor_clear(&db->crypt[r]);
        tde_cryptor_init(&db->crypt[r], (tde_role)(r + 1), keys, &db->named, current);
      }
      tde_keyring_release(db->keys);
      db->keys = keys;
    }
    return c;
  }
  take_header(db, h, keys);
  db->state = TDE_STATE_ONLINE;
  return TDE_OK;
}

static int begins_in_plain(const tde_slots *both) {
  return memcmp(both->head[0], "SQLite format 3", 16) == 0;
}

/* No slot counts: say what the file is. */
static void classify_headerless(tde_db *db, const tde_slots *both, tde_class c0, tde_class c1) {
  const char *path = tde_path_of(db->file);

  if (c0 == TDE_NEWER_FORMAT || c1 == TDE_NEWER_FORMAT) {
    db->state = TDE_STATE_NEWER_FORMAT;
    tde_fail(&db->last, TDE_NEWER_FORMAT, "open it with the sqlite-tde release that wrote it",
             "%s: written by a later format (%s); this release reads version %u", path,
             c0 == TDE_NEWER_FORMAT ? db->slot[0].found : db->slot[1].found, TDE_FORMAT_VERSION);
  } else if (begins_in_plain(both)) {
    db->state = TDE_STATE_NOT_ENCRYPTED;
    tde_fail(&db->last, TDE_NOT_ENCRYPTED,
             "SELECT tde_encrypt('the file') encrypts it; tde_plain=allow opens it as it is",
             "%s: an SQLite database that is not encrypted", path);
  } else if (memcmp(both->head[0], tde_header_magic, 8) == 0 ||
             memcmp(both->head[1], tde_header_magic, 8) == 0 ||
             tde_all_zero(both->head[0], sizeof(both->head))) {
    db->state = TDE_STATE_DAMAGED;
    tde_fail(&db->last, TDE_DAMAGED_HEADER, "restore the file, or its first 64 KiB, from a backup",
             "%s: both header slots are damaged (slot 0: %s; slot 1: %s)", path, db->slot[0].found,
             db->slot[1].found);
  } else {
    db->state = TDE_STATE_NOT_ENCRYPTED;
    tde_fail(&db->last, TDE_NOT_ENCRYPTED, "check the file's name",
             "%s: neither an encrypted nor a plain SQLite database", path);
  }
}

/* Text that somebody wrote is not for us to overwrite. */
static int is_text(const uint8_t *b, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if ((b[i] < 0x20 || b[i] > 0x7e) && b[i] != '\n' && b[i] != '\r' && b[i] != '\t') return 0;
  }
  return 1;
}

/* A creation that a crash cut short: less than a header, and nothing else. The
** magic was written first, alone (tde_slots_create), so it is whole unless the
** file is no longer than it. */
static int unfinished_creation(const tde_slots *both, sqlite3_int64 size) {
  const uint8_t *head = both->head[0];

  if (size == 1 ||
      (size <= (sqlite3_int64)sizeof(tde_header_magic) && !is_text(head, (size_t)size))) {
    return 1; /* one byte counts as empty in plain SQLite, too */
  }
  return size < (sqlite3_int64)TDE_HEADER_BYTES &&
         (memcmp(head, tde_header_magic, sizeof(tde_header_magic)) == 0 ||
          tde_all_zero(head, sizeof(both->head)));
}

static int probe_unit(tde_file *f);

/* Why a creation failed stays to be read until the next try. */
static void set_new(tde_db *db) {
  if (db->state != TDE_STATE_NEW) tde_status_clear(&db->last);
  db->state = TDE_STATE_NEW;
}

/* Neither good nor bad: memory or the crypto library failed. */
static int not_looked_at(tde_class c) {
  return c != TDE_OK && c != TDE_DAMAGED_HEADER && c != TDE_NEWER_FORMAT;
}

/* The slot in force was damaged while this connection knows what stood in it: an older
** one is no reason to forget that, least of all the DEKs that it names. It goes on
** with it, and the damaged slot is the next to be written. */
static int stays(tde_db *db, const tde_header *older, tde_class newer) {
  if (newer != TDE_DAMAGED_HEADER || db->state != TDE_STATE_ONLINE || !db->keys ||
      !tde_keys_live(db->keys) || (db->header.slot == older->slot && !db->slot_lost) ||
      memcmp(db->header.uuid, older->uuid, TDE_UUID_BYTES) != 0 ||
      db->header.sequence <= older->sequence) {
    return 0;
  }
  if (!db->slot_lost) {
    tde_log(TDE_LOG_WARNING,
            "%s: header slot %d, which is in force, was damaged (%s): it will be repaired",
            tde_path_of(db->file), db->header.slot, db->slot[db->header.slot].found);
  }
  db->header.slot = older->slot;
  db->slot_lost = 1;
  return 1;
}

/* May the older slot be gone by where the newer one is not authentic? Not if that names an epoch
** which the older one does not: if it was a key service that gave a wrong DEK for it, that of units
** would be lost when the slot is written over. Who forged it could as well destroy both. */
static int may_fall_back(const tde_header *newer, const tde_header *older) {
  tde_key_facts *f = sqlite3_malloc64(2 * sizeof(*f));
  int may = f != NULL;

  if (may && tde_source.describe(tde_source.ctx, newer->doc, newer->ndoc, &f[0], NULL) == TDE_OK) {
    may = tde_source.describe(tde_source.ctx, older->doc, older->ndoc, &f[1], NULL) == TDE_OK;
    for (int i = 0; may && i < f[0].nepochs; i++) may = tde_facts_name_epoch(&f[1], f[0].epochs[i]);
  }
  sqlite3_free(f);
  return may;
}

/* Goes by the older slot, whose DEKs tell of the newer one for sure: if they verify that after
** all, it counts. */
static tde_class fall_back(tde_db *db, tde_header *newer, tde_header *older, int forced) {
  int slot = newer->slot;
  tde_class c = try_slot(db, older, forced);

  if (c == TDE_OK && tde_keyring_verifies(db->keys, &tde_source, newer)) {
    return try_slot(db, newer, 0);
  }
  tde_log(TDE_LOG_WARNING, "%s: header slot %d does not verify; trying slot %d",
          tde_path_of(db->file), slot, !slot);
  (void)snprintf(db->slot[slot].found, sizeof(db->slot[slot].found), "not authentic");
  db->slot[slot].valid = 0;
  return c;
}

/* Takes the newest slot that is whole and unlocks; falls back to the other when that one is not
** authentic. Whatever else keeps its DEKs away is no reason to. False: the file's size, which was
** not asked for (-1), is needed to tell what the slots mean. */
static int choose_slot(tde_db *db, const tde_slots *both, sqlite3_int64 size, int forced) {
  tde_header h[2];
  tde_class c[2], rc = TDE_DAMAGED_HEADER;
  int first, known[2];

  tde_keyring_known_slots((const uint8_t *const *)both->at, known);
  for (int i = 0; i < 2; i++) {
    c[i] = known[i] ? tde_slot_parse_again(both->at[i], &h[i], &db->slot[i])
                    : tde_slot_parse(both->at[i], &h[i], &db->slot[i]);
    h[i].slot = i;
  }
  /* Somebody without the extension was reading the empty file when the header was made, and then
  ** made a database of it. That one is not repaired away. */
  if (begins_in_plain(both) && c[1] == TDE_OK && !h[1].unit_size) {
    tde_header_clear(&h[1]);
    c[1] = TDE_DAMAGED_HEADER;
  }
  first = tde_newest_of(c, h);
  if (size < 0 && (c[first] != TDE_OK || !h[first].unit_size)) {
    tde_header_clear(&h[0]);
    tde_header_clear(&h[1]);
    return 0;
  }
  if (not_looked_at(c[0]) || not_looked_at(c[1])) {
    db->state = TDE_STATE_INACCESSIBLE;
    tde_fail(&db->last, not_looked_at(c[0]) ? c[0] : c[1], NULL,
             "%s: the header could not be checked", tde_path_of(db->file));
  } else if (c[first] != TDE_OK) {
    if (unfinished_creation(both, size)) {
      set_new(db);
    } else {
      classify_headerless(db, both, c[0], c[1]);
    }
  } else {
    tde_status_clear(&db->last);
    rc = !forced && stays(db, &h[first], c[!first]) ? TDE_OK : try_slot(db, &h[first], forced);
    if (rc == TDE_NOT_AUTHENTIC && c[!first] == TDE_OK && may_fall_back(&h[first], &h[!first])) {
      rc = fall_back(db, &h[first], &h[!first], forced);
    }
    if (rc) {
      db->state = TDE_STATE_INACCESSIBLE;
      db->retry_at = tde_now_ms() + RETRY_MS;
    } else {
      int other = !db->header.slot;
      tde_status_clear(&db->last);
      /* Repaired after the next write transaction's sync. */
      db->slot_behind = !db->slot[other].valid || h[other].unit_size != db->header.unit_size;
      if (db->slot[other].valid && !known[other]) tde_keyring_note_other(db->keys, &h[other]);
    }
  }
  tde_header_clear(&h[0]);
  tde_header_clear(&h[1]);
  return 1;
}

/* Reads both slots and takes one. Most often they say all; where they do not, the
** size is asked for first and they are read again, so that a file that grows meanwhile
** is not taken for one that is whole and empty. */
static int read_header(tde_file *f, tde_slots *both, int forced) {
  tde_db *db = f->db;
  sqlite3_int64 size = -1;
  int rc, settled = 0;

  while (!settled) {
    rc = tde_slots_read(f->lower, f->s.counters, both);
    if (rc) return rc;
    for (int i = 0; i < 2; i++) memcpy(db->seen[i], both->at[i], TDE_SLOT_FIXED);
    settled = choose_slot(db, both, size, forced);
    if (settled) break;
    rc = LOWER(f)->xFileSize(f->lower, &size);
    if (rc) return rc;
    if (size == 0) {
      set_new(db);
      return SQLITE_OK;
    }
  }
  return db->state == TDE_STATE_ONLINE ? probe_unit(f) : SQLITE_OK;
}

/* Reads the header anew. wait: the creator may be at work (it holds RESERVED):
** a file without a whole slot is then still new. forced: the key service is asked
** whatever is known. */
static int load(tde_file *f, int wait, int forced) {
  tde_db *db = f->db;
  tde_slots both;
  int rc, reserved = 0;

  tde_slots_init(&both);
  rc = read_header(f, &both, forced);
  tde_slots_clear(&both);
  if (rc) return rc;
  if (wait && db->state == TDE_STATE_DAMAGED &&
      tde_main_reserved(f->lower, &reserved) == SQLITE_OK && reserved) {
    set_new(db);
  }
  if (db->state == TDE_STATE_NOT_ENCRYPTED && db->plain_allowed) {
    db->state = TDE_STATE_PLAIN;
    f->plain = 1;
    tde_status_clear(&db->last); /* it is as whoever opened it allows it to be */
  }
  return SQLITE_OK;
}

int tde_db_load(tde_file *f, int wait) {
  return load(f, wait, 0);
}

/* A change of the header goes to the slot that is not in force, so one look at
** that one's fixed part, with its checksum, tells. (Its sequence number alone does not: an older
** copy of the file may have been put back, and the same numbers come again.) */
static int freshen(tde_file *f) {
  tde_db *db = f->db;
  int other = !db->header.slot, rc;
  uint8_t b[TDE_SLOT_FIXED];

  if (db->state != TDE_STATE_ONLINE) return SQLITE_OK;
  rc = LOWER(f)->xRead(f->lower, b, sizeof(b), (sqlite3_int64)other * TDE_SLOT_STRIDE);
  db->counters.lower_reads++;
  if (rc == SQLITE_OK && db->slot[other].valid && memcmp(b, db->seen[other], sizeof(b)) == 0) {
    return SQLITE_OK; /* a slot that is not whole may be so by now, with the same beginning */
  }
  if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
  rc = tde_db_load(f, 0);
  if (rc == SQLITE_OK && db->state != TDE_STATE_ONLINE) rc = tde_db_report(db);
  return rc;
}

int tde_db_follow(tde_file *f) {
  return freshen(f);
}

/* What an interrupted sweep left in its log is put in place before anything is
** written over it. */
int tde_db_freshen(tde_file *f) {
  int rc = freshen(f);

  if (rc == SQLITE_OK && f->db->state == TDE_STATE_ONLINE && f->db->facts.regenerating &&
      !f->db->read_only) {
    rc = tde_redo_settle(f, 0);
  }
  return rc;
}

int tde_db_knows(const tde_db *db, uint32_t epoch) {
  return tde_epoch_is_named(&db->named, epoch) && tde_keys_has(db->keys, epoch);
}

static int is_damage(tde_class c) {
  return c == TDE_TAMPERED || c == TDE_TORN || c == TDE_TRUNCATED;
}

/* A unit of an epoch that is not known: another process gave the database a new
** DEK. Only keys that verify a newer header of this very database are taken. TDE_TAMPERED:
** nobody wrote under it; other classes: why its key is not to be had. The caller has a lock, and
** keeps others waiting: what could not be learnt is asked for once, and then by the next
** transaction, before it has one (tde_db_ask). */
tde_class tde_db_learn_epoch(void *ctx, uint32_t epoch) {
  tde_file *f = ctx;
  tde_db *db = f->db;
  tde_slots both;
  tde_header h;
  tde_key_facts *facts;
  tde_class c = TDE_TAMPERED;
  tde_status st;

  tde_status_clear(&st);
  if (epoch == 0 || !db->keys || !tde_keys_live(db->keys)) return TDE_TAMPERED;
  if (db->unlearnt && db->unlearnt != TDE_TAMPERED && db->unlearnt == db->last.code) {
    return db->unlearnt;
  }
  facts = sqlite3_malloc64(sizeof(*facts));
  memset(&h, 0, sizeof(h));
  tde_slots_init(&both);
  if (facts && tde_slots_read(db->file->lower, &db->counters, &both) == SQLITE_OK)
    (void)tde_slots_newest(&both, &h);
  if (!facts) c = TDE_NOMEM;
  if (h.doc && memcmp(h.sha, db->header.sha, TDE_HASH_BYTES) != 0) {
    tde_key_params params = way_for(db, &h);
    c = tde_keyring_follow(db->keys, &tde_source, &params, &h, 0, facts, &st);
    if (c == TDE_NOT_AUTHENTIC) c = TDE_TAMPERED; /* nobody's header */
    if (c && c != TDE_TAMPERED) db->last = st;    /* bad_unit tells */
  }
  if (c == TDE_OK) {
    db->facts = *facts;
    for (int i = 0; i < 2; i++) memcpy(db->seen[i], both.at[i], TDE_SLOT_FIXED);
    take_header(db, &h, db->keys);
    if (!tde_db_knows(db, epoch)) c = TDE_TAMPERED;
  }
  db->unlearnt = c;
  tde_header_clear(&h);
  sqlite3_free(facts);
  tde_slots_clear(&both);
  return c;
}

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
    take_epochs(db);
    outlive_key(db);
  }
  tde_header_clear(&h);
  sqlite3_free(slot);
  return tde_class_rc(c);
}

/* The header is in force whether the ring hears of it or not. What memory was short for now is
** told when the header is read anew: here, or by the next transaction. */
static void tell_ring(tde_file *f) {
  tde_db *db = f->db;
  int rc = note_written(f);

  if (rc == SQLITE_OK) return;
  memset(db->seen[!db->header.slot], 0, TDE_SLOT_FIXED); /* so that it looks: freshen */
  if (tde_db_load(f, 0) == SQLITE_OK) return;
  tde_log(TDE_LOG_WARNING, "%s: the new header, which is in force, could not be taken note of: %s",
          tde_path_of(f), sqlite3_errstr(rc));
}

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

/* It is empty, and is to stay so. */
static int not_made(tde_db *db) {
  (void)tde_db_report(db);
  return SQLITE_CANTOPEN;
}

int tde_db_create(tde_file *f) {
  tde_db *db = f->db;
  tde_header h;
  tde_keys *keys = NULL;
  tde_class c;
  int rc;

  if (db->state != TDE_STATE_NEW) return SQLITE_OK;
  rc = tde_db_load(f, 0); /* another process may have been first */
  if (rc || db->state == TDE_STATE_ONLINE) return rc;
  if (db->state != TDE_STATE_NEW) return tde_db_report(db);
  if (db->unwanted) return not_made(db);
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
  take_header(db, &h, keys);
  db->slot_durable = 1; /* slot 0 is */
  db->state = TDE_STATE_ONLINE;
  f->s.size_known = 0;
  tell_created(db, db->header.uuid, NULL);
  tell_ring(f);
  return SQLITE_OK;
}

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

/* A slot without U counts although the file holds more than a header: either
** a crash cut the first transaction short, or the slot with U is damaged. The
** tag of unit 0 tells: where it opens under some U, that is the U. */
static int probe_unit(tde_file *f) {
  uint32_t n = TDE_UNIT_MAIN_MAX + TDE_UNIT_OVERHEAD;
  tde_db *db = f->db;
  sqlite3_int64 size = 0;
  uint8_t *b;
  int rc;

  if (db->header.unit_size) return SQLITE_OK;
  rc = LOWER(f)->xFileSize(f->lower, &size);
  if (rc || size <= (sqlite3_int64)TDE_HEADER_BYTES) return rc;
  b = sqlite3_malloc64(2 * (size_t)n);
  if (!b) return SQLITE_NOMEM;
  rc = LOWER(f)->xRead(f->lower, b, (int)n, TDE_HEADER_BYTES);
  if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK;
  for (uint32_t u = 512; rc == SQLITE_OK && u <= TDE_UNIT_MAIN_MAX; u *= 2) {
    tde_class c;
    tde_geometry_init(&f->s.geo, TDE_ROLE_MAIN, u);
    c = tde_sealed_open_record(&f->s, 0, b, b + n);
    if (c == TDE_OK) {
      db->header.unit_size = u;
      db->slot_behind = 1;
      tde_log(TDE_LOG_WARNING,
              "%s: the header's newer slot is damaged (%s); the unit size was "
              "found from the first unit",
              tde_path_of(f), db->slot[!db->header.slot].found);
      break;
    }
    if (c != TDE_TAMPERED) rc = tde_class_rc(c);
  }
  tde_wipe(b, 2 * (size_t)n);
  sqlite3_free(b);
  return rc;
}

/* Somebody else has the lock: does the connection's busy handler want to wait? */
int tde_db_wait_busy(tde_db *db) {
  return db->busy_handler && db->busy_handler(db->busy_arg);
}

/* RESERVED through a second lower file. SQLite from 3.51 on refuses it to one that has the wal-index
** open while other processes have, too (os_unix.c, unixIsSharingShmNode): it asks for such a lock
** itself only to remove the log, and takes them for a sign that its locks were broken. */
static int reserve_aside(tde_file *f) {
  int rc;
  sqlite3_file *aside = tde_lower_open(f->lower_vfs, f->path,
                                       SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE, NULL, &rc);

  if (!aside) return rc;
  rc = tde_main_lock(aside, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED);
  if (rc == SQLITE_OK) rc = aside->pMethods->xLock(aside, SQLITE_LOCK_RESERVED);
  if (rc == SQLITE_OK && tde_has_moved(f)) rc = SQLITE_READONLY_DBMOVED; /* it is another file's lock */
  if (rc) {
    (void)tde_main_close(aside);
  } else {
    f->db->aside = aside;
  }
  return rc;
}

/* RESERVED, from SHARED. */
static int reserve_shared(tde_file *f) {
  int taken = 0, rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);

  if (rc != SQLITE_BUSY || !f->db->shm_open) return rc;
  if (tde_main_reserved(f->lower, &taken) != SQLITE_OK || taken) return rc;
  return reserve_aside(f);
}

/* RESERVED, from no lock at all. While somebody has it, others take the journal that
** they find for that writer's: with a hot one beside it they would read, and write
** over, half a transaction. So it is looked for first, as SQLite does; under SHARED
** none can become hot. */
static int reserve_once(tde_file *f) {
  int hot = 0, rc = tde_main_lock(f->lower, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED);

  if (rc) return rc;
  if (f->db->state == TDE_STATE_ONLINE) rc = tde_journal_is_hot(f, &hot);
  if (rc == SQLITE_OK) {
    rc = hot ? SQLITE_BUSY_RECOVERY : reserve_shared(f);
  }
  if (rc) (void)LOWER(f)->xUnlock(f->lower, SQLITE_LOCK_NONE);
  return rc;
}

/* Takes RESERVED for a header change. *before: the level to go back to. It waits
** without any lock: a SHARED lock that is held on would keep the writer, who is
** waited for, from its EXCLUSIVE one. (In WAL mode connections hold SHARED all the time, and
** nobody takes EXCLUSIVE for a commit.) SQLITE_BUSY_RECOVERY: a transaction that a crash
** cut short is to be rolled back first, by reading through SQLite. */
int tde_db_reserve(tde_file *f, int *before) {
  tde_db *db = f->db;
  int rc;

  *before = db->lock;
  if (db->lock >= SQLITE_LOCK_RESERVED) return SQLITE_OK;
  if (db->lock == SQLITE_LOCK_SHARED && !db->shm_open) {
    return LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);
  }
  do {
    rc = db->lock == SQLITE_LOCK_SHARED ? reserve_shared(f) : reserve_once(f);
  } while (rc != SQLITE_BUSY_RECOVERY && (rc & 0xff) == SQLITE_BUSY && tde_db_wait_busy(db));
  return rc;
}

void tde_db_unreserve(tde_file *f, int before) {
  if (f->db->aside) (void)tde_main_close(f->db->aside);
  f->db->aside = NULL;
  if (before < SQLITE_LOCK_RESERVED) (void)LOWER(f)->xUnlock(f->lower, before);
}

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
  tell_ring(f);
  return SQLITE_OK;
}

static int not_online(tde_db *db, tde_status *st) {
  int rc = tde_class_rc(db->last.code);

  if (st) *st = db->last;
  if (db->state == TDE_STATE_NEW) {
    tde_fail(st, TDE_MISUSE, "create a table first", "%s: the database is empty",
             tde_path_of(db->file));
  }
  return rc ? rc : SQLITE_ERROR;
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
    rc = not_online(db, st);
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

/* ---- opening and gating ---- */

static char *copy_param(const char *name, const char *key, int *oom) {
  const char *v = sqlite3_uri_parameter(name, key);
  char *copy;

  if (!v) return NULL;
  copy = sqlite3_mprintf("%s", v);
  if (!copy) *oom = 1;
  return copy;
}

/* tde_instance=, or the environment, as it is now: what is opened through one instance stays
** with it. Where it can not be told, asking for the key says why. */
static char *instance_of(const char *name, int *oom) {
  char *dir = tde_source.resolve(tde_source.ctx, sqlite3_uri_parameter(name, "tde_instance"));
  char *copy;

  if (!dir) return copy_param(name, "tde_instance", oom);
  copy = sqlite3_mprintf("%s", dir);
  if (!copy) *oom = 1;
  free(dir);
  return copy;
}

/* Rule of FORMAT.md: records share sectors, so the lower file must promise
** that bytes outside a write's range never change. */
static int check_powersafe(tde_file *f) {
  int traits = LOWER(f)->xDeviceCharacteristics(f->lower);

  if (f->db->read_only || (traits & (SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_IMMUTABLE))) {
    return SQLITE_OK;
  }
  tde_fail(&f->db->last, TDE_MISCONFIGURED, "open the database without psow=0",
           "%s: the file system is declared not to keep neighbouring bytes when a write is torn "
           "(psow=0), which encrypted units need",
           tde_path_of(f));
  (void)tde_db_report(f->db);
  return SQLITE_CANTOPEN;
}

/* The URI parameters, and the two values of those that have no others. */
static const struct uri_param {
  const char *name, *usual, *second;
} uri_params[] = {{"tde_instance", NULL, NULL},
                  {"tde_protector", NULL, NULL},
                  {"tde_identity", NULL, NULL},
                  {"tde_federated_client_id", NULL, NULL},
                  {"tde_key", NULL, NULL},
                  {"tde_base", NULL, NULL},
                  {"tde_functions", NULL, NULL},
                  {"tde_plain", "refuse", "allow"},
                  {"tde_damaged", "refuse", "zeros"},
                  {"tde_inaccessible", "allow", "refuse"},
                  {"tde_map", "on", "off"}};

static const struct uri_param *find_param(const char *key) {
  for (size_t i = 0; i < sizeof(uri_params) / sizeof(uri_params[0]); i++) {
    if (strcmp(key, uri_params[i].name) == 0) return &uri_params[i];
  }
  return NULL;
}

/* SQLite finds the first parameter of a name alone. */
static int is_repeated(const char *name, int at) {
  const char *key = sqlite3_uri_key(name, at);

  for (int i = 0; i < at; i++) {
    if (strcmp(sqlite3_uri_key(name, i), key) == 0) return 1;
  }
  return 0;
}

/* Not NULL: what is wrong with a parameter of the name, and *remedy. Its value is looked at
** elsewhere where SQLite shows the message (tde_functions: sql/functions.c). */
static const char *wrong_with(const char *name, int at, char remedy[128]) {
  const char *key = sqlite3_uri_key(name, at), *value;
  const struct uri_param *p;

  if ((key[0] | 0x20) != 't' || sqlite3_strnicmp(key, "tde", 3) != 0) return NULL;
  value = sqlite3_uri_parameter(name, key);
  p = find_param(key);
  (void)snprintf(remedy, 128, "README.md lists them");
  if (!p) return "there is no URI parameter of this name";
  (void)snprintf(remedy, 128, "name it once");
  if (is_repeated(name, at)) return "stands in the URI twice";
  if (p->usual) {
    (void)snprintf(remedy, 128, "use %s=%s or %s=%s", key, p->usual, key, p->second);
    return strcmp(value, p->usual) != 0 && strcmp(value, p->second) != 0 ? "has no such value"
                                                                         : NULL;
  }
  (void)snprintf(remedy, 128, "give it a value or leave it out");
  return !value[0] && strcmp(key, "tde_functions") != 0 ? "is empty" : NULL;
}

/* What is misspelt, left empty or said twice would be passed over, and with it a key or an
** instance. */
tde_class tde_uri_check(const char *name, tde_status *st) {
  const char *key, *why;
  char remedy[128];

  for (int i = 0; (key = sqlite3_uri_key(name, i)) != NULL; i++) {
    why = wrong_with(name, i, remedy);
    if (!why) continue;
    if (st) tde_status_clear(st);
    return tde_fail(st, TDE_MISUSE, remedy, "%.250s: %.60s=%.100s: %s", name, key,
                    sqlite3_uri_parameter(name, key), why);
  }
  return TDE_OK;
}

static int uri_says(const char *name, const char *param, const char *what) {
  const char *value = sqlite3_uri_parameter(name, param);

  return value && strcmp(value, what) == 0;
}

int tde_db_open(tde_file *f, const char *name, int flags) {
  tde_db *db = sqlite3_malloc64(sizeof(*db));
  int rc, oom = 0;

  if (!db) return SQLITE_NOMEM;
  memset(db, 0, sizeof(*db));
  __atomic_store_n(&f->db, db, __ATOMIC_RELEASE); /* for tde_openfiles_owner */
  db->file = f;
  db->fork = tde_fork_generation();
  db->read_only = (flags & SQLITE_OPEN_READONLY) || sqlite3_uri_boolean(name, "immutable", 0);
  db->plain_allowed = uri_says(name, "tde_plain", "allow");
  db->damaged_zeros = uri_says(name, "tde_damaged", "zeros");
  db->map_off = uri_says(name, "tde_map", "off");
  db->params.instance = instance_of(name, &oom);
  db->params.protector = copy_param(name, "tde_protector", &oom);
  db->params.identity = copy_param(name, "tde_identity", &oom);
  db->params.federated_client_id = copy_param(name, "tde_federated_client_id", &oom);
  db->as_key = copy_param(name, "tde_key", &oom);
  ask_as_opened(db);
  if (oom) return SQLITE_NOMEM;
  db->params.path = (char *)f->path; /* borrowed, as is the name of the VFS */
  db->params.vfs = (char *)f->lower_vfs->zName;
  __atomic_store_n(&db->opened, db->read_only ? 1 : 2, __ATOMIC_RELEASE);
  tde_sealed_init(&f->s, f->lower, TDE_ROLE_MAIN, TDE_UNIT_MAIN_MAX, &db->crypt[0], &db->counters,
                  &tde_main_hooks, f);
  tde_map_init(f);
  rc = tde_db_load(f, 1);
  if (rc == SQLITE_OK && !f->plain) rc = check_powersafe(f);
  if (rc == SQLITE_OK && !f->plain && db->state != TDE_STATE_ONLINE && db->state != TDE_STATE_NEW &&
      uri_says(name, "tde_inaccessible", "refuse")) {
    rc = tde_db_report(db);
    if (rc == SQLITE_OK) rc = SQLITE_CANTOPEN;
  }
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

void tde_db_close(tde_file *f) {
  tde_db *db = f->db;

  if (!db) return;
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_clear(&db->crypt[r]);
  tde_keyring_release(db->keys);
  tde_header_clear(&db->header);
  tde_index_unmapped(db);
  sqlite3_free(db->params.instance);
  sqlite3_free(db->params.protector);
  sqlite3_free(db->params.identity);
  sqlite3_free(db->params.federated_client_id);
  sqlite3_free(db->as_key);
  sqlite3_free(db);
  f->db = NULL;
}

/* ---- the key is away ---- */

void tde_db_wipe(tde_db *db) {
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_wipe(&db->crypt[r]);
}

int tde_db_in_transaction(const tde_db *db) {
  return db->shm_locks > 0 || (db->lock > SQLITE_LOCK_NONE && !db->shm_open) ||
         db->lock > SQLITE_LOCK_SHARED;
}

void tde_db_lose(tde_db *db) {
  tde_key_report r;

  tde_db_wipe(db);
  tde_sealed_forget(&db->file->s);
  db->head_valid = 0;
  db->state = TDE_STATE_INACCESSIBLE;
  db->retry_at = tde_now_ms() + RETRY_MS;
  tde_keys_report(db->keys, &r);
  db->last = r.last;
  if (r.last.code == TDE_OK) { /* it is being healed at this very moment */
    tde_fail(&db->last, TDE_UNREACHABLE, "try again", "%s: its key was away until just now",
             tde_path_of(db->file));
  }
}

/* Asks the key service, by the header that is on disk now. */
static void check_now(tde_db *db) {
  tde_key_report r;
  tde_header h;

  (void)read_newest(db, &h);
  (void)tde_keyring_check(db->keys, &tde_source, h.doc ? &h : NULL);
  tde_header_clear(&h);
  /* A denial is repeated by a thread, and what goes with a check (watch.h) is its to do. */
  if (!tde_watch_kick()) return;
  tde_keys_report(db->keys, &r);
  if (r.last.code == TDE_OK) tde_keyring_hurry(db->keys);
}

/* A thread that is there has looked by then. */
#define LATE_MS 1000

/* A check that is due and that no thread looks after. A key service is not waited for here
** if a thread can be had. A local key answers at once, and is asked before anything is read
** if no thread did in time: for local keys alone none is started when a database is opened. */
static void check_here(tde_db *db) {
  int64_t late = tde_now_ms() - tde_keys_due(db->keys);
  uint64_t fork = tde_fork_generation();
  int remote = tde_keys_remote(db->keys); /* another connection may have changed the key */

  if (db->fork != fork) { /* nobody looked after it here: a check that is overdue is waited for */
    db->fork = fork;
    if (tde_keyring_use_here(db->keys, 1)) {
      check_now(db);
      return;
    }
  }
  if (late < 0) return;
  if (remote || (late < LATE_MS && tde_watch_threads() > 0)) {
    if (tde_watch_kick()) return;
  }
  if (tde_keyring_claim(db->keys)) check_now(db);
}

/* A transaction may go on for longer than a check interval. */
#define IO_GATES 64
static void check_meanwhile(tde_db *db) {
  if (++db->io_gates % IO_GATES || tde_keys_due(db->keys) > tde_now_ms()) return;
  tde_keyring_use_here(db->keys, 0); /* in the middle of a transaction nobody is waited for */
  (void)tde_watch_kick();
}

int tde_db_io_gate(tde_file *f) {
  tde_db *db = f->db;

  if (!db->keys || db->state != TDE_STATE_ONLINE) return SQLITE_OK;
  if (tde_keys_live(db->keys)) {
    check_meanwhile(db);
    return SQLITE_OK;
  }
  /* What was under way at the loss may end (its rollback needs the journal's
  ** key), but not go on for ever. */
  if (!tde_keys_cut_off(db->keys)) return SQLITE_OK;
  tde_db_lose(db);
  return tde_db_report(db);
}

int tde_db_open_beside(const char *path, sqlite3_vfs *vfs, const char *instance, int flags,
                       tde_file **out) {
  const char *params[] = {"tde_instance", instance, NULL};
  tde_file *f = sqlite3_malloc64(sizeof(*f));
  int rc = SQLITE_NOMEM, opened = 0;

  *out = f;
  if (!f) return rc;
  memset(f, 0, sizeof(*f));
  f->role = TDE_ROLE_MAIN;
  f->lower_vfs = vfs;
  f->path = sqlite3_create_filename(path, "", "", instance ? 1 : 0, params);
  if (!f->path) return rc;
  f->lower = tde_lower_open(vfs, f->path, SQLITE_OPEN_MAIN_DB | flags, &opened, &rc);
  if (!f->lower) return rc;
  /* What can only be read is opened so, and the first write would be an I/O error. */
  if (flags & ~opened & SQLITE_OPEN_READWRITE) return SQLITE_READONLY;
  return tde_db_open(f, f->path, flags);
}

void tde_db_close_beside(tde_file *f) {
  if (!f) return;
  tde_db_close(f);
  tde_sealed_clear(&f->s);
  (void)tde_main_close(f->lower);
  sqlite3_free_filename((char *)f->path);
  sqlite3_free(f);
}

/* A secondary whose update was cut short: it is finished before anything is read.
** Who updates it holds EXCLUSIVE, so under SHARED such a log is nobody's. */
static int finish_update(tde_file *f) {
  tde_db *db = f->db;
  int rc;

  if (!tde_redo_exists(f)) return SQLITE_OK;
  if (db->read_only) {
    /* A log that does not count is of an update that has changed nothing yet. */
    rc = tde_redo_none(f);
    if (rc == SQLITE_BUSY) {
      tde_fail(&db->last, TDE_BUSY, "open it for writing once, or run tde_sync_secondary() again",
               "%s: an update of this secondary was cut short", tde_path_of(f));
    }
  } else {
    rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_RESERVED);
    if (rc == SQLITE_OK) rc = LOWER(f)->xLock(f->lower, SQLITE_LOCK_EXCLUSIVE);
    if (rc == SQLITE_OK) rc = tde_redo_settle(f, 1);
    (void)LOWER(f)->xUnlock(f->lower, SQLITE_LOCK_SHARED);
  }
  if (rc && (rc & 0xff) != SQLITE_BUSY) {
    tde_fail(&db->last, rc == SQLITE_NOMEM ? TDE_NOMEM : TDE_IO,
             "check the disk, and the permissions of the file whose name ends in -tdelog",
             "%s: the log of an update of this secondary can not be used: %s", tde_path_of(f),
             sqlite3_errstr(rc));
    (void)tde_db_report(db);
  }
  return rc;
}

int tde_db_ask(tde_file *f) {
  tde_db *db = f->db;
  int rc = SQLITE_OK;

  if (db->state == TDE_STATE_ONLINE && db->keys) {
    /* A transaction begins: what is wrong now shows anew. */
    if (db->last.code && db->lock <= SQLITE_LOCK_SHARED) tde_status_clear(&db->last);
    check_here(db);
    if (db->unlearnt && tde_keys_live(db->keys)) {
      db->unlearnt = TDE_OK;
      rc = freshen(f);
    }
  } else if (db->state == TDE_STATE_INACCESSIBLE &&
             (tde_now_ms() >= db->retry_at || (db->keys && tde_keys_live(db->keys)))) {
    rc = tde_db_load(f, 1);
  }
  return rc;
}

int tde_db_gate(tde_file *f) {
  tde_db *db = f->db;
  int rc;

  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) tde_db_lose(db);
  if (db->state == TDE_STATE_ONLINE && db->facts.secondary) {
    rc = finish_update(f);
    if (rc) return rc;
  }
  switch (db->state) {
    case TDE_STATE_ONLINE:
      if (db->header.unit_size) return SQLITE_OK;
      return tde_db_load(f, 1); /* empty so far: another connection may have fixed U */
    case TDE_STATE_PLAIN:
      return SQLITE_OK;
    case TDE_STATE_NEW:
    case TDE_STATE_DAMAGED: /* somebody may have put the file right, or the disk */
      rc = tde_db_load(f, 1);
      if (rc) return rc;
      break;
    default:
      break;
  }
  if (db->state == TDE_STATE_NEW && db->unwanted) return not_made(db);
  if (db->state == TDE_STATE_ONLINE || db->state == TDE_STATE_NEW || db->state == TDE_STATE_PLAIN) {
    return SQLITE_OK;
  }
  return tde_db_report(db);
}

/* A header that can not be changed does not name the key that was found: this connection goes
** on asking for it, as if it had been opened with tde_key=. */
static int keep_key(tde_db *db, const char *as_key) {
  char *copy = sqlite3_mprintf("%s", as_key);

  if (!copy) return SQLITE_NOMEM;
  sqlite3_free(db->as_key);
  db->as_key = copy;
  memcpy(db->as_of, db->facts.thumbprint, TDE_THUMB_BYTES);
  db->as_known = 1;
  return SQLITE_OK;
}

int tde_file_revalidate(tde_file *f, const char *as_key, tde_status *st) {
  tde_db *db = f->db;
  int rc;

  tde_file_enter(f);
  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) tde_db_lose(db);
  if (as_key) {
    db->params.as_key = (char *)as_key;
    db->params.as_identity = db->params.as_federated = NULL; /* the header's */
  }
  rc = load(f, 1, 1);
  if (rc == SQLITE_OK && as_key && db->state == TDE_STATE_ONLINE && tde_file_read_only(f)) {
    rc = keep_key(db, as_key);
  }
  ask_as_opened(db);
  if (rc == SQLITE_OK && db->state != TDE_STATE_ONLINE) {
    rc = not_online(db, st);
    /* One denial is no loss yet: the lease says when it is. */
    if (db->keys && tde_keys_live(db->keys)) (void)load(f, 1, 0);
  }
  tde_file_leave(f);
  return rc;
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
    rc = db->state == TDE_STATE_NEW ? tde_db_create(f) : SQLITE_MISUSE;
    db->params.protector = had[0];
    db->params.identity = had[1];
    tde_db_unreserve(f, before);
  }
  if (rc && st) *st = db->last;
  tde_file_leave(f);
  return rc;
}

const char *tde_file_instance(tde_file *f) {
  return f->db->params.instance;
}

const tde_key_params *tde_file_params(tde_file *f) {
  return &f->db->params;
}

int tde_file_read_only(tde_file *f) {
  return f->db->read_only || f->db->facts.backup;
}

int tde_file_is_locked(tde_file *f) {
  int is;

  tde_file_enter(f);
  is = f->db->lock > SQLITE_LOCK_SHARED || f->db->wal_writing;
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

tde_class tde_file_dek(tde_file *f, uint32_t epoch, uint8_t *dek, tde_status *st) {
  tde_db *db = f->db;
  tde_class c = db->keys ? tde_keys_dek(db->keys, epoch, dek) : TDE_WRONG_KEY;

  if (c == TDE_OK) return c;
  if (db->last.code) {
    if (st) *st = db->last;
    return c;
  }
  return tde_fail(st, c, NULL, "%s: the DEK of epoch %u is not at hand", tde_path_of(f), epoch);
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

int tde_file_report(tde_file *f, tde_key_report *out) {
  if (!f->db->keys) return 0;
  tde_keys_report(f->db->keys, out);
  return 1;
}

int tde_db_after_sync(tde_file *f) {
  tde_db *db = f->db;
  int rc = SQLITE_OK;

  db->slot_durable = 1;
  if (db->slot_behind && db->lock >= SQLITE_LOCK_RESERVED) rc = catch_up_slot(f);
  return rc == SQLITE_OK ? tde_guard_clear(f) : rc;
}

/* ---- hooks ---- */

/* The journal's records must be in the file before the pages that they save:
** the process may die after this write (SQLite may not sync in between). */
static int journal_first(void *ctx) {
  tde_file *f = ctx;
  tde_file *j = f->db->journal;
  if (f->db->journal_lost) return SQLITE_IOERR_WRITE;
  return j && !j->plain && tde_sealed_pending(&j->s) ? tde_sealed_flush(&j->s) : SQLITE_OK;
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
                 : "SELECT tde_verify() lists all damage; restore from a backup",
             "%s: %s unit %llu is not authentic (damaged or tampered with)", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index);
  } else if (c == TDE_TRUNCATED) {
    tde_fail(s, c, "SELECT tde_verify() lists all damage; restore from a backup",
             "%s: the file ends before %s unit %llu, which the database counts on", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index);
  } else if (c == TDE_TORN) {
    tde_fail(s, c, "SELECT tde_verify() lists all damage; restore from a backup",
             "%s: the file ends within %s unit %llu", tde_path_of(f), tde_role_name(f->role),
             (unsigned long long)index);
  } else {
    tde_fail(s, c, NULL, "%s: %s unit %llu could not be opened (%s)", tde_path_of(f),
             tde_role_name(f->role), (unsigned long long)index, tde_class_name(c));
  }
  tde_log_status(TDE_LOG_ERROR, NULL, s);
  return tde_class_rc(c);
}

const tde_sealed_hooks tde_main_hooks = {.before_write = journal_first,
                                         .guard = tde_guard_put,
                                         .salvage = tde_guard_salvage,
                                         .absent = tde_wal_has_rest,
                                         .bad = bad_unit,
                                         .learn = tde_db_learn_epoch,
                                         .copy = tde_map_copy};
const tde_sealed_hooks tde_log_hooks = {
    .bad = bad_unit, .trim = tde_journal_trim, .learn = tde_db_learn_epoch};
const tde_sealed_hooks tde_temp_hooks = {.bad = bad_unit};
