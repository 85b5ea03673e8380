/*
** local.h: key pairs in the instance directory.
**
** Key ids are `local:NAME` (the newest version) and `local:NAME/VERSION`, NAME
** of [a-z0-9-]{1,32}, VERSION the first 20 bytes of the thumbprint in
** lower-case hex. A key pair is `keys/NAME-VERSION.pem`: an unencrypted PKCS#8
** PEM, mode 0600, which may be preceded by a line `created: <Unix time>`
** (explanatory text in the sense of RFC 7468 section 2; without it, the file's
** modification time counts). RSA of 2048, 3072 or 4096 bits; wraps RSA-OAEP-256.
**
** Parsed keys are cached, TDE_LOCAL_KEYS_MAX of them; each use looks at the
** file again, so a key whose file is deleted or replaced is gone at once. The
** private numbers of a cached key are in the crypto library's own memory,
** which wipes them when the key is dropped; they are locked into memory only
** where the host has switched OpenSSL's secure heap on. (This product does not
** switch it on: the heap is one for the process, and once on, a full heap
** fails the host's allocations too.)
*/
#ifndef TDE_LOCAL_H
#define TDE_LOCAL_H

#include "provider.h"

#define TDE_LOCAL_KEYS_MAX 32
#define TDE_LOCAL_NAME_MAX 32

/* Can a local key have this name? */
tde_class tde_local_check_name(const char *name, tde_status *st);

/* Makes an RSA-3072 key pair NAME in the instance directory dir, durable when
** this returns TDE_OK, and tells what it is. */
tde_class tde_local_create(const char *dir, const char *name, tde_key_info *info, tde_status *st);

/* The newest key NAME in dir. TDE_MISSING: there is none. A key file of that
** name that cannot be used is an error, not skipped: it might be the newest. */
tde_class tde_local_latest(const char *dir, const char *name, tde_key_info *info, tde_status *st);

/* Drops every cached key; tells how many there are. */
void tde_local_drop_cache(void);
int tde_local_cached_keys(void);

#endif
