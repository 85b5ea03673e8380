/*
** posix.c: the file-system calls that the product makes itself, on the disk of
** disk.h.
**
** tde_encrypt and tde_decrypt rename, link and remove files, and sync their
** directory, past any VFS. The linker sends those calls here (-Wl,--wrap);
** what is not below the simulated directory goes on to the C library. The clock
** is here, too, so that time can pass.
*/
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"

int __real_rename(const char *from, const char *to);
int __real_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __real_link(const char *from, const char *to);
int __real_unlink(const char *path);
int __real_stat(const char *path, struct stat *sb);
int __real_lstat(const char *path, struct stat *sb);
int __real_chmod(const char *path, mode_t mode);
int __real_chown(const char *path, uid_t uid, gid_t gid);
ssize_t __real_listxattr(const char *path, char *list, size_t n);
ssize_t __real_getxattr(const char *path, const char *name, void *value, size_t n);
int __real_fsync(int fd);
int __real_access(const char *path, int mode);
int __real_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_rename(const char *from, const char *to);
int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags);
int __wrap_link(const char *from, const char *to);
int __wrap_unlink(const char *path);
int __wrap_stat(const char *path, struct stat *sb);
int __wrap_lstat(const char *path, struct stat *sb);
int __wrap_chmod(const char *path, mode_t mode);
int __wrap_chown(const char *path, uid_t uid, gid_t gid);
ssize_t __wrap_listxattr(const char *path, char *list, size_t n);
ssize_t __wrap_getxattr(const char *path, const char *name, void *value, size_t n);
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

int __wrap_rename(const char *from, const char *to) {
  if (!disk_has(from)) return __real_rename(from, to);
  if (usable(from)) return -1;
  return disk_rename(from, to) ? fail(EIO) : 0;
}

/* As the product calls it: full paths, and nothing is replaced. */
int __wrap_renameat2(int fromdir, const char *from, int todir, const char *to, unsigned flags) {
  if (!disk_has(from)) return __real_renameat2(fromdir, from, todir, to, flags);
  if (usable(from)) return -1;
  if (disk_find(to)) return fail(EEXIST);
  return disk_rename(from, to) ? fail(EIO) : 0;
}

int __wrap_link(const char *from, const char *to) {
  if (!disk_has(from)) return __real_link(from, to);
  if (usable(from)) return -1;
  if (disk_find(to)) return fail(EEXIST);
  return disk_link(from, to) ? fail(EIO) : 0;
}

int __wrap_unlink(const char *path) {
  if (!disk_has(path)) return __real_unlink(path);
  if (usable(path)) return -1;
  return disk_unlink(path) ? fail(EIO) : 0;
}

static int look_at(const char *path, struct stat *sb) {
  if (usable(path)) return -1;
  memset(sb, 0, sizeof(*sb));
  sb->st_mode = S_IFREG | 0600;
  sb->st_uid = geteuid();
  sb->st_gid = getegid();
  sb->st_nlink = 1;
  sb->st_size = inode_size(disk_find(path));
  return 0;
}

int __wrap_stat(const char *path, struct stat *sb) {
  return disk_has(path) ? look_at(path, sb) : __real_stat(path, sb);
}

int __wrap_lstat(const char *path, struct stat *sb) {
  return disk_has(path) ? look_at(path, sb) : __real_lstat(path, sb);
}

int __wrap_chmod(const char *path, mode_t mode) {
  return disk_has(path) ? usable(path) : __real_chmod(path, mode);
}

int __wrap_chown(const char *path, uid_t uid, gid_t gid) {
  return disk_has(path) ? usable(path) : __real_chown(path, uid, gid);
}

/* There are no attributes on this disk. */
ssize_t __wrap_listxattr(const char *path, char *list, size_t n) {
  return disk_has(path) ? fail(ENOTSUP) : __real_listxattr(path, list, n);
}

ssize_t __wrap_getxattr(const char *path, const char *name, void *value, size_t n) {
  return disk_has(path) ? fail(ENOTSUP) : __real_getxattr(path, name, value, n);
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

/* The only descriptors of the simulated directory are of the directory itself. */
int __wrap_fsync(int fd) {
  char link[64], path[1024];
  ssize_t n;

  (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  n = readlink(link, path, sizeof(path) - 2);
  if (n <= 0) return __real_fsync(fd);
  path[n] = '/';
  path[n + 1] = 0;
  if (!disk_has(path)) return __real_fsync(fd);
  if (disk_fault_now(DISK_SYNC)) return fail(EIO);
  return disk_sync_names() ? fail(EIO) : 0;
}
