/*
** instance.h: the configuration that a process opens: default protector and
** service-managed key.
**
** An instance is a directory (mode 0700) with `instance.json` (0600) and
** `keys/` with the service-managed key pairs (0600). It is found through the
** URI parameter tde_instance, the environment variable TDE_INSTANCE, or the
** per-user default ($XDG_DATA_HOME or ~/.local/share, then /sqlite-tde), and
** made on first use. A wrong or unreadable file is an error, never a fallback
** to something weaker: TDE_MISCONFIGURED names file, field and remedy. Members
** that this version does not know are tolerated and kept.
**
** Instances are cached by path for the process's life and re-read when the
** file changes. A loaded state never changes and is never freed, since callers
** keep pointers to it: the process keeps one state of each distinct content
** that it has seen, about 8 KB each and 4 KB for an identity. All calls are thread-safe, and go on
** working in a forked child.
**
** instance.json:
**   {"version":1,
**    "default_protector":"service-managed" or a key id,
**    "service_managed_key":{"name":"smk","version":"<40 hex>","created":<time>}}
** and what cloud.h tells of key services and identities.
*/
#ifndef TDE_INSTANCE_H
#define TDE_INSTANCE_H

#include "cloud.h"
#include "provider.h"

typedef struct tde_instance tde_instance;

#define TDE_SERVICE_MANAGED "service-managed"
/* Bytes that an instance file may have. */
#define TDE_INSTANCE_TEXT_MAX 60000

/* Resolves and opens. path may be NULL or "": environment, then default.
** create: make directory, file and service-managed key when missing;
** otherwise a missing instance is TDE_MISSING with the path in the message. Only
** the default directory's parents are made too: elsewhere a missing parent is
** more likely a typing error or a volume that is not mounted.
** The result stays valid for the process's life: do not free. */
tde_class tde_instance_open(const char *path, int create, const tde_instance **out,
                            tde_status *st);
/* Absolute path of the directory; lives as long as inst. */
const char *tde_instance_dir(const tde_instance *inst);
/* How it reaches key services, and its identities; lives as long as inst. */
const tde_cloud *tde_instance_cloud(const tde_instance *inst);
/* Whole key id of the service-managed key ("local:smk/..."), "" when the file
** names none; lives as long as inst. */
const char *tde_instance_smk(const tde_instance *inst);
/* True when the default protector is the service-managed key. */
int tde_instance_is_service_managed(const tde_instance *inst);

/* Key id of the default protector ("local:smk/..." or a customer's). Copies. */
tde_class tde_instance_protector(const tde_instance *inst, char out[TDE_KEY_ID_MAX],
                                 tde_status *st);

#endif
