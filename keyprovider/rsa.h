/*
** rsa.h: RSA keys as key-encryption keys.
**
** OAEP is RFC 8017 section 7.1 with SHA-256 as hash and in MGF1 and an empty
** label, named "RSA-OAEP-256" in RFC 7518 section 4.3. A thumbprint is the
** SHA-256 of the public key's JWK in the form of RFC 7638 section 3.
*/
#ifndef TDE_RSA_H
#define TDE_RSA_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

#include "provider.h"

#define TDE_RSA_OAEP_256 "RSA-OAEP-256"

/* The thumbprint of a public key; modulus and exponent are unsigned, big
** endian; leading zero bytes do not count. TDE_CORRUPT: empty, or longer than
** 4096 bits. Needs no key object: a service's reply names n and e. */
tde_class tde_rsa_thumbprint(const uint8_t *n, size_t nn, const uint8_t *e, size_t ne,
                             uint8_t out[TDE_THUMB_BYTES], tde_status *st);

/* Fills type, algorithm, thumbprint and enabled of info from an RSA key of
** 2048, 3072 or 4096 bits; any other key is TDE_UNSUPPORTED. */
tde_class tde_rsa_info(EVP_PKEY *key, tde_key_info *info, tde_status *st);

/* For OpenSSL's readers of PEM: an encrypted one must fail, not ask for a password on the
** host's terminal. */
int tde_no_password(char *buf, int size, int rwflag, void *arg);

/* A new key pair, free with EVP_PKEY_free. */
tde_class tde_rsa_generate(int bits, EVP_PKEY **out, tde_status *st);

/* Wraps TDE_KEY_BYTES; *nwrapped becomes the modulus' length. */
tde_class tde_rsa_wrap(EVP_PKEY *key, const uint8_t *dek, uint8_t wrapped[TDE_WRAPPED_MAX],
                       size_t *nwrapped, tde_status *st);
/* Unwraps to exactly TDE_KEY_BYTES in dek (secret memory). TDE_CORRUPT: the
** wrapped key has another length than this key makes, or holds something that
** is no DEK. TDE_WRONG_KEY: it does not open; OAEP does not tell whether it was
** changed or belongs to another key. */
tde_class tde_rsa_unwrap(EVP_PKEY *key, const uint8_t *wrapped, size_t nwrapped, uint8_t *dek,
                         tde_status *st);

#endif
