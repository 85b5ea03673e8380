/*
** memvfs.c: files in memory; see memvfs.h.
*/
#include "memvfs.h"

#include <sqlite3.h>
#include <stdlib.h>

#include "fuzz.h"

#define FILES_MAX 12
#define SHM_REGIONS 9

void (*mem_on_write)(mem_file *f, size_t at, size_t n);

static mem_file files[FILES_MAX];
static unsigned calls;
static int open_handles;
static void *shm[SHM_REGIONS];
static int shm_size;

typedef struct handle {
  sqlite3_file base;
  mem_file *f;
  mem_file own; /* a file without a name */
  int delete_on_close;
} handle;

static void tick(void) {
  FUZZ_ASSERT(++calls < MEM_CALLS_MAX);
}

static void empty(mem_file *f) {
  free(f->data);
  f->data = NULL;
  f->size = f->cap = 0;
}

static void drop_shm(void) {
  for (int i = 0; i < SHM_REGIONS; i++) {
    free(shm[i]);
    shm[i] = NULL;
  }
}

void mem_reset(void) {
  FUZZ_ASSERT(open_handles == 0);
  for (int i = 0; i < FILES_MAX; i++) {
    files[i].exists = 0;
    files[i].size = 0; /* the buffer stays, for speed */
  }
  drop_shm();
  calls = 0;
}

int mem_open_count(void) {
  return open_handles;
}

uint8_t *mem_index(void) {
  return shm[1]; /* the first one has no part of it (vfs/walindex.c) */
}

mem_file *mem_find(const char *name, int create) {
  mem_file *spare = NULL;

  for (int i = 0; i < FILES_MAX; i++) {
    mem_file *f = &files[i];
    if (f->exists && strcmp(f->name, name) == 0) return f;
    /* A slot keeps its name, so that a file that is open and deleted is not
    ** handed out under another. */
    if (!f->exists && (strcmp(f->name, name) == 0 || (!spare && !f->name[0]))) spare = f;
  }
  if (!create) return NULL;
  FUZZ_ASSERT(spare != NULL && strlen(name) < sizeof(spare->name));
  (void)memcpy(spare->name, name, strlen(name) + 1);
  spare->exists = 1;
  spare->size = 0;
  return spare;
}

int mem_resize(mem_file *f, size_t size) {
  if (size > MEM_FILE_MAX) return -1;
  if (size > f->cap) {
    size_t cap = f->cap ? f->cap : 4096;
    uint8_t *p;
    while (cap < size) cap *= 2;
    p = realloc(f->data, cap);
    FUZZ_ASSERT(p != NULL);
    f->data = p;
    f->cap = cap;
  }
  if (size > f->size) memset(f->data + f->size, 0, size - f->size);
  f->size = size;
  return 0;
}

/* ---- a file's methods ---- */

static int mem_close(sqlite3_file *pf) {
  handle *h = (handle *)pf;

  open_handles--;
  if (h->delete_on_close) h->f->exists = 0;
  empty(&h->own);
  return SQLITE_OK;
}

static int mem_read(sqlite3_file *pf, void *buf, int n, sqlite3_int64 off) {
  const mem_file *f = ((handle *)pf)->f;
  size_t have;

  tick();
  FUZZ_ASSERT(n >= 0 && off >= 0);
  have = (size_t)off < f->size ? f->size - (size_t)off : 0;
  if (have >= (size_t)n) {
    if (n) memcpy(buf, f->data + off, (size_t)n);
    return SQLITE_OK;
  }
  if (have) memcpy(buf, f->data + off, have);
  memset((uint8_t *)buf + have, 0, (size_t)n - have);
  return SQLITE_IOERR_SHORT_READ;
}

static int mem_write(sqlite3_file *pf, const void *buf, int n, sqlite3_int64 off) {
  handle *h = (handle *)pf;
  size_t end = (size_t)off + (size_t)n;

  tick();
  FUZZ_ASSERT(n > 0 && n < 0x1ffff && off >= 0);
  FUZZ_ASSERT(memmem(buf, (size_t)n, MEM_MARK, sizeof(MEM_MARK) - 1) == NULL);
  if (end > MEM_FILE_MAX) return SQLITE_FULL;
  if (end > h->f->size) (void)mem_resize(h->f, end);
  memcpy(h->f->data + off, buf, (size_t)n);
  if (mem_on_write && h->f != &h->own) mem_on_write(h->f, (size_t)off, (size_t)n);
  return SQLITE_OK;
}

static int mem_truncate(sqlite3_file *pf, sqlite3_int64 size) {
  tick();
  FUZZ_ASSERT(size >= 0);
  return mem_resize(((handle *)pf)->f, (size_t)size) ? SQLITE_FULL : SQLITE_OK;
}

static int mem_sync(sqlite3_file *pf, int flags) {
  (void)pf;
  (void)flags;
  tick();
  return SQLITE_OK;
}

static int mem_size(sqlite3_file *pf, sqlite3_int64 *size) {
  tick();
  *size = (sqlite3_int64)((handle *)pf)->f->size;
  return SQLITE_OK;
}

static int mem_lock(sqlite3_file *pf, int level) {
  (void)pf;
  (void)level;
  tick();
  return SQLITE_OK;
}

static int mem_check_reserved(sqlite3_file *pf, int *out) {
  (void)pf;
  *out = 0;
  return SQLITE_OK;
}

static int mem_control(sqlite3_file *pf, int op, void *arg) {
  (void)pf;
  (void)op;
  (void)arg;
  return SQLITE_NOTFOUND;
}

static int mem_sector(sqlite3_file *pf) {
  (void)pf;
  return 4096;
}

static int mem_traits(sqlite3_file *pf) {
  (void)pf;
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int mem_shm_map(sqlite3_file *pf, int region, int size, int extend, void volatile **out) {
  (void)pf;
  tick();
  FUZZ_ASSERT(region >= 0 && size > 0);
  if (region >= SHM_REGIONS) return SQLITE_FULL;
  if (!shm[region] && extend) {
    shm[region] = calloc(1, (size_t)size);
    FUZZ_ASSERT(shm[region] != NULL);
    shm_size = size;
  }
  FUZZ_ASSERT(!shm[region] || shm_size == size);
  *out = shm[region];
  return SQLITE_OK;
}

static int mem_shm_lock(sqlite3_file *pf, int offset, int n, int flags) {
  (void)pf;
  (void)offset;
  (void)n;
  (void)flags;
  tick();
  return SQLITE_OK;
}

static void mem_shm_barrier(sqlite3_file *pf) {
  (void)pf;
}

static int mem_shm_unmap(sqlite3_file *pf, int delete_it) {
  (void)pf;
  if (delete_it) drop_shm();
  return SQLITE_OK;
}

static const sqlite3_io_methods methods = {.iVersion = 2,
                                           .xClose = mem_close,
                                           .xRead = mem_read,
                                           .xWrite = mem_write,
                                           .xTruncate = mem_truncate,
                                           .xSync = mem_sync,
                                           .xFileSize = mem_size,
                                           .xLock = mem_lock,
                                           .xUnlock = mem_lock,
                                           .xCheckReservedLock = mem_check_reserved,
                                           .xFileControl = mem_control,
                                           .xSectorSize = mem_sector,
                                           .xDeviceCharacteristics = mem_traits,
                                           .xShmMap = mem_shm_map,
                                           .xShmLock = mem_shm_lock,
                                           .xShmBarrier = mem_shm_barrier,
                                           .xShmUnmap = mem_shm_unmap};

/* ---- the VFS ---- */

static int mem_open(sqlite3_vfs *v, const char *name, sqlite3_file *pf, int flags, int *out_flags) {
  handle *h = (handle *)pf;

  (void)v;
  tick();
  memset(h, 0, sizeof(*h));
  h->f = name ? mem_find(name, (flags & SQLITE_OPEN_CREATE) != 0) : &h->own;
  if (!h->f) return SQLITE_CANTOPEN;
  h->delete_on_close = name && (flags & SQLITE_OPEN_DELETEONCLOSE);
  h->base.pMethods = &methods;
  open_handles++;
  if (out_flags) *out_flags = flags;
  return SQLITE_OK;
}

static int mem_delete(sqlite3_vfs *v, const char *name, int sync_dir) {
  mem_file *f = mem_find(name, 0);

  (void)v;
  (void)sync_dir;
  tick();
  if (!f) return SQLITE_IOERR_DELETE_NOENT;
  f->exists = 0;
  f->size = 0;
  return SQLITE_OK;
}

/* An empty file counts as missing, as the unix VFS has it for EXISTS. */
static int mem_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  const mem_file *f = mem_find(name, 0);

  (void)v;
  tick();
  *out = f != NULL && (flags != SQLITE_ACCESS_EXISTS || f->size > 0);
  return SQLITE_OK;
}

static int mem_full_pathname(sqlite3_vfs *v, const char *name, int n, char *out) {
  (void)v;
  sqlite3_snprintf(n, out, "%s%s", name[0] == '/' ? "" : "/", name);
  return SQLITE_OK;
}

static int mem_randomness(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  for (int i = 0; i < n; i++) out[i] = (char)(fuzz_random() >> 16);
  return n;
}

static int mem_sleep(sqlite3_vfs *v, int usec) {
  (void)v;
  tick();
  return usec;
}

static int mem_time(sqlite3_vfs *v, sqlite3_int64 *out) {
  (void)v;
  *out = INT64_C(212000000000000);
  return SQLITE_OK;
}

static int mem_time_double(sqlite3_vfs *v, double *out) {
  (void)v;
  *out = 212000000000000.0 / 86400000.0;
  return SQLITE_OK;
}

static int mem_last_error(sqlite3_vfs *v, int n, char *out) {
  (void)v;
  (void)n;
  (void)out;
  return 0;
}

static sqlite3_vfs vfs = {.iVersion = 2,
                          .szOsFile = (int)sizeof(handle),
                          .mxPathname = 48,
                          .zName = MEM_VFS,
                          .xOpen = mem_open,
                          .xDelete = mem_delete,
                          .xAccess = mem_access,
                          .xFullPathname = mem_full_pathname,
                          .xRandomness = mem_randomness,
                          .xSleep = mem_sleep,
                          .xCurrentTime = mem_time_double,
                          .xGetLastError = mem_last_error,
                          .xCurrentTimeInt64 = mem_time};

void mem_register(void) {
  FUZZ_ASSERT(sqlite3_vfs_register(&vfs, 1) == SQLITE_OK);
}
