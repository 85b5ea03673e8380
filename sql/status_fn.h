/*
** status_fn.h: the SQL function tde_status([schema]), and the PRAGMAs that do what it and
** tde_revalidate() do.
*/
#ifndef TDE_SQL_STATUS_FN_H
#define TDE_SQL_STATUS_FN_H

#include "../vfs/tdevfs.h"

void tde_sql_status(sqlite3_context *ctx, int argc, sqlite3_value **argv);

/* PRAGMA tde_status and tde_revalidate: what these functions do. SQLite of today reads the schema
** before any SELECT, which fails without the key: then no function can be called. Another name
** that begins with tde_ is an error, SQLITE_MISUSE; others are not ours: SQLITE_NOTFOUND. */
int tde_sql_pragma(tde_file *f, const char *name, const char *value, char **out);

#endif
