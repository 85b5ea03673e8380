/*
** protector.h: the changes (change.h) of which key a database's DEKs are wrapped under: by a call, by
** its instance, or by a new version of the key. Functions that return int return SQLite codes, and st
** tells.
*/
#ifndef TDE_SQL_PROTECTOR_H
#define TDE_SQL_PROTECTOR_H

#include "change.h"

/* Puts the database under key_id, a protector of its own. out gets the key version. */
int tde_protector_set(sqlite3 *db, const char *schema, const char *key_id, const char *event,
                      tde_key_info *out, tde_status *st);
/* Puts it under the instance's default protector, whatever it has now, and whichever instance it
** inherited from: from here on it is this one. */
int tde_protector_revert(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st);
/* The same for a database that inherits. SQLITE_MISUSE: it has a protector of its own. */
int tde_protector_follow(sqlite3 *db, const char *schema, tde_key_info *out, tde_status *st);
/* Switches auto-rotation on: looks for a new version of the protector at once, and moves to it. */
int tde_protector_auto_rotation_on(sqlite3 *db, const char *schema, tde_status *st);

/* The background job of watch.h. Whatever it was decided on is looked at again in each try. */
void tde_protector_job(const uint8_t uuid[TDE_UUID_BYTES], const tde_key_facts *facts,
                       const tde_key_params *params);

#endif
