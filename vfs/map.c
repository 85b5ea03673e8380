/*
** map.c: pages from a map of the encrypted main database.
**
** SQLite gets no pages of a map, since they must be opened first. But a page that it
** asks for is copied out of a map of the file below, without reading the file. The map is
** that of a second lower file of the same name, which the lower VFS makes and bounds.
** It is made because PRAGMA mmap_size asks for it, or, where that does not, because
** the connection has read many single pages: then it is the connection's own.
** What must hold:
**  - a unit is opened from the copy, never in the map, where another process could
**    change bytes between the check of the tag and their use;
**  - the map serves reads of whole pages alone. All others, of headers and of runs that may
**    reach behind the end, stay with the file: to touch a map where the file has become
**    shorter ends the process (SIGBUS);
**  - the second file is the first one, not another that came to its name since;
**  - where anything fails there is no map, and the read goes the usual way.
**
** A map of PRAGMA mmap_size is read by the rules that SQLite keeps for maps of its own: it
** knows the page to be there, and has the map undone (xUnfetch of NULL) once it sees that
** another process changed the file. An I/O error ends the process, as there.
**
** Nobody asked for an own map, so nobody must come to harm by it:
**  - each copy is preceded by a look by the kernel whether the bytes can be read
**    (probe.h). What is not there, or not readable, is the usual read's to tell of. What
**    remains is a file that is cut within the fraction of a microsecond between the two,
**    by a program that heeds no lock;
**  - it is made only where a map and a read are sure to be one page cache: with the
**    unix VFS on Linux's local file systems;
**  - it takes a file descriptor, address space and page tables, so few may be open in a
**    process, and none where its address space is limited, what it maps is locked into
**    memory, or descriptors are scarce;
**  - it loses while pages come from the disk: once looks have been slow, the usual way is
**    gone for a while, and for longer each time.
*/
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#ifdef __linux__
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>
#endif

#include "../ext/base/log.h"
#include "../ext/base/probe.h"
#include "shim.h"

SQLITE_EXTENSION_INIT3

/* The map covers the file as it was when it was made. So many pages that lay behind, but
** within the limit, are read, and it is made anew: a few milliseconds' worth, so that what
** a new map costs (its page faults) does not count. */
#define PATIENCE 2048

/* An own map is made after so many single reads at the least, and after one for each so
** many bytes of the file. What it costs are page faults, one for each 64 KiB that are read
** for the first time, each as much as it saves with about five reads: whoever reads
** less than that would pay for nothing. 0, for tests: with the first read. */
#ifndef TDE_OWN_AFTER
#define TDE_OWN_AFTER 2048
#endif
#define OWN_BYTES_A_READ 16384
/* Of at most so many bytes, so many in a process. The page tables of a map of which every
** page was read take a 512th of its size. */
#define OWN_BYTES 0x7fff0000 /* SQLite's own limit, SQLITE_MAX_MMAP_SIZE */
#define OWN_MAX 64
#define OWN_AGAIN 65536 /* reads until it is tried again where there was none to be had */
/* A look that takes longer waited for the disk, perhaps for much more than was asked for: the
** kernel reads around what is touched in a map. Such time is a debt, which the quick looks
** pay off by what they save; one look in so many is timed and stands for the others. When
** the debt has grown so large, so many reads go the usual way, and each time four times as
** many, until it is paid. */
#define SLOW_NS 20000
#define TIMED_EACH 4
#define SAVED_NS 400
#define DEBT_NS 1000000
#define OWN_PAUSE 256
#define OWN_PAUSE_MAX (OWN_PAUSE << 12)
#define OWN_KEEP 8192 /* a map that rests for longer is given back meanwhile */
#define CACHE_LINE 64

static atomic_int own_maps;

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

  if (!db || !db->map) return;
  (void)tde_main_close(db->map);
  db->map = NULL;
  if (db->map_own) atomic_fetch_sub(&own_maps, 1);
  db->map_own = 0;
}

/* Maps at most so many bytes. False: there is no map. */
static int open_map(tde_file *f, sqlite3_int64 limit) {
  tde_db *db = f->db;
  int rc;

  db->map_limit = limit;
  db->map_missed = 0;
  db->map = tde_lower_open(f->lower_vfs, f->path, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READONLY, NULL,
                           &rc);
  if (!db->map) return 0;
  if (MAP(db)->iVersion >= 3 && set_limit(db->map, &db->map_limit) == SQLITE_OK &&
      db->map_limit > 0 && stands(f->lower) && stands(db->map)) {
    return 1;
  }
  tde_map_close(f);
  return 0;
}

/* ---- own maps ---- */

#ifdef __linux__
/* Is what a map shows always what a read returns? True for Linux's local file systems
** that keep a page cache. Overlays are none: a file may turn into another. */
static int one_page_cache(const tde_file *f) {
  struct statfs fs;

  if (strncmp(f->lower_vfs->zName, "unix", 4) != 0 || statfs(f->path, &fs) != 0) return 0;
  switch ((uint32_t)fs.f_type) {
    case EXT4_SUPER_MAGIC: /* also ext2, ext3 */
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case TMPFS_MAGIC:
      return 1;
    default:
      return 0;
  }
}

/* Is what is mapped now locked into memory (mlockall(2), MCL_FUTURE)? The kernel would
** read the whole file at once, or keep what is touched. Locked pages are told by
** madvise(2): MADV_DONTNEED refuses them. */
static int locks_maps(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int locked;

  if (p == MAP_FAILED) return 1;
  locked = madvise(p, page, MADV_DONTNEED) != 0;
  (void)munmap(p, page);
  return locked;
}

/* There is room for maps of files: 64 bits, no limit (ulimit -v) that the host would come
** up against, and nothing that is read stays in memory for it. */
static int room_for_maps(void) {
  struct rlimit space;

  return sizeof(void *) >= 8 && getrlimit(RLIMIT_AS, &space) == 0 &&
         space.rlim_cur == RLIM_INFINITY && !locks_maps();
}

static int may_map(const tde_file *f) {
  return tde_probe_works() && room_for_maps() && one_page_cache(f);
}

/* The process is far from its limit of file descriptors: the lowest that is free lies in
** the lower half. */
static int descriptors_to_spare(void) {
  struct rlimit files;
  int fd = open("/", O_PATH | O_CLOEXEC);

  if (fd < 0) return 0;
  (void)close(fd);
  return getrlimit(RLIMIT_NOFILE, &files) == 0 && (rlim_t)fd < files.rlim_cur / 2;
}
#else
static int may_map(const tde_file *f) {
  (void)f;
  return 0;
}

static int descriptors_to_spare(void) {
  return 0;
}
#endif

void tde_map_init(tde_file *f) {
  f->s.mapped = f->db->map_off ? 0 : TDE_MAPPED_SINGLE;
  f->db->map_wait = f->db->map_waited = TDE_OWN_AFTER;
  f->db->map_pause = OWN_PAUSE;
  f->db->map_debt = 0;
}

/* As many reads went by as an own map takes to pay; otherwise waits for the others. */
static int own_pays(tde_file *f) {
  tde_db *db = f->db;
  sqlite3_int64 size, needs;

  if (LOWER(f)->xFileSize(f->lower, &size)) return 0;
  if (size > OWN_BYTES) size = OWN_BYTES;
  needs = TDE_OWN_AFTER ? size / OWN_BYTES_A_READ : 0;
  if (db->map_waited >= needs) return 1;
  db->map_wait = (int)(needs - db->map_waited);
  db->map_waited = (int)needs;
  return 0;
}

static int open_own(tde_file *f) {
  tde_db *db = f->db;

  if (!own_pays(f)) return 0;
  if (atomic_fetch_add(&own_maps, 1) >= OWN_MAX || !descriptors_to_spare()) {
    db->map_wait = OWN_AGAIN;
  } else if (may_map(f) && open_map(f, OWN_BYTES)) {
    db->map_own = 1;
    return 1;
  } else {
    f->s.mapped = 0; /* for good */
  }
  atomic_fetch_sub(&own_maps, 1);
  return 0;
}

static int64_t nanoseconds(void) {
  struct timespec t;

  return clock_gettime(CLOCK_MONOTONIC, &t) == 0 ? t.tv_sec * (int64_t)1000000000 + t.tv_nsec : 0;
}

/* One of TIMED_EACH looks took so long: is the map worth its while? */
static void settle(tde_db *db, int64_t ns) {
  if (ns > SLOW_NS) {
    db->map_debt += ns * TIMED_EACH;
  } else if (db->map_debt > SAVED_NS * TIMED_EACH) {
    db->map_debt -= SAVED_NS * TIMED_EACH;
  } else {
    db->map_debt = 0;
    db->map_pause = OWN_PAUSE;
  }
  if (db->map_debt <= DEBT_NS) return;
  db->map_debt = DEBT_NS / 2;
  db->map_asked = 0; /* the first one afterwards is timed */
  db->map_wait = db->map_pause;
  if (db->map_pause < OWN_PAUSE_MAX) db->map_pause *= 4;
}

/* Are these bytes of the own map there, to be touched at once? */
static int at_hand(tde_db *db, const void *from, uint32_t n) {
  int timed = db->map_asked++ % TIMED_EACH == 0, ok;
  int64_t began = timed ? nanoseconds() : 0;

  /* What is there comes nearer while the kernel looks: prefetching raises no signal. */
  for (uint32_t k = 0; k < n; k += CACHE_LINE) __builtin_prefetch((const char *)from + k);
  ok = tde_readable(from, n);
  if (timed) settle(db, nanoseconds() - began);
  if (!ok && db->map_wait < OWN_PAUSE) db->map_wait = OWN_PAUSE;
  return ok;
}

/* ---- the map ---- */

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
  if (rc == SQLITE_OK && limit > 0) {
    f->s.mapped = TDE_MAPPED_ALL;
  } else {
    tde_map_init(f);
  }
  return SQLITE_OK;
}

void tde_map_undo(tde_file *f) {
  tde_db *db = f->db;

  /* An own map shows the file as it is, and is looked at before it is touched. */
  if (db->map && !db->map_own) (void)MAP(db)->xUnfetch(db->map, 0, NULL);
}

/* The map does not reach so far: after a while it is made anew. */
static void note_missed(tde_file *f, sqlite3_int64 end) {
  tde_db *db = f->db;

  if (end > db->map_limit || ++db->map_missed < PATIENCE) return;
  db->map_missed = 0;
  if (db->map_own) {
    tde_map_close(f);
    tde_map_init(f);
  } else {
    tde_map_undo(f);
  }
}

/* As many bytes of pages may be mapped as were asked for. They take an eighth more
** here, at the most (units of 512 bytes), and the header. */
static int open_asked(tde_file *f) {
  if (open_map(f, f->mmap_size + f->mmap_size / 8 + TDE_HEADER_BYTES)) return 1;
  f->s.mapped = 0; /* until it is asked for again */
  tde_log(TDE_LOG_NOTICE,
          "%s: PRAGMA mmap_size: the file could not be mapped; its pages are read without",
          tde_path_of(f));
  return 0;
}

int tde_map_copy(void *ctx, uint64_t at, uint32_t n, uint8_t *to) {
  tde_file *f = ctx;
  tde_db *db = f->db;
  void *from = NULL;
  int own = f->s.mapped == TDE_MAPPED_SINGLE, there;

  if (own && db->map_wait > 0) {
    db->map_wait--;
    return 0;
  }
  if (!db->map && !(own ? open_own(f) : open_asked(f))) return 0;
  if (MAP(db)->xFetch(db->map, (sqlite3_int64)at, (int)n, &from)) return 0;
  if (!from) {
    note_missed(f, (sqlite3_int64)at + n);
    return 0;
  }
  there = !own || at_hand(db, from, n);
  if (there) memcpy(to, from, n);
  (void)MAP(db)->xUnfetch(db->map, (sqlite3_int64)at, from);
  if (own && db->map_wait > OWN_KEEP) tde_map_close(f);
  return there;
}
