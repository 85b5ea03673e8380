/*
** place.h: a new file that gets its name only when it is finished.
**
** It is written under a temporary name in the same directory, synced, and then renamed to
** its own (linked, where a rename might replace), which must not exist, nor any file
** beside it that would be taken for a part of it (a log); the directory is synced, too.
** A crash leaves no file of that name, or a whole one, and at worst a temporary file
** (NAME-tde-HEX) that nothing refers to.
**
** The folder may be another user's, who can give any of its names to another file at any
** moment, and another folder that one's own name. So the folder is held open, and names count
** in it alone; and a file that is to get an owner, a mode or other content is gone by through
** the descriptor that made it.
*/
#ifndef TDE_SQL_PLACE_H
#define TDE_SQL_PLACE_H

#include <sys/stat.h>

#include "../ext/base/status.h"
#include "sqlite3ext.h"

typedef struct tde_place {
  char *target; /* full path */
  char *temp;   /* the file while it is made; NULL once it has its name */
  int folder;   /* the folder of both, to work in: no right to list it is needed */
  int fd;       /* the temporary file, if tde_place_make made it; else -1 */
  int made;     /* it did, and this is the file: */
  dev_t dev;
  ino_t ino;
} tde_place;

/* Resolves path and invents the temporary name. exists_ok: the target may be there
** (it is to be replaced by the caller). An SQLite code; st tells. End it always. */
int tde_place_begin(tde_place *p, const char *path, int exists_ok, tde_status *st);
/* The full path of a target, for who tells of it; as it is where it can not be resolved. The
** caller's; NULL: no memory. */
char *tde_place_path(const char *path);
/* Can SQLite open the file by its name, and, where it does so (opened), by the temporary one, which
** is the longer one? */
int tde_place_fits(const tde_place *p, int opened, tde_status *st);
/* Is it, by its name, a part of a database that is there? -1: no memory to tell. */
int tde_place_is_beside(const char *path);
/* Is this such a temporary name? */
int tde_place_is_temporary(const char *name);
/* Makes the temporary file, empty and its user's alone (SQLite would make it for all to read),
** and holds it. 0, or -1 and errno. */
int tde_place_make(tde_place *p);
/* lstat of the name in the place's folder that a path ends with. */
int tde_place_stat(const tde_place *p, const char *path, struct stat *sb);
/* Has this path's name the file that tde_place_make made? Where another did, that is not
** known. SQLITE_IOERR: it was replaced; st tells, as tde_place_replaced does. */
int tde_place_has(const tde_place *p, const char *path, tde_status *st);
int tde_place_replaced(const tde_place *p, tde_status *st);
/* Closes the temporary file. Not later than it gets its name, for that would drop the locks
** that another connection of this process may have on it then. */
void tde_place_let_go(tde_place *p);
/* Renames the temporary file over the target, or removes a path's name. 0, or -1 and errno. */
int tde_place_replace(tde_place *p);
int tde_place_remove(const tde_place *p, const char *path);
/* Gives the finished file its name; takes it back where that can not be made durable. */
int tde_place_publish(tde_place *p, tde_status *st);
/* Makes the new name durable, which the caller has given to the finished file by a rename. */
int tde_place_sync(tde_place *p, tde_status *st);
/* Removes the temporary file when it has not got its name, and what SQLite may have
** put beside it. */
void tde_place_end(tde_place *p);

#endif
