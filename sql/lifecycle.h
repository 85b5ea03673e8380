/*
** lifecycle.h: the SQL functions that change a database's keys.
*/
#ifndef TDE_SQL_LIFECYCLE_H
#define TDE_SQL_LIFECYCLE_H

#include "sqlite3ext.h"

/* The last argument of each may name a schema. */
void tde_sql_set_protector(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_revert(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_add_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_remove_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_set_identity(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_auto_rotation(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_revalidate(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
