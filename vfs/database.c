/*
** database.c: a main database's header as it is read, and the keys that it names: which header is in
** force, and what follows from that. What changes it is in database_edit.c.
**
** What must hold:
**  - a header counts when its keys verify it; where both slots are whole that is the newer one, and
**    the older one only where the newer is not authentic;
**  - a database whose header or key is not to be had opens all the same: its state says what it is.
*/
#include <stdio.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "epochs.h"
#include "redo.h"
#include "shim.h"
#include "slots.h"

SQLITE_EXTENSION_INIT3

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

/* What is sealed under an epoch that the header names no more was put there by somebody else. */
void tde_db_take_facts(tde_db *db) {
  db->named.n = db->facts.nepochs;
  memcpy(db->named.epoch, db->facts.epochs, sizeof(db->named.epoch));
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_prune(&db->crypt[r]);
  drop_generation(db, db->wal);
  drop_generation(db, db->journal);
  outlive_key(db);
}

/* AEADs stay while the keys, and its epochs, do: somebody further up may be using one. */
void tde_db_take_header(tde_db *db, tde_header *h, tde_keys *keys) {
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
  tde_db_take_facts(db);
}

int tde_db_read_newest(tde_db *db, tde_header *now) {
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
  int same = tde_db_read_newest(db, &now) && now.doc &&
             memcmp(now.sha, h->sha, TDE_HASH_BYTES) == 0;

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
  tde_db_take_header(db, h, keys);
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

/* The key of the newer slot is not to be had, and the older one names another. To go by that is not
** for us to decide: who took a key away would find it given back. But the newer one may be forged. */
static void tell_older(tde_db *db, const tde_header *older) {
  tde_key_facts *f = sqlite3_malloc64(sizeof(*f));

  if (f && tde_source.describe(tde_source.ctx, older->doc, older->ndoc, f, NULL) == TDE_OK &&
      (strcmp(f->key_id, db->facts.key_id) != 0 || strcmp(f->key_version, db->facts.key_version) != 0)) {
    tde_also(&db->last, "or, if that header is forged (SECURITY.md): slot %d, the older one, names %.100s",
             older->slot, f->key_id);
  }
  sqlite3_free(f);
}

/* Both slots as they were read. */
typedef struct parsed {
  tde_header h[2];
  tde_class c[2];
  int known[2]; /* found whole before (tde_keyring_known_slots) */
  int first;    /* which is the newest that is whole */
} parsed;

static void parse_slots(tde_db *db, const tde_slots *both, parsed *p) {
  tde_keyring_known_slots((const uint8_t *const *)both->at, p->known);
  for (int i = 0; i < 2; i++) {
    p->c[i] = p->known[i] ? tde_slot_parse_again(both->at[i], &p->h[i], &db->slot[i])
                          : tde_slot_parse(both->at[i], &p->h[i], &db->slot[i]);
    p->h[i].slot = i;
  }
  /* Somebody without the extension was reading the empty file when the header was made, and then
  ** made a database of it. That one is not repaired away. */
  if (begins_in_plain(both) && p->c[1] == TDE_OK && !p->h[1].unit_size) {
    tde_header_clear(&p->h[1]);
    p->c[1] = TDE_DAMAGED_HEADER;
  }
  p->first = tde_newest_of(p->c, p->h);
}

/* Unlocks with the newest slot, which is whole; falls back to the other when that one is not
** authentic. Whatever else keeps its DEKs away is no reason to. */
static void take_slot(tde_db *db, parsed *p, int forced) {
  tde_header *newest = &p->h[p->first], *older = &p->h[!p->first];
  tde_class c_older = p->c[!p->first], rc = TDE_OK;
  int other;

  tde_status_clear(&db->last);
  if (forced || !stays(db, newest, c_older)) rc = try_slot(db, newest, forced);
  if (rc == TDE_NOT_AUTHENTIC && c_older == TDE_OK && may_fall_back(newest, older)) {
    rc = fall_back(db, newest, older, forced);
  } else if (rc && c_older == TDE_OK) {
    tell_older(db, older);
  }
  if (rc) {
    db->state = TDE_STATE_INACCESSIBLE;
    db->retry_at = tde_now_ms() + TDE_RETRY_MS;
    return;
  }
  tde_status_clear(&db->last);
  /* Repaired after the next write transaction's sync. */
  other = !db->header.slot;
  db->slot_behind = !db->slot[other].valid || p->h[other].unit_size != db->header.unit_size;
  if (db->slot[other].valid && !p->known[other]) tde_keyring_note_other(db->keys, &p->h[other]);
}

/* Takes the slot that counts, or tells why none does. False: the file's size, which was not asked for
** (-1), is needed to tell what the slots mean. */
static int choose_slot(tde_db *db, const tde_slots *both, sqlite3_int64 size, int forced) {
  parsed p;
  int whole, settled;

  parse_slots(db, both, &p);
  whole = p.c[p.first] == TDE_OK;
  settled = size >= 0 || (whole && p.h[p.first].unit_size);
  if (settled && (not_looked_at(p.c[0]) || not_looked_at(p.c[1]))) {
    db->state = TDE_STATE_INACCESSIBLE;
    tde_fail(&db->last, not_looked_at(p.c[0]) ? p.c[0] : p.c[1], NULL,
             "%s: the header could not be checked", tde_path_of(db->file));
  } else if (settled && whole) {
    take_slot(db, &p, forced);
  } else if (settled && unfinished_creation(both, size)) {
    set_new(db);
  } else if (settled) {
    classify_headerless(db, both, p.c[0], p.c[1]);
  }
  tde_header_clear(&p.h[0]);
  tde_header_clear(&p.h[1]);
  return settled;
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
int tde_db_follow(tde_file *f) {
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

/* What an interrupted sweep left in its log is put in place before anything is
** written over it. */
int tde_db_freshen(tde_file *f) {
  int rc = tde_db_follow(f);

  if (rc == SQLITE_OK && f->db->state == TDE_STATE_ONLINE && f->db->facts.regenerating &&
      !f->db->read_only) {
    rc = tde_redo_settle(f, 0);
  }
  return rc;
}

int tde_db_knows(const tde_db *db, uint32_t epoch) {
  return tde_epoch_is_named(&db->named, epoch) && tde_keys_has(db->keys, epoch);
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
    tde_db_take_header(db, &h, db->keys);
    if (!tde_db_knows(db, epoch)) c = TDE_TAMPERED;
  }
  db->unlearnt = c;
  tde_header_clear(&h);
  sqlite3_free(facts);
  tde_slots_clear(&both);
  return c;
}

int tde_db_not_made(tde_db *db) {
  (void)tde_db_report(db);
  return SQLITE_CANTOPEN;
}

int tde_db_not_online(tde_db *db, tde_status *st) {
  int rc = tde_class_rc(db->last.code);

  if (st) *st = db->last;
  if (db->state == TDE_STATE_NEW) {
    tde_fail(st, TDE_MISUSE, "create a table first", "%s: the database is empty",
             tde_path_of(db->file));
  }
  return rc ? rc : SQLITE_ERROR;
}

/* ---- opening ---- */

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

int tde_db_open(tde_file *f, const char *name, int flags) {
  tde_db *db = sqlite3_malloc64(sizeof(*db));
  int rc, immutable = sqlite3_uri_boolean(name, "immutable", 0);

  if (!db) return SQLITE_NOMEM;
  memset(db, 0, sizeof(*db));
  __atomic_store_n(&f->db, db, __ATOMIC_RELEASE); /* for tde_openfiles_owner */
  db->file = f;
  db->fork = tde_fork_generation();
  db->no_locks = immutable || sqlite3_uri_boolean(name, "nolock", 0);
  db->read_only = immutable || (flags & SQLITE_OPEN_READONLY);
  rc = tde_db_read_uri(db, name);
  if (rc) return rc;
  ask_as_opened(db);
  db->params.path = (char *)f->path; /* borrowed, as is the name of the VFS */
  db->params.vfs = (char *)f->lower_vfs->zName;
  __atomic_store_n(&db->opened, db->read_only ? 1 : 2, __ATOMIC_RELEASE);
  tde_sealed_init(&f->s, f->lower, TDE_ROLE_MAIN, TDE_UNIT_MAIN_MAX, &db->crypt[0], &db->counters,
                  &tde_main_hooks, f);
  tde_map_init(f);
  rc = tde_db_load(f, 1);
  if (rc == SQLITE_OK && !f->plain) rc = check_powersafe(f);
  if (rc == SQLITE_OK && !f->plain && db->state != TDE_STATE_ONLINE && db->state != TDE_STATE_NEW &&
      db->refuse_inaccessible) {
    rc = tde_db_report(db);
    if (rc == SQLITE_OK) rc = SQLITE_CANTOPEN;
  }
  return rc;
}

void tde_db_close(tde_file *f) {
  tde_db *db = f->db;

  if (!db) return;
  for (int r = 0; r < TDE_ROLE_KEYS; r++) tde_cryptor_clear(&db->crypt[r]);
  tde_keyring_release(db->keys);
  tde_header_clear(&db->header);
  tde_index_unmapped(db);
  tde_db_forget_uri(db);
  sqlite3_free(db);
  f->db = NULL;
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

/* ---- revalidation ---- */

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

static int revalidate(tde_file *f, const char *as_key, tde_status *st) {
  tde_db *db = f->db;
  int rc;

  /* A denial would take what its roll-back needs. */
  if (tde_db_journal_in_memory(db)) {
    tde_fail(st, TDE_MISUSE, "COMMIT or ROLLBACK first",
             "%s: a transaction is under way, its journal in memory", tde_path_of(f));
    return SQLITE_MISUSE;
  }
  if (db->state == TDE_STATE_ONLINE && db->keys && !tde_keys_live(db->keys)) tde_db_lose(db);
  if (as_key) {
    db->params.as_key = (char *)as_key;
    db->params.as_identity = db->params.as_federated = NULL; /* the header's */
  }
  rc = load(f, 1, 1);
  if (rc == SQLITE_OK && as_key && db->state == TDE_STATE_ONLINE && tde_db_is_read_only(db)) {
    rc = keep_key(db, as_key);
  }
  ask_as_opened(db);
  if (rc == SQLITE_OK && db->state != TDE_STATE_ONLINE) {
    rc = tde_db_not_online(db, st);
    /* One denial is no loss yet: the lease says when it is. And what was said of a key that was
    ** named is not what keeps the database closed. */
    if (db->keys && (as_key || tde_keys_live(db->keys))) (void)load(f, 1, 0);
  }
  return rc;
}

int tde_file_revalidate(tde_file *f, const char *as_key, tde_status *st) {
  int rc;

  tde_file_enter(f);
  rc = revalidate(f, as_key, st);
  tde_file_leave(f);
  return rc;
}
