/*
** journal.c: the rollback journal, the name of a super-journal at its end, and journals that are met
** through one; its generations are logfile.c's.
*/
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/log.h"
#include "openfiles.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* The commit in PERSIST mode: SQLite overwrites the header with zeros. Zero
** the prefix and the first record below: no key is needed to see that this
** journal is void. */
static int void_journal(tde_file *f) {
  static const uint8_t zeros[TDE_PREFIX_BYTES + TDE_UNIT_JOURNAL + TDE_UNIT_OVERHEAD];
  int rc = LOWER(f)->xWrite(f->lower, zeros, sizeof(zeros), 0);

  f->s.counters->lower_writes++;
  if (rc) {
    /* Half of it may be there: whether the journal is void is for the file to say. */
    f->gen.checked = 0;
    f->s.own_from = f->s.own_to = 0;
    return rc;
  }
  tde_sealed_drop(&f->s);
  f->gen.valid = 0;
  f->gen.checked = 1;
  f->s.own_from = f->s.own_to = 0;
  return SQLITE_OK;
}

int tde_journal_read(tde_file *f, uint8_t *buf, uint32_t n, uint64_t off) {
  uint32_t at;
  uint64_t size, last;
  int probe = n <= 8, flags, rc = tde_log_refresh(f);

  if (rc) return rc;
  if (!f->gen.valid) {
    memset(buf, 0, n);
    rc = tde_sealed_size(&f->s, &size);
    if (rc) return rc;
    return off + n <= size ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
  }
  last = tde_unit_at(&f->s.geo, off + n - 1, &at);
  flags = tde_sealed_own(&f->s, last) ? 0 : probe ? TDE_READ_LENIENT : TDE_READ_SHORT;
  return tde_sealed_read(&f->s, buf, n, off, flags);
}

/* ---- the super-journal's name ----
**
** A transaction over several databases has a super-journal; each journal ends with its name
** (pager.c, writeSuperJournal), sealed here. A plain database of the transaction may be the
** first to be opened after a crash, through a VFS that knows no keys, and deletes the
** super-journal when no journal names it: ours would count as committed. So the name stands
** in plain behind the records, too, in the form and place in which SQLite looks for it:
**
**     name | its length (4, BE) | sum of its bytes (4, BE) | journal magic
**
** No secret: it stands in the super-journal. And nothing here believes it.
*/
#define SUPER_TAIL 16u
#define SUPER_NAME_MAX 4096u

/* SQLite adds chars, which are signed or not as the machine has them. */
static uint32_t sum_of(const uint8_t *name, uint32_t n) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += (uint32_t)(char)name[i];
  return sum;
}

/* Takes the name in plain, if one ends the file, off its size. */
static int trim_name(tde_file *f, sqlite3_int64 *size) {
  uint8_t tail[SUPER_TAIL], *name;
  sqlite3_int64 end = *size - (sqlite3_int64)SUPER_TAIL;
  uint32_t n;
  int rc;

  if (end <= (sqlite3_int64)TDE_PREFIX_BYTES) return SQLITE_OK;
  rc = LOWER(f)->xRead(f->lower, tail, sizeof(tail), end);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK; /* it has just become shorter */
  if (rc) return rc;
  n = tde_get32be(tail);
  if (memcmp(tail + 8, tde_sqlite_journal_magic, 8) != 0 || n == 0 || n > SUPER_NAME_MAX ||
      end - (sqlite3_int64)n < (sqlite3_int64)TDE_PREFIX_BYTES) {
    return SQLITE_OK;
  }
  name = sqlite3_malloc64(n);
  if (!name) return SQLITE_NOMEM;
  rc = LOWER(f)->xRead(f->lower, name, (int)n, end - (sqlite3_int64)n);
  if (rc == SQLITE_OK && sum_of(name, n) == tde_get32be(tail + 4)) *size = end - (sqlite3_int64)n;
  sqlite3_free(name);
  return rc;
}

int tde_journal_trim(void *ctx, sqlite3_int64 *size) {
  tde_file *f = ctx;

  return f->role == TDE_ROLE_JOURNAL ? trim_name(f, size) : SQLITE_OK;
}

/* The record of the name, from SQLite's own, whose magic belongs at `at`. *n: its bytes, 0: there
** is no name to be had. */
static int read_super_name(tde_file *f, uint64_t at, uint8_t *out, uint32_t *n) {
  uint8_t head[8];
  uint32_t len;
  int rc = at < sizeof(head) ? SQLITE_CORRUPT
                             : tde_sealed_read(&f->s, head, sizeof(head), at - sizeof(head), 0);

  *n = 0;
  if (rc) return rc;
  len = tde_get32be(head);
  if (len == 0 || len > SUPER_NAME_MAX || len + sizeof(head) > at) return SQLITE_OK;
  rc = tde_sealed_read(&f->s, out, len + sizeof(head), at - sizeof(head) - len, 0);
  if (rc || sum_of(out, len) != tde_get32be(head + 4)) return rc;
  memcpy(out + len + sizeof(head), tde_sqlite_journal_magic, 8);
  *n = len + SUPER_TAIL;
  return SQLITE_OK;
}

/* Writes it behind the last record. What an earlier, longer transaction left there goes. */
static int repeat_super_name(tde_file *f, uint64_t magic_at) {
  uint8_t *name = sqlite3_malloc64(SUPER_NAME_MAX + SUPER_TAIL);
  uint32_t n, at;
  sqlite3_int64 to = (sqlite3_int64)tde_lower_size(&f->s.geo,
                                                   tde_unit_at(&f->s.geo, magic_at + 7, &at) + 1);
  int rc = name ? read_super_name(f, magic_at, name, &n) : SQLITE_NOMEM;

  if (rc == SQLITE_OK && n) {
    rc = LOWER(f)->xTruncate(f->lower, to);
    if (rc == SQLITE_OK) rc = LOWER(f)->xWrite(f->lower, name, (int)n, to);
    /* Pages that were spilled are in the file already: an outage must not keep the magic alone.
    ** Where nothing was synced before, they are not, or nobody asks for it. */
    if (rc == SQLITE_OK && f->gen.synced) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
    f->s.counters->lower_writes++;
  }
  f->s.size_known = 0;
  sqlite3_free(name);
  return rc;
}

/* The magic ends the name. From then on the other databases' roll-backs look for that name in
** this file, so it must be in the lower file, the name in plain before it; and if it can not
** be written, this journal must not claim it either, or it would take a deleted super-journal
** for a commit. Without the magic, it is rolled back alone. */
static int write_super_magic(tde_file *f, const uint8_t *magic, uint64_t off) {
  static const uint8_t none[8];
  int rc = tde_sealed_flush(&f->s);

  if (rc == SQLITE_OK) rc = repeat_super_name(f, off);
  if (rc) return rc;
  rc = tde_sealed_write(&f->s, magic, 8, off);
  if (rc == SQLITE_OK) rc = tde_sealed_flush(&f->s);
  if (rc) (void)tde_sealed_write(&f->s, none, sizeof(none), off);
  return rc;
}

int tde_journal_write(tde_file *f, const uint8_t *buf, uint32_t n, uint64_t off) {
  int starts, rc;

  if (off == 0 && n == 28 && tde_all_zero(buf, n)) return void_journal(f);
  starts = off == 0 && n >= 28 && memcmp(buf, tde_sqlite_journal_magic, 8) == 0;
  if (!starts) {
    rc = tde_log_refresh(f);
    if (rc) return rc;
  }
  if (starts || !f->gen.valid) {
    rc = tde_log_begin(f, TDE_UNIT_JOURNAL);
    if (rc) return rc;
  }
  if (off > 0 && n == 8 && memcmp(buf, tde_sqlite_journal_magic, 8) == 0) {
    return write_super_magic(f, buf, off);
  }
  return tde_sealed_write(&f->s, buf, n, off);
}

/* Looks into the journal through a handle of its own, as SQLite does: the first byte
** tells (pager.c, hasHotJournal). */
static int first_byte(tde_file *main_file, const char *name, uint8_t *first) {
  tde_db *db = main_file->db;
  tde_file probe;
  int rc;

  memset(&probe, 0, sizeof(probe));
  probe.role = TDE_ROLE_JOURNAL;
  probe.path = name;
  probe.lower_vfs = main_file->lower_vfs;
  probe.db = db;
  probe.lower = tde_lower_open(main_file->lower_vfs, name,
                               SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_READONLY, NULL, &rc);
  if (!probe.lower) return rc;
  tde_sealed_init(&probe.s, probe.lower, probe.role, 0, &db->crypt[probe.role - 1], &db->counters,
                  &tde_log_hooks, &probe);
  rc = tde_journal_read(&probe, first, 1, 0);
  if (rc == SQLITE_IOERR_SHORT_READ) {
    *first = 0;
    rc = SQLITE_OK;
  }
  tde_sealed_clear(&probe.s);
  (void)tde_lower_close(probe.lower);
  return rc;
}

int tde_journal_is_hot(tde_file *main_file, int *hot) {
  const char *name = tde_name_of(main_file->path, "-journal");
  sqlite3_vfs *vfs = main_file->lower_vfs;
  uint8_t first = 0;
  int there = 0, reserved = 0, rc = SQLITE_NOMEM;

  *hot = 0;
  if (name) rc = vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there);
  if (rc == SQLITE_OK && there) {
    rc = tde_main_reserved(main_file->lower, &reserved);
  }
  if (rc == SQLITE_OK && there && !reserved) {
    rc = first_byte(main_file, name, &first);
    if ((rc & 0xff) == SQLITE_CANTOPEN) {
      /* Gone meanwhile? */
      int rc2 = vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there);
      if (rc2 == SQLITE_OK && !there) rc = SQLITE_OK;
    }
  }
  tde_name_free(name);
  *hot = rc == SQLITE_OK && first != 0;
  return rc;
}

/* ---- a child journal met through its super-journal ----
**
** When a hot journal that names a super-journal is rolled back, SQLite opens
** every other journal that the super-journal lists, as a super-journal file,
** to see whether it still names it; if none does, the super-journal goes. A
** sealed journal must answer with its content, or not at all: taken for a
** journal that names nothing, it would lose its super-journal, and its half of
** the transaction would be kept. So its database's header is opened here for
** the key. Where that is not to be had, the name that stands in plain at its end is
** what SQLite reads, and the super-journal stays for it: whoever could forge that name could
** delete the super-journal as well. A journal without one is an error then, and everything
** stays as it is.
*/
#define INSTANCES_MAX 8

/* Opens its header with the keys of this instance, NULL: the default one. True: that ends
** the search. */
static int try_owner(tde_file *f, const char *path, const char *instance, tde_file **owner,
                     int *rc) {
  tde_db_close_beside(*owner);
  *owner = NULL;
  *rc = tde_db_open_beside(path, f->lower_vfs, instance, SQLITE_OPEN_READONLY, owner);
  return *rc != SQLITE_OK || (*owner)->db->state == TDE_STATE_ONLINE;
}

/* Its instance is most likely that of the connection which rolls back now, and holds SHARED
** still (pager.c, pager_playback), or of one that has it attached, and comes to it later. */
static int open_owner(tde_file *f, const char *journal_path, tde_file **owner) {
  size_t n = strlen(journal_path);
  char *path, *instances[INSTANCES_MAX];
  int rc = SQLITE_OK, found = 0, have;

  if (n < 9 || strcmp(journal_path + n - 8, "-journal") != 0) return SQLITE_CANTOPEN;
  path = sqlite3_mprintf("%.*s", (int)(n - 8), journal_path);
  if (!path) return SQLITE_NOMEM;
  have = tde_openfiles_instances(path, instances, INSTANCES_MAX);
  for (int i = 0; i < have && !found; i++) found = try_owner(f, path, instances[i], owner, &rc);
  if (!found) (void)try_owner(f, path, NULL, owner, &rc);
  for (int i = 0; i < have; i++) sqlite3_free(instances[i]);
  sqlite3_free(path);
  if (rc == SQLITE_OK && (*owner)->db->state != TDE_STATE_ONLINE) {
    rc = tde_class_rc((*owner)->db->last.code);
    if (rc == SQLITE_OK) rc = SQLITE_CANTOPEN;
  }
  return rc;
}

/* No key for this journal: is the name in plain there? */
static int is_named_in_plain(tde_file *f) {
  sqlite3_int64 size = 0, cut;

  if (LOWER(f)->xFileSize(f->lower, &size) != SQLITE_OK) return 0;
  cut = size;
  return trim_name(f, &cut) == SQLITE_OK && cut < size;
}

static void tell_no_key(const char *journal_path, const tde_file *owner) {
  tde_status st;

  tde_status_clear(&st);
  tde_fail(
      &st, owner && owner->db ? owner->db->last.code : TDE_IO,
      "open that database first, or ATTACH it, with the tde_instance= that has its key: that rolls "
      "it back",
      "%.300s: belongs to a transaction over several databases that was cut short, and its key "
      "is not to be had here: %.300s",
      journal_path, owner && owner->db ? owner->db->last.message : "it can not be opened");
  tde_log_status(TDE_LOG_ERROR, NULL, &st);
}

int tde_journal_open_child(tde_file *f, const char *journal_path, int *is_sealed) {
  uint8_t b[TDE_PREFIX_BYTES];
  tde_prefix p;
  tde_file *owner = NULL;
  int rc = LOWER(f)->xRead(f->lower, b, sizeof(b), 0);

  *is_sealed = 0;
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK;
  if (rc) return rc;
  switch (tde_prefix_parse(b, TDE_ROLE_JOURNAL, &p)) {
    case TDE_PREFIX_UNKNOWN:
      return SQLITE_IOERR_NOMEM;
    case TDE_PREFIX_OK:
      break;
    default:
      return SQLITE_OK; /* not sealed, or torn: it names nothing */
  }
  rc = open_owner(f, journal_path, &owner);
  if (rc) {
    if (rc != SQLITE_NOMEM && is_named_in_plain(f)) {
      rc = SQLITE_OK;
    } else {
      tell_no_key(journal_path, owner);
    }
    tde_db_close_beside(owner);
    return rc;
  }
  *is_sealed = 1;
  f->role = TDE_ROLE_JOURNAL;
  f->owned_owner = owner;
  f->db = owner->db;
  tde_log_open(f);
  return SQLITE_OK;
}
