/*
** instance.h: the configuration that a process opens: default protector and
** service-managed key.
**
** An instance is a directory (mode 0700) with `instance.json` (0600) and
** `keys/` with the service-managed key pairs (0600). It is found through the
** URI parameter tde_instance, the environment variable TDE_INSTANCE (a relative
** one goes on meaning what it meant when it was first used), or the per-user
** default ($XDG_DATA_HOME or ~/.local/share, then /sqlite-tde), and made on
** first use. A wrong or unreadable file is an error, never a fallback to
** something weaker: TDE_MISCONFIGURED names file, field and remedy. Members
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
**    "id": which instance it is, instance_id.h,
**    "default_protector":"service-managed" or a key id,
**    "default_protector_key": the version that its trial found, as in keys, and "set": when,
**    "service_managed_key":{"name":"smk","version":"<40 hex>","created":<time>}}
** what cloud.h tells of key services and identities, policy.h of times, events.h of
** the audit sink, and keys of the instance's key list.
*/
#ifndef TDE_INSTANCE_H
#define TDE_INSTANCE_H

#include "cloud.h"
#include "events.h"
#include "instance_id.h"
#include "policy.h"
#include "provider.h"

typedef struct tde_instance tde_instance;

#define TDE_SERVICE_MANAGED "service-managed"
/* The name of that key among the local ones. */
#define TDE_SMK_NAME "smk"
/* Keys of an instance's key list. */
#define TDE_INSTANCE_KEYS_MAX 100
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
/* The instance as this process read it last, whatever became of it since; NULL: it never did.
** For who must not hang on the file: what it says of keys counts no more. */
const tde_instance *tde_instance_last_seen(const char *path);
/* The instance as its file says now, or as this process read it last where that cannot be read: for
** what goes on meanwhile, and for who tells of it. NULL: neither. */
const tde_instance *tde_instance_now_or_last(const char *path);
/* The directory that a path means now, absolute, malloc'd: for whoever opens it again later,
** when the environment or the current directory may have changed. It need not exist. */
tde_class tde_instance_resolve(const char *path, char **dir, tde_status *st);
/* Edits the parsed object of an instance's file. */
typedef tde_class (*tde_instance_edit)(void *ctx, tde_json *root, tde_status *st);
/* Changes the file: change works under the lock file; the result
** must be a valid instance, and replaces the file in one step. An instance that does
** not exist is made first. TDE_BUSY: another process holds the lock; TDE_DENIED: this one
** may not write there. On failure the file is unchanged. instance_edit.h has the changes
** that people make. */
tde_class tde_instance_change(const char *path, tde_instance_edit change, void *ctx,
                              tde_status *st);
/* Before an instance is made for a change: would a new one take it? TDE_OK, too, where one
** is there already. Makes nothing. */
tde_class tde_instance_change_fits(const char *path, tde_instance_edit change, void *ctx,
                                   tde_status *st);
/* Absolute path of the directory; lives as long as inst. */
const char *tde_instance_dir(const tde_instance *inst);
/* Its id, "" where the file has none yet; lives as long as inst. */
const char *tde_instance_id(const tde_instance *inst);
/* A database is to note the id: gives *inst one. Where the file is not this user's to change it
** stays as it is. */
void tde_instance_need_id(const tde_instance **inst);
/* How it reaches key services, and its identities; lives as long as inst. */
const tde_cloud *tde_instance_cloud(const tde_instance *inst);
/* How long DEKs may be used without their key service; lives as long as inst. */
const tde_policy *tde_instance_policy(const tde_instance *inst);
/* Where its events go; lives as long as inst. */
const tde_audit *tde_instance_audit(const tde_instance *inst);
/* The key pair of an instance that is to have a service-managed key: one that an interrupted
** try left, or a new one. */
tde_class tde_instance_smk_ready(const char *dir, tde_key_info *info, tde_status *st);
/* Names of members that its file has and which are passed over as they do not exist, at the root,
** in "http", "azure", "audit", "policy" and identities; an array of texts, lives as long as inst. */
const tde_json *tde_instance_unknown(const tde_instance *inst);
/* Whole key id of the service-managed key ("local:smk/..."), "" when the file
** names none; lives as long as inst. */
const char *tde_instance_smk(const tde_instance *inst);
/* True when the default protector is the service-managed key. */
int tde_instance_is_service_managed(const tde_instance *inst);

/* May this key protect a database of the instance by itself? TDE_MISCONFIGURED: it is
** the service-managed key, and the instance's default is a customer's. TDE_MISUSE: it is
** TDE_SERVICE_MANAGED, which is the default. */
tde_class tde_instance_may_protect(const tde_instance *inst, const char *key_id, tde_status *st);
/* The identity that asks for the default protector, NULL: the default one. */
const char *tde_instance_default_identity(const tde_instance *inst);
/* The name of the identity that asks for this key where none is named; NULL: there is none. */
const char *tde_instance_asker(const tde_instance *inst, const char *key_id);
/* The identity of that name if it asks for this key; NULL name: the one that does where none is named,
** the default protector's or not. NULL: there is none. */
const tde_identity *tde_instance_identity_for(const tde_instance *inst, const char *name, const char *key_id);
/* The instance's key list: keys that may read backups. Returns their number; i
** from 0. info->base_id, version, type, thumbprint, created. */
int tde_instance_nkeys(const tde_instance *inst);
const tde_key_info *tde_instance_key(const tde_instance *inst, int i);
/* Who was named to ask for it when it was added, which may be gone since; NULL: nobody. */
const char *tde_instance_key_identity(const tde_instance *inst, int i);
/* Every key id that the instance names (default protector, service-managed key, key
** list), by number from 0; NULL: no more. Their hosts are trusted: a key id in a
** database's header is not. Lives as long as inst. */
const char *tde_instance_key_at(const tde_instance *inst, size_t i);

/* Key id of the default protector ("local:smk/..." or a customer's); lives as long as inst. */
const char *tde_instance_protector(const tde_instance *inst);
/* The version that the default protector had when it was set, and when that was (Unix time). 0: a
** default without a version has none that is known, or the time is not. */
int tde_instance_protector_set(const tde_instance *inst, tde_key_info *out, int64_t *when);
/* The default protector's version and thumbprint: of a key service's as it was when it was set,
** of the instance's own as it is. 0: they are not known. */
int tde_instance_protector_info(const tde_instance *inst, tde_key_info *out);

#endif
