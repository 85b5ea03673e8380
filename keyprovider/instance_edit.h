/*
** instance_edit.h: changes of an instance, each atomic and safe between processes.
**
** A change reads instance.json anew under the instance's lock file, is applied to
** the parsed object (members that this version does not know stay), is held to the
** rules of reading, and replaces the file by a rename; a crash leaves the old one
** or the new one. Where an operation needs a key service, it is asked before the
** lock is taken. path: as in tde_instance_open.
**
** Every function: TDE_MISUSE: a bad argument; TDE_BUSY: the lock is held; TDE_IO;
** TDE_MISCONFIGURED: the result would not be a valid instance, which is unchanged.
*/
#ifndef TDE_INSTANCE_EDIT_H
#define TDE_INSTANCE_EDIT_H

#include "instance.h"

/* The default protector: a key id, or TDE_SERVICE_MANAGED (whose key pair is made
** when there is none). identity: who asks for it, NULL: the default one. The key
** is probed with get, wrap and unwrap first. full gets the id of the version. */
tde_class tde_instance_set_protector(const char *path, const char *key_id, const char *identity,
                                     char full[TDE_KEY_ID_MAX], tde_status *st);
/* The key list. A key that is added must be there and enabled; *info gets it. */
tde_class tde_instance_add_key(const char *path, const char *key_id, const char *identity,
                               tde_key_info *info, tde_status *st);
/* key: an id with or without version, or a thumbprint. The default protector is
** refused. *removed gets the number of entries. */
tde_class tde_instance_remove_key(const char *path, const char *key, int *removed,
                                  tde_status *st);
/* A new key pair local:NAME (a further version of it when there is one). */
tde_class tde_instance_new_key(const char *path, const char *name, tde_key_info *info,
                               tde_status *st);
/* One number of the policy (policy.h). */
tde_class tde_instance_set_policy(const char *path, const char *name, int64_t value,
                                  tde_status *st);
/* One identity (cloud.h): a JSON object, or NULL: remove it. */
tde_class tde_instance_set_identity(const char *path, const char *name, const char *json,
                                    tde_status *st);
/* The audit sink (events.h): a JSON object, or NULL: none. */
tde_class tde_instance_set_audit(const char *path, const char *json, tde_status *st);

/* What an instance says of itself, without a secret: the caller's. NULL: no memory. */
tde_json *tde_instance_describe(const tde_instance *inst);
/* The key list with the default protector marked, as an array of objects. */
tde_json *tde_instance_keylist(const tde_instance *inst);

#endif
