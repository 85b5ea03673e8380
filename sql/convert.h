/*
** convert.h: tde_encrypt(path [, out]) and tde_decrypt(path, out).
*/
#ifndef TDE_SQL_CONVERT_H
#define TDE_SQL_CONVERT_H

#include "sqlite3ext.h"

void tde_sql_encrypt(sqlite3_context *ctx, int argc, sqlite3_value **argv);
void tde_sql_decrypt(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
