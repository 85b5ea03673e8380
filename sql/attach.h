/*
** attach.h: new databases that are made by ATTACH and VACUUM INTO.
**
** Without a URI of their own they would be under the default instance's key, whatever the
** connection's own database is under, and nothing would say so. That is refused.
*/
#ifndef TDE_SQL_ATTACH_H
#define TDE_SQL_ATTACH_H

#include "../ext/base/status.h"
#include "sqlite3ext.h"

/* For tde_vfs_ask_of_new. */
tde_class tde_attach_check(sqlite3 *db, const char *path, const char *instance, tde_status *st);

#endif
