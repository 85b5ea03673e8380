/*
** map.c: PRAGMA mmap_size on an encrypted main database.
**
** SQLite gets no pages of a map, since they must be opened first. But a page that it
** asks for is copied out of a map of the file below, without a system call, where one
** is allowed. The map is that of a second lower file of the same name, which the lower
** VFS makes and bounds. What must hold:
**  - a unit is opened from the copy, never in the map, where another process could
**    change bytes between the check of the tag and their use;
**  - the map serves reads of whole pages alone, which SQLite asks for by the rules that
**    it keeps for maps of its own: it knows the page to be there, and has the map undone
**    (xUnfetch of NULL) once it sees that another process changed the file. All other
**    reads, of headers and of runs that may reach behind the end, stay with the file: to
**    touch a map where the file has become shorter ends the process (SIGBUS);
**  - the second file is the first one, not another that came to its name since;
**  - where anything fails there is no map, and the read goes the usual way.
*/
#include <string.h>

#include "../ext/base/log.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* The map covers the file as it was when it was made. So many pages that lay behind, but
** within the limit, are read, and it is made anew: a few milliseconds' worth, so that what
** a new map costs (its page faults) does not count. */
#define PATIENCE 2048

#define MAP(db) ((db)->map->pMethods)

/* Still the file that its name leads to? What can not say so gets no map. */
static int stands(sqlite3_file *lower) {
  int moved = 1;
  int rc = lower->pMethods->xFileControl(lower, SQLITE_FCNTL_HAS_MOVED, &moved);
  return rc == SQLITE_OK && !moved;
}

/* Sets a file's limit; *limit becomes what the lower VFS made of it. SQLITE_NOTFOUND: it
** has no maps. */
static int set_limit(sqlite3_file *lower, sqlite3_int64 *limit) {
  int rc = lower->pMethods->xFileControl(lower, SQLITE_FCNTL_MMAP_SIZE, limit);

  *limit = -1;
  return rc ? rc : lower->pMethods->xFileControl(lower, SQLITE_FCNTL_MMAP_SIZE, limit);
}

void tde_map_close(tde_file *f) {
  tde_db *db = f->db;

  if (!db) return;
  (void)tde_lower_close(db->map);
  db->map = NULL;
}

/* As many bytes of pages may be mapped as were asked for. They take an eighth more
** here, at the most (units of 512 bytes), and the header. */
static void open_map(tde_file *f) {
  tde_db *db = f->db;
  int rc;

  db->map_limit = f->mmap_size + f->mmap_size / 8 + TDE_HEADER_BYTES;
  db->map_missed = 0;
  db->map = tde_lower_open(f->lower_vfs, f->path, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READONLY, NULL,
                           &rc);
  if (!db->map) return;
  if (MAP(db)->iVersion < 3 || set_limit(db->map, &db->map_limit) || !stands(f->lower) ||
      !stands(db->map)) {
    tde_map_close(f);
  }
}

int tde_map_limit(tde_file *f, sqlite3_int64 *size) {
  sqlite3_int64 before = f->mmap_size, asked = *size, limit = asked;
  int rc = SQLITE_NOTFOUND;

  *size = before;
  if (limit < 0 || limit == before) return SQLITE_OK;
  /* What the lower file makes of it is what SQLite would be told without this shim. It
  ** is never mapped itself. */
  if (f->role == TDE_ROLE_MAIN && LOWER(f)->iVersion >= 3) {
    rc = set_limit(f->lower, &limit);
    if (rc && rc != SQLITE_NOTFOUND) return rc;
  }
  f->mmap_size = rc ? asked : limit;
  if (f->role != TDE_ROLE_MAIN) return SQLITE_OK;
  tde_map_close(f);
  f->s.mapped = rc == SQLITE_OK && limit > 0;
  return SQLITE_OK;
}

void tde_map_undo(tde_file *f) {
  if (f->db->map) (void)MAP(f->db)->xUnfetch(f->db->map, 0, NULL);
}

int tde_map_copy(void *ctx, uint64_t at, uint32_t n, uint8_t *to) {
  tde_file *f = ctx;
  tde_db *db = f->db;
  void *from = NULL;

  if (!db->map) open_map(f);
  if (!db->map) {
    f->s.mapped = 0; /* until it is asked for again */
    tde_log(TDE_LOG_NOTICE,
            "%s: PRAGMA mmap_size: the file could not be mapped; its pages are read without",
            tde_path_of(f));
    return 0;
  }
  if (MAP(db)->xFetch(db->map, (sqlite3_int64)at, (int)n, &from)) return 0;
  if (!from) {
    if ((sqlite3_int64)at + n <= db->map_limit && ++db->map_missed >= PATIENCE) {
      db->map_missed = 0;
      tde_map_undo(f);
    }
    return 0;
  }
  memcpy(to, from, n);
  (void)MAP(db)->xUnfetch(db->map, (sqlite3_int64)at, from);
  return 1;
}
