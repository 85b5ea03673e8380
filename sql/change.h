/*
** change.h: a change of one database's keys.
**
** A change has a basis: the key document that it read. Key services are asked on
** that basis with no lock held; then, under the header's lock, the document in
** force must still have the same DEKs, wrapped as they were, and is edited. When
** another change came in between, everything is done again. So no update is lost,
** and a failure at any point leaves the database as it was.
*/
#ifndef TDE_SQL_CHANGE_H
#define TDE_SQL_CHANGE_H

#include "../keyprovider/keydoc.h"
#include "subject.h"

typedef struct tde_change {
  sqlite3 *db;
  const char *schema;
  tde_file *f;
  const tde_instance *inst;
  tde_keydoc *doc; /* the basis */
  tde_key_info protector;
  tde_file_info *info;
  const char *event;    /* what it is called; NULL: it is none */
  tde_key_info subject; /* what a failure is about; at first the protector */
  int stale;            /* another change came in between: everything is done again */
  int tried_again;      /* by itself, later: that somebody uses the database is no event */
  int announced;        /* the audit knows that it begins */
} tde_change;

/* Makes a change: reads the basis, lets work do what it does, and begins again when
** another change came in between. work returns a code, with st set on failure, which
** is an event, too. An SQLite code; st tells: not Online, read-only, ... */
typedef int (*tde_change_work)(void *ctx, tde_change *c, tde_status *st);
int tde_change_run(sqlite3 *db, const char *schema, const char *event, tde_change_work work,
                   void *ctx, tde_status *st);

/* The same for what leaves the database as it is, which may be read-only: work calls
** no commit, but may tell of its success. */
int tde_change_run_reading(sqlite3 *db, const char *schema, const char *event, tde_change_work work,
                           void *ctx, tde_status *st);
/* Before and after what stands in no header, or is done before it stands in one: see
** tde_event_announce; the event of its success. */
int tde_change_announce(tde_change *c, tde_status *st);
void tde_change_tell(const tde_change *c);

/* Does the file have its name still? An SQLite code. */
int tde_change_of_name(tde_file *f, const char *path, tde_status *st);
/* What tde_change_run asks first, for an empty database, which it does not take: may this
** connection change it? An SQLite code. */
int tde_change_allowed(sqlite3 *db, const char *schema, tde_file *f, const char *path,
                       tde_status *st);

/* For work: edits the document in force. loose: what the edit rests on is not the
** protector. both: see tde_file_update_header. key: what the event is about, NULL:
** the protector. On success the event is in the header, and in the audit sink. */
typedef tde_class (*tde_change_edit)(void *ctx, tde_keydoc *doc, tde_status *st);
int tde_change_commit(tde_change *c, tde_change_edit edit, void *ctx, int loose, int both,
                      const tde_key_info *key, tde_status *st);

/* For work: a DEK that the basis names (secret memory, copied). */
tde_class tde_change_dek(tde_change *c, uint32_t epoch, uint8_t *dek, tde_status *st);

/* For work: the DEKs of all epochs of the basis, wrapped under a key of inst that who asks for,
** under one version of it; each is proved by an unwrap. out->of is the caller's (free), after a
** failure, too. */
typedef struct tde_wraps {
  int n;
  uint32_t epochs[TDE_EPOCHS_MAX];
  tde_op *of; /* of each epoch */
} tde_wraps;
tde_class tde_change_wrap(tde_change *c, const tde_instance *inst, const char *key_id,
                          const tde_keydoc_asker *who, tde_wraps *out, tde_status *st);

/* A connection of its own to a database that is open, to be closed by the caller; NULL: it could not
** be opened. */
sqlite3 *tde_change_open(const tde_key_params *params);

#endif
