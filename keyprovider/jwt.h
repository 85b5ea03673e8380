/*
** jwt.h: signed assertions for token requests.
**
** RS256 is RFC 7518 section 3.3 (RSASSA-PKCS1-v1_5 with SHA-256) in the compact
** form of RFC 7515 section 3.1. The claims of a client assertion are those of
** RFC 7523 section 3, the header's x5t is RFC 7515 section 4.1.7.
*/
#ifndef TDE_JWT_H
#define TDE_JWT_H

#include <openssl/evp.h>
#include <stdint.h>

#include "../ext/base/status.h"

/* Seconds that a client assertion is valid. */
#define TDE_ASSERTION_SECONDS 600

/* header.payload.signature; header and payload are JSON texts as they are. *out
** is secret memory, the caller's. TDE_CRYPTO, TDE_NOMEM. */
tde_class tde_jwt_rs256(EVP_PKEY *key, const char *header, const char *payload, char **out,
                        tde_status *st);

/* The assertion by which client_id proves to audience (the token endpoint) that
** it holds the certificate and private key in pem (n bytes, both parts, the key
** unencrypted). now: Unix time. TDE_MISCONFIGURED: pem lacks one of them, they
** do not belong together, or the key is not RSA. */
tde_class tde_jwt_client_assertion(const char *pem, size_t n, const char *audience,
                                   const char *client_id, int64_t now, char **out, tde_status *st);

#endif
