/*
** verify_fn.h: the SQL function tde_verify([source]). The source is a schema of the connection, or
** the path or URI of a file, which is opened as a main database of that name is.
*/
#ifndef TDE_SQL_VERIFY_FN_H
#define TDE_SQL_VERIFY_FN_H

#include "sqlite3ext.h"

void tde_sql_verify(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
