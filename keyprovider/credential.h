/*
** credential.h: where an identity's proof of itself is read: files and the environment.
**
** What is read is secret memory, without the line end that an editor leaves. It is read anew each
** time, so that one that was replaced is found at once.
*/
#ifndef TDE_CREDENTIAL_H
#define TDE_CREDENTIAL_H

#include <stddef.h>

#include "../ext/base/status.h"

/* Bytes of a secret, and of the largest file: a certificate with its key, or a token. */
#define TDE_CREDENTIAL_TEXT_MAX 4096
#define TDE_CREDENTIAL_FILE_MAX 32000

/* An environment variable, "" when unset; hidden from set-user-id programs,
** whose environment is somebody else's. */
const char *tde_credential_env(const char *name);

/* A private file's text, the caller's (tde_secret_free); n may be NULL. One that is not there says
** nothing about a key: TDE_MISCONFIGURED. Other failures: files.h. */
tde_class tde_credential_file(const char *path, size_t max, char **out, size_t *n, tde_status *st);

/* The same of a workload's token, which is put there by the platform, as a symbolic link that it
** swings and with a mode of its own: what must hold is that nobody else writes it. It lives for an
** hour and is good for this identity alone. */
tde_class tde_credential_workload(const char *path, const char *remedy, char **out, tde_status *st);

#endif
