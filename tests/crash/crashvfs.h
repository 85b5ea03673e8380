/*
** crashvfs.h: the VFS "crash", whose files lie on the disk of disk.h.
**
** It stands where the unix VFS stands otherwise, below the shim or below plain
** SQLite, and promises what that one promises: powersafe overwrite, no atomic
** writes, no safe append; the first sync of a journal, WAL or super-journal
** that it created syncs the directory, too. Locks and shared memory work
** between the connections of this process.
*/
#ifndef CRASH_VFS_H
#define CRASH_VFS_H

#include <stdint.h>

#define CRASH_VFS "crash"

/* Registers it as the default VFS. Returns an SQLite code. */
int crash_vfs_register(void);
/* Seeds xRandomness, and SQLite's own generator from it. */
/* An odd one has RESERVED refused as SQLite from 3.51 on does (vfs/reserve.c, reserve_aside). */
void crash_vfs_seed(uint64_t seed);
/* Files open now: 0 once every connection is closed. */
int crash_vfs_open_files(void);

#endif
