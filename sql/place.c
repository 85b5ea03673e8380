/*
** place.c: a new file that gets its name only when it is finished; see place.h.
*/
#include "place.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../keyprovider/files.h"
#include "../vfs/tdevfs.h"
#include "subject.h"

SQLITE_EXTENSION_INIT3

static int nomem(tde_status *st) {
  tde_nomem(st);
  return SQLITE_NOMEM;
}

/* The last part of a path: the name in the place's folder. */
static const char *name_in(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static int failed(const tde_place *p, const char *what, tde_status *st) {
  int err = errno;

  tde_fail(
      st, TDE_IO,
      tde_errno_remedy(err, err == EACCES ? "check the folder's permissions" : "check the disk"),
      "%s: %s: %s", p->target, what, strerror(err));
  return err == ENOSPC || err == EDQUOT ? SQLITE_FULL : SQLITE_IOERR;
}

/* The directory of the target, "." when it names none; the caller's. */
static char *folder_of(const tde_place *p) {
  const char *slash = strrchr(p->target, '/');

  if (!slash) return sqlite3_mprintf(".");
  return slash == p->target ? sqlite3_mprintf("/")
                            : sqlite3_mprintf("%.*s", (int)(slash - p->target), p->target);
}

/* What SQLite, or the shim, would take for a part of the new file. An empty one counts as
** none, there as here (os_unix.c, unixAccess). */
static const char *const beside[] = {"-journal", "-wal", "-shm", "-tdelog"};
#define BESIDE (sizeof(beside) / sizeof(beside[0]))

static int is_free(const tde_place *p, const char *path) {
  struct stat sb;
  return fstatat(p->folder, name_in(path), &sb, AT_SYMLINK_NOFOLLOW) != 0 ||
         (S_ISREG(sb.st_mode) && sb.st_size == 0);
}

/* Nothing lies beside the target that an earlier file of its name left. */
static int check_beside(const tde_place *p, tde_status *st) {
  int rc = SQLITE_OK;

  for (size_t i = 0; i < BESIDE && rc == SQLITE_OK; i++) {
    char *name = sqlite3_mprintf("%s%s", p->target, beside[i]);
    if (!name) return nomem(st);
    if (!is_free(p, name)) {
      tde_fail(st, TDE_MISUSE,
               "choose another name, or move that file away: with it, what an earlier "
               "database of that name last wrote may be lost",
               "%s exists already, and would be taken for a part of the new file", name);
      rc = SQLITE_CANTOPEN;
    }
    sqlite3_free(name);
  }
  return rc;
}

/* The folder is held: whoever owns one above it could put another in its place by a rename. To
** list it is not needed. */
static int open_folder(tde_place *p, tde_status *st) {
  char *folder = folder_of(p);
  int err;

  if (!folder) return nomem(st);
  p->folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
  err = errno;
  sqlite3_free(folder);
  if (p->folder >= 0) return SQLITE_OK;
  errno = err;
  if (err == EMFILE || err == ENFILE || err == ENOMEM) {
    return failed(p, "its folder can not be opened", st);
  }
  tde_fail(st, TDE_MISUSE, "create the folder first", "the target %s: its folder does not exist",
           p->target);
  return SQLITE_CANTOPEN;
}

static int check(tde_place *p, int exists_ok, tde_status *st) {
  struct stat sb;
  int rc;

  if (tde_side_stem(p->target)) {
    tde_fail(st, TDE_MISUSE, "choose a name without that ending",
             "the target %s: files of such names belong beside databases", p->target);
    return SQLITE_CANTOPEN;
  }
  rc = open_folder(p, st);
  if (rc || exists_ok) return rc;
  if (tde_place_stat(p, p->target, &sb) == 0) {
    tde_fail(st, TDE_MISUSE, "choose another name or remove that file",
             "the target %s exists already", p->target);
    return SQLITE_CANTOPEN;
  }
  return check_beside(p, st);
}

#define MARK "-tde-"
#define MARK_BYTES 8 /* as many random ones, in hex */

int tde_place_is_temporary(const char *name) {
  size_t n = strlen(name), tail = sizeof(MARK) - 1 + 2 * (size_t)MARK_BYTES;

  return n > tail && strncmp(name + n - tail, MARK, sizeof(MARK) - 1) == 0 &&
         strspn(name + n - 2 * (size_t)MARK_BYTES, "0123456789abcdef") == 2 * (size_t)MARK_BYTES;
}

int tde_place_is_beside(const char *path) {
  size_t stem = tde_side_stem(path);
  char *name = stem ? sqlite3_mprintf("%.*s", (int)stem, path) : NULL;
  struct stat sb;
  int is = name && stat(name, &sb) == 0 && S_ISREG(sb.st_mode);

  if (stem && !name) return -1;
  sqlite3_free(name);
  return is;
}

/* *full is the caller's, as long as it need be. */
static int resolve(const char *path, char **full, tde_status *st) {
  sqlite3_vfs *vfs = sqlite3_vfs_find(tde_vfs_base_name());
  char *room = vfs ? sqlite3_malloc64((sqlite3_uint64)vfs->mxPathname + 1) : NULL;
  int rc = SQLITE_OK;

  *full = NULL;
  if (!vfs) return SQLITE_ERROR;
  if (!room) return nomem(st);
  if ((vfs->xFullPathname(vfs, path, vfs->mxPathname + 1, room) & 0xff) != SQLITE_OK) {
    tde_fail(st, TDE_MISUSE, "check the path; it may be too long",
             "the path %.200s can not be resolved", path);
    rc = SQLITE_CANTOPEN;
  } else {
    *full = sqlite3_mprintf("%s", room);
    if (!*full) rc = nomem(st);
  }
  sqlite3_free(room);
  return rc;
}

char *tde_place_path(const char *path) {
  char *full = NULL;

  (void)resolve(path, &full, NULL);
  return full ? full : sqlite3_mprintf("%s", path);
}

int tde_place_begin(tde_place *p, const char *path, int exists_ok, tde_status *st) {
  uint8_t r[MARK_BYTES];
  char hex[2 * sizeof(r) + 1];
  tde_class c;
  int rc;

  memset(p, 0, sizeof(*p));
  p->folder = p->fd = -1;
  if (tde_is_uri(path, st)) return SQLITE_MISUSE;
  c = tde_random(r, sizeof(r), st);
  if (c) return tde_class_rc(c);
  tde_hex(r, sizeof(r), hex);
  rc = resolve(path, &p->target, st);
  if (rc) return rc;
  p->temp = sqlite3_mprintf("%s" MARK "%s", p->target, hex);
  if (!p->temp) return nomem(st);
  return check(p, exists_ok, st);
}

int tde_place_fits(const tde_place *p, int opened, tde_status *st) {
  sqlite3_vfs *vfs = sqlite3_vfs_find(tde_vfs_base_name());
  const char *slash = strrchr(p->temp, '/');
  int added = (int)(strlen(p->temp) - strlen(p->target)), more = opened ? added : 0, most;

  if (!vfs) return SQLITE_ERROR;
  most = vfs->mxPathname - (int)sizeof("-journal") + 1; /* SQLite, of what it opens */
  if ((int)strlen(p->target) + more <= most && strlen(slash ? slash + 1 : p->temp) <= NAME_MAX) {
    return SQLITE_OK;
  }
  tde_fail(st, TDE_MISUSE, "choose a shorter path",
           "too long for %sthe temporary file beside it, for which a path may have %d bytes, and its "
           "last part %d: %s",
           opened ? "" : "SQLite, or for ", most - more, NAME_MAX - added, p->target);
  return SQLITE_CANTOPEN;
}

/* The whole file system, by a file that is nobody's: closing one of the new file would drop
** the locks that another connection of this process may have on it by now. */
static int sync_around(int folder, const char *free_name) {
  int fd = openat(folder, free_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

  if (fd < 0) return -1;
  (void)unlinkat(folder, free_name, 0);
  return tde_file_close(fd, syncfs(fd));
}

/* A folder that may be written, but not listed, can not be opened; on some file systems
** none can be synced. errno tells. */
static int sync_folder(int folder, const char *free_name) {
  int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (fd < 0) return errno == EACCES ? sync_around(folder, free_name) : -1;
  if (fsync(fd) == 0) return tde_file_close(fd, 0);
  return tde_file_close(fd, errno == EINVAL || errno == ENOTSUP ? syncfs(fd) : -1);
}

int tde_place_sync(tde_place *p, tde_status *st) {
  int rc = SQLITE_OK;

  if (sync_folder(p->folder, name_in(p->temp)) != 0)
    rc = failed(p, "its folder could not be synced", st);
  sqlite3_free(p->temp); /* nothing to clean up any more */
  p->temp = NULL;
  return rc;
}

/* ---- the temporary file ---- */

int tde_place_make(tde_place *p) {
  struct stat sb;

  p->fd = openat(p->folder, name_in(p->temp),
                 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (p->fd < 0 || fstat(p->fd, &sb) != 0) return -1;
  p->dev = sb.st_dev;
  p->ino = sb.st_ino;
  p->made = 1;
  return 0;
}

int tde_place_stat(const tde_place *p, const char *path, struct stat *sb) {
  return fstatat(p->folder, name_in(path), sb, AT_SYMLINK_NOFOLLOW);
}

int tde_place_has(const tde_place *p, const char *path, tde_status *st) {
  struct stat sb;

  if (!p->made) return SQLITE_OK;
  if (tde_place_stat(p, path, &sb) == 0 && sb.st_dev == p->dev && sb.st_ino == p->ino) {
    return SQLITE_OK;
  }
  return tde_place_replaced(p, st);
}

int tde_place_replaced(const tde_place *p, tde_status *st) {
  tde_fail(st, TDE_IO, "look who may write to its folder, and try again where only you may",
           "%s: its temporary file was replaced while it was made", p->target);
  return SQLITE_IOERR;
}

void tde_place_let_go(tde_place *p) {
  if (p->fd >= 0) (void)close(p->fd);
  p->fd = -1;
}

/* The temporary file gets the target's name, and replaces nothing: in one step, for a second
** name of it could not be removed where names stay (chattr +a). Some file systems know no such
** rename, and some of these no hard links. errno tells. */
static int take_name(const tde_place *p) {
  const char *temp = name_in(p->temp), *target = name_in(p->target);
  int err;

  if (renameat2(p->folder, temp, p->folder, target, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  if (linkat(p->folder, temp, p->folder, target, 0) != 0) return -1;
  if (unlinkat(p->folder, temp, 0) == 0) return 0;
  err = errno;
  (void)unlinkat(p->folder, target, 0);
  errno = err;
  return -1;
}

int tde_place_replace(tde_place *p) {
  return renameat(p->folder, name_in(p->temp), p->folder, name_in(p->target));
}

int tde_place_remove(const tde_place *p, const char *path) {
  return unlinkat(p->folder, name_in(path), 0);
}

static int nameless(const tde_place *p, tde_status *st) {
  int err = errno, refused = err == EPERM || err == EOPNOTSUPP || err == ENOSYS || err == EMLINK;

  if (!refused) return failed(p, "the copy can not take its name", st);
  tde_fail(st, TDE_IO,
           "name a file in another folder, or on another file system, and move it here when it is "
           "finished",
           "%s: the copy can not take its name without replacing what may be there: %s", p->target,
           strerror(err));
  return SQLITE_IOERR;
}

int tde_place_publish(tde_place *p, tde_status *st) {
  int rc = check_beside(p, st);

  if (rc == SQLITE_OK) rc = tde_place_has(p, p->temp, st);
  if (rc) return rc;
  tde_place_let_go(p);
  if (take_name(p) != 0) {
    if (errno != EEXIST) return nameless(p, st);
    tde_fail(st, TDE_MISUSE, "choose another name", "the target %s exists already", p->target);
    return SQLITE_CANTOPEN;
  }
  rc = tde_place_sync(p, st);
  if (rc) (void)tde_place_remove(p, p->target); /* which an outage might take back after it was told of */
  return rc ? rc : tde_place_has(p, p->target, st);
}

/* Where no name can be removed the content is. What took the file's place is not ours to empty. */
static void empty(const tde_place *p) {
  const int flags = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  int fd = p->fd >= 0 ? p->fd : openat(p->folder, name_in(p->temp), flags), ours;
  struct stat sb;

  if (fd < 0) return;
  ours = fstat(fd, &sb) == 0 && S_ISREG(sb.st_mode) &&
         (p->made ? sb.st_dev == p->dev && sb.st_ino == p->ino : sb.st_nlink == 1);
  if (ours) (void)!ftruncate(fd, 0);
  if (fd != p->fd) (void)close(fd);
}

void tde_place_end(tde_place *p) {
  if (p->temp && p->folder >= 0) {
    if (tde_place_remove(p, p->temp) != 0 && errno != ENOENT) empty(p);
    for (size_t i = 0; i < BESIDE; i++) {
      char *name = sqlite3_mprintf("%s%s", p->temp, beside[i]);
      if (name) (void)tde_place_remove(p, name);
      sqlite3_free(name);
    }
  }
  if (p->target) {
    tde_place_let_go(p);
    if (p->folder >= 0) (void)close(p->folder);
  }
  sqlite3_free(p->temp);
  sqlite3_free(p->target);
  memset(p, 0, sizeof(*p));
}
