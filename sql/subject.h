/*
** subject.h: what an SQL function is about: a schema of the connection that calls,
** or the instance.
*/
#ifndef TDE_SQL_SUBJECT_H
#define TDE_SQL_SUBJECT_H

#include "../keyprovider/instance.h"
#include "../keyprovider/keydoc.h"
#include "../vfs/tdevfs.h"
#include "sqlite3ext.h"

/* The shim's file of a schema ("main" for NULL); NULL with st set when there is no
** such schema, or another VFS has it. */
tde_file *tde_subject_file(sqlite3 *db, const char *schema, tde_status *st);

/* Parses its key document, the caller's (tde_keydoc_free). */
tde_class tde_subject_keydoc(tde_file *f, tde_keydoc **doc, tde_status *st);

/* The same as tde_subject_file without a word: NULL where another VFS has it, or nobody. */
tde_file *tde_subject_find(sqlite3 *db, const char *schema);
/* Is there a schema of this name? (SQLite makes "temp" when it is first used.) */
int tde_subject_is_schema(sqlite3 *db, const char *name);

/* To be asked before any argument's text is taken. SQLITE_MISUSE: a text is cut short by a NUL
** byte, and what follows it would be passed over; SQLITE_NOMEM: one can not be had, and would
** count as absent. Either way another file, schema or key would be meant. Then st is set. */
int tde_args_check(int argc, sqlite3_value **argv, tde_status *st);

/* The text of argument i, NULL when it is absent or NULL. */
const char *tde_arg_text(int argc, sqlite3_value **argv, int i);
/* As tde_arg_text, of an argument without which nothing can be done. NULL when it is NULL
** or empty: the error is the call's result then. what: "the path". */
const char *tde_arg_needed(sqlite3_context *ctx, int argc, sqlite3_value **argv, int i,
                           const char *what);

/* Can this be a thumbprint: so many hex digits? */
int tde_is_thumbprint(const char *key);
/* Does this name a key: the id of some provider's, or a thumbprint? False with st set. */
int tde_subject_key(const char *key, tde_status *st);

/* Can this be meant as a key's id? False with st set: the argument is wrong, and no key. */
int tde_subject_key_id(const char *key, tde_status *st);

/* Is this a URI where a path is wanted? Then st is set. */
int tde_is_uri(const char *path, tde_status *st);

/* The path that names the instance of this call: argument i; else what the main
** database's URI says; else NULL, the default one. */
const char *tde_subject_instance(sqlite3 *db, int argc, sqlite3_value **argv, int i);

/* A file name as the path of a URI, with parameters behind it ("?a=b" or ""): the
** caller's (sqlite3_free). NULL: out of memory. */
char *tde_uri_of(const char *path, const char *params);
/* A URI with a cache of its own, whatever it says of that; likewise. */
char *tde_uri_private(const char *uri);
/* A text as the value of a URI's parameter; likewise. */
char *tde_uri_value(const char *text);
/* The same with more ("&a=b" or "") and n parameters, whose values are escaped; one
** whose value is NULL is left out. */
typedef struct tde_uri_param {
  const char *name, *value;
} tde_uri_param;
char *tde_uri_with(const char *path, const char *more, const tde_uri_param *params, size_t n);

#endif
