/*
** functions.h: the SQL functions, registered on every connection that does not do
** without.
*/
#ifndef TDE_SQL_FUNCTIONS_H
#define TDE_SQL_FUNCTIONS_H

#include "../vfs/tdevfs.h"

/* Registers every function of the table in functions.c. Returns an SQLite
** code; *error (may be NULL) gets a message of sqlite3_malloc. */
int tde_sql_register(sqlite3 *db, char **error);

/* Has this connection got them already? To register them again is an error while one of its
** statements runs, as SELECT load_extension() does. */
int tde_sql_is_registered(sqlite3 *db);

/* The same for a connection that was just opened, unless the URI of its main database
** says tde_functions=off. SQLITE_ERROR: it says something else than on or off, or the name of a
** file that is another VFS's says that it is to be encrypted. */
int tde_sql_on_open(sqlite3 *db, char **error);

/* sqlite3_open_v2, for who knows that the file is plain whatever its name says. */
int tde_sql_open_plain(const char *name, sqlite3 **db, int flags, const char *vfs);

#endif
