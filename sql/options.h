/*
** options.h: the JSON object of options that some functions take as last argument.
*/
#ifndef TDE_SQL_OPTIONS_H
#define TDE_SQL_OPTIONS_H

#include <stdint.h>

#include "../ext/base/status.h"
#include "../keyprovider/json.h"
#include "../keyprovider/keydoc.h"
#include "sqlite3ext.h"

/* Every text is borrowed from json; NULL where it is absent. */
typedef struct tde_options {
  tde_json *json;
  const char *schema, *instance, *protector, *identity, *federated_client_id;
  const tde_json *keys; /* an array of texts */
  int64_t at;           /* a moment, Unix time; 0: absent */
  const char *uuid;
} tde_options;

/* Parses the text (NULL: none). allowed: the names that this function takes, between
** spaces. An SQLite code; st names what is wrong. End it always. */
int tde_options_read(tde_options *o, sqlite3 *db, const char *text, const char *allowed,
                     tde_status *st);
void tde_options_end(tde_options *o);

/* A Unix time, from its digits or from a date that SQLite understands. False: the text is neither, or before
** 1970. */
int tde_time_of_text(sqlite3 *db, const char *text, int64_t *t);

/* An identity that the options name, or that is to be federated by them (who; NULL: the
** instance's default one), must be there. An SQLite code. */
int tde_options_identity(const tde_options *o, const tde_instance *inst, const char *who,
                         tde_status *st);
/* Who is to ask for a copy's key: as the options say, otherwise as for the source's (doc), if the
** instance knows that one. Who is federated has a name. Borrowed from all three. */
tde_keydoc_asker tde_options_asker(const tde_options *o, const tde_keydoc *doc,
                                   const tde_instance *inst);

#endif
