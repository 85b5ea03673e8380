/*
** gcm.h: AES-256-GCM engines (NIST SP 800-38D), internal to ext/base.
**
** crypto.c seals and opens through one of these tables; which one, it decides
** once per process. Both compute the same function, and the same known-answer
** tests run over both (TDE_ENGINE=openssl or ipsec-mb chooses).
**
** A key handle holds one expanded key and serves both directions; it is used
** by one thread at a time. seal and open return TDE_OK, TDE_CRYPTO, or (open)
** TDE_TAMPERED; lengths are at most INT_MAX; input and output are the same
** buffer or apart. The caller wipes the output after a failure.
*/
#ifndef TDE_GCM_H
#define TDE_GCM_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define TDE_GCM_IV_BYTES 12

typedef struct tde_gcm {
  const char *name; /* for TDE_ENGINE */
  /* Prepares the library; TDE_UNSUPPORTED when library or CPU lack something.
  ** text gets the name that tde_version() shows. */
  tde_class (*init)(char *text, size_t ntext);
  void *(*key_new)(void);                                               /* NULL: out of memory */
  tde_class (*key_set)(void *handle, const uint8_t key[TDE_KEY_BYTES]); /* again and again */
  void (*key_free)(void *handle);                                       /* NULL is allowed */
  tde_class (*seal)(void *handle, const uint8_t iv[TDE_GCM_IV_BYTES], const uint8_t *aad,
                    size_t naad, const uint8_t *pt, size_t n, uint8_t *ct,
                    uint8_t tag[TDE_TAG_BYTES]);
  tde_class (*open)(void *handle, const uint8_t iv[TDE_GCM_IV_BYTES], const uint8_t *aad,
                    size_t naad, const uint8_t *ct, size_t n, const uint8_t tag[TDE_TAG_BYTES],
                    uint8_t *pt);
} tde_gcm;

extern const tde_gcm tde_gcm_openssl;
/* Intel's IPsec multi-buffer library, loaded when it is installed; x86-64. */
extern const tde_gcm tde_gcm_ipsec;

#endif
