/*
** logfile.c: the generations of a WAL (wal.c) and of a rollback journal (journal.c).
**
** Both are logs that SQLite writes anew again and again in one file. Each time
** is a generation: a random salt in the file's prefix, bound into every unit,
** so that what an older generation left behind does not open. The prefix also
** carries the DEK epoch and the protector's thumbprint of that moment. All units of the
** generation are sealed under that epoch, whoever writes them: a connection that joins
** it may have slept through a regeneration, and know an older epoch, which is forgotten,
** or a newer one. An epoch is not forgotten before its generations are gone (reseal.c).
**
** What SQLite expects of a log is to find its end by itself: the first frame
** or record whose checksum fails. So where SQLite looks for the end, a unit
** that does not open reads as zeros (which fail the checksum) or as the end of
** the file; where SQLite knows that the data is there, it is an error:
**   - a WAL frame read whole from its first byte is recovery looking; a page
**     read behind the frame header is named by the wal-index;
**   - a journal unit that this handle wrote must be there; others may be torn.
** That gives an attacker no more than cutting the log off would.
*/
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

const uint8_t tde_sqlite_journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

void tde_log_open(tde_file *f) {
  tde_sealed_init(&f->s, f->lower, f->role, 0, &f->db->crypt[f->role - 1], &f->db->counters,
                  &tde_log_hooks, f);
  if (f->role == TDE_ROLE_WAL) {
    f->db->wal = f;
    f->db->file->s.known_end = 0; /* from here on checkpoints may make the file shorter */
    f->gen.alone = f->db->lock == SQLITE_LOCK_EXCLUSIVE && !f->db->shm_open;
  } else {
    f->db->journal = f;
    if (f->db->journal_lost) {
      /* A new transaction under the same lock (locking_mode=EXCLUSIVE). */
      tde_sealed_drop(&f->db->file->s);
      f->db->journal_lost = 0;
    }
  }
}

/* ---- generations ---- */

static int unit_ok(const tde_file *f, uint32_t unit) {
  uint32_t page = unit - TDE_WAL_FRAME_HEAD;

  if (f->role == TDE_ROLE_JOURNAL) return unit == TDE_UNIT_JOURNAL;
  return unit > TDE_WAL_FRAME_HEAD && page >= 512 && page <= 65536 && (page & (page - 1)) == 0;
}

static int refuse_log(tde_file *f, tde_class c, const char *why) {
  tde_fail(&f->db->last, c, "put the database that it belongs to beside it, or move the file away",
           "%s: %s", f->path, why);
  return tde_db_report(f->db);
}

int tde_log_refuse_frames(tde_file *f, const char *why) {
  tde_fail(
      &f->db->last, TDE_TAMPERED,
      "close all connections; SELECT tde_verify() then lists all damage; restore from a backup",
      "%s: %s", f->path, why);
  f->db->counters.units_rejected++;
  return tde_db_report(f->db);
}

/* A log of SQLite's own, of another database of this name: what stands in it is not ours to lose. */
static int is_plain_log(const uint8_t *b) {
  return ((tde_get32be(b) & ~1u) == TDE_SQLITE_WAL_MAGIC &&
          tde_get32be(b + 4) == TDE_SQLITE_WAL_VERSION) ||
         memcmp(b, tde_sqlite_journal_magic, sizeof(tde_sqlite_journal_magic)) == 0;
}

/* A backup and a secondary are only read: beside them stands the log of what they were made of. */
static int refuse_log_of_copy(tde_file *f) {
  tde_fail(&f->db->last, TDE_MISCONFIGURED,
           "tde_restore() makes a database of it; or move the file away",
           "%s: is not this file's, which is a %s: together they are a mixture", f->path,
           f->db->facts.backup ? "backup" : "secondary");
  return tde_db_report(f->db);
}

/* The prefix parsed: is it a generation of this database? */
static int judge_prefix(tde_file *f, const uint8_t *b, const tde_prefix *p) {
  tde_db *db = f->db;
  uint8_t mac_key[TDE_KEY_BYTES];
  tde_class c;

  if (memcmp(p->uuid, db->header.uuid, TDE_UUID_BYTES) != 0) {
    return refuse_log(f, TDE_WRONG_KEY, "belongs to another database");
  }
  if (!tde_db_knows(db, p->epoch)) {
    int rc = tde_db_load(db->file, 1); /* a newer epoch, perhaps */
    if (rc) return rc;
  }
  c = TDE_WRONG_KEY;
  if (tde_db_knows(db, p->epoch)) c = tde_keys_mac_key(db->keys, p->epoch, mac_key);
  if (c == TDE_WRONG_KEY) {
    return refuse_log(f, c, "is sealed under a key epoch that is not known");
  }
  if (c) return tde_class_rc(c);
  c = unit_ok(f, p->unit_size) ? tde_prefix_check_mac(b, mac_key) : TDE_WRONG_KEY;
  tde_wipe(mac_key, sizeof(mac_key));
  if (c == TDE_WRONG_KEY) {
    tde_log(TDE_LOG_WARNING, "%s: its prefix is not authentic: read as empty", f->path);
    return SQLITE_OK;
  }
  if (c) return tde_class_rc(c); /* not checked is not void */
  if (db->facts.backup || db->facts.secondary) return refuse_log_of_copy(f);
  memcpy(f->s.salt, p->salt, TDE_SALT_BYTES);
  f->s.epoch = p->epoch;
  memcpy(f->gen.seen, b, TDE_PREFIX_BYTES);
  f->gen.head_known = 0;
  tde_geometry_init(&f->s.geo, f->role, p->unit_size);
  f->gen.valid = 1;
  return SQLITE_OK;
}

/* Zeros where the file is shorter than a prefix. */
static int read_prefix(tde_file *f, uint8_t b[TDE_PREFIX_BYTES]) {
  sqlite3_int64 size = 0;
  int rc = LOWER(f)->xRead(f->lower, b, (int)TDE_PREFIX_BYTES, 0);

  f->s.counters->lower_reads++;
  if (rc != SQLITE_IOERR_SHORT_READ) return rc;
  rc = LOWER(f)->xFileSize(f->lower, &size);
  if (rc) return rc;
  if (size < (sqlite3_int64)TDE_PREFIX_BYTES) {
    memset(b, 0, TDE_PREFIX_BYTES);
    return SQLITE_OK;
  }
  rc = LOWER(f)->xRead(f->lower, b, (int)TDE_PREFIX_BYTES, 0); /* it has just grown */
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_IOERR_READ : rc;
}

/* ---- is it the generation that the wal-index speaks of? ---- */

/* It tells without a read (walindex.c). */
static int index_vouches(const tde_file *f) {
  uint8_t now[TDE_INDEX_SALT];

  return f->gen.indexed && tde_index_salt(f->db, now) &&
         memcmp(now, f->gen.index_salt, sizeof(now)) == 0;
}

void tde_log_look_again(tde_file *f) {
  f->gen.checked = f->gen.indexed = 0;
}

int tde_log_refresh(tde_file *f) {
  uint8_t b[TDE_PREFIX_BYTES];
  tde_generation *g = &f->gen;
  tde_prefix p;
  int rc;

  if (g->checked || f->s.prefix_pending) return SQLITE_OK;
  if (g->valid && index_vouches(f)) {
    g->checked = 1;
    return SQLITE_OK;
  }
  g->indexed = f->role == TDE_ROLE_WAL && tde_index_salt(f->db, g->index_salt);
  rc = read_prefix(f, b);
  g->indexed = rc == SQLITE_OK && index_vouches(f); /* it spoke of this one before and after */
  if (rc) return rc;
  if (f->role == TDE_ROLE_JOURNAL && !tde_sealed_pending(&f->s)) f->s.size_known = 0;
  if (g->valid && memcmp(b, g->seen, sizeof(b)) == 0) {
    g->checked = 1;
    return SQLITE_OK;
  }
  if (g->valid && g->alone) {
    return tde_log_refuse_frames(f, "was replaced by another while it was in use");
  }
  g->valid = 0;
  g->last = 0;
  f->s.own_from = f->s.own_to = 0;
  tde_sealed_drop(&f->s);
  switch (tde_prefix_parse(b, f->role, &p)) {
    case TDE_PREFIX_NONE:
      break;
    case TDE_PREFIX_FOREIGN:
      if (is_plain_log(b)) {
        return refuse_log(f, TDE_MISCONFIGURED, "is the log of a database that is not encrypted");
      }
      tde_log(TDE_LOG_WARNING, "%s: its prefix is torn, or of another kind: read as empty",
              f->path);
      break;
    case TDE_PREFIX_UNKNOWN:
      return SQLITE_IOERR_NOMEM;
    case TDE_PREFIX_OK:
      rc = judge_prefix(f, b, &p);
      break;
  }
  if (rc == SQLITE_OK) g->checked = 1;
  return rc;
}

int tde_log_begun_anew(tde_file *w, const uint8_t salt[TDE_SALT_BYTES]) {
  tde_log_look_again(w);
  return tde_log_refresh(w) == SQLITE_OK &&
         (!w->gen.valid || memcmp(w->s.salt, salt, TDE_SALT_BYTES) != 0);
}

int tde_log_begin(tde_file *f, uint32_t unit) {
  tde_db *db = f->db;
  uint8_t mac_key[TDE_KEY_BYTES];
  tde_prefix p;
  tde_class c;
  int rc;

  if (!unit_ok(f, unit)) return SQLITE_CORRUPT;
  if (f->role == TDE_ROLE_WAL) {
    /* It is stamped with the protector and epoch of now. (A journal's RESERVED
    ** lock has seen to that.) */
    rc = tde_db_follow(db->file);
    if (rc) return rc;
  }
  tde_sealed_drop(&f->s);
  memset(&p, 0, sizeof(p));
  p.epoch = db->header.epoch;
  p.unit_size = unit;
  memcpy(p.uuid, db->header.uuid, TDE_UUID_BYTES);
  memcpy(p.thumbprint, db->facts.thumbprint, TDE_THUMB_BYTES);
  c = tde_random(p.salt, TDE_SALT_BYTES, &db->last);
  if (c == TDE_OK) c = tde_keys_mac_key(db->keys, p.epoch, mac_key);
  if (c == TDE_OK) c = tde_prefix_build(&p, f->role, mac_key, f->s.prefix);
  tde_wipe(mac_key, sizeof(mac_key));
  if (c) {
    f->gen.valid = f->gen.checked = 0;
    return c == TDE_RANDOM ? tde_db_report(db) : tde_class_rc(c);
  }
  memcpy(f->s.salt, p.salt, TDE_SALT_BYTES);
  memcpy(f->gen.seen, f->s.prefix, TDE_PREFIX_BYTES);
  f->gen.head_known = 0;
  tde_geometry_init(&f->s.geo, f->role, unit);
  f->s.epoch = p.epoch;
  f->s.prefix_pending = 1;
  f->gen.valid = f->gen.checked = 1;
  f->gen.commit = f->gen.indexed = 0;
  f->gen.last = 0;
  f->s.own_from = f->s.own_to = 0;
  return SQLITE_OK;
}

int tde_log_size(tde_file *f, uint64_t *size) {
  sqlite3_int64 lower = 0;
  int rc = tde_log_refresh(f);

  if (rc) return rc;
  if (f->gen.valid || f->role == TDE_ROLE_JOURNAL) {
    if (f->role == TDE_ROLE_WAL) {
      rc = tde_sealed_flush(&f->s);
      if (rc) return rc;
    }
    return tde_sealed_size(&f->s, size);
  }
  /* No generation: SQLite will find no header, whatever the size. */
  rc = LOWER(f)->xFileSize(f->lower, &lower);
  *size = lower > (sqlite3_int64)TDE_PREFIX_BYTES ? (uint64_t)lower - TDE_PREFIX_BYTES : 0;
  return rc;
}

int tde_log_truncate(tde_file *f, uint64_t size) {
  int rc;

  if (size > 0) {
    rc = tde_log_refresh(f);
    if (rc) return rc;
    if (f->gen.valid || f->role == TDE_ROLE_JOURNAL) return tde_sealed_truncate(&f->s, size);
  }
  rc = LOWER(f)->xTruncate(f->lower, 0);
  if (rc == SQLITE_OK) {
    tde_sealed_drop(&f->s);
    f->gen.valid = 0;
    f->gen.last = 0;
    f->gen.checked = 1;
    f->s.own_from = f->s.own_to = 0;
  }
  return rc;
}
