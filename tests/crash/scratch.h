/*
** scratch.h: a program's folder for its databases and keys, and its removal.
*/
#ifndef CRASH_SCRATCH_H
#define CRASH_SCRATCH_H

#include <stddef.h>

/* Makes a folder tde-NAME-* (in memory where there is /dev/shm) with an instance
** directory in it, which TDE_INSTANCE names from here on. root gets its path. 0, or 1
** with errno. SQLite has its lock bytes from here on where the extension was built for. */
int scratch_make(const char *name, char *root, size_t n);
void scratch_remove(const char *root);

#endif
