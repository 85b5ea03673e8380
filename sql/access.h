/*
** access.h: the access list and the attributes of a file that another takes the place of.
**
** A list may give others less than the mode says that stands beside it: with the list lost, the
** mode's group bits, which were its mask, count for the file's group.
*/
#ifndef TDE_SQL_ACCESS_H
#define TDE_SQL_ACCESS_H

/* Gives the file `to` the list of the one at path `from` (from_fd: a descriptor of it, or -1;
** then no link is followed), or none where that has none, though its folder may
** have given it one, and the attributes that are users' own. 0, or -1, errno, and what it is
** that can not be kept. Set the mode afterwards, which the list changes. */
int tde_access_copy(const char *from, int from_fd, int to, const char **what);
/* Takes away the list that its folder gave it. 0, or -1 and errno. */
int tde_access_bare(int fd);

#endif
