/*
** instance.h: the configuration that a process opens: default protector and
** service-managed key.
**
** An instance is a directory (mode 0700) with `instance.json` (0600) and
** `keys/` with the service-managed key pairs (0600). It is found through the
** URI parameter tde_instance, the environment variable TDE_INSTANCE, or the
** per-user default ($XDG_DATA_HOME or ~/.local/share, then /sqlite-tde), and
** made on first use. A wrong or unreadable file is an error, never a fallback
** to something weaker. Instances are cached by path for the process's life and
** re-read when the file's mtime, size or inode changes; all calls are
** thread-safe.
*/
#ifndef TDE_INSTANCE_H
#define TDE_INSTANCE_H

#include "provider.h"

typedef struct tde_instance tde_instance;

/* Resolves and opens. path may be NULL or "": environment, then default.
** create: make directory, file and service-managed key when missing;
** otherwise a missing instance is TDE_MISSING with the path in the message.
** The result stays valid for the process's life: do not free. */
tde_class tde_instance_open(const char *path, int create, const tde_instance **out,
                            tde_status *st);
const char *tde_instance_dir(const tde_instance *inst);

/* Key id of the default protector ("local:smk/..." or a customer's). Copies. */
tde_class tde_instance_protector(const tde_instance *inst, char out[TDE_KEY_ID_MAX],
                                 tde_status *st);

#endif
