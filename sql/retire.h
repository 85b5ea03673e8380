/*
** retire.h: does anything still need a key?
*/
#ifndef TDE_SQL_RETIRE_H
#define TDE_SQL_RETIRE_H

#include "sqlite3ext.h"

void tde_sql_key_safe_to_retire(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
