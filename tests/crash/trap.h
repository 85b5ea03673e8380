/*
** trap.h: a VFS below the shim, and the product's own file-system calls, that count the calls
** of one thread, so that race.c can act at any of them.
*/
#ifndef CRASH_TRAP_H
#define CRASH_TRAP_H

#define TRAP_VFS "trap"

/* Makes the first n characters of a move; 0: not now. */
typedef int (*trap_maker)(const char *move, int n);

/* Registers the VFS TRAP_VFS, on the VFS "unix". */
void trap_register(trap_maker make);

/* From now on this thread's calls count. At call number `at` the move is made, but what follows
** a point in it gap calls later. move is borrowed. */
void trap_arm(const char *move, long at, long gap);
/* No longer. 1: some of the move was made. */
int trap_disarm(void);

#endif
