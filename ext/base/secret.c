/*
** secret.c: the arena for key material.
**
** Blocks come in size classes (32 bytes to 64 KiB, powers of two). Each class
** has regions, each of them one mapping aligned to span_bytes:
**
**     header page | guard page | data pages | guard page
**
** The data pages are locked and left out of core dumps; the guards fault, so
** an overrun of a neighbouring buffer cannot run into keys nor out of them.
** The header (which blocks are used) is no secret and stands apart, and the
** alignment leads from a block to it without a search.
**
** What must hold: an unused block is all zero (fresh from the kernel, or wiped
** when freed). One empty region stays per class, so that opening and closing a
** database does not map and lock each time. All under one mutex, which a fork
** waits for: a child must find the arena whole. The kernel takes no locks along
** into the child, so the first who asks for a block there locks what it inherited.
*/
#include "secret.h"

#include <openssl/crypto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"

#define SMALLEST 32u
#define NCLASS 12
#define MAX_BLOCKS 512u /* of one region */
#define REGION_MAGIC UINT64_C(0x74646573656372)

_Static_assert((SMALLEST << (NCLASS - 1)) == TDE_SECRET_MAX, "classes double from smallest to largest");

typedef struct region {
  uint64_t magic;
  struct region *prev, *next;   /* among the regions of its class with room */
  struct region *newer, *older; /* among all */
  uint8_t *data;
  size_t block; /* bytes */
  unsigned cls, nblocks, used;
  uint64_t taken[MAX_BLOCKS / 64]; /* bit i: block i is handed out */
} region;

int (*tde_test_alloc_hook)(size_t n);

static struct {
  pthread_mutex_t mutex;
  region *room[NCLASS]; /* regions with at least one free block */
  region *newest;       /* of all regions */
  unsigned empty[NCLASS];
  int inherited; /* regions of the parent's, whose locks are not */
} arena = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static size_t page_bytes, span_bytes; /* set once by prepare() */
static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static atomic_int unlocked;    /* some block is not locked into memory */
static atomic_int lock_failed; /* mlock refused, and nobody was told yet */
static atomic_int warned;

static void before_fork(void) {
  pthread_mutex_lock(&arena.mutex);
}

static void after_fork_parent(void) {
  pthread_mutex_unlock(&arena.mutex);
}

static void after_fork_child(void) {
  if (arena.newest) {
    arena.inherited = 1;
    atomic_store(&unlocked, 1);
  }
  pthread_mutex_unlock(&arena.mutex);
}

static size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) & ~(unit - 1);
}

static void prepare(void) {
  page_bytes = (size_t)sysconf(_SC_PAGESIZE);
  size_t need = 3 * page_bytes + round_up(TDE_SECRET_MAX, page_bytes);
  for (span_bytes = page_bytes; span_bytes < need;) span_bytes *= 2;
  pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static unsigned class_of(size_t n) {
  unsigned c = 0;
  while ((SMALLEST << c) < n) c++;
  return c;
}

static size_t data_bytes(unsigned cls) {
  return round_up((SMALLEST << cls) <= 4096 ? 16384 : TDE_SECRET_MAX, page_bytes);
}

static void link_region(region *r) {
  r->prev = NULL;
  r->next = arena.room[r->cls];
  if (r->next) r->next->prev = r;
  arena.room[r->cls] = r;
}

static void unlink_region(region *r) {
  if (r->next) r->next->prev = r->prev;
  if (r->prev) r->prev->next = r->next;
  else arena.room[r->cls] = r->next;
  r->prev = r->next = NULL;
}

static void list_region(region *r) {
  r->newer = NULL;
  r->older = arena.newest;
  if (r->older) r->older->newer = r;
  arena.newest = r;
}

static void unlist_region(region *r) {
  if (r->older) r->older->newer = r->newer;
  if (r->newer) r->newer->older = r->older;
  else arena.newest = r->older;
}

/* In a forked child. */
static void lock_inherited(void) {
  int failed = 0;
  for (region *r = arena.newest; r; r = r->older) failed |= mlock(r->data, data_bytes(r->cls)) != 0;
  arena.inherited = 0;
  atomic_store(&unlocked, failed);
  if (failed) atomic_store(&lock_failed, 1);
}

/* An aligned, inaccessible mapping of total bytes, or NULL. */
static uint8_t *reserve(size_t total) {
  size_t whole = span_bytes + total;
  void *raw = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return NULL;
  uint8_t *start = raw;
  size_t before = (span_bytes - ((uintptr_t)start & (span_bytes - 1))) & (span_bytes - 1);
  size_t after = whole - before - total;
  if (before) munmap(start, before);
  if (after) munmap(start + before + total, after);
  return start + before;
}

static region *region_new(unsigned cls) {
  size_t ndata = data_bytes(cls), total = 3 * page_bytes + ndata;
  uint8_t *base = reserve(total);
  if (!base) return NULL;
  uint8_t *data = base + 2 * page_bytes;
  if (mprotect(base, page_bytes, PROT_READ | PROT_WRITE) ||
      mprotect(data, ndata, PROT_READ | PROT_WRITE)) {
    munmap(base, total);
    return NULL;
  }
  madvise(data, ndata, MADV_DONTDUMP);
  if (mlock(data, ndata)) {
    atomic_store(&unlocked, 1);
    atomic_store(&lock_failed, 1);
  }
  region *r = (region *)(void *)base;
  r->magic = REGION_MAGIC;
  r->cls = cls;
  r->block = SMALLEST << cls;
  r->nblocks = (unsigned)(ndata / r->block);
  if (r->nblocks > MAX_BLOCKS) r->nblocks = MAX_BLOCKS;
  r->data = data;
  link_region(r);
  list_region(r);
  arena.empty[cls]++;
  return r;
}

static void region_unmap(region *r) {
  unlink_region(r);
  unlist_region(r);
  arena.empty[r->cls]--;
  r->magic = 0;
  munmap(r, 3 * page_bytes + data_bytes(r->cls));
}

/* The first free block of a region that has one. */
static void *take_block(region *r) {
  unsigned w = 0;
  while (r->taken[w] == UINT64_MAX) w++;
  unsigned bit = (unsigned)__builtin_ctzll(~r->taken[w]);
  r->taken[w] |= UINT64_C(1) << bit;
  if (r->used++ == 0) arena.empty[r->cls]--;
  if (r->used == r->nblocks) unlink_region(r);
  return r->data + (size_t)(64 * w + bit) * r->block;
}

void *tde_secret_alloc(size_t n) {
  if (n < 1 || n > TDE_SECRET_MAX) return NULL;
  if (tde_test_alloc_hook && tde_test_alloc_hook(n)) return NULL;
  pthread_once(&prepared, prepare);
  unsigned cls = class_of(n);
  pthread_mutex_lock(&arena.mutex);
  if (arena.inherited) lock_inherited();
  region *r = arena.room[cls] ? arena.room[cls] : region_new(cls);
  void *p = r ? take_block(r) : NULL;
  pthread_mutex_unlock(&arena.mutex);
  if (atomic_load_explicit(&lock_failed, memory_order_relaxed) && !atomic_exchange(&warned, 1)) {
    tde_log(TDE_LOG_WARNING,
            "key material is not locked into memory and may reach swap space; raise "
            "RLIMIT_MEMLOCK (ulimit -l) or encrypt the swap space");
  }
  return p;
}

/* Gives block i of r back. */
static void release_block(region *r, size_t i) {
  tde_wipe(r->data + i * r->block, r->block);
  r->taken[i / 64] &= ~(UINT64_C(1) << (i % 64));
  if (r->used-- == r->nblocks) link_region(r);
  if (r->used) return;
  arena.empty[r->cls]++;
  if (arena.empty[r->cls] > 1) region_unmap(r);
}

void tde_secret_free(void *p) {
  if (!p) return;
  region *r = (region *)((uintptr_t)p & ~(uintptr_t)(span_bytes - 1));
  int mine = 0;
  pthread_mutex_lock(&arena.mutex);
  if (r->magic == REGION_MAGIC) {
    size_t at = (size_t)((uint8_t *)p - r->data), i = at / r->block;
    mine = at % r->block == 0 && i < r->nblocks && (r->taken[i / 64] >> (i % 64) & 1);
    if (mine) release_block(r, i);
  }
  pthread_mutex_unlock(&arena.mutex);
  if (!mine) tde_log(TDE_LOG_ERROR, "internal: a secret block was freed that is not in use");
}

void tde_wipe(void *p, size_t n) {
  if (n) explicit_bzero(p, n);
}

int tde_equal(const void *a, const void *b, size_t n) {
  return CRYPTO_memcmp(a, b, n) == 0;
}

int tde_secret_locked(void) {
  return !atomic_load(&unlocked);
}
