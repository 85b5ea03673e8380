/*
** instance_fn.h: the SQL functions that show and change the instance.
*/
#ifndef TDE_SQL_INSTANCE_FN_H
#define TDE_SQL_INSTANCE_FN_H

#include "sqlite3ext.h"

/* The last argument of each may name the instance's directory; otherwise it is that
** of the main database's URI, or the default one. */
void tde_sql_instance(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_set_protector(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_add_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_remove_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_new_key(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_set_policy(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_set_identity(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_instance_set_audit(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
