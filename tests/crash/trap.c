/*
** trap.c: counts calls below the shim; see trap.h.
**
** tde_encrypt and the like rename, link and remove files, and sync folders, past any VFS: the
** linker sends those calls here (-Wl,--wrap).
*/
#include "trap.h"

#include <pthread.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
  long at, gap, count;
  const char *move;
  int fired;
  pthread_t who;
  trap_maker make;
} trap;

static void count_call(void) {
  const char *rest;
  int made = 0;

  if (!trap.at || !pthread_equal(trap.who, pthread_self())) return;
  rest = strchr(trap.move, '.');
  trap.count++;
  if (trap.count == trap.at) {
    made = trap.make(trap.move, (int)(rest ? rest - trap.move : (long)strlen(trap.move)));
  } else if (rest && trap.count == trap.at + trap.gap) {
    made = trap.make(rest + 1, (int)strlen(rest + 1));
  }
  trap.fired |= made;
}

void trap_arm(const char *move, long at, long gap) {
  trap.who = pthread_self();
  trap.move = move;
  trap.count = 0;
  trap.fired = 0;
  trap.gap = gap;
  trap.at = at;
}

int trap_disarm(void) {
  trap.at = 0;
  return trap.fired;
}

/* ---- the product's own calls ---- */

int __real_renameat(int fromdir, const char *from, int todir, const char *to);
int __real_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __real_linkat(int fromdir, const char *from, int todir, const char *to, int flags);
int __real_unlinkat(int dir, const char *path, int flags);
int __real_fchmod(int fd, mode_t mode);
int __real_fsync(int fd);
int __wrap_renameat(int fromdir, const char *from, int todir, const char *to);
int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __wrap_linkat(int fromdir, const char *from, int todir, const char *to, int flags);
int __wrap_unlinkat(int dir, const char *path, int flags);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fsync(int fd);

int __wrap_renameat(int fromdir, const char *from, int todir, const char *to) {
  count_call();
  return __real_renameat(fromdir, from, todir, to);
}

int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags) {
  count_call();
  return __real_renameat2(fromdir, from, todir, to, flags);
}

int __wrap_linkat(int fromdir, const char *from, int todir, const char *to, int flags) {
  count_call();
  return __real_linkat(fromdir, from, todir, to, flags);
}

int __wrap_unlinkat(int dir, const char *path, int flags) {
  count_call();
  return __real_unlinkat(dir, path, flags);
}

int __wrap_fchmod(int fd, mode_t mode) {
  count_call();
  return __real_fchmod(fd, mode);
}

int __wrap_fsync(int fd) {
  count_call();
  return __real_fsync(fd);
}

/* ---- the VFS ---- */

typedef struct trap_file {
  sqlite3_file base;
  sqlite3_file *real;
} trap_file;

#define REAL(f) (((trap_file *)(f))->real)
#define CALL(f, m, ...) (count_call(), REAL(f)->pMethods->m(REAL(f), ##__VA_ARGS__))

static int trap_close(sqlite3_file *f) {
  return CALL(f, xClose);
}
static int trap_read(sqlite3_file *f, void *b, int n, sqlite3_int64 o) {
  return CALL(f, xRead, b, n, o);
}
static int trap_write(sqlite3_file *f, const void *b, int n, sqlite3_int64 o) {
  return CALL(f, xWrite, b, n, o);
}
static int trap_truncate(sqlite3_file *f, sqlite3_int64 n) {
  return CALL(f, xTruncate, n);
}
static int trap_sync(sqlite3_file *f, int flags) {
  return CALL(f, xSync, flags);
}
static int trap_size(sqlite3_file *f, sqlite3_int64 *n) {
  return CALL(f, xFileSize, n);
}
static int trap_lock(sqlite3_file *f, int l) {
  return CALL(f, xLock, l);
}
static int trap_unlock(sqlite3_file *f, int l) {
  return CALL(f, xUnlock, l);
}
static int trap_check(sqlite3_file *f, int *o) {
  return CALL(f, xCheckReservedLock, o);
}
static int trap_control(sqlite3_file *f, int op, void *p) {
  return REAL(f)->pMethods->xFileControl(REAL(f), op, p);
}
static int trap_sector(sqlite3_file *f) {
  return REAL(f)->pMethods->xSectorSize(REAL(f));
}
static int trap_traits(sqlite3_file *f) {
  return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}
static int trap_shm_map(sqlite3_file *f, int i, int n, int x, void volatile **p) {
  return CALL(f, xShmMap, i, n, x, p);
}
static int trap_shm_lock(sqlite3_file *f, int o, int n, int flags) {
  return CALL(f, xShmLock, o, n, flags);
}
static void trap_barrier(sqlite3_file *f) {
  CALL(f, xShmBarrier);
}
static int trap_shm_unmap(sqlite3_file *f, int d) {
  return CALL(f, xShmUnmap, d);
}
static int trap_fetch(sqlite3_file *f, sqlite3_int64 o, int n, void **p) {
  return CALL(f, xFetch, o, n, p);
}
static int trap_unfetch(sqlite3_file *f, sqlite3_int64 o, void *p) {
  return CALL(f, xUnfetch, o, p);
}

static const sqlite3_io_methods trap_methods = {
    3,           trap_close,   trap_read,     trap_write,   trap_truncate,  trap_sync,
    trap_size,   trap_lock,    trap_unlock,   trap_check,   trap_control,   trap_sector,
    trap_traits, trap_shm_map, trap_shm_lock, trap_barrier, trap_shm_unmap, trap_fetch,
    trap_unfetch};

static sqlite3_vfs trap_vfs, *unix_vfs;

static int trap_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out) {
  trap_file *t = (trap_file *)f;
  int rc;

  (void)v;
  count_call();
  t->real = (sqlite3_file *)(t + 1);
  rc = unix_vfs->xOpen(unix_vfs, name, t->real, flags, out);
  t->base.pMethods = t->real->pMethods ? &trap_methods : NULL;
  return rc;
}

static int trap_delete(sqlite3_vfs *v, const char *name, int dir) {
  (void)v;
  count_call();
  return unix_vfs->xDelete(unix_vfs, name, dir);
}

static int trap_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  (void)v;
  count_call();
  return unix_vfs->xAccess(unix_vfs, name, flags, out);
}

void trap_register(trap_maker make) {
  trap.make = make;
  unix_vfs = sqlite3_vfs_find("unix");
  trap_vfs = *unix_vfs;
  trap_vfs.zName = TRAP_VFS;
  trap_vfs.pNext = NULL;
  trap_vfs.szOsFile = (int)sizeof(trap_file) + unix_vfs->szOsFile;
  trap_vfs.xOpen = trap_open;
  trap_vfs.xDelete = trap_delete;
  trap_vfs.xAccess = trap_access;
  (void)sqlite3_vfs_register(&trap_vfs, 0);
}
