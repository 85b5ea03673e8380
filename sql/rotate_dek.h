/*
** rotate_dek.h: tde_rotate_dek([schema]): a new DEK, every unit sealed anew under it.
*/
#ifndef TDE_SQL_ROTATE_DEK_H
#define TDE_SQL_ROTATE_DEK_H

#include "sqlite3ext.h"

void tde_sql_rotate_dek(sqlite3_context *ctx, int argc, sqlite3_value **argv);

#endif
