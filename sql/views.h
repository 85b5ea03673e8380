/*
** views.h: what is known of keys, logs, events, as lists.
**
** Each list is had twice: from a scalar function as a JSON array, which works on an
** inaccessible database; and as a table-valued function with the same members as
** columns (its query needs the connection's main schema). What a call is about is
** its argument "source": the name of a schema of the connection, or the path of a
** database file, which need not be open and whose key is not needed. Times are
** RFC 3339 in UTC.
*/
#ifndef TDE_SQL_VIEWS_H
#define TDE_SQL_VIEWS_H

#include "../keyprovider/json.h"
#include "../keyprovider/keydoc.h"
#include "../vfs/tdevfs.h"
#include "sqlite3ext.h"

/* One database that a view is about. */
typedef struct tde_view_db {
  sqlite3 *db;
  const char *schema; /* NULL: by path */
  tde_file *f;        /* NULL: not open here */
  char *path;
  tde_keydoc *doc;
  tde_keydoc *other; /* of the other header slot; NULL: it has none that can be read */
  tde_peek head;     /* its documents are not kept */
} tde_view_db;

/* Reads what a database file's header says. vfs: the VFS below, NULL: the default one. An SQLite
** code; st tells. */
int tde_view_open_path(tde_view_db *v, sqlite3 *db, const char *path, const char *vfs,
                       tde_status *st);
void tde_view_close(tde_view_db *v);
/* Says in st why tde_header_peek did not read this file, and returns its code. unknown: as the peek
** has it. */
int tde_view_fail(const char *path, int rc, int unknown, tde_status *st);

/* A view: its scalar function and its table have this name. */
typedef struct tde_view {
  const char *name;
  const char *columns; /* of the table, in order, separated by commas */
  const char *args;    /* hidden columns, in the order of arguments */
  /* The rows, the caller's; NULL with st set, or without: no memory. argv[i] may be
  ** NULL. */
  tde_json *(*rows)(sqlite3 *db, const char *const *argv, tde_status *st);
} tde_view;

#define TDE_VIEW_ARGS_MAX 3
extern const tde_view tde_views[];
extern const int tde_nviews;

/* Registers scalar functions and table-valued functions of all views. */
int tde_views_register(sqlite3 *db);

/* The time as RFC 3339 in UTC, or JSON null for 0. Like tde_json_set_text. */
int tde_view_set_time(tde_json *obj, const char *name, int64_t t);
/* How far a key document's "regeneration" (NULL: there is none) is, from 0 to 100. */
int64_t tde_view_percent(const tde_json *regeneration);

#endif
