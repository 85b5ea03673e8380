/*
** instance_id.h: which instance a database inherits from, wherever its directory lies.
**
** An instance has an id: "id" in instance.json. A copy of the directory has the same, and is the
** same instance. It is made with the instance; one that an earlier version made, or that was
** written by hand, gets it with the next change of the file, or when a database is first to note it.
*/
#ifndef TDE_INSTANCE_ID_H
#define TDE_INSTANCE_ID_H

#include "../ext/base/status.h"
#include "json.h"

/* Bytes of an id with the NUL: a UUID, or what somebody wrote there. */
#define TDE_INSTANCE_ID_MAX 64

/* Has it the form of an id: 1 to 63 letters, digits, '-', '_', '.'? */
int tde_instance_id_ok(const char *id);
/* The id of an instance whose file has none, where its service-managed key (version: "" for none)
** makes it the same each time; otherwise "". */
void tde_instance_id_of_smk(const char *version, char out[TDE_INSTANCE_ID_MAX]);
/* Puts an id into the parsed file if it has none. */
tde_class tde_instance_id_add(tde_json *root, tde_status *st);

#endif
