/*
** openers.h: who else has a file open.
*/
#ifndef TDE_SQL_OPENERS_H
#define TDE_SQL_OPENERS_H

/* Has anybody but one connection of this process, the caller's own, the file open, idle or
** not, with SQLite or without? True only where the kernel says so: where it can not be asked
** (another's file, a network file system, no /proc/self/fd, another system than Linux) the
** answer is 0. */
int tde_others_have_open(const char *path);

#endif
