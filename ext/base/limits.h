/*
** limits.h: the sizes and bounds that several modules share.
**
** A bound that one module alone keeps, as that of a reply of a key service or of a
** key document, stands in that module's header, so that a reader can check it and a
** test can reach it.
*/
#ifndef TDE_LIMITS_H
#define TDE_LIMITS_H

#define TDE_VERSION "0.1.0"

/* Sizes of the cryptographic objects, in bytes. */
#define TDE_KEY_BYTES 32        /* DEK, role keys, MAC key: 256 bits */
#define TDE_NONCE_BYTES 24      /* XAES-256-GCM nonce */
#define TDE_NONCE_PREFIX 12     /* its first half: selects the derived key */
#define TDE_TAG_BYTES 16        /* AES-GCM tag */
#define TDE_AAD_BYTES 32        /* associated data of one unit */
#define TDE_HASH_BYTES 32       /* SHA-256 */
#define TDE_UUID_BYTES 16
#define TDE_SALT_BYTES 16       /* generation salt of a WAL or journal */
#define TDE_THUMB_BYTES 32      /* protector thumbprint, whole */
#define TDE_THUMB_SHOWN 20      /* bytes of it that people see, in hex */

/* A writer keeps one derived key for at most this many units. */
#define TDE_NONCE_RUN (1u << 20)
/* Units of that run that one file handle reserves at a time. */
#define TDE_NONCE_LEASE 4096u
/* Nonces drawn from the random source in one call. */
#define TDE_NONCE_BATCH 32u
/* Derived keys that one cryptor keeps ready. */
#define TDE_DERIVED_KEYS 8

/* Key document, key ids and texts. */
#define TDE_KEY_ID_MAX 512      /* bytes, with the terminating NUL */
#define TDE_KEY_VERSION_MAX 128 /* likewise */
#define TDE_WRAPPED_MAX 2048    /* bytes of one wrapped DEK */
#define TDE_EPOCHS_MAX 16       /* DEK epochs that a header may name */
#define TDE_PATH_MAX 4096

/* DEKs that stay live after the last connection closed, and for how long. Some 5 KB of
** memory each: a process that serves ten thousand tenants in turn asks for each key once. */
#define TDE_IDLE_DEKS 16384
#define TDE_IDLE_SECONDS 300

#endif
