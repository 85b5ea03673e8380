/*
** redo.c: the log of records that are written in place; see redo.h.
**
**     head, 128 bytes | entry 0 | entry 1 | ...
**     entry: index (8) | record (U + 48)
**
** What must hold:
**  - the head is written and synced after the entries: a torn log has no head;
**  - the log is emptied, durably, before other writers are let in: a record of it
**    must never stand in for a unit that somebody changed later.
*/
#include "redo.h"

#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "../ext/base/secret.h"

SQLITE_EXTENSION_INIT3

#define SUFFIX "-tdelog"
#define HEAD_BYTES 128u
#define BUF_BYTES (64u * 1024u)

/* Offsets in the head. */
enum {
  H_MAGIC = 0,
  H_VERSION = 16,
  H_RECORD = 20,
  H_COUNT = 24,
  H_UUID = 32,
  H_EPOCH = 48, /* of the MAC key */
  H_MARK = 52,
  H_UNITS = 56,
  H_CHAIN = 64,
  H_MAC = 96
};

static uint32_t entry_bytes(const tde_redo *r) {
  return 8 + r->record;
}

/* ---- the file ---- */

static sqlite3_file *open_log(tde_file *f, const char *name, int flags, int *rc) {
  return tde_lower_open(f->lower_vfs, name, flags | SQLITE_OPEN_MAIN_JOURNAL, NULL, rc);
}

int tde_redo_exists(tde_file *f) {
  const char *name = tde_name_of(f->path, SUFFIX);
  int there = 0;

  if (!name || f->lower_vfs->xAccess(f->lower_vfs, name, SQLITE_ACCESS_EXISTS, &there)) there = 1;
  tde_name_free(name);
  return there;
}

void tde_redo_tidy(tde_file *f) {
  const char *name = tde_name_of(f->path, SUFFIX);

  if (name) (void)f->lower_vfs->xDelete(f->lower_vfs, name, 0);
  tde_name_free(name);
}

/* ---- writing ---- */

int tde_redo_begin(tde_redo *r, tde_file *f) {
  int rc;

  memset(r, 0, sizeof(*r));
  r->f = f;
  r->record = f->s.geo.unit + TDE_UNIT_OVERHEAD;
  r->name = tde_name_of(f->path, SUFFIX);
  r->buf = sqlite3_malloc64(BUF_BYTES);
  if (!r->name || !r->buf) return SQLITE_NOMEM;
  r->lower = open_log(f, r->name, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &rc);
  if (!r->lower) return rc;
  return tde_redo_void(r);
}

/* A record is sealed under a random nonce: its hash tells it from every other. */
static int mark_of(const uint8_t *record, uint32_t n, uint32_t *mark) {
  uint8_t hash[TDE_HASH_BYTES];

  if (tde_sha256_2(record, n, NULL, 0, hash)) return SQLITE_NOMEM;
  *mark = tde_get32le(hash);
  if (*mark == 0) *mark = 1;
  return SQLITE_OK;
}

static int read_unit_0(tde_redo *r, uint8_t *record) {
  tde_file *f = r->f;

  f->s.counters->lower_reads++;
  return LOWER(f)->xRead(f->lower, record, (int)r->record,
                         (sqlite3_int64)tde_unit_physical(&f->s.geo, 0));
}

int tde_redo_bind(tde_redo *r) {
  int rc = read_unit_0(r, r->buf);
  return rc ? rc : mark_of(r->buf, r->record, &r->mark);
}

static int write_out(tde_redo *r) {
  int rc = SQLITE_OK;

  if (r->nbuf) {
    rc = r->lower->pMethods->xWrite(r->lower, r->buf, (int)r->nbuf, (sqlite3_int64)r->at);
    r->f->s.counters->lower_writes++;
  }
  if (rc == SQLITE_OK) {
    r->at += r->nbuf;
    r->nbuf = 0;
  }
  return rc;
}

int tde_redo_add(tde_redo *r, uint64_t index, const uint8_t *record) {
  uint8_t *e;
  int rc = SQLITE_OK;

  if (r->nbuf + entry_bytes(r) > BUF_BYTES) rc = write_out(r);
  if (rc) return rc;
  e = r->buf + r->nbuf;
  tde_put64le(e, index);
  memcpy(e + 8, record, r->record);
  if (tde_sha256_2(r->chain, TDE_HASH_BYTES, e, entry_bytes(r), r->chain)) return SQLITE_NOMEM;
  r->nbuf += entry_bytes(r);
  r->count++;
  return SQLITE_OK;
}

static tde_class head_mac(const tde_file *f, const uint8_t *head, uint32_t epoch,
                          uint8_t mac[TDE_HASH_BYTES]) {
  uint8_t key[TDE_KEY_BYTES];
  tde_class c = tde_keys_mac_key(f->db->keys, epoch, key);

  if (c == TDE_OK) c = tde_hmac_sha256(key, sizeof(key), head, H_MAC, NULL, 0, mac);
  tde_wipe(key, sizeof(key));
  return c;
}

static int read_entry(tde_redo *r, uint64_t i, uint64_t *index);
static int put_entry(tde_redo *r, uint64_t index);

int tde_redo_grow(tde_redo *r, uint64_t first) {
  tde_file *f = r->f;
  uint64_t index;
  int rc = r->units > first ? write_out(r) : SQLITE_OK;

  if (rc || r->units <= first) return rc;
  for (uint64_t i = 0; i < r->count && rc == SQLITE_OK; i++) {
    rc = read_entry(r, i, &index);
    if (rc == SQLITE_OK && index >= first) rc = put_entry(r, index);
  }
  if (rc == SQLITE_OK) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
  f->s.counters->lower_syncs++;
  return rc;
}

int tde_redo_commit(tde_redo *r) {
  uint8_t head[HEAD_BYTES];
  tde_class c;
  int rc = write_out(r);

  if (rc == SQLITE_OK) rc = r->lower->pMethods->xSync(r->lower, SQLITE_SYNC_NORMAL);
  if (rc) return rc;
  memset(head, 0, sizeof(head));
  memcpy(head + H_MAGIC, tde_redo_magic, sizeof(tde_redo_magic));
  tde_put32le(head + H_VERSION, TDE_FORMAT_VERSION);
  tde_put32le(head + H_RECORD, r->record);
  tde_put64le(head + H_COUNT, r->count);
  memcpy(head + H_UUID, r->f->db->header.uuid, TDE_UUID_BYTES);
  tde_put32le(head + H_EPOCH, r->f->db->header.epoch);
  tde_put32le(head + H_MARK, r->mark);
  tde_put64le(head + H_UNITS, r->units);
  memcpy(head + H_CHAIN, r->chain, TDE_HASH_BYTES);
  c = head_mac(r->f, head, r->f->db->header.epoch, head + H_MAC);
  if (c) return tde_class_rc(c);
  rc = r->lower->pMethods->xWrite(r->lower, head, sizeof(head), 0);
  if (rc == SQLITE_OK) rc = r->lower->pMethods->xSync(r->lower, SQLITE_SYNC_NORMAL);
  r->f->s.counters->lower_syncs += 2;
  return rc;
}

int tde_redo_void(tde_redo *r) {
  int rc = r->lower->pMethods->xTruncate(r->lower, 0);

  if (rc == SQLITE_OK && r->count) rc = r->lower->pMethods->xSync(r->lower, SQLITE_SYNC_NORMAL);
  r->count = 0;
  r->nbuf = 0;
  r->at = HEAD_BYTES;
  memset(r->chain, 0, sizeof(r->chain));
  return rc;
}

/* The first sync of a journal that was created syncs its directory (os_unix.c). */
int tde_redo_sync_name(tde_redo *r) {
  return r->lower->pMethods->xSync(r->lower, SQLITE_SYNC_NORMAL);
}

void tde_redo_close(tde_redo *r) {
  sqlite3_int64 size = 1;

  if (r->lower) {
    (void)r->lower->pMethods->xFileSize(r->lower, &size);
    (void)tde_lower_close(r->lower);
    if (size == 0) (void)r->f->lower_vfs->xDelete(r->f->lower_vfs, r->name, 0);
  }
  tde_name_free(r->name);
  sqlite3_free(r->buf);
  memset(r, 0, sizeof(*r));
}

/* ---- reading ---- */

static int read_entry(tde_redo *r, uint64_t i, uint64_t *index) {
  int rc = r->lower->pMethods->xRead(r->lower, r->buf, (int)entry_bytes(r),
                                     (sqlite3_int64)(HEAD_BYTES + i * entry_bytes(r)));
  *index = tde_get64le(r->buf);
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_IOERR_READ : rc;
}

/* Writes the entry that was read to its place. */
static int put_entry(tde_redo *r, uint64_t index) {
  tde_file *f = r->f;

  f->s.counters->lower_writes++;
  return LOWER(f)->xWrite(f->lower, r->buf + 8, (int)r->record,
                          (sqlite3_int64)tde_unit_physical(&f->s.geo, index));
}

/* Is the database in the state that the log is for, or on its way from there? Then unit 0 is
** the one of before, or the log's, or torn between the two. SQLITE_NOTFOUND: it is not. */
static int fits(tde_redo *r) {
  tde_file *f = r->f;
  uint8_t *there = sqlite3_malloc64(2 * (sqlite3_uint64)r->record);
  uint32_t mark = 0;
  uint64_t index = 1;
  tde_class c = TDE_OK;
  int rc = there ? read_unit_0(r, there) : SQLITE_NOMEM, torn = rc == SQLITE_IOERR_SHORT_READ;

  if (rc == SQLITE_OK) rc = mark_of(there, r->record, &mark);
  if (rc == SQLITE_OK && mark != r->mark) {
    if (r->count) rc = read_entry(r, 0, &index);
    if (rc == SQLITE_OK && (index || memcmp(there, r->buf + 8, r->record) != 0)) {
      c = tde_sealed_open_record(&f->s, 0, there, there + r->record);
      rc = c == TDE_OK ? SQLITE_NOTFOUND : c == TDE_TAMPERED ? SQLITE_OK : tde_class_rc(c);
    }
  }
  if (there) tde_wipe(there + r->record, r->record);
  sqlite3_free(there);
  return torn ? SQLITE_OK : rc;
}

/* Opens an existing log and checks it whole. SQLITE_NOTFOUND: there is none that
** counts. */
static int open_existing(tde_redo *r, tde_file *f, int flags) {
  uint8_t head[HEAD_BYTES], mac[TDE_HASH_BYTES], chain[TDE_HASH_BYTES] = {0};
  tde_class c;
  int rc;

  memset(r, 0, sizeof(*r));
  r->f = f;
  r->name = tde_name_of(f->path, SUFFIX);
  r->buf = sqlite3_malloc64(BUF_BYTES);
  if (!r->name || !r->buf) return SQLITE_NOMEM;
  r->lower = open_log(f, r->name, flags, &rc);
  /* One that is there, and is not to be had, may count. */
  if (!r->lower) return rc != SQLITE_NOMEM && !tde_redo_exists(f) ? SQLITE_NOTFOUND : rc;
  rc = r->lower->pMethods->xRead(r->lower, head, sizeof(head), 0);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_NOTFOUND;
  if (rc) return rc;
  r->record = tde_get32le(head + H_RECORD);
  r->count = tde_get64le(head + H_COUNT);
  r->units = tde_get64le(head + H_UNITS);
  r->mark = tde_get32le(head + H_MARK);
  if (memcmp(head + H_MAGIC, tde_redo_magic, sizeof(tde_redo_magic)) != 0 ||
      tde_get32le(head + H_VERSION) != TDE_FORMAT_VERSION ||
      r->record != f->s.geo.unit + TDE_UNIT_OVERHEAD ||
      memcmp(head + H_UUID, f->db->header.uuid, TDE_UUID_BYTES) != 0) {
    return SQLITE_NOTFOUND;
  }
  c = head_mac(f, head, tde_get32le(head + H_EPOCH), mac);
  if (c == TDE_WRONG_KEY) return SQLITE_NOTFOUND;
  if (c) return tde_class_rc(c);
  if (!tde_equal(mac, head + H_MAC, sizeof(mac))) return SQLITE_NOTFOUND;
  for (uint64_t i = 0; rc == SQLITE_OK && i < r->count; i++) {
    rc = r->lower->pMethods->xRead(r->lower, r->buf, (int)entry_bytes(r),
                                   (sqlite3_int64)(HEAD_BYTES + i * entry_bytes(r)));
    if (rc == SQLITE_OK && tde_sha256_2(chain, sizeof(chain), r->buf, entry_bytes(r), chain)) {
      rc = SQLITE_NOMEM;
    }
  }
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_NOTFOUND;
  if (rc) return rc;
  if (!tde_equal(chain, head + H_CHAIN, sizeof(chain))) return SQLITE_NOTFOUND;
  return r->mark ? fits(r) : SQLITE_OK;
}

/* Of a log that was only read: its file stays, whatever it holds. */
static void close_read(tde_redo *r) {
  (void)tde_lower_close(r->lower);
  tde_name_free(r->name);
  sqlite3_free(r->buf);
}

int tde_redo_none(tde_file *f) {
  tde_redo r;
  int rc = open_existing(&r, f, SQLITE_OPEN_READONLY);

  close_read(&r);
  if (rc == SQLITE_NOTFOUND) return SQLITE_OK;
  return rc ? rc : SQLITE_BUSY;
}

int tde_redo_find(tde_file *f, uint64_t index, uint8_t *record, uint32_t n) {
  tde_redo r;
  uint64_t at;
  int found = 0, rc = open_existing(&r, f, SQLITE_OPEN_READONLY);

  for (uint64_t i = 0; rc == SQLITE_OK && !found && i < r.count; i++) {
    rc = read_entry(&r, i, &at);
    if (rc || at != index || n != r.record) continue;
    memcpy(record, r.buf + 8, n);
    found = 1;
  }
  close_read(&r);
  if (rc == SQLITE_OK && !found) rc = SQLITE_NOTFOUND;
  return rc;
}

/* ---- applying ---- */

/* Does unit i open as it stands in the database? */
static int place_opens(tde_file *f, uint64_t i, int *rc) {
  tde_sealed *s = &f->s;
  uint32_t got;
  int torn;
  tde_class c;

  *rc = tde_sealed_buffers(s, s->geo.unit);
  if (*rc == SQLITE_OK) *rc = tde_sealed_fetch(s, i, 1, s->scratch, &got, &torn);
  if (*rc == SQLITE_IOERR_SHORT_READ) {
    *rc = SQLITE_OK;
    return 0;
  }
  if (*rc) return 0;
  c = tde_sealed_open_record(s, i, s->scratch, s->plain);
  tde_wipe(s->plain, s->geo.unit);
  if (c && c != TDE_TAMPERED) *rc = tde_class_rc(c);
  return c == TDE_OK;
}

/* Writes the entries to their places; only_bad: those whose place does not open. */
static int put_back(tde_redo *r, int only_bad, uint64_t *put) {
  tde_file *f = r->f;
  uint64_t index;
  int rc = SQLITE_OK;

  *put = 0;
  for (uint64_t i = 0; rc == SQLITE_OK && i < r->count; i++) {
    rc = read_entry(r, i, &index);
    /* No unit is of epoch 0: somebody emptied the log. */
    if (rc == SQLITE_OK && tde_unit_epoch(r->buf + 8) == 0) rc = SQLITE_IOERR_READ;
    if (rc == SQLITE_OK && only_bad && place_opens(f, index, &rc)) continue;
    if (rc) break;
    rc = put_entry(r, index);
    (*put)++;
  }
  f->s.ahead_units = 0;
  f->s.size_known = 0;
  f->db->head_valid = 0;
  if (rc == SQLITE_OK && r->units && !only_bad) {
    rc = LOWER(f)->xTruncate(f->lower, (sqlite3_int64)tde_lower_size(&f->s.geo, r->units));
  }
  if (rc == SQLITE_OK) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
  f->s.counters->lower_syncs++;
  return rc;
}

int tde_redo_apply(tde_redo *r) {
  uint64_t put;
  return put_back(r, 0, &put);
}

int tde_redo_settle(tde_file *f, int all) {
  tde_redo r;
  uint64_t put = 0;
  int rc;

  if (!tde_redo_exists(f)) return SQLITE_OK;
  rc = open_existing(&r, f, SQLITE_OPEN_READWRITE);
  if (rc == SQLITE_OK) rc = put_back(&r, !all, &put);
  if (rc == SQLITE_OK && put) {
    tde_log(TDE_LOG_NOTICE, "%s: %llu units were put back from an interrupted operation's log",
            f->path, (unsigned long long)put);
  }
  if (r.lower && (rc == SQLITE_OK || rc == SQLITE_NOTFOUND)) {
    r.count = 1; /* whatever it holds: durably gone */
    rc = tde_redo_void(&r);
  } else if (rc == SQLITE_NOTFOUND) {
    rc = SQLITE_OK;
  }
  tde_redo_close(&r);
  return rc;
}
