/*
** secondary.h: copies of a database in use that follow it.
*/
#ifndef TDE_SQL_SECONDARY_H
#define TDE_SQL_SECONDARY_H

#include "sqlite3ext.h"

void tde_sql_create_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_sync_secondary(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
