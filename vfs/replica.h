/*
** replica.h: copies of a database that keep its DEK, made and updated record by record.
*/
#ifndef TDE_REPLICA_H
#define TDE_REPLICA_H

#include "tdevfs.h"

/* What a copy needs of its caller. */
typedef struct tde_replica {
  const char *doc; /* the key document of the copy */
  size_t ndoc;
  void *ctx;
  /* Begin and end a read transaction of the connection whose file is copied. begin
  ** returns an SQLite code. */
  int (*begin)(void *ctx);
  void (*end)(void *ctx);
  /* Units done of how many; other than 0 interrupts. */
  int (*progress)(void *ctx, uint64_t done, uint64_t all);
  /* For tde_replica_sync, when the units are gathered and the copy is not touched yet:
  ** are the database's DEK epochs those that the key document was made for? An SQLite
  ** code; st tells. */
  int (*confirm)(void *ctx, tde_status *st);
  int settled; /* a checkpoint just brought all of the log into the file */
  /* Out. */
  uint64_t units, changed, size;
  int wal; /* the source is in WAL mode */
} tde_replica;

/* Writes a new file at path (which must not exist) with the units of f as they are
** at one moment, and syncs it. The journal mode that page 1 names is a rollback one.
** SQLite codes; st tells. On failure the file may be there: remove it. */
int tde_replica_write(tde_file *f, const char *path, tde_replica *r, tde_status *st);

/* The key document of an existing copy at path, a secondary of f, from the header that is in force
** there: the copy's own DEKs verify it. *doc is the caller's, from malloc. SQLite codes; st tells. */
int tde_replica_document(tde_file *f, const char *path, const char *instance, char **doc, size_t *n,
                         tde_status *st);

/* Brings an existing copy at path, a secondary of f, up to date: what changed goes
** through the copy's redo log, so that a crash leaves the state before or after. It
** must not be in use for longer than the busy handler of f waits: SQLITE_BUSY. Its key
** document is changed before its units are, where DEK epochs come or go (it must then name
** old and new ones), and after. Without room for all of it nothing changes: SQLITE_FULL.
** r->doc is not used. */
int tde_replica_sync(tde_file *f, const char *path, const char *instance, tde_mutation before,
                     tde_mutation after, tde_replica *r, tde_status *st);

#endif
