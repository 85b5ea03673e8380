/*
** posix.c: the file-system calls that the product makes itself, on the disk of
** disk.h.
**
** tde_encrypt and tde_decrypt rename, link and remove files, and sync their
** directory, past any VFS. The linker sends those calls here (-Wl,--wrap);
** what is not below the simulated directory goes on to the C library. The clock
** is here, too, so that time can pass.
**
** The temporary file that they make, and hold, lies in the real directory, too: it follows the
** simulated one's names, and says which file that is (st_dev, st_ino). Nobody looks at its bytes.
*/
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"

int __real_openat(int dir, const char *path, int flags, ...);
int __real_renameat(int fromdir, const char *from, int todir, const char *to);
int __real_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __real_linkat(int fromdir, const char *from, int todir, const char *to, int flags);
int __real_unlinkat(int dir, const char *path, int flags);
int __real_fstatat(int dir, const char *path, struct stat *sb, int flags);
int __real_stat(const char *path, struct stat *sb);
int __real_lstat(const char *path, struct stat *sb);
int __real_fchmod(int fd, mode_t mode);
int __real_fchown(int fd, uid_t uid, gid_t gid);
ssize_t __real_llistxattr(const char *path, char *list, size_t n);
int __real_fsync(int fd);
int __real_access(const char *path, int mode);
int __real_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_openat(int dir, const char *path, int flags, ...);
int __wrap_renameat(int fromdir, const char *from, int todir, const char *to);
int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __wrap_linkat(int fromdir, const char *from, int todir, const char *to, int flags);
int __wrap_unlinkat(int dir, const char *path, int flags);
int __wrap_fstatat(int dir, const char *path, struct stat *sb, int flags);
int __wrap_stat(const char *path, struct stat *sb);
int __wrap_lstat(const char *path, struct stat *sb);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fchown(int fd, uid_t uid, gid_t gid);
ssize_t __wrap_llistxattr(const char *path, char *list, size_t n);
int __wrap_fsync(int fd);
int __wrap_access(const char *path, int mode);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts);

static int fail(int err) {
  errno = err;
  return -1;
}

/* 0, or -1 with errno when the path is not there or the disk refuses. */
static int usable(const char *path) {
  if (disk_dead() || disk_fault_now(DISK_NAME)) return fail(EIO);
  return disk_find(path) ? 0 : fail(ENOENT);
}

#define PATH_ROOM 1200

/* The path of a descriptor, or of a name in a folder that is one; "" if that is not told. */
static const char *path_of(int fd, const char *name, char room[PATH_ROOM]) {
  char link[64];
  ssize_t n;

  room[0] = 0;
  if (fd == AT_FDCWD || (name && name[0] == '/')) return name;
  (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  n = readlink(link, room, PATH_ROOM - 1);
  if (n <= 0) return "";
  room[n] = 0;
  if (name) (void)snprintf(room + n, (size_t)(PATH_ROOM - n), "/%s", name);
  return room;
}

int __wrap_openat(int dir, const char *path, int flags, ...) {
  char room[PATH_ROOM];
  const char *full = path_of(dir, path, room);
  unsigned mode = 0;
  va_list ap;

  va_start(ap, flags);
  if (flags & O_CREAT) mode = va_arg(ap, unsigned);
  va_end(ap);
  if (disk_has(full) && (flags & O_CREAT)) {
    if (disk_dead() || disk_fault_now(DISK_NAME)) return fail(EIO);
    if (disk_find(full)) return fail(EEXIST);
    if (!disk_create(full)) return fail(EIO);
  }
  return __real_openat(dir, path, flags, mode);
}

int __wrap_renameat(int fromdir, const char *from, int todir, const char *to) {
  char a[PATH_ROOM], b[PATH_ROOM];
  const char *old = path_of(fromdir, from, a), *new = path_of(todir, to, b);

  if (!disk_has(old)) return __real_renameat(fromdir, from, todir, to);
  if (usable(old)) return -1;
  (void)__real_renameat(fromdir, from, todir, to);
  return disk_rename(old, new) ? fail(EIO) : 0;
}

/* As the product calls it: nothing is replaced. */
int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags) {
  char a[PATH_ROOM], b[PATH_ROOM];
  const char *old = path_of(fromdir, from, a), *new = path_of(todir, to, b);

  if (!disk_has(old)) return __real_renameat2(fromdir, from, todir, to, flags);
  if (usable(old)) return -1;
  if (disk_find(new)) return fail(EEXIST);
  (void)__real_renameat(fromdir, from, todir, to);
  return disk_rename(old, new) ? fail(EIO) : 0;
}

int __wrap_linkat(int fromdir, const char *from, int todir, const char *to, int flags) {
  char a[PATH_ROOM], b[PATH_ROOM];
  const char *old = path_of(fromdir, from, a), *new = path_of(todir, to, b);

  if (!disk_has(old)) return __real_linkat(fromdir, from, todir, to, flags);
  if (usable(old)) return -1;
  if (disk_find(new)) return fail(EEXIST);
  (void)__real_linkat(fromdir, from, todir, to, flags);
  return disk_link(old, new) ? fail(EIO) : 0;
}

int __wrap_unlinkat(int dir, const char *path, int flags) {
  char room[PATH_ROOM];
  const char *full = path_of(dir, path, room);

  if (!disk_has(full)) return __real_unlinkat(dir, path, flags);
  if (usable(full)) return -1;
  (void)__real_unlinkat(dir, path, flags);
  return disk_unlink(full) ? fail(EIO) : 0;
}

static int look_at(const char *path, struct stat *sb) {
  struct stat real;

  if (usable(path)) return -1;
  memset(sb, 0, sizeof(*sb));
  sb->st_mode = S_IFREG | 0600;
  sb->st_uid = geteuid();
  sb->st_gid = getegid();
  sb->st_nlink = 1;
  sb->st_size = inode_size(disk_find(path));
  if (__real_lstat(path, &real) == 0) {
    sb->st_dev = real.st_dev;
    sb->st_ino = real.st_ino;
  }
  return 0;
}

int __wrap_fstatat(int dir, const char *path, struct stat *sb, int flags) {
  char room[PATH_ROOM];
  const char *full = path_of(dir, path, room);

  return disk_has(full) ? look_at(full, sb) : __real_fstatat(dir, path, sb, flags);
}

int __wrap_stat(const char *path, struct stat *sb) {
  return disk_has(path) ? look_at(path, sb) : __real_stat(path, sb);
}

int __wrap_lstat(const char *path, struct stat *sb) {
  return disk_has(path) ? look_at(path, sb) : __real_lstat(path, sb);
}

int __wrap_fchmod(int fd, mode_t mode) {
  char room[PATH_ROOM];
  const char *path = path_of(fd, NULL, room);

  return disk_has(path) ? usable(path) : __real_fchmod(fd, mode);
}

int __wrap_fchown(int fd, uid_t uid, gid_t gid) {
  char room[PATH_ROOM];
  const char *path = path_of(fd, NULL, room);

  return disk_has(path) ? usable(path) : __real_fchown(fd, uid, gid);
}

/* There are no attributes on this disk. */
ssize_t __wrap_llistxattr(const char *path, char *list, size_t n) {
  return disk_has(path) ? fail(ENOTSUP) : __real_llistxattr(path, list, n);
}

int __wrap_access(const char *path, int mode) {
  return disk_has(path) ? usable(path) : __real_access(path, mode);
}

static time_t later;

void disk_time_passes(void) {
  later += 86400;
}

int __wrap_clock_gettime(clockid_t id, struct timespec *ts) {
  int rc = __real_clock_gettime(id, ts);
  if (id == CLOCK_BOOTTIME) ts->tv_sec += later;
  return rc;
}

/* Of descriptors below the simulated directory, only its own is synced. */
int __wrap_fsync(int fd) {
  char room[PATH_ROOM];
  const char *path = path_of(fd, "", room);

  if (!disk_has(path)) return __real_fsync(fd);
  if (disk_fault_now(DISK_SYNC)) return fail(EIO);
  return disk_sync_names() ? fail(EIO) : 0;
}
