/*
** files.c: reading and creating the small private files of an instance.
**
** What must hold: the checks look at the file that was opened, not at a name
** that may change meanwhile; a file appears under its name only when its whole
** content is on the disk; no file is written over, but by tde_file_replace, which a
** crash leaves with the old content or the new one. Root works in other users'
** folders, too: what it gives an owner or a mode is the file that it made, by its
** descriptor, for any name there may be another file's by then.
*/
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"

/* Maps errno; what is "read", "create", ... */
static tde_class os_fail(tde_status *st, int err, const char *what, const char *path) {
  char reason[128];
  const char *text = strerror_r(err, reason, sizeof reason);
  if (err == ENOENT || err == ENOTDIR) {
    return tde_fail(st, TDE_MISSING, NULL, "cannot %s %s: %s", what, path, text);
  }
  if (err == EACCES || err == EPERM || err == EROFS) {
    return tde_fail(st, TDE_DENIED, "give this process's user access to it",
                    "cannot %s %s: %s", what, path, text);
  }
  if (err == ELOOP) {
    return tde_fail(st, TDE_MISCONFIGURED, "put the file itself there",
                    "%s is a symbolic link; that is not allowed here", path);
  }
  if (err == ENOMEM) return tde_nomem(st);
  if (err == ESTALE) {
    return tde_fail(st, TDE_IO, "look who may write to its folder",
                    "cannot %s %s: it was replaced meanwhile", what, path);
  }
  return tde_fail(st, TDE_IO, tde_errno_remedy(err, "check the disk and the file system"),
                  "cannot %s %s: %s", what, path, text);
}

void tde_file_mark_of(const struct stat *sb, tde_file_mark *out) {
  memset(out, 0, sizeof *out);
  out->dev = sb->st_dev;
  out->ino = sb->st_ino;
  out->size = sb->st_size;
  out->mtime = sb->st_mtim;
  out->ctime = sb->st_ctim;
}

int tde_file_mark_equal(const tde_file_mark *a, const tde_file_mark *b) {
  return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
         a->mtime.tv_sec == b->mtime.tv_sec && a->mtime.tv_nsec == b->mtime.tv_nsec &&
         a->ctime.tv_sec == b->ctime.tv_sec && a->ctime.tv_nsec == b->ctime.tv_nsec;
}

tde_class tde_file_check(const struct stat *sb, tde_file_privacy privacy, const char *path,
                         tde_status *st) {
  uid_t me = geteuid();
  if (!S_ISREG(sb->st_mode)) {
    return tde_fail(st, TDE_MISCONFIGURED, "put a regular file there", "%s is not a regular file",
                    path);
  }
  if (me != 0 && sb->st_uid != me && !(privacy == TDE_FILE_TRUSTED && sb->st_uid == 0)) {
    return tde_fail(st, TDE_MISCONFIGURED, "change its owner (chown)",
                    "%s belongs to user %ld, this process runs as user %ld", path,
                    (long)sb->st_uid, (long)me);
  }
  if (privacy == TDE_FILE_SECRET && (sb->st_mode & 077) != 0) {
    return tde_fail(st, TDE_MISCONFIGURED, "chmod 600 it; if others may have read it, rotate the key",
                    "%s is open to group or others (mode %03o)", path,
                    (unsigned)(sb->st_mode & 0777));
  }
  if ((sb->st_mode & 022) != 0) {
    return tde_fail(st, TDE_MISCONFIGURED, "check its content, then chmod 600 it",
                    "%s may be written by group or others (mode %03o)", path,
                    (unsigned)(sb->st_mode & 0777));
  }
  return TDE_OK;
}

tde_class tde_dir_check(const char *path, tde_status *st) {
  struct stat sb;
  uid_t me = geteuid();
  if (stat(path, &sb) != 0) return os_fail(st, errno, "open", path);
  if (!S_ISDIR(sb.st_mode)) {
    return tde_fail(st, TDE_MISCONFIGURED, "name a directory", "%s is not a directory", path);
  }
  if (me != 0 && sb.st_uid != me && sb.st_uid != 0) {
    return tde_fail(st, TDE_MISCONFIGURED, "change its owner (chown)",
                    "the directory %s belongs to user %ld, this process runs as user %ld", path,
                    (long)sb.st_uid, (long)me);
  }
  if ((sb.st_mode & 022) != 0) {
    return tde_fail(st, TDE_MISCONFIGURED, "check its content, then chmod 700 it",
                    "the directory %s may be written by group or others (mode %03o)", path,
                    (unsigned)(sb.st_mode & 0777));
  }
  return TDE_OK;
}

/* Reads fd to its end into a secret buffer of size + 1. A file that grows
** meanwhile is refused: what was read might be no whole version of it. */
static tde_class read_all(int fd, const char *path, size_t size, char **out, tde_status *st) {
  size_t got = 0;
  char *buf = tde_secret_alloc(size + 1);
  if (buf == NULL) return tde_nomem(st);
  while (got <= size) {
    ssize_t k = read(fd, buf + got, size + 1 - got);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) {
      int err = errno;
      tde_secret_free(buf);
      return os_fail(st, err, "read", path);
    }
    if (k == 0) break;
    got += (size_t)k;
  }
  if (got != size) {
    tde_secret_free(buf);
    return tde_fail(st, TDE_IO, "try again", "%s changed while it was read", path);
  }
  *out = buf;
  return TDE_OK;
}

/* How strictly this file is looked at: TDE_FILE_GIVEN is one or the other. */
static tde_file_privacy strictness(int fd, const struct stat *sb, tde_file_privacy privacy) {
  struct statvfs mount;
  if (privacy != TDE_FILE_GIVEN) return privacy;
  if (sb->st_uid == 0 && geteuid() != 0) return TDE_FILE_TRUSTED;
  return fstatvfs(fd, &mount) == 0 && (mount.f_flag & ST_RDONLY) != 0 ? TDE_FILE_TRUSTED
                                                                      : TDE_FILE_SECRET;
}

tde_class tde_file_read(const char *path, tde_file_privacy privacy, size_t max, char **out,
                        size_t *n, tde_file_mark *mark, tde_status *st) {
  struct stat sb;
  int nofollow = privacy == TDE_FILE_SECRET ? O_NOFOLLOW : 0;
  *out = NULL;
  /* O_NONBLOCK: a FIFO of that name must not hang the host. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | nofollow);
  if (fd < 0) return os_fail(st, errno, "open", path);
  tde_class rc = TDE_OK;
  if (fstat(fd, &sb) != 0) rc = os_fail(st, errno, "look at", path);
  if (rc == TDE_OK) rc = tde_file_check(&sb, strictness(fd, &sb, privacy), path, st);
  if (rc == TDE_OK && (sb.st_size <= 0 || (size_t)sb.st_size > max)) {
    rc = tde_fail(st, TDE_MISCONFIGURED, "restore it from a backup",
                  "%s is %lld bytes long; 1 to %zu are expected", path, (long long)sb.st_size, max);
  }
  if (rc == TDE_OK) rc = read_all(fd, path, (size_t)sb.st_size, out, st);
  close(fd);
  if (rc == TDE_OK) {
    *n = (size_t)sb.st_size;
    if (mark != NULL) tde_file_mark_of(&sb, mark);
  }
  return rc;
}

static int write_all(int fd, const char *text, size_t n) {
  while (n > 0) {
    ssize_t k = write(fd, text, n);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return -1;
    text += k;
    n -= (size_t)k;
  }
  /* The mode does not depend on the host's umask. */
  return fchmod(fd, 0600) == 0 && fsync(fd) == 0 ? 0 : -1;
}

/* Gives the finished file its name without replacing another, in one step: a second name
** that a crash leaves would keep a key that is deleted under the first one. */
static int take_name(int dirfd, const char *temp, const char *name) {
  if (renameat2(dirfd, temp, dirfd, name, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  /* A file system that knows no such rename. */
  if (linkat(dirfd, temp, dirfd, name, 0) != 0) return -1;
  unlinkat(dirfd, temp, 0);
  return 0;
}

static int take_place(int dirfd, const char *temp, const char *name) {
  return renameat(dirfd, temp, dirfd, name);
}

/* Others may read what they could read in the file that this one replaces. */
static int keep_mode(int dirfd, int fd, const char *name) {
  struct stat sb;
  if (fstatat(dirfd, name, &sb, 0) != 0) return 0;
  return fchmod(fd, (sb.st_mode & 0755) | 0600);
}

/* Is that name this file's? ESTALE: it is another one's. */
static int is_named(int dirfd, int fd, const char *name) {
  struct stat sb, is;
  if (fstat(fd, &is) != 0 || fstatat(dirfd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0) return -1;
  if (sb.st_dev == is.st_dev && sb.st_ino == is.st_ino) return 0;
  errno = ESTALE;
  return -1;
}

/* What root makes in another's directory is that one's: the owner of the file that it
** replaces, otherwise of the directory. */
static int give_away(int dirfd, int fd, const char *name) {
  struct stat sb;
  if (geteuid() != 0) return 0;
  if (fstatat(dirfd, name, &sb, 0) != 0 && fstat(dirfd, &sb) != 0) return -1;
  return fchown(fd, sb.st_uid, sb.st_gid);
}

/* Makes the new entry durable. Where that fails a new file is taken back: what is told as
** failed has not happened. What was replaced is gone, and the error says so. */
static tde_class sync_name(int dirfd, const char *name, const char *path, int replaced,
                           tde_status *st) {
  if (fsync(dirfd) == 0) return TDE_OK;
  int err = errno;
  /* Some file systems sync no folders, only all that is theirs. */
  if ((err == EINVAL || err == ENOTSUP) && syncfs(dirfd) == 0) return TDE_OK;
  if (!replaced && unlinkat(dirfd, name, 0) == 0) return os_fail(st, err, "sync the folder of", path);
  char reason[128];
  return tde_fail(st, TDE_IO, "check the disk; the change holds unless an outage undoes it",
                  "%s was written, but its folder cannot be synced: %s", path,
                  strerror_r(err, reason, sizeof reason));
}

static tde_class put_file(const char *dir, const char *name, const char *text, size_t n,
                          int (*take)(int, const char *, const char *), tde_status *st) {
  uint8_t salt[8];
  char temp[32], hex[17], path[TDE_PATH_MAX + 128];
  tde_class rc = tde_random(salt, sizeof salt, st);
  if (rc != TDE_OK) return rc;
  tde_hex(salt, sizeof salt, hex);
  snprintf(temp, sizeof temp, ".new-%s", hex);
  snprintf(path, sizeof path, "%s/%s", dir, name);
  int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dirfd < 0) return os_fail(st, errno, "open", dir);
  int fd = openat(dirfd, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) {
    rc = os_fail(st, errno, "create", path);
    close(dirfd);
    return rc;
  }
  int bad = give_away(dirfd, fd, name) != 0 || write_all(fd, text, n) != 0 ||
            (take == take_place && keep_mode(dirfd, fd, name) != 0) ||
            is_named(dirfd, fd, temp) != 0 || take(dirfd, temp, name) != 0,
      err = errno;
  if (bad) unlinkat(dirfd, temp, 0);
  else if (is_named(dirfd, fd, name) != 0) bad = 1, err = errno;
  close(fd); /* it is synced */
  if (!bad) rc = sync_name(dirfd, name, path, take == take_place, st);
  close(dirfd);
  if (!bad) return rc;
  if (err == EEXIST) return tde_fail(st, TDE_BUSY, NULL, "%s is there already", path);
  return os_fail(st, err, "create", path);
}

tde_class tde_file_create(const char *dir, const char *name, const char *text, size_t n,
                          tde_status *st) {
  return put_file(dir, name, text, n, take_name, st);
}

tde_class tde_file_replace(const char *dir, const char *name, const char *text, size_t n,
                           tde_status *st) {
  char path[TDE_PATH_MAX + 128];
  struct stat sb;
  snprintf(path, sizeof path, "%s/%s", dir, name);
  if (lstat(path, &sb) == 0 && S_ISLNK(sb.st_mode)) {
    return tde_fail(st, TDE_MISCONFIGURED, "change the instance whose file it points to, or copy that",
                    "%s is a symbolic link, which a change would replace", path);
  }
  return put_file(dir, name, text, n, take_place, st);
}

/* Opens the folder that path is in, to work in: no right to list it is needed. *name: path's
** last part, in room. */
static int open_parent(const char *path, char room[TDE_PATH_MAX + 128], const char **name) {
  snprintf(room, TDE_PATH_MAX + 128, "%s", path);
  size_t n = strlen(room);
  while (n > 1 && room[n - 1] == '/') room[--n] = 0;
  char *slash = strrchr(room, '/');
  *name = slash == NULL ? room : slash[1] != 0 ? slash + 1 : ".";
  const char *parent = slash == NULL ? "." : slash == room ? "/" : room;
  if (slash != NULL) *slash = 0;
  return open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int tde_file_close(int fd, int rc) {
  int err = errno;
  close(fd);
  errno = err;
  return rc;
}

/* Makes a new entry durable in its folder. */
static int sync_parent(int dirfd) {
  int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  /* A folder that may be searched but not read cannot be synced by us. */
  if (fd < 0) return errno == EACCES ? 0 : -1;
  return tde_file_close(fd, fsync(fd));
}

static int adopt_in(int dirfd, int fd, const char *name) {
  struct stat sb, is;
  if (geteuid() != 0 || fstat(fd, &is) != 0 || is.st_uid != 0) return 0;
  if (is_named(dirfd, fd, name) != 0 || fstat(dirfd, &sb) != 0) return -1;
  return sb.st_uid == 0 ? 0 : fchown(fd, sb.st_uid, sb.st_gid);
}

int tde_file_adopt(int fd, const char *path) {
  char room[TDE_PATH_MAX + 128];
  const char *name;
  if (geteuid() != 0) return 0;
  int dirfd = open_parent(path, room, &name);
  return dirfd < 0 ? -1 : tde_file_close(dirfd, adopt_in(dirfd, fd, name));
}

/* Is this folder about as new as the last entry of its parent? What the parent's owner gave its
** name instead may be an old one of root's, with what others must not see. */
static int is_new(int dirfd, int fd) {
  struct stat parent, sb;
  if (fstat(dirfd, &parent) != 0 || fstat(fd, &sb) != 0) return 0;
  return sb.st_mtim.tv_sec + 5 >= parent.st_mtim.tv_sec;
}

/* What was just made is the parent's owner's, if root made it. */
static int adopt_folder(int dirfd, const char *name) {
  if (geteuid() != 0) return 0;
  int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -1;
  if (is_new(dirfd, fd)) return tde_file_close(fd, adopt_in(dirfd, fd, name));
  errno = ESTALE;
  return tde_file_close(fd, -1);
}

/* The owner's rights do not depend on the host's umask either. Where the file system has modes
** of its own, they are there already. */
static int unmask_folder(int dirfd, const char *name) {
  struct stat sb;
  if (fstatat(dirfd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0) return -1;
  if (!S_ISDIR(sb.st_mode) || (sb.st_mode & 0700) == 0700) return 0;
  return fchmodat(dirfd, name, 0700, AT_SYMLINK_NOFOLLOW);
}

static tde_class make_in(int dirfd, const char *name, const char *path, tde_status *st) {
  if (mkdirat(dirfd, name, 0700) == 0) {
    if (unmask_folder(dirfd, name) != 0) return os_fail(st, errno, "set the mode of", path);
    if (adopt_folder(dirfd, name) != 0) return os_fail(st, errno, "give to its parent's owner", path);
  } else if (errno != EEXIST) {
    return os_fail(st, errno, "make the directory", path);
  }
  /* Whoever made one that is there may not have come to this. Some file systems can not. */
  if (sync_parent(dirfd) != 0 && errno != EINVAL && errno != EROFS) {
    return os_fail(st, errno, "sync the parent of", path);
  }
  return TDE_OK;
}

tde_class tde_dir_make(const char *path, tde_status *st) {
  char room[TDE_PATH_MAX + 128];
  const char *name;
  int dirfd = open_parent(path, room, &name);
  if (dirfd < 0) return os_fail(st, errno, "make the directory", path);
  tde_class rc = make_in(dirfd, name, path, st);
  close(dirfd);
  return rc;
}

void tde_file_unmask(int fd, mode_t need) {
  struct stat sb;
  if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode) || sb.st_size != 0 || sb.st_nlink != 1) return;
  /* Where it cannot be done the next one to open it says so. */
  if ((sb.st_mode & need) != need && sb.st_uid == geteuid()) (void)fchmod(fd, 0600);
}

int tde_file_sync_parent(const char *path) {
  char room[TDE_PATH_MAX + 128];
  const char *name;
  int dirfd = open_parent(path, room, &name);
  return dirfd < 0 ? -1 : tde_file_close(dirfd, sync_parent(dirfd));
}

int tde_dir_next(DIR *d, const char **name) {
  struct dirent *e;
  do {
    errno = 0;
    e = readdir(d);
  } while (e != NULL && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0));
  if (e == NULL) return errno != 0 ? -1 : 0;
  *name = e->d_name;
  return 1;
}
