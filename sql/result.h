/*
** result.h: how the SQL functions answer.
*/
#ifndef TDE_SQL_RESULT_H
#define TDE_SQL_RESULT_H

#include "sqlite3ext.h"

#include "../ext/base/status.h"
#include "../keyprovider/json.h"

/* Message and remedy as one line of UTF-8, whatever bytes an argument in it has; the caller's
** (sqlite3_free). NULL: out of memory. */
char *tde_result_text(int rc, const tde_status *st);

/* The SQLite code that an error carries: rc, or where that says nothing (SQLITE_ERROR) what the
** class stands for. */
int tde_result_code(int rc, const tde_status *st);

/* An SQL error with message and remedy. rc: the SQLite code to carry, as tde_result_code has it. */
void tde_result_status(sqlite3_context *ctx, int rc, const tde_status *st);

/* The error that SQLite itself has for a wrong number of arguments. */
void tde_result_arity(sqlite3_context *ctx, const char *function);

/* A JSON text; takes json over. failed: building it ran out of memory. */
void tde_result_json(sqlite3_context *ctx, tde_json *json, int failed);

#endif
