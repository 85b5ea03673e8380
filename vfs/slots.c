/*
** slots.c: reads and writes the two slots of a main database's header; see slots.h.
*/
#include "slots.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "openfiles.h"

SQLITE_EXTENSION_INIT3

void tde_slots_init(tde_slots *s) {
  for (int i = 0; i < 2; i++) {
    s->longer[i] = NULL;
    s->at[i] = s->head[i];
  }
}

void tde_slots_clear(tde_slots *s) {
  for (int i = 0; i < 2; i++) sqlite3_free(s->longer[i]);
}

/* Reads the rest of a slot whose document is long. */
static int read_longer(sqlite3_file *lower, tde_slots *s, int i, uint32_t used) {
  sqlite3_int64 at = (sqlite3_int64)i * TDE_SLOT_STRIDE + TDE_SLOT_GULP;

  sqlite3_free(s->longer[i]);
  s->longer[i] = sqlite3_malloc64(used);
  if (!s->longer[i]) return SQLITE_NOMEM;
  memcpy(s->longer[i], s->head[i], TDE_SLOT_GULP);
  s->at[i] = s->longer[i];
  return lower->pMethods->xRead(lower, s->longer[i] + TDE_SLOT_GULP, (int)(used - TDE_SLOT_GULP),
                                at);
}

int tde_slots_read(sqlite3_file *lower, tde_counters *counters, tde_slots *s) {
  for (int i = 0; i < 2; i++) {
    uint32_t used;
    int rc = lower->pMethods->xRead(lower, s->head[i], TDE_SLOT_GULP,
                                    (sqlite3_int64)i * TDE_SLOT_STRIDE);

    counters->lower_reads++;
    s->at[i] = s->head[i];
    if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
    used = tde_slot_used(s->head[i]);
    if (used <= TDE_SLOT_GULP) continue;
    rc = read_longer(lower, s, i, used);
    counters->lower_reads++;
    if (rc && rc != SQLITE_IOERR_SHORT_READ) return rc;
  }
  return SQLITE_OK;
}

int tde_newest_of(const tde_class c[2], const tde_header h[2]) {
  return c[0] == TDE_OK && (c[1] != TDE_OK || h[0].sequence >= h[1].sequence) ? 0 : 1;
}

/* The newest whole slot, and the other one; without a document what is not whole. TDE_NOMEM:
** which is which is not known. */
static tde_class parse_both(const tde_slots *both, tde_header *newest, tde_header *other) {
  tde_slot_info info;
  tde_header h[2];
  tde_class c[2];
  int first;

  for (int i = 0; i < 2; i++) {
    c[i] = tde_slot_parse(both->at[i], &h[i], &info);
    h[i].slot = i;
  }
  first = tde_newest_of(c, h);
  *newest = h[first];
  *other = h[!first];
  if (c[first] || c[!first] == TDE_NOMEM) tde_header_clear(newest);
  if (c[!first] || c[first] == TDE_NOMEM) tde_header_clear(other);
  return c[0] == TDE_NOMEM || c[1] == TDE_NOMEM ? TDE_NOMEM : TDE_OK;
}

tde_class tde_slots_newest(const tde_slots *both, tde_header *out) {
  tde_header other;
  tde_class c = parse_both(both, out, &other);

  tde_header_clear(&other);
  return c;
}

const char *tde_name_as_opened(sqlite3_vfs *v, const char *path, const char *suffix) {
  char *full = sqlite3_malloc64((sqlite3_uint64)v->mxPathname + 1);
  const char *name = NULL;

  if (!full) return NULL;
  if ((v->xFullPathname(v, path, v->mxPathname + 1, full) & 0xff) == SQLITE_OK) path = full;
  name = tde_name_of(path, suffix);
  sqlite3_free(full);
  return name;
}

static int has_magic(const tde_slots *both) {
  return memcmp(both->at[0], tde_header_magic, sizeof(tde_header_magic)) == 0 ||
         memcmp(both->at[1], tde_header_magic, sizeof(tde_header_magic)) == 0;
}

size_t tde_side_stem(const char *path) {
  static const char *const endings[] = {"-journal", "-wal", "-shm", "-tdelog"};
  size_t n = strlen(path);

  for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
    size_t m = strlen(endings[i]);
    if (n > m && path[n - m - 1] != '/' && strcmp(path + n - m, endings[i]) == 0) return n - m;
  }
  return 0;
}

/* Is this, by another name (a hard link), the wal-index of a database that is open here? */
static int is_open_index(const struct stat *sb, int *rc) {
  tde_open_database *list = NULL;
  int n = 0, found = 0;

  *rc = tde_open_databases(&list, &n);
  for (int i = 0; i < n && !found && *rc == SQLITE_OK; i++) {
    char *name = sqlite3_mprintf("%s-shm", list[i].path);
    struct stat shm;
    if (!name) *rc = SQLITE_NOMEM;
    found = name && stat(name, &shm) == 0 && shm.st_dev == sb->st_dev && shm.st_ino == sb->st_ino;
    sqlite3_free(name);
  }
  tde_open_databases_free(list, n);
  return found;
}

/* Is it named as a wal-index? Is the database that this one would be of there? */
static int named_as_index(const char *name) {
  size_t stem = tde_side_stem(name);
  struct stat sb;
  char *of;
  int found;

  if (!stem || strcmp(name + stem, "-shm") != 0) return 0;
  of = sqlite3_mprintf("%.*s", (int)stem, name);
  found = of && stat(of, &sb) == 0 && S_ISREG(sb.st_mode);
  sqlite3_free(of);
  return found ? TDE_UNKNOWN_INDEX : TDE_UNKNOWN_NAME;
}

/* May a file be opened to see what it is? Closing one drops every POSIX lock that this
** process has on it, but for a main database, of which SQLite's VFS sees to that. It has
** such locks on one more file, the wal-index: so what is named as one is never opened, nor
** is a file that is too short for a header and so may be some program's lock file. To open
** a FIFO may last for ever. What cannot be looked at is the VFS's to judge. SQLITE_NOTADB:
** no. */
static int may_look(const char *name, int *unknown) {
  struct stat sb;
  int rc = SQLITE_OK;

  if (stat(name, &sb) != 0 || S_ISDIR(sb.st_mode)) return SQLITE_OK;
  if (!S_ISREG(sb.st_mode) || sb.st_size < (off_t)sizeof(tde_header_magic)) return SQLITE_NOTADB;
  *unknown = named_as_index(name);
  if (!*unknown && sb.st_nlink > 1 && is_open_index(&sb, &rc)) *unknown = TDE_UNKNOWN_INDEX;
  return rc == SQLITE_OK && *unknown ? SQLITE_NOTADB : rc;
}

/* Has it no byte that a text has not? */
static int is_text(const uint8_t *b, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (b[i] < ' ' && (b[i] < '\t' || b[i] > '\r') && b[i] != 0x1b) return 0;
  }
  return 1;
}

/* wal.c: its version number, twice. */
static int begins_as_index(const uint8_t *b, uint32_t version) {
  return memcmp(b, &version, 4) == 0 && memcmp(b + TDE_INDEX_COPY, &version, 4) == 0;
}

/* Does it begin as another file than a database of ours? One of SQLite's, a log or a
** wal-index, a text. */
static int begins_otherwise(const uint8_t head[2][TDE_SLOT_GULP]) {
  const uint8_t *b = head[0];
  const uint32_t wal = tde_get32be(b) & ~1u;

  return memcmp(b, "SQLite format 3", 16) == 0 ||
         memcmp(b, tde_sqlite_journal_magic, sizeof(tde_sqlite_journal_magic)) == 0 ||
         wal == TDE_SQLITE_WAL_MAGIC || tde_is_log_magic(b) ||
         begins_as_index(b, TDE_SQLITE_WAL_VERSION) || begins_as_index(b, TDE_INDEX_SIGN) ||
         (is_text(b, TDE_SLOT_GULP) && is_text(head[1], TDE_SLOT_GULP));
}

/* A file without a magic: may it be a database all the same, whose header is gone? */
static int may_be_damaged(sqlite3_file *lower, const tde_slots *both) {
  sqlite3_int64 size = 0;

  if (lower->pMethods->xFileSize(lower, &size) != SQLITE_OK) return 1;
  return size >= (sqlite3_int64)TDE_HEADER_BYTES && !begins_otherwise(both->head);
}

static sqlite3_file *open_to_look(sqlite3_vfs *v, const char *name, int *rc) {
  sqlite3_file *lower;

  errno = 0;
  lower = tde_lower_open(v, name, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READONLY, NULL, rc);
  if (*rc == SQLITE_CANTOPEN && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
    *rc = TDE_CANTOPEN_NOW;
  }
  return lower;
}

static int parse_found(const tde_slots *both, tde_header *out, tde_header *other) {
  if (parse_both(both, out, other)) return SQLITE_NOMEM;
  if (out->doc) return SQLITE_OK;
  return has_magic(both) ? SQLITE_CORRUPT : SQLITE_NOTADB;
}

/* Looks through a connection that has the file open. False: none can be asked, or has the answer. */
static int look_inside(sqlite3_vfs *v, const char *name, tde_slots *both, tde_header *out,
                       tde_header *other) {
  return tde_openfiles_slots(name, v, both) == SQLITE_OK &&
         parse_found(both, out, other) == SQLITE_OK;
}

/* unknown: set to TDE_UNKNOWN_... where what there is may be a database all the same. */
static int peek(const char *path, const char *vfs, tde_header *out, tde_header *other,
                int *unknown) {
  sqlite3_vfs *v = sqlite3_vfs_find(vfs);
  tde_counters counters;
  sqlite3_file *lower = NULL;
  const char *name;
  tde_slots both;
  int rc = SQLITE_NOMEM;

  memset(out, 0, sizeof(*out));
  memset(other, 0, sizeof(*other));
  if (!v) return SQLITE_CANTOPEN;
  memset(&counters, 0, sizeof(counters));
  tde_slots_init(&both);
  name = tde_name_as_opened(v, path, "");
  if (name) rc = may_look(name, unknown);
  if (rc == SQLITE_OK && !look_inside(v, name, &both, out, other)) {
    lower = open_to_look(v, name, &rc);
  }
  if (lower) {
    rc = tde_slots_read(lower, &counters, &both);
    if (rc == SQLITE_OK) rc = parse_found(&both, out, other);
    if (rc == SQLITE_NOTADB && may_be_damaged(lower, &both)) *unknown = TDE_UNKNOWN_BYTES;
  }
  (void)tde_main_close(lower);
  tde_name_free(name);
  tde_slots_clear(&both);
  return rc;
}

int tde_db_peek(const char *path, const char *vfs, tde_header *out) {
  tde_header other;
  int unknown = 0, rc = peek(path, vfs, out, &other, &unknown);

  tde_header_clear(&other);
  return rc;
}

int tde_header_peek(const char *path, const char *vfs, tde_peek *out) {
  tde_header h, other;
  int unknown = 0, rc = peek(path, vfs ? vfs : tde_vfs_base_name(), &h, &other, &unknown);

  memset(out, 0, sizeof(*out));
  out->unknown = unknown;
  if (rc) {
    tde_header_clear(&h);
    tde_header_clear(&other);
    return rc == TDE_CANTOPEN_NOW ? SQLITE_CANTOPEN : rc;
  }
  out->other = other.doc;
  out->nother = other.ndoc;
  memcpy(out->uuid, h.uuid, TDE_UUID_BYTES);
  out->sequence = h.sequence;
  out->unit_size = h.unit_size;
  out->epoch = h.epoch;
  out->doc = h.doc;
  out->ndoc = h.ndoc;
  return SQLITE_OK;
}

/* ---- writing ---- */

static int write_from(tde_file *f, const tde_header *h, int slot, tde_keys *keys, int verify,
                      uint32_t from) {
  sqlite3_int64 at = (sqlite3_int64)slot * TDE_SLOT_STRIDE;
  uint8_t *bytes = sqlite3_malloc64(2 * (size_t)TDE_SLOT_BYTES);
  int rc;

  if (!bytes) return SQLITE_NOMEM;
  rc = tde_class_rc(tde_keys_slot_build(keys, &tde_source, h, bytes));
  if (rc == SQLITE_OK) {
    memcpy(f->db->seen[slot], bytes, TDE_SLOT_FIXED);
    rc = LOWER(f)->xWrite(f->lower, bytes + from, (int)(TDE_SLOT_BYTES - from), at + from);
  }
  f->s.counters->lower_writes++;
  if (rc == SQLITE_OK && verify) {
    rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
    f->s.counters->lower_syncs++;
    if (rc == SQLITE_OK) {
      rc = LOWER(f)->xRead(f->lower, bytes + TDE_SLOT_BYTES, TDE_SLOT_BYTES, at);
    }
    if (rc == SQLITE_OK && memcmp(bytes, bytes + TDE_SLOT_BYTES, TDE_SLOT_BYTES) != 0) {
      rc = SQLITE_IOERR_WRITE;
    }
  }
  sqlite3_free(bytes);
  return rc;
}

int tde_slot_write(tde_file *f, const tde_header *h, int slot, tde_keys *keys, int verify) {
  return write_from(f, h, slot, keys, verify, 0);
}

int tde_slots_create(tde_file *f, const tde_header *h, tde_keys *keys) {
  static const uint8_t end = 0;
  int rc = LOWER(f)->xTruncate(f->lower, 0);

  if (rc == SQLITE_OK) {
    rc = LOWER(f)->xWrite(f->lower, tde_header_magic, sizeof(tde_header_magic), 0);
  }
  if (rc == SQLITE_OK) rc = LOWER(f)->xSync(f->lower, SQLITE_SYNC_NORMAL);
  if (rc == SQLITE_OK) rc = write_from(f, h, 0, keys, 1, sizeof(tde_header_magic));
  if (rc == SQLITE_OK) rc = tde_slot_write(f, h, 1, keys, 0);
  if (rc == SQLITE_OK) rc = LOWER(f)->xWrite(f->lower, &end, 1, TDE_HEADER_BYTES - 1);
  return rc;
}
