/*
** lifecycle.h: the SQL functions that change a database's keys.
*/
#ifndef TDE_SQL_LIFECYCLE_H
#define TDE_SQL_LIFECYCLE_H

#include "../vfs/tdevfs.h"
#include "sqlite3ext.h"

/* The last argument of each may name a schema. */
void tde_sql_set_protector(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_revert(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_add_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_remove_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_set_identity(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_auto_rotation(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_revalidate(sqlite3_context *ctx, int argc, sqlite3_value **argv);

/* What tde_revalidate() does (key: NULL or a key id), from within a PRAGMA: SQLite has a statement of
** the connection in hand then, and of a shared cache nobody can tell which connection it is. So the
** header is changed through a connection of its own. An SQLite code; st tells. */
int tde_revalidate_beside(tde_file *f, const char *key, tde_status *st);

#endif
