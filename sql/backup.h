/*
** backup.h: copies of a database in use.
*/
#ifndef TDE_SQL_BACKUP_H
#define TDE_SQL_BACKUP_H

#include "sqlite3ext.h"

void tde_sql_backup(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_copy(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
