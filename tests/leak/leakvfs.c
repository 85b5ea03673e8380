/*
** leakvfs.c: the VFS "leak"; see leakvfs.h.
*/
#include "leakvfs.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

const char *const marker_text[MARKERS] = {
    "~Qrow7t!", "~Qkey4x!", "~Qblob2!", "~Qtemp9!", "~Qschem!", "~Qtsche!", "~Qnames!", "SQLite f",
};
const char *const leak_role_name[LEAK_ROLES] = {
    "main",          "temp", "transient", "journal", "temp-journal", "subjournal",
    "super-journal", "wal",  "shm",       "unknown", "ignored",
};

#define SHM_REGIONS 64

typedef struct leak_file {
  sqlite3_file base;  /* must be first */
  sqlite3_file *real; /* behind this struct */
  leak_role role;
  volatile void *region[SHM_REGIONS];
  int region_size;
} leak_file;

static leak_tally *tally; /* LEAK_ROLES of them, shared */
static sqlite3_vfs *real_vfs;
static sqlite3_vfs leak_vfs;
static const char *ignored_part;

#define REAL(f) (((leak_file *)(f))->real)
#define METHODS(f) (REAL(f)->pMethods)

void leak_ignore(const char *part) {
  ignored_part = part;
}

void leak_reset(void) {
  memset(tally, 0, LEAK_ROLES * sizeof(*tally));
}

const leak_tally *leak_tally_of(leak_role role) {
  return &tally[role];
}

uint64_t leak_hits(leak_role role, unsigned except) {
  uint64_t n = 0;
  for (int m = 0; m < MARKERS; m++) {
    if (!(except >> m & 1)) n += tally[role].hits[m];
  }
  return n;
}

marker leak_find(const void *p, size_t n) {
  int m = 0;
  while (m < MARKERS && !memmem(p, n, marker_text[m], MARKER_BYTES)) m++;
  return (marker)m;
}

static void look(leak_role role, const void *p, size_t n) {
  for (int m = 0; m < MARKERS; m++) {
    if (memmem(p, n, marker_text[m], MARKER_BYTES)) {
      __atomic_fetch_add(&tally[role].hits[m], 1, __ATOMIC_RELAXED);
    }
  }
}

static void count(leak_role role, uint64_t bytes) {
  __atomic_fetch_add(&tally[role].writes, 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&tally[role].bytes, bytes, __ATOMIC_RELAXED);
}

/* The place as it is in the file now, with what stands before and behind. */
static void look_around(leak_file *f, int n, sqlite3_int64 off) {
  sqlite3_int64 from = off < MARKER_BYTES - 1 ? 0 : off - (MARKER_BYTES - 1), size = 0;
  sqlite3_int64 to = off + n + MARKER_BYTES - 1;
  unsigned char *p;

  METHODS(f)->xFileSize(f->real, &size);
  if (to > size) to = size;
  p = malloc((size_t)(to - from));
  /* Not to have looked would be to have found nothing. */
  if (!p || METHODS(f)->xRead(f->real, p, (int)(to - from), from) != SQLITE_OK) {
    fprintf(stderr, "leakvfs: what was written to a %s file can not be read back\n",
            leak_role_name[f->role]);
    abort();
  }
  look(f->role, p, (size_t)(to - from));
  free(p);
}

static int leak_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  leak_file *f = (leak_file *)pf;
  int rc = METHODS(f)->xWrite(f->real, buf, n, off);

  count(f->role, (uint64_t)n);
  if (rc == SQLITE_OK && n > 0) {
    look_around(f, n, off);
  } else {
    look(f->role, buf, (size_t)n);
  }
  return rc;
}

static void look_at_shm(leak_file *f) {
  if (f->role == LEAK_IGNORED) return;
  for (int i = 0; i < SHM_REGIONS && f->region[i]; i++) {
    look(LEAK_SHM, (const void *)(uintptr_t)f->region[i], (size_t)f->region_size);
    count(LEAK_SHM, (uint64_t)f->region_size);
  }
}

static int leak_shm_map(sqlite3_file *pf, int i, int size, int extend, void volatile **out) {
  leak_file *f = (leak_file *)pf;
  int rc = METHODS(f)->xShmMap(f->real, i, size, extend, out);

  if (rc == SQLITE_OK && *out && i < SHM_REGIONS) {
    f->region[i] = *out;
    f->region_size = size;
  }
  return rc;
}

static int leak_shm_lock(sqlite3_file *pf, int offset, int n, int flags) {
  if ((flags & SQLITE_SHM_UNLOCK) && (flags & SQLITE_SHM_EXCLUSIVE)) look_at_shm((leak_file *)pf);
  return METHODS(pf)->xShmLock(REAL(pf), offset, n, flags);
}

static int leak_shm_unmap(sqlite3_file *pf, int delete_it) {
  leak_file *f = (leak_file *)pf;
  memset(f->region, 0, sizeof(f->region));
  return METHODS(f)->xShmUnmap(f->real, delete_it);
}

/* ---- the rest passes through ---- */

static int leak_close(sqlite3_file *f) {
  return METHODS(f)->xClose(REAL(f));
}
static int leak_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 off) {
  return METHODS(f)->xRead(REAL(f), buf, n, off);
}
static int leak_truncate(sqlite3_file *f, sqlite3_int64 n) {
  return METHODS(f)->xTruncate(REAL(f), n);
}
static int leak_sync(sqlite3_file *f, int flags) {
  (void)f;
  (void)flags;
  return SQLITE_OK; /* no machine fails here: killed processes leave the kernel's copy */
}
static int leak_size(sqlite3_file *f, sqlite3_int64 *n) {
  return METHODS(f)->xFileSize(REAL(f), n);
}
static int leak_lock(sqlite3_file *f, int level) {
  return METHODS(f)->xLock(REAL(f), level);
}
static int leak_unlock(sqlite3_file *f, int level) {
  return METHODS(f)->xUnlock(REAL(f), level);
}
static int leak_reserved(sqlite3_file *f, int *out) {
  return METHODS(f)->xCheckReservedLock(REAL(f), out);
}
static int leak_control(sqlite3_file *f, int op, void *arg) {
  return METHODS(f)->xFileControl(REAL(f), op, arg);
}
static int leak_sector(sqlite3_file *f) {
  return METHODS(f)->xSectorSize(REAL(f));
}
static int leak_traits(sqlite3_file *f) {
  return METHODS(f)->xDeviceCharacteristics(REAL(f));
}
static void leak_barrier(sqlite3_file *f) {
  METHODS(f)->xShmBarrier(REAL(f));
}
static int leak_fetch(sqlite3_file *f, sqlite3_int64 off, int n, void **out) {
  (void)f;
  (void)off;
  (void)n;
  *out = NULL; /* no map: what is not written by xWrite would not be seen */
  return SQLITE_OK;
}
static int leak_unfetch(sqlite3_file *f, sqlite3_int64 off, void *p) {
  (void)f;
  (void)off;
  (void)p;
  return SQLITE_OK;
}

static const sqlite3_io_methods leak_methods = {
    3,
    leak_close,
    leak_read,
    leak_write,
    leak_truncate,
    leak_sync,
    leak_size,
    leak_lock,
    leak_unlock,
    leak_reserved,
    leak_control,
    leak_sector,
    leak_traits,
    leak_shm_map,
    leak_shm_lock,
    leak_barrier,
    leak_shm_unmap,
    leak_fetch,
    leak_unfetch,
};

static leak_role role_of(const char *name, int flags) {
  static const int kinds[LEAK_SHM] = {SQLITE_OPEN_MAIN_DB,       SQLITE_OPEN_TEMP_DB,
                                      SQLITE_OPEN_TRANSIENT_DB,  SQLITE_OPEN_MAIN_JOURNAL,
                                      SQLITE_OPEN_TEMP_JOURNAL,  SQLITE_OPEN_SUBJOURNAL,
                                      SQLITE_OPEN_SUPER_JOURNAL, SQLITE_OPEN_WAL};

  if (name && ignored_part && strstr(name, ignored_part)) return LEAK_IGNORED;
  for (int r = 0; r < LEAK_SHM; r++) {
    if (flags & kinds[r]) return (leak_role)r;
  }
  return LEAK_UNKNOWN;
}

static int leak_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *pf, int flags, int *out) {
  leak_file *f = (leak_file *)pf;
  int rc;

  (void)vfs;
  memset(f, 0, sizeof(*f));
  f->real = (sqlite3_file *)&f[1];
  f->role = role_of(name, flags);
  rc = real_vfs->xOpen(real_vfs, name, f->real, flags, out);
  f->base.pMethods = f->real->pMethods ? &leak_methods : NULL;
  return rc;
}

int leak_register(void) {
  real_vfs = sqlite3_vfs_find(NULL);
  tally = mmap(NULL, LEAK_ROLES * sizeof(*tally), PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (!real_vfs || tally == MAP_FAILED) return SQLITE_ERROR;
  /* Everything but xOpen is the real one's: none of it looks at its first
  ** argument for more than pAppData, which is copied, too. */
  leak_vfs = *real_vfs;
  leak_vfs.pNext = NULL;
  leak_vfs.zName = "leak";
  leak_vfs.szOsFile = (int)sizeof(leak_file) + real_vfs->szOsFile;
  leak_vfs.xOpen = leak_open;
  return sqlite3_vfs_register(&leak_vfs, 1);
}
