/*
** logview.c: looks at a WAL or journal from outside; see logview.h.
**
** The files are opened beside those of SQLite: they carry no locks. The wal-index
** does, and is never opened here: closing it would drop this process's locks on
** it (POSIX). Who holds them is read from /proc/locks.
*/
#include "logview.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ext/base/secret.h"
#include "shim.h"
#include "slots.h"

SQLITE_EXTENSION_INIT3

/* SQLITE_NOMEM: it could not be looked at, which is not that it is none. */
static int view_prefix(const uint8_t *b, int journal, uint64_t size, tde_log_view *out) {
  tde_role role = journal ? TDE_ROLE_JOURNAL : TDE_ROLE_WAL;
  tde_geometry g;
  tde_prefix p;
  tde_prefix_found found = tde_prefix_parse(b, role, &p);
  uint64_t rest;

  if (found != TDE_PREFIX_OK) return found == TDE_PREFIX_UNKNOWN ? SQLITE_NOMEM : SQLITE_OK;
  out->stamped = 1;
  out->epoch = p.epoch;
  memcpy(out->salt, p.salt, sizeof(out->salt));
  memcpy(out->thumbprint, p.thumbprint, sizeof(out->thumbprint));
  if (p.unit_size < TDE_UNIT_JOURNAL || p.unit_size > TDE_UNIT_MAX) return SQLITE_OK;
  tde_geometry_init(&g, role, p.unit_size);
  out->units = tde_units_in(&g, size, &rest);
  if (!journal) {
    out->page_size = p.unit_size - TDE_WAL_FRAME_HEAD;
    if (out->units) out->units--; /* the WAL's header */
  }
  return SQLITE_OK;
}

/* Reads the prefix through an open lower file. */
static int view_file(sqlite3_file *lower, int journal, uint8_t *b, tde_log_view *out) {
  sqlite3_int64 size = 0;
  int rc = lower->pMethods->xFileSize(lower, &size);

  memset(b, 0, TDE_PREFIX_BYTES);
  if (rc || size == 0) return rc;
  out->exists = 1;
  out->bytes = (uint64_t)size;
  rc = lower->pMethods->xRead(lower, b, (int)TDE_PREFIX_BYTES, 0);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK;
  return rc == SQLITE_OK ? view_prefix(b, journal, (uint64_t)size, out) : rc;
}

/* To open a FIFO may last for ever. */
static int is_other(const char *name) {
  struct stat sb;
  return stat(name, &sb) == 0 && !S_ISREG(sb.st_mode);
}

static const char *suffix_of(int journal) {
  return journal ? "-journal" : "-wal";
}

/* The log of this name (tde_name_of), which is freed; NULL: no memory. */
static int view_named(const char *name, sqlite3_vfs *vfs, int journal, uint8_t *b,
                      tde_log_view *out) {
  int kind = journal ? SQLITE_OPEN_MAIN_JOURNAL : SQLITE_OPEN_WAL, there = 0, rc = SQLITE_NOMEM;
  sqlite3_file *lower = NULL;

  if (name) rc = vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there);
  if (rc == SQLITE_OK && there && is_other(name)) rc = SQLITE_CANTOPEN;
  if (rc == SQLITE_OK && there) {
    lower = tde_lower_open(vfs, name, kind | SQLITE_OPEN_READONLY, NULL, &rc);
    /* Whoever used it last may have removed it meanwhile. */
    if (!lower && vfs->xAccess(vfs, name, SQLITE_ACCESS_EXISTS, &there) == SQLITE_OK && !there) {
      rc = SQLITE_OK;
    }
  }
  if (lower) rc = view_file(lower, journal, b, out);
  (void)tde_lower_close(lower);
  tde_name_free(name);
  return rc;
}

int tde_log_peek(const char *path, const char *vfs, int journal, tde_log_view *out) {
  uint8_t b[TDE_PREFIX_BYTES];
  sqlite3_vfs *v = sqlite3_vfs_find(vfs ? vfs : tde_vfs_base_name());

  memset(out, 0, sizeof(*out));
  if (!v) return SQLITE_CANTOPEN;
  return view_named(tde_name_as_opened(v, path, suffix_of(journal)), v, journal, b, out);
}

int tde_file_log(tde_file *f, int journal, tde_log_view *out) {
  uint8_t b[TDE_PREFIX_BYTES], mac_key[TDE_KEY_BYTES];
  tde_db *db = f->db;
  int rc;

  memset(out, 0, sizeof(*out));
  tde_file_enter(f);
  rc = view_named(tde_name_of(f->path, suffix_of(journal)), f->lower_vfs, journal, b, out);
  if (rc == SQLITE_OK && out->stamped && db->keys &&
      tde_keys_mac_key(db->keys, out->epoch, mac_key) == TDE_OK) {
    tde_class c = tde_prefix_check_mac(b, mac_key);
    out->authentic = c == TDE_OK;
    if (c != TDE_OK && c != TDE_WRONG_KEY) rc = SQLITE_NOMEM;
    tde_wipe(mac_key, sizeof(mac_key));
  }
  if (rc == SQLITE_OK && !journal && db->index) {
    out->indexed = 1;
    out->frames = tde_wal_index(f, NULL);
    out->restored = tde_wal_restored(f);
  }
  tde_file_leave(f);
  return rc;
}

/* ---- who holds the log ---- */

/* "12: POSIX  ADVISORY  READ 3456 08:01:7890 123 123": the process, when the lock
** is on this file. */
static long holder_in(const char *line, const struct stat *sb) {
  const char *kind = strstr(line, " READ "), *p;
  char id[64];
  char *end;
  long pid;

  if (!kind) kind = strstr(line, " WRITE ");
  if (!kind || !strstr(line, "POSIX")) return 0;
  p = strchr(kind + 1, ' ');
  pid = strtol(p, &end, 10);
  (void)snprintf(id, sizeof(id), ":%" PRIu64 " ", (uint64_t)sb->st_ino);
  return pid > 0 && strstr(end, id) ? pid : 0;
}

void tde_log_holders(const char *path, char *out, size_t n) {
  char *name = sqlite3_mprintf("%s-shm", path), line[256];
  long seen[16];
  int count = 0;
  struct stat sb;
  FILE *locks;

  out[0] = 0;
  if (!name || stat(name, &sb) != 0 || (locks = fopen("/proc/locks", "re")) == NULL) {
    sqlite3_free(name);
    return;
  }
  while (fgets(line, sizeof(line), locks) && count < 16) {
    long pid = holder_in(line, &sb);
    int known = pid == 0;
    size_t used = strlen(out);
    for (int i = 0; i < count && !known; i++) known = seen[i] == pid;
    if (known) continue;
    seen[count++] = pid;
    if (pid == getpid()) {
      (void)snprintf(out + used, n - used, "%sthis process", used ? ", " : "");
    } else {
      (void)snprintf(out + used, n - used, "%sprocess %ld", used ? ", " : "", pid);
    }
  }
  (void)fclose(locks);
  sqlite3_free(name);
}
