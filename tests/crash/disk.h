/*
** disk.h: a disk that can lose its power.
**
** Files live in memory. A file has its content as the process sees it, the
** content that is safe, and the writes and truncations since its last sync.
** Names (create, delete, rename, link) are safe once the directory was synced.
** Every change counts as one operation; at a chosen one the power fails: from
** then on everything is refused with SQLITE_IOERR. disk_power_on() decides by
** seed what has survived:
**
**  - each 512-byte sector's share of each unsynced write survives, vanishes, or
**    tears: a part of it is new, a part old, or garbage. Bytes outside the range
**    of a write never change (powersafe overwrite, SQLite's default);
**  - an unsynced truncation happened or did not; an unsynced write beyond the
**    end grew the file or did not;
**  - an unsynced change of a name happened or did not, and so for every other
**    name, but in order for any one of them; a rename is all or nothing.
**
** The same disk injects faults (disk_fault_*): the Nth call of some kind fails,
** once or from then on.
**
** One process, one thread.
*/
#ifndef CRASH_DISK_H
#define CRASH_DISK_H

#include <stddef.h>
#include <stdint.h>

/* A small generator (splitmix64): a seed gives the same run everywhere. */
typedef struct rng {
  uint64_t s;
} rng;
uint64_t rng_next(rng *r);
uint32_t rng_below(rng *r, uint32_t n); /* 0 .. n-1; n > 0 */

typedef struct inode inode;

/* What is counted, and what can be made to fail. */
typedef enum disk_op {
  DISK_OPEN = 1 << 0,
  DISK_READ = 1 << 1,
  DISK_WRITE = 1 << 2,
  DISK_SYNC = 1 << 3,
  DISK_TRUNCATE = 1 << 4,
  DISK_SIZE = 1 << 5,
  DISK_LOCK = 1 << 6,
  DISK_SHMMAP = 1 << 7,
  DISK_SHMLOCK = 1 << 8,
  DISK_DELETE = 1 << 9,
  DISK_ACCESS = 1 << 10,
  DISK_NAME = 1 << 11,  /* rename, link, chmod, ... : what SQLite does not do */
  DISK_SHORT = 1 << 12, /* a read that delivers a part only */
  DISK_FULL = 1 << 13,  /* a write that finds no room, after a part of it */
  DISK_MAP = 1 << 14    /* a map, or its limit */
} disk_op;

/* The directory that the disk stands for. Set once. */
void disk_mount(const char *dir);
/* 1: the path is below that directory. */
int disk_has(const char *path);

void disk_format(void);            /* an empty disk */
void disk_power_fails_at(long op); /* the op-th change from now; 0: never */
long disk_ops(void);               /* changes since the last of these two */
int disk_dead(void);               /* the power has failed */
void disk_power_on(uint64_t seed); /* every handle must be closed */
/* Instead: the process died, the machine did not: whatever was written is there. */
void disk_process_died(void);
void disk_trace(int on); /* prints each change to stderr */

/* The nth (1, 2, ...) call of a kind in mask fails; persistent: so do all later
** ones. mask 0: none. */
void disk_fault(unsigned mask, long nth, int persistent);
int disk_fault_hits(void); /* how many calls failed since */
/* For an implementation: 1 when this call is to fail. */
int disk_fault_now(unsigned op);

/* Files. Functions that change something return 0, or -1 once the power has
** failed; that includes the very operation at which it fails. */
inode *disk_find(const char *path);
inode *disk_create(const char *path); /* NULL when the power has failed */
inode *disk_create_nameless(void);
int disk_unlink(const char *path);
int disk_link(const char *from, const char *to);
int disk_rename(const char *from, const char *to);
int disk_sync_names(void);

int64_t inode_size(const inode *f);
uint32_t inode_read(const inode *f, void *buf, uint32_t n, int64_t off); /* bytes there */
int inode_write(inode *f, const void *buf, uint32_t n, int64_t off);
int inode_truncate(inode *f, int64_t n);
int inode_sync(inode *f);
void **inode_attachment(inode *f); /* the VFS's: lock state */

/* For the product, a day passes: keys that nobody uses are wiped (posix.c). */
void disk_time_passes(void);

/* Writes every file into the directory of the same path on the real disk,
** which must exist; what else is there is removed. 0, or -1. */
int disk_export(void);
/* True when a file whose name does not begin with except (may be NULL) holds
** the bytes. *where gets its name. */
int disk_holds(const void *bytes, size_t n, const char *except, const char **where);

#endif
