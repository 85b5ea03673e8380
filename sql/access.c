/*
** access.c: the access list and the attributes of a file that another takes the place of;
** see access.h.
*/
#include "access.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/xattr.h>

#include "sqlite3ext.h"

SQLITE_EXTENSION_INIT3

#define LIST "system.posix_acl_access"

/* Does the system say that there is no such thing, here or at all? */
static int is_none(int err) {
  return err == ENODATA || err == ENOTSUP || err == ENOSYS;
}

int tde_access_bare(int fd) {
  if (fgetxattr(fd, LIST, NULL, 0) < 0 && is_none(errno)) return 0;
  return fremovexattr(fd, LIST);
}

/* A file whose attributes are read. */
typedef struct source {
  const char *path;
  int fd; /* -1: by its path */
} source;

static ssize_t names_of(const source *s, char *names) {
  return s->fd < 0 ? llistxattr(s->path, names, XATTR_LIST_MAX)
                   : flistxattr(s->fd, names, XATTR_LIST_MAX);
}

static ssize_t value_of(const source *s, const char *name, char *value) {
  return s->fd < 0 ? lgetxattr(s->path, name, value, XATTR_SIZE_MAX)
                   : fgetxattr(s->fd, name, value, XATTR_SIZE_MAX);
}

/* A file system that keeps no attributes keeps a copy's none, either; a list it must. */
static int copy_one(const source *from, int to, const char *name, char *value) {
  ssize_t n = value_of(from, name, value);

  if (n < 0) return errno == ENODATA ? 0 : -1;
  if (fsetxattr(to, name, value, (size_t)n, 0) == 0) return 0;
  return errno == ENOTSUP && strcmp(name, LIST) != 0 ? 0 : -1;
}

static int copy_all(const source *from, int to, char *names, char *value, const char **what) {
  ssize_t n = names_of(from, names);

  *what = "its attributes can not be kept";
  if (n < 0) return is_none(errno) ? 0 : -1;
  for (const char *name = names; name < names + n; name += strlen(name) + 1) {
    int is_list = strcmp(name, LIST) == 0;
    if (!is_list && strncmp(name, "user.", 5) != 0) continue;
    if (is_list) *what = "its access list can not be kept";
    if (copy_one(from, to, name, value) != 0) return -1;
    *what = "its attributes can not be kept";
  }
  return 0;
}

int tde_access_copy(const char *from, int from_fd, int to, const char **what) {
  const source s = {from, from_fd};
  char *room = sqlite3_malloc64(XATTR_LIST_MAX + XATTR_SIZE_MAX);
  int rc = -1, err;

  *what = "the access list of its folder can not be kept off";
  errno = ENOMEM;
  if (room && tde_access_bare(to) == 0) {
    rc = copy_all(&s, to, room, room + XATTR_LIST_MAX, what);
  }
  err = errno;
  sqlite3_free(room);
  errno = err;
  return rc;
}
