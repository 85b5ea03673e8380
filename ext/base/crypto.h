/*
** crypto.h: the AEAD, the key derivation and the hashes.
**
** The only module that calls OpenSSL's AEAD and KDF functions. Sources:
** XAES-256-GCM is C2SP's specification (c2sp.org/XAES-256-GCM); HKDF is RFC
** 5869; HMAC is RFC 2104; SHA-256 is FIPS 180-4; AES-GCM is NIST SP 800-38D.
**
** Invariants:
**  - A nonce is never used twice under one derived key. A cryptor seals with
**    a 12-byte prefix leased from a tde_nonce_source (at most TDE_NONCE_RUN
**    units a prefix, a new prefix after fork) and 12 random bytes.
**  - tde_aead_open hands out no plaintext unless the tag verifies: on failure
**    the output buffer is wiped.
**  - A cryptor belongs to one thread at a time; a nonce source is shared.
*/
#ifndef TDE_CRYPTO_H
#define TDE_CRYPTO_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Prepares the library (algorithms fetched once, fork detection). Idempotent
** and thread-safe; every other call here needs it to have succeeded. */
tde_class tde_crypto_init(tde_status *st);

/* Random bytes from the kernel (getrandom(2)), so that no generator state can be
** copied by a fork. On failure the buffer is wiped and TDE_RANDOM returned: the
** caller must not go on. Thread-safe; needs no tde_crypto_init. */
tde_class tde_random(void *out, size_t n, tde_status *st);
/* What to do about it. */
#define TDE_RANDOM_REMEDY \
  "Look for seccomp or container rules that forbid getrandom, then try again."

/* A number that differs in a forked child from its parent (never 0). It
** changes whichever way the process was cloned: the page it stands on is
** wiped by the kernel (MADV_WIPEONFORK). Cheap: one load when nothing changed. */
uint64_t tde_fork_generation(void);

/* Hashes and key derivation. Thread-safe. The output is wiped on failure, which
** is TDE_NOMEM or TDE_CRYPTO; more than 255*32 bytes of HKDF output, TDE_MISUSE. */
tde_class tde_sha256(const void *p, size_t n, uint8_t out[TDE_HASH_BYTES]);
/* Over two parts one after the other. */
tde_class tde_sha256_2(const void *a, size_t na, const void *b, size_t nb,
                       uint8_t out[TDE_HASH_BYTES]);
/* HMAC-SHA256 over the two parts one after the other; b may be NULL with nb 0. */
tde_class tde_hmac_sha256(const uint8_t *key, size_t nkey, const void *a, size_t na,
                          const void *b, size_t nb, uint8_t out[TDE_HASH_BYTES]);
tde_class tde_hkdf_sha256(const uint8_t *salt, size_t nsalt, const uint8_t *ikm, size_t nikm,
                          const uint8_t *info, size_t ninfo, uint8_t *out, size_t nout);

/* Where a role's writers take their nonce prefixes. Shared by every cryptor
** of one key in the process; thread-safe. */
typedef struct tde_nonce_source tde_nonce_source;
tde_nonce_source *tde_nonce_source_new(void);          /* NULL: out of memory */
void tde_nonce_source_free(tde_nonce_source *s);       /* NULL is allowed */

/* XAES-256-GCM under one 256-bit key, with its cache of derived keys. */
typedef struct tde_aead tde_aead;

/* Copies the key into secret memory. source may be NULL: then the cryptor
** has one of its own; otherwise it must outlive the cryptor. An unused cryptor
** is small (under 500 bytes): its contexts are made when first needed. */
tde_class tde_aead_new(const uint8_t key[TDE_KEY_BYTES], tde_nonce_source *source, tde_aead **out,
                       tde_status *st);
void tde_aead_free(tde_aead *a);                       /* NULL is allowed */

/* A key that a cryptor derived, for others under the same key: to derive it takes longer than
** to open a page. Key material: whoever keeps one does so in secret memory. */
typedef struct tde_derived {
  uint8_t valid; /* 0: none */
  uint8_t prefix[TDE_NONCE_PREFIX];
  uint8_t key[TDE_KEY_BYTES];
} tde_derived;

/* The one that a used first, or was told of; it stays a's. */
const tde_derived *tde_aead_derived(const tde_aead *a);
/* Tells a new cryptor of one (copied), which must have come from a cryptor of the same key:
** nothing would open under another's. */
void tde_aead_tell(tde_aead *a, const tde_derived *d);

/* Seals n bytes of pt into ct (the same buffer is allowed; partial overlap is
** not) with a fresh nonce, which it stores in nonce. n may be 0, and pt and ct
** are then not looked at. On failure (TDE_RANDOM, TDE_NOMEM, TDE_CRYPTO,
** TDE_MISUSE: more than INT_MAX bytes) ct, nonce and tag are wiped and nothing
** may be written to disk; the cryptor stays usable. */
tde_class tde_aead_seal(tde_aead *a, const uint8_t *aad, size_t naad, const uint8_t *pt, size_t n,
                        uint8_t nonce[TDE_NONCE_BYTES], uint8_t *ct, uint8_t tag[TDE_TAG_BYTES]);
/* Opens; TDE_TAMPERED when the tag does not verify, TDE_NOMEM or TDE_CRYPTO when
** it could not be tried. pt is wiped on every failure. In place (pt == ct) is
** allowed. */
tde_class tde_aead_open(tde_aead *a, const uint8_t *aad, size_t naad,
                        const uint8_t nonce[TDE_NONCE_BYTES], const uint8_t *ct, size_t n,
                        const uint8_t tag[TDE_TAG_BYTES], uint8_t *pt);

/* As tde_aead_seal with the caller's nonce: for known-answer tests only. */
tde_class tde_aead_seal_with_nonce(tde_aead *a, const uint8_t *aad, size_t naad, const uint8_t *pt,
                                   size_t n, const uint8_t nonce[TDE_NONCE_BYTES], uint8_t *ct,
                                   uint8_t tag[TDE_TAG_BYTES]);

/* The name of the AES-GCM engine in use, e.g. "OpenSSL 3.0.17". */
const char *tde_crypto_engine(void);

/* For tests only; nothing else may set these, and only while no other thread
** runs. tde_test_alloc_hook (secret.h) covers the allocations made here.
**
** When set, asked before each draw of n random bytes; a result other than 0
** makes the draw fail. */
extern int (*tde_test_random_hook)(size_t n);
/* Goes on as on a kernel without MADV_WIPEONFORK. */
void tde_test_fork_fallback(void);

#endif
