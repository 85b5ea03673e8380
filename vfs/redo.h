/*
** redo.h: a log of sealed records that are about to be written to their places.
**
** Two operations write many records in place outside of SQLite's own journals: a
** regeneration of the DEK (reseal.c), and the update of a secondary (replica.c).
** Both put the records into this log first, sync it, write them to their places,
** sync the database, and empty the log. Should the power fail in between, every
** record is whole in one of the two.
**
** The log is the file DATABASE-tdelog. FORMAT.md has its bytes. It counts only
** when it is complete: its count, a chain of SHA-256 over its entries, and an HMAC
** under the database's key stand in its head, which is written last.
**
** Whoever uses a log holds the lock that keeps other writers of the database out.
*/
#ifndef TDE_REDO_H
#define TDE_REDO_H

#include "shim.h"

typedef struct tde_redo {
  tde_file *f;
  const char *name; /* from tde_name_of */
  sqlite3_file *lower;
  uint64_t count;
  uint64_t units;  /* what the database has when all is applied; 0: as many as before */
  uint32_t record; /* bytes of a record */
  uint32_t mark;   /* of the state that it is for; 0: any */
  uint8_t chain[TDE_HASH_BYTES];
  uint8_t *buf; /* entries not yet written */
  uint32_t nbuf;
  uint64_t at; /* where buf goes */
} tde_redo;

/* Starts a log for f, over what may stand there. SQLite codes throughout. */
int tde_redo_begin(tde_redo *r, tde_file *f);
/* Binds it, just begun, to what the database is now: an update of another state, or of
** another file with the same DEK, would be half of one. Its records must have unit 0. */
int tde_redo_bind(tde_redo *r);
int tde_redo_add(tde_redo *r, uint64_t index, const uint8_t *record);
/* Before it counts: writes those of its records that lie behind the database's end, units before
** first, and syncs the database, so that no room is wanting later. Nobody reads there yet. */
int tde_redo_grow(tde_redo *r, uint64_t first);
/* From here on the log counts. */
int tde_redo_commit(tde_redo *r);
/* Writes its records to their places and syncs the database. */
int tde_redo_apply(tde_redo *r);
/* Empties it, durably. */
int tde_redo_void(tde_redo *r);
/* Of a log just begun: with it every change of a name in its directory is durable. */
int tde_redo_sync_name(tde_redo *r);
/* Closes; the file goes if it is void. */
void tde_redo_close(tde_redo *r);

/* A log that a crash left: each record whose place does not open is put back (all:
** every record), and the log goes. SQLITE_OK when there is none, or none that
** counts. The caller keeps other writers out. */
int tde_redo_settle(tde_file *f, int all);
/* SQLITE_OK: there is no log that counts. SQLITE_BUSY: there is one. Other codes: it is not
** known. */
int tde_redo_none(tde_file *f);
/* The record of unit index in a log that counts: SQLITE_OK, or SQLITE_NOTFOUND.
** For readers, who hold no lock: the record must still open at its place. */
int tde_redo_find(tde_file *f, uint64_t index, uint8_t *record, uint32_t n);
/* Removes a void log that was left: a file without a byte counts as none. */
void tde_redo_tidy(tde_file *f);
/* Is there such a file? One look at the directory. */
int tde_redo_exists(tde_file *f);

#endif
