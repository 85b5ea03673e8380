/*
** scratch.c: a program's folder; see scratch.h.
*/
#include "scratch.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../vfs/role.h"

int scratch_make(const char *name, char *root, size_t n) {
  const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR");
  char instance[400];

  (void)sqlite3_test_control(SQLITE_TESTCTRL_PENDING_BYTE, (unsigned)TDE_HOLE_START);
  (void)snprintf(root, n, "%s/tde-%s-XXXXXX", parent ? parent : "/tmp", name);
  if (!mkdtemp(root)) return 1;
  (void)snprintf(instance, sizeof(instance), "%s/instance", root);
  return mkdir(instance, 0700) || setenv("TDE_INSTANCE", instance, 1);
}

void scratch_remove(const char *root) {
  char *const argv[] = {"rm", "-rf", (char *)root, NULL};
  pid_t pid = fork();

  if (pid == 0) {
    (void)execv("/bin/rm", argv);
    _exit(1);
  }
  if (pid > 0) (void)waitpid(pid, NULL, 0);
}
