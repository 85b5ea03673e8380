/*
** attach.h: what is refused of ATTACH, VACUUM INTO and VACUUM.
**
** A new database that ATTACH or VACUUM INTO makes without a URI of its own would be under the
** default instance's key, whatever the connection's own database is under, and nothing would say
** so. VACUUM of an attached database copies it to a temporary file of the main database's VFS: all
** of it in plain, where that one is plain.
*/
#ifndef TDE_SQL_ATTACH_H
#define TDE_SQL_ATTACH_H

#include "../ext/base/status.h"
#include "sqlite3ext.h"

/* For tde_vfs_ask_of_new. */
tde_class tde_attach_check(sqlite3 *db, const char *path, const char *instance, tde_status *st);
/* For tde_vfs_ask_of_guest. */
tde_class tde_attach_vacuum_check(sqlite3 *db, const char *path, tde_status *st);

#endif
