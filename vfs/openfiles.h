/*
** openfiles.h: the main databases that are open through this VFS.
**
** SQLite opens a WAL or a journal, and deletes and looks for files, by name.
** This list finds the database that a name belongs to without looking behind
** the name: a shim above may have made it up.
*/
#ifndef TDE_OPENFILES_H
#define TDE_OPENFILES_H

#include "slots.h"

void tde_openfiles_add(tde_file *f);
/* f must be in the list. */
void tde_openfiles_remove(tde_file *f);

/* The database whose WAL or journal this is, or NULL. With several connections
** on one path it is the one whose own file name stands beside this one. */
tde_file *tde_openfiles_owner(const char *name);

/* The keys of the file at this path (NULL: of none) are lost: wipes what connections derived from
** them, except where a transaction or a call is under way; those connections do it themselves. */
void tde_openfiles_wipe(const tde_keys *keys, const char *path);

/* The instances of connections that hold a lock or have this file open: at most n, each
** once. Returns how many; each is the caller's (sqlite3_free). */
int tde_openfiles_instances(const char *path, char **instances, int n);

/* Has this process the database of this path open, on whatever connection? */
int tde_openfiles_has(const char *path);

/* Has this process the database of this path open for writing, through this instance? */
int tde_openfiles_writable(const char *path, const char *instance);

/* Reads the header's slots through a connection that has the database of this path open, with this
** VFS below, and is not at work. Who opens the file for that gives away a descriptor: while a
** connection has a lock, as in WAL mode always, SQLite can not close another one of the same file.
** SQLITE_NOTFOUND: no such connection, or it can not be read. */
int tde_openfiles_slots(const char *path, const sqlite3_vfs *vfs, tde_slots *both);

/* The VFS below that has this file: that of the database it belongs to, else
** the default one. */
sqlite3_vfs *tde_openfiles_vfs(const char *name);

#endif
