/*
** place.h: a new file that gets its name only when it is finished.
**
** It is written under a temporary name in the same directory, synced, and then renamed to
** its own (linked, where a rename might replace), which must not exist, nor any file
** beside it that would be taken for a part of it (a log); the directory is synced, too.
** A crash leaves no file of that name, or a whole one, and at worst a temporary file
** (NAME-tde-HEX) that nothing refers to.
*/
#ifndef TDE_SQL_PLACE_H
#define TDE_SQL_PLACE_H

#include "../ext/base/status.h"
#include "sqlite3ext.h"

typedef struct tde_place {
  char *target; /* full path */
  char *temp;   /* the file while it is made; NULL once it has its name */
} tde_place;

/* Resolves path and invents the temporary name. exists_ok: the target may be there
** (it is to be replaced by the caller). An SQLite code; st tells. End it always. */
int tde_place_begin(tde_place *p, const char *path, int exists_ok, tde_status *st);
/* Can SQLite open the file by its temporary name, which is the longer one? */
int tde_place_fits(const tde_place *p, tde_status *st);
/* Is this such a temporary name? */
int tde_place_is_temporary(const char *name);
/* Gives the finished file its name; takes it back where that can not be made durable. */
int tde_place_publish(tde_place *p, tde_status *st);
/* Makes the new name durable, which the caller has given to the finished file by a rename. */
int tde_place_sync(tde_place *p, tde_status *st);
/* Removes the temporary file when it has not got its name, and what SQLite may have
** put beside it. */
void tde_place_end(tde_place *p);

#endif
