/*
** connection.c: what a main database knows of the connections that use it.
**
** SQLite tells a file which connection it is opened for (SQLITE_FCNTL_PDB), and hands it the PRAGMAs
** that it does not know. What follows from them is for the SQL functions to say, which this module
** asks through callbacks (tdevfs.h): vfs/ knows nothing of sql/.
*/
#include <string.h>

#include "methods.h"
#include "openfiles.h"

SQLITE_EXTENSION_INIT3

static tde_ask_of_new ask_of_new;

void tde_vfs_ask_of_new(tde_ask_of_new ask) {
  __atomic_store_n(&ask_of_new, ask, __ATOMIC_RELEASE);
}

static tde_ask_of_guest ask_of_guest;

void tde_vfs_ask_of_guest(tde_ask_of_guest ask) {
  __atomic_store_n(&ask_of_guest, ask, __ATOMIC_RELEASE);
}

static tde_answer_pragma answer_pragma;

void tde_vfs_answer_pragma(tde_answer_pragma answer) {
  __atomic_store_n(&answer_pragma, answer, __ATOMIC_RELEASE);
}

/* Is the main database of the connection that opens f another VFS's? NULL: it is being opened just
** now. A VFS above this one may have names of its own for the same path. One that has no file is the
** default VFS's, as far as can be told: VFS pointers are not to be had here. */
static int is_plain_main(const tde_file *f, const char *main) {
  if (!main || main == f->path) return 0;
  return main[0] ? !tde_openfiles_has(main)
                 : strcmp(sqlite3_vfs_find(NULL)->zName, TDE_VFS_NAME) != 0;
}

int tde_connection_refuse_guest(tde_file *f) {
  tde_ask_of_guest ask = __atomic_load_n(&ask_of_guest, __ATOMIC_ACQUIRE);
  sqlite3 *connection = *f->db->connection;
  tde_status st;

  if (!ask || !is_plain_main(f, sqlite3_db_filename(connection, "main"))) return SQLITE_OK;
  tde_status_clear(&st);
  if (ask(connection, tde_path_of(f), &st) == TDE_OK) return SQLITE_OK;
  f->db->last = st;
  (void)tde_db_report(f->db);
  return SQLITE_READONLY;
}

/* What the main database's name says of functions counts for all that the connection attaches. */
static void heed_functions(tde_file *f) {
  const char *main = sqlite3_db_filename(*f->db->connection, "main"), *v = NULL;

  if (!main) main = f->path; /* it is being opened just now */
  if (main[0]) v = sqlite3_uri_parameter(main, "tde_functions");
  f->no_pragmas = v && strcmp(v, "off") == 0;
}

static void take_first(tde_file *f) {
  tde_ask_of_new ask = __atomic_load_n(&ask_of_new, __ATOMIC_ACQUIRE);
  sqlite3 *connection = *f->db->connection;
  tde_db *db = f->db;
  tde_status st;

  heed_functions(f);
  if (f->plain) return;
  db->guest = is_plain_main(f, sqlite3_db_filename(connection, "main"));
  if (!ask || db->state != TDE_STATE_NEW || db->params.protector ||
      sqlite3_uri_parameter(f->path, "tde_instance")) {
    return;
  }
  tde_status_clear(&st);
  db->unwanted = ask(connection, tde_path_of(f), db->params.instance, &st) != TDE_OK;
  if (db->unwanted) db->last = st;
}

/* When a shared cache's file is given to one more connection, `where` says who used it last: by now
** that may be one that another thread closes (btree.c, sqlite3BtreeOpen, which has no lock there).
** Under the lock, when the file is used, it says who is at work. */
void tde_connection_take(tde_file *f, sqlite3 *const *where) {
  tde_db *db = f->db;

  if (db->connection) {
    db->guest = 1;
    __atomic_store_n(&db->shared, 1, __ATOMIC_RELAXED);
  } else {
    db->connection = where;
    take_first(f);
  }
}

int tde_connection_pragma(tde_file *f, char **arg) {
  tde_answer_pragma answer = __atomic_load_n(&answer_pragma, __ATOMIC_ACQUIRE);

  if (__atomic_load_n(&f->db->shared, __ATOMIC_RELAXED)) heed_functions(f);
  if (!answer || f->no_pragmas || sqlite3_strnicmp(arg[1], "tde_", 4) != 0) return SQLITE_NOTFOUND;
  return answer(f, arg[1], arg[2], &arg[0]);
}
