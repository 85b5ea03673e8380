/*
** openers.h: who has a file open.
*/
#ifndef TDE_SQL_OPENERS_H
#define TDE_SQL_OPENERS_H

#include <sys/stat.h>

/* A descriptor of this process of the file that this is, but not `but`: SQLite's, to look at the
** file through, never to close. TDE_NO_DESCRIPTOR: there is none; TDE_UNTOLD: that can not be
** asked, and errno says why. */
#define TDE_NO_DESCRIPTOR (-1)
#define TDE_UNTOLD (-2)
int tde_descriptor_of(const struct stat *file, int but);

/* Has anybody but one connection of this process, the caller's own, the file open, idle or
** not, with SQLite or without? True only where the kernel says so: where it can not be asked
** (another's file, a network file system, no /proc/self/fd, another system than Linux) the
** answer is 0. */
int tde_others_have_open(const struct stat *file);

#endif
