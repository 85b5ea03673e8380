/*
** files.h: reading and creating the small private files of an instance.
*/
#ifndef TDE_FILES_H
#define TDE_FILES_H

#include <dirent.h>
#include <stddef.h>
#include <sys/stat.h>

#include "../ext/base/status.h"

/* What tells one state of a file from another. The change time is part of it:
** nobody can set that back. */
typedef struct tde_file_mark {
  dev_t dev;
  ino_t ino;
  off_t size;
  struct timespec mtime, ctime;
} tde_file_mark;

void tde_file_mark_of(const struct stat *sb, tde_file_mark *out);
int tde_file_mark_equal(const tde_file_mark *a, const tde_file_mark *b);

/* How a file may be shared. */
typedef enum tde_file_privacy {
  TDE_FILE_SECRET,   /* no access for group and others; no symbolic link */
  TDE_FILE_GIVEN,    /* a secret that a platform may have put there (Kubernetes, Docker): links are
                     ** followed, and where the mode is not ours to change (a file of root's, for
                     ** who is not root; a mount that is read-only) others may read */
  TDE_FILE_TRUSTED   /* group and others may not write */
} tde_file_privacy;

/* Checks that sb is a regular file of the effective user (or, for a trusted
** file, of root; the superuser reads anybody's) with these permissions.
** TDE_MISCONFIGURED names path and remedy. */
tde_class tde_file_check(const struct stat *sb, tde_file_privacy privacy, const char *path,
                         tde_status *st);
/* The same for a directory: group and others may not write. */
tde_class tde_dir_check(const char *path, tde_status *st);

/* Reads a whole file of at most max bytes (max < TDE_SECRET_MAX) after tde_file_check.
** *out is secret memory, NUL-terminated, the caller's (tde_secret_free). mark
** may be NULL. TDE_MISSING: no such file; TDE_DENIED: no permission;
** TDE_MISCONFIGURED: empty, too large, or as above; TDE_IO; TDE_NOMEM. */
tde_class tde_file_read(const char *path, tde_file_privacy privacy, size_t max, char **out,
                        size_t *n, tde_file_mark *mark, tde_status *st);

/* Creates dir/name with mode 0600 and this content, durable when it returns
** TDE_OK, and never in part: a crash leaves no file of that name. An existing
** file stays as it is: TDE_BUSY. Other failures: TDE_DENIED (no permission, or
** a read-only file system), TDE_IO. */
tde_class tde_file_create(const char *dir, const char *name, const char *text, size_t n,
                          tde_status *st);

/* Replaces dir/name, or creates it, in one step: mode 0600, or that of the file that
** was there without others' right to write; durable when it returns
** TDE_OK; a crash leaves the old content or the new one. */
tde_class tde_file_replace(const char *dir, const char *name, const char *text, size_t n,
                           tde_status *st);

/* A file or folder that root made is for the owner of its parent: others could not use it.
** Other users' stay. 0, or -1 with errno. */
int tde_file_adopt(int fd, const char *path);

/* Of an empty file that was just made: its owner's rights do not depend on the host's umask. need:
** those without which it could not be opened again. */
void tde_file_unmask(int fd, mode_t need);

/* Makes a new entry durable in its folder; nothing is done where that may not be read. 0, or -1
** with errno. */
int tde_file_sync_parent(const char *path);

/* Closes fd, keeps errno, and returns rc. */
int tde_file_close(int fd, int rc);

/* The next name in a directory, less "." and "..": 1 and *name, good until the next call; 0: there
** is none; -1 with errno: the rest cannot be read, which readdir(3) alone does not tell. */
int tde_dir_next(DIR *d, const char **name);

/* Makes a directory with mode 0700, whatever the umask, durable in its parent, whose owner it
** gets if root makes it; an existing one is fine. */
tde_class tde_dir_make(const char *path, tde_status *st);

#endif
