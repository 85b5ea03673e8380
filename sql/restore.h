/*
** restore.h: restoring a backup, and telling before which keys that needs.
*/
#ifndef TDE_SQL_RESTORE_H
#define TDE_SQL_RESTORE_H

#include "sqlite3ext.h"

void tde_sql_restore_check(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_restore(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
