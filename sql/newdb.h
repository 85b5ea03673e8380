/*
** newdb.h: a new database with the content of another: DEK, UUID and header are its
** own. The source stays in use.
*/
#ifndef TDE_SQL_NEWDB_H
#define TDE_SQL_NEWDB_H

#include "change.h"
#include "place.h"
#include "progress.h"

typedef struct tde_newdb {
  sqlite3 *from;
  const char *schema;
  /* Of the new one; NULL: the defaults. */
  const char *instance, *protector, *identity, *federated_client_id;
  /* What its header says of its source: the event, the key document with the keys that
  ** its content was ever under, the UUID, and the moment whose content it is. */
  const char *event;
  const tde_keydoc *source;
  const uint8_t *source_uuid;
  int64_t source_time;
  tde_job *job;
  int pages;   /* out */
  int dropped; /* out: keys of the source's list for which the new header had no room */
} tde_newdb;

/* Makes it under the place's temporary name, whole, synced and read back; then it gets
** its name. An SQLite code; st tells. */
int tde_newdb_make(tde_newdb *n, tde_place *place, tde_status *st);

#endif
