/*
** functions.h: the SQL functions, registered on every connection.
*/
#ifndef TDE_SQL_FUNCTIONS_H
#define TDE_SQL_FUNCTIONS_H

#include "sqlite3ext.h"

/* Registers every function of the table in functions.c. Returns an SQLite
** code; *error (may be NULL) gets a message of sqlite3_malloc. */
int tde_sql_register(sqlite3 *db, char **error);

#endif
