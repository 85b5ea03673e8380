/*
** openers.c: who has a file open; see openers.h.
**
** No lock of SQLite's tells of a connection that has opened a file and read nothing yet, or
** is idle. Linux does: it grants a write lease only to the file's sole open descriptor. That
** is the one that SQLite has opened; to open one of our own would make two. A second one in
** this process is another connection. The lease is given back at once: whoever opens the
** file in between waits that long.
*/
#include "openers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

/* How many descriptors of this process, but one, are of the file; *fd: one of them. -1 with
** errno: that can not be told. */
static int descriptors_of(const struct stat *file, int but, int *fd) {
  DIR *all = opendir("/proc/self/fd");
  struct dirent *e;
  struct stat sb;
  int n = 0;

  if (!all) return -1;
  while ((e = readdir(all)) != NULL) {
    int i = (int)strtol(e->d_name, NULL, 10);
    if (e->d_name[0] == '.' || i == but || fstat(i, &sb) != 0) continue;
    if (sb.st_dev != file->st_dev || sb.st_ino != file->st_ino) continue;
    *fd = i;
    n++;
  }
  (void)closedir(all);
  return n;
}

int tde_descriptor_of(const struct stat *file, int but) {
  int fd = TDE_NO_DESCRIPTOR;

  return descriptors_of(file, but, &fd) < 0 ? TDE_UNTOLD : fd;
}

/* Is this descriptor not the only one of its file? */
static int is_shared(int fd) {
#ifdef F_SETLEASE
  int shared, was = fcntl(fd, F_GETSIG);

  /* Who opens the file meanwhile makes the kernel send a signal; SIGIO would end the process. */
  if (was < 0 || fcntl(fd, F_SETSIG, SIGURG) != 0) return 0;
  shared = fcntl(fd, F_SETLEASE, F_WRLCK) != 0 && errno == EAGAIN;
  if (!shared) (void)fcntl(fd, F_SETLEASE, F_UNLCK);
  (void)fcntl(fd, F_SETSIG, was);
  return shared;
#else
  (void)fd;
  return 0;
#endif
}

int tde_others_have_open(const struct stat *file) {
  int fd = -1, n = descriptors_of(file, -1, &fd);

  return n > 1 || (n == 1 && is_shared(fd));
}
