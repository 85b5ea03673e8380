/*
** crashvfs.c: the VFS "crash"; what it promises is told in crashvfs.h.
*/
#include "crashvfs.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"

#define SHM_SLOTS 8
#define SHM_REGIONS 64

typedef struct crash_file {
  sqlite3_file base;
  inode *file;
  struct crash_file *next; /* handles of the same file */
  int lock;
  int journal;
  int sync_names; /* the directory is to be synced with the next sync */
  int shm;        /* takes part in the shared memory */
  unsigned shm_shared, shm_exclusive;
  sqlite3_int64 map_limit, mapped; /* bytes; mapped 0: no map */
} crash_file;

/* What the handles of a file share. */
typedef struct shared_state {
  crash_file *handles;
  void *region[SHM_REGIONS];
  int nregions, region_size, shm_users;
} shared_state;

static sqlite3_vfs crash_vfs;
static sqlite3_vfs *unix_vfs;
static rng random_source;
static int keeps_reserved; /* as SQLite from 3.51 on does */
static int open_files;

static shared_state *state_of(crash_file *f) {
  return *inode_attachment(f->file);
}

/* The code of a refused call: the power is gone. */
static int done(int failed, int code) {
  return failed ? code : SQLITE_OK;
}

/* ---- content ---- */

static int crash_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  crash_file *f = (crash_file *)pf;
  uint32_t got;

  if (disk_dead() || disk_fault_now(DISK_READ)) return SQLITE_IOERR_READ;
  got = inode_read(f->file, buf, (uint32_t)n, off);
  /* A rollback journal that ends early is played back as far as it goes, in
  ** plain SQLite, too: nothing would be learned from cutting it. */
  if (got && !f->journal && disk_fault_now(DISK_SHORT)) got /= 2;
  if (got == (uint32_t)n) return SQLITE_OK;
  memset((char *)buf + got, 0, (size_t)n - got);
  return SQLITE_IOERR_SHORT_READ;
}

static int crash_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  crash_file *f = (crash_file *)pf;

  if (disk_fault_now(DISK_WRITE)) return SQLITE_IOERR_WRITE;
  if (disk_fault_now(DISK_FULL)) {
    (void)inode_write(f->file, buf, (uint32_t)n / 2, off);
    return SQLITE_FULL;
  }
  return done(inode_write(f->file, buf, (uint32_t)n, off), SQLITE_IOERR_WRITE);
}

static int crash_truncate(sqlite3_file *pf, sqlite3_int64 n) {
  crash_file *f = (crash_file *)pf;
  if (disk_fault_now(DISK_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
  return done(inode_truncate(f->file, n), SQLITE_IOERR_TRUNCATE);
}

static int crash_sync(sqlite3_file *pf, int flags) {
  crash_file *f = (crash_file *)pf;

  (void)flags;
  if (disk_fault_now(DISK_SYNC)) return SQLITE_IOERR_FSYNC;
  if (inode_sync(f->file)) return SQLITE_IOERR_FSYNC;
  if (!f->sync_names) return SQLITE_OK;
  f->sync_names = 0;
  return done(disk_sync_names(), SQLITE_IOERR_DIR_FSYNC);
}

static int crash_size(sqlite3_file *pf, sqlite3_int64 *n) {
  crash_file *f = (crash_file *)pf;
  if (disk_dead() || disk_fault_now(DISK_SIZE)) return SQLITE_IOERR_FSTAT;
  *n = inode_size(f->file);
  return SQLITE_OK;
}

/* ---- locks ---- */

static int highest_other(crash_file *f) {
  int level = SQLITE_LOCK_NONE;
  for (crash_file *o = state_of(f)->handles; o; o = o->next) {
    if (o != f && o->lock > level) level = o->lock;
  }
  return level;
}

static int crash_lock(sqlite3_file *pf, int level) {
  crash_file *f = (crash_file *)pf;
  int others;

  if (disk_dead() || disk_fault_now(DISK_LOCK)) return SQLITE_IOERR_LOCK;
  if (f->lock >= level) return SQLITE_OK;
  others = highest_other(f);
  if (level == SQLITE_LOCK_SHARED && others >= SQLITE_LOCK_PENDING) return SQLITE_BUSY;
  if (level >= SQLITE_LOCK_RESERVED && others >= SQLITE_LOCK_RESERVED) return SQLITE_BUSY;
  /* Not to one that has the wal-index open while others have (os_unix.c, unixIsSharingShmNode). */
  if (level == SQLITE_LOCK_RESERVED && keeps_reserved && f->shm && state_of(f)->shm_users > 1) {
    return SQLITE_BUSY;
  }
  if (level == SQLITE_LOCK_EXCLUSIVE && others > SQLITE_LOCK_NONE) {
    f->lock = SQLITE_LOCK_PENDING;
    return SQLITE_BUSY;
  }
  f->lock = level;
  return SQLITE_OK;
}

static int crash_unlock(sqlite3_file *pf, int level) {
  crash_file *f = (crash_file *)pf;
  if (f->lock > level) f->lock = level;
  return SQLITE_OK;
}

static int crash_check_reserved(sqlite3_file *pf, int *out) {
  crash_file *f = (crash_file *)pf;
  if (disk_dead() || disk_fault_now(DISK_LOCK)) return SQLITE_IOERR_CHECKRESERVEDLOCK;
  *out = f->lock >= SQLITE_LOCK_RESERVED || highest_other(f) >= SQLITE_LOCK_RESERVED;
  return SQLITE_OK;
}

/* ---- shared memory ---- */

static int crash_shm_map(sqlite3_file *pf, int i, int size, int extend, void volatile **out) {
  crash_file *f = (crash_file *)pf;
  shared_state *s = state_of(f);

  *out = NULL;
  if (disk_dead() || disk_fault_now(DISK_SHMMAP)) return SQLITE_IOERR_SHMMAP;
  if (!f->shm) {
    f->shm = 1;
    s->shm_users++;
  }
  if (i >= SHM_REGIONS) return SQLITE_NOMEM;
  while (extend && s->nregions <= i) {
    s->region[s->nregions] = calloc(1, (size_t)size);
    if (!s->region[s->nregions]) return SQLITE_NOMEM;
    s->nregions++;
  }
  if (i < s->nregions) *out = s->region[i];
  return SQLITE_OK;
}

static int crash_shm_lock(sqlite3_file *pf, int first, int n, int flags) {
  crash_file *f = (crash_file *)pf;
  unsigned mask = ((1u << n) - 1) << first;

  if (!f->shm) return SQLITE_IOERR_SHMLOCK;
  if (flags & SQLITE_SHM_UNLOCK) {
    f->shm_shared &= ~mask;
    f->shm_exclusive &= ~mask;
    return SQLITE_OK;
  }
  if (disk_dead() || disk_fault_now(DISK_SHMLOCK)) return SQLITE_IOERR_SHMLOCK;
  for (crash_file *o = state_of(f)->handles; o; o = o->next) {
    unsigned in_way = o == f ? 0 : o->shm_exclusive;
    if (flags & SQLITE_SHM_EXCLUSIVE) in_way |= o->shm_shared;
    if (in_way & mask) return SQLITE_BUSY;
  }
  if (flags & SQLITE_SHM_EXCLUSIVE) {
    f->shm_exclusive |= mask;
  } else {
    f->shm_shared |= mask;
  }
  return SQLITE_OK;
}

static void crash_shm_barrier(sqlite3_file *pf) {
  (void)pf;
}

static int crash_shm_unmap(sqlite3_file *pf, int remove) {
  crash_file *f = (crash_file *)pf;
  shared_state *s = state_of(f);

  (void)remove; /* shared memory does not outlive its users here */
  if (!f->shm) return SQLITE_OK;
  f->shm = 0;
  f->shm_shared = f->shm_exclusive = 0;
  if (--s->shm_users > 0) return SQLITE_OK;
  while (s->nregions) free(s->region[--s->nregions]);
  return SQLITE_OK;
}

/* ---- maps ----
**
** The bytes come as a copy, as long as they are held: enough for a shim that copies them at
** once, not for SQLite itself, which is not told to map (M in run.h). */

static int crash_fetch(sqlite3_file *pf, sqlite3_int64 off, int n, void **out) {
  crash_file *f = (crash_file *)pf;

  *out = NULL;
  if (!f->map_limit) return SQLITE_OK;
  if (!f->mapped) {
    if (disk_dead() || disk_fault_now(DISK_MAP)) return SQLITE_IOERR_FSTAT;
    f->mapped = inode_size(f->file) < f->map_limit ? inode_size(f->file) : f->map_limit;
  }
  if (off + n > f->mapped) return SQLITE_OK;
  if (off + n > inode_size(f->file)) abort(); /* SIGBUS */
  *out = malloc((size_t)n);
  if (*out) (void)inode_read(f->file, *out, (uint32_t)n, off);
  return *out ? SQLITE_OK : SQLITE_NOMEM;
}

static int crash_unfetch(sqlite3_file *pf, sqlite3_int64 off, void *p) {
  crash_file *f = (crash_file *)pf;

  (void)off;
  if (!p) f->mapped = 0;
  free(p);
  return SQLITE_OK;
}

static int control_map(crash_file *f, sqlite3_int64 *limit) {
  sqlite3_int64 before = f->map_limit;

  if (disk_dead() || disk_fault_now(DISK_MAP)) return SQLITE_IOERR;
  if (*limit >= 0 && *limit != before) {
    f->map_limit = *limit;
    f->mapped = 0;
  }
  *limit = before;
  return SQLITE_OK;
}

/* ---- the rest of a file ---- */

static int crash_control(sqlite3_file *pf, int op, void *arg) {
  if (op == SQLITE_FCNTL_MMAP_SIZE) return control_map((crash_file *)pf, arg);
  if (op == SQLITE_FCNTL_HAS_MOVED) {
    *(int *)arg = 0;
    return SQLITE_OK;
  }
  if (op == SQLITE_FCNTL_VFSNAME) {
    *(char **)arg = sqlite3_mprintf("%s", CRASH_VFS);
    return SQLITE_OK;
  }
  return SQLITE_NOTFOUND;
}

static int crash_sector_size(sqlite3_file *pf) {
  (void)pf;
  return 4096;
}

static int crash_traits(sqlite3_file *pf) {
  (void)pf;
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int crash_close(sqlite3_file *pf) {
  crash_file *f = (crash_file *)pf, **p;
  shared_state *s = state_of(f);

  (void)crash_shm_unmap(pf, 0);
  for (p = &s->handles; *p != f;) p = &(*p)->next;
  *p = f->next;
  if (!s->handles) {
    free(s);
    *inode_attachment(f->file) = NULL;
  }
  open_files--;
  return SQLITE_OK;
}

static const sqlite3_io_methods crash_methods = {.iVersion = 3,
                                                 .xClose = crash_close,
                                                 .xRead = crash_read,
                                                 .xWrite = crash_write,
                                                 .xTruncate = crash_truncate,
                                                 .xSync = crash_sync,
                                                 .xFileSize = crash_size,
                                                 .xLock = crash_lock,
                                                 .xUnlock = crash_unlock,
                                                 .xCheckReservedLock = crash_check_reserved,
                                                 .xFileControl = crash_control,
                                                 .xSectorSize = crash_sector_size,
                                                 .xDeviceCharacteristics = crash_traits,
                                                 .xShmMap = crash_shm_map,
                                                 .xShmLock = crash_shm_lock,
                                                 .xShmBarrier = crash_shm_barrier,
                                                 .xShmUnmap = crash_shm_unmap,
                                                 .xFetch = crash_fetch,
                                                 .xUnfetch = crash_unfetch};

/* ---- the VFS ---- */

static int crash_open(sqlite3_vfs *v, const char *name, sqlite3_file *pf, int flags,
                      int *out_flags) {
  crash_file *f = (crash_file *)pf;
  const int logs = SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL;
  shared_state *s;

  (void)v;
  memset(f, 0, sizeof(*f));
  if (disk_dead() || disk_fault_now(DISK_OPEN)) return SQLITE_CANTOPEN;
  f->file = name ? disk_find(name) : disk_create_nameless();
  if (f->file && name && (flags & SQLITE_OPEN_EXCLUSIVE)) return SQLITE_CANTOPEN;
  if (!f->file) {
    if (!(flags & SQLITE_OPEN_CREATE)) return SQLITE_CANTOPEN;
    f->file = disk_create(name);
    if (!f->file) return SQLITE_CANTOPEN;
  }
  /* As the unix VFS has it: also when another connection created it, and never synced. */
  f->sync_names = (flags & logs) && (flags & SQLITE_OPEN_CREATE);
  f->journal = (flags & SQLITE_OPEN_MAIN_JOURNAL) != 0;
  s = *inode_attachment(f->file);
  if (!s) {
    s = calloc(1, sizeof(*s));
    if (!s) return SQLITE_NOMEM;
    *inode_attachment(f->file) = s;
  }
  f->next = s->handles;
  s->handles = f;
  f->base.pMethods = &crash_methods;
  open_files++;
  if (out_flags) *out_flags = flags;
  return SQLITE_OK;
}

static int crash_delete(sqlite3_vfs *v, const char *name, int sync_dir) {
  (void)v;
  if (disk_dead() || disk_fault_now(DISK_DELETE)) return SQLITE_IOERR_DELETE;
  if (!disk_find(name)) return SQLITE_IOERR_DELETE_NOENT;
  if (disk_unlink(name)) return SQLITE_IOERR_DELETE;
  return sync_dir ? done(disk_sync_names(), SQLITE_IOERR_DIR_FSYNC) : SQLITE_OK;
}

static int crash_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  inode *f;

  (void)v;
  if (disk_dead() || disk_fault_now(DISK_ACCESS)) return SQLITE_IOERR_ACCESS;
  f = disk_find(name);
  /* As the unix VFS has it: an empty file does not exist. */
  *out = f && (flags != SQLITE_ACCESS_EXISTS || inode_size(f) > 0);
  return SQLITE_OK;
}

static int crash_full_pathname(sqlite3_vfs *v, const char *name, int n, char *out) {
  (void)v;
  (void)sqlite3_snprintf(n, out, "%s", name);
  return SQLITE_OK;
}

static int crash_randomness(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  for (int i = 0; i < n; i++) out[i] = (char)rng_next(&random_source);
  return n;
}

static int crash_sleep(sqlite3_vfs *v, int usec) {
  (void)v;
  return usec;
}

static int crash_time(sqlite3_vfs *v, double *out) {
  (void)v;
  return unix_vfs->xCurrentTime(unix_vfs, out);
}

static int crash_last_error(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  (void)n;
  (void)out;
  return 0;
}

int crash_vfs_register(void) {
  int rc = sqlite3_initialize();

  if (rc) return rc;
  unix_vfs = sqlite3_vfs_find("unix");
  crash_vfs.iVersion = 1;
  crash_vfs.szOsFile = (int)sizeof(crash_file);
  crash_vfs.mxPathname = 512;
  crash_vfs.zName = CRASH_VFS;
  crash_vfs.xOpen = crash_open;
  crash_vfs.xDelete = crash_delete;
  crash_vfs.xAccess = crash_access;
  crash_vfs.xFullPathname = crash_full_pathname;
  crash_vfs.xRandomness = crash_randomness;
  crash_vfs.xSleep = crash_sleep;
  crash_vfs.xCurrentTime = crash_time;
  crash_vfs.xGetLastError = crash_last_error;
  return sqlite3_vfs_register(&crash_vfs, 1);
}

void crash_vfs_seed(uint64_t seed) {
  random_source.s = seed;
  keeps_reserved = (int)(seed & 1);
  (void)sqlite3_test_control(SQLITE_TESTCTRL_PRNG_RESET);
}

int crash_vfs_open_files(void) {
  return open_files;
}
