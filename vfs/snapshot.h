/*
** snapshot.h: the sealed units of one moment of a database in use.
**
** Records are handed over as they stand in the file where that is possible: equal
** records of two snapshots are equal content, and a copy of a database that changed
** little differs little. What only the WAL has is sealed anew for its place in the
** database file.
**
** The caller holds a read transaction of the connection during tde_snapshot_take.
** In WAL mode writers go on meanwhile. In the rollback modes they wait for its end,
** which is why tde_snapshot_ahead exists: it looks at everything before, without any
** lock, so that what remains for the transaction is to compare.
*/
#ifndef TDE_SNAPSHOT_H
#define TDE_SNAPSHOT_H

#include "shim.h"

typedef struct tde_snapshot_sink {
  void *ctx;
  /* Does the target hold exactly this record for unit i? */
  int (*has)(void *ctx, uint64_t i, const uint8_t *record, uint32_t n);
  /* A record of the snapshot that it does not hold; authentic. */
  int (*put)(void *ctx, uint64_t i, const uint8_t *record, uint32_t n);
  /* Units done of how many; other than 0 stops. May be NULL. */
  int (*progress)(void *ctx, uint64_t done, uint64_t all);
} tde_snapshot_sink;

/* A consistent copy of what the wal-index's header says (its two copies agree); zeros
** without a wal-index. SQLITE_BUSY: it changes all the time. */
typedef struct tde_index_view {
  uint32_t frames;    /* committed */
  uint32_t restored;  /* of these: in the database file already */
  uint32_t pages;     /* of the database; 0: no commit was seen since a recovery */
  uint32_t page_size; /* 0 likewise */
} tde_index_view;
int tde_snapshot_index(tde_file *f, tde_index_view *out);

/* How long the database in the file is, in bytes. A secondary ends where its page 1 says: what an
** update that was cut short has put behind that (replica.c) is nobody's, and may be torn. */
int tde_snapshot_size(tde_file *f, uint64_t *size);

/* Hands over what opens, changing or not. Does nothing in WAL mode. SQLite codes. */
int tde_snapshot_ahead(tde_file *f, const tde_snapshot_sink *sink);
/* Hands over every unit of the snapshot. *size: its logical size in bytes. Unit 0 is
** that of a database in a rollback mode, with this change counter (0: the
** snapshot's own), whatever the journal mode is: *wal tells. settled: a checkpoint just
** brought all of the log into the file. A unit that does not open is SQLITE_IOERR_DATA,
** with f's status saying which. SQLITE_LOCKED: a connection with the same cache wrote.
** SQLITE_BUSY_SNAPSHOT: pages are in a log whose index this connection does not share
** (locking_mode=EXCLUSIVE, or no right to the wal-index). */
int tde_snapshot_take(tde_file *f, const tde_snapshot_sink *sink, uint32_t counter, int settled,
                      uint64_t *size, int *wal);

#endif
