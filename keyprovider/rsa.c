/*
** rsa.c: RSA-OAEP-256 and thumbprints, through OpenSSL's EVP.
**
** What must hold: a plaintext key exists in secret memory only; the library's
** error queue is left as it was found, since the host has one queue a thread
** too; a failed unwrap says nothing about why (RFC 8017 section 7.1.2 note).
*/
#include "rsa.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/rsa.h>
#include <stdio.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"

#define RSA_MAX_BYTES 512 /* 4096 bits */

static tde_class crypto_failed(tde_status *st, const char *what) {
  return tde_fail(st, TDE_CRYPTO, "check this process's OpenSSL configuration",
                  "the crypto library failed to %s", what);
}

tde_class tde_rsa_thumbprint(const uint8_t *n, size_t nn, const uint8_t *e, size_t ne,
                             uint8_t out[TDE_THUMB_BYTES], tde_status *st) {
  char n64[4 * ((RSA_MAX_BYTES + 2) / 3) + 1], e64[16], jwk[sizeof n64 + 64];
  while (nn > 0 && n[0] == 0) n++, nn--;
  while (ne > 0 && e[0] == 0) e++, ne--;
  if (nn == 0 || nn > RSA_MAX_BYTES || ne == 0 || ne > 8) {
    return tde_fail(st, TDE_CORRUPT, NULL, "a public key has a modulus or exponent of bad length");
  }
  tde_base64url(n, nn, n64);
  tde_base64url(e, ne, e64);
  /* Members in lexical order, no white space: RFC 7638 section 3.3. */
  int len = snprintf(jwk, sizeof jwk, "{\"e\":\"%s\",\"kty\":\"RSA\",\"n\":\"%s\"}", e64, n64);
  if (len < 0 || (size_t)len >= sizeof jwk) {
    return tde_fail(st, TDE_INTERNAL, NULL, "the thumbprint's buffer is too small");
  }
  if (tde_sha256(jwk, (size_t)len, out) != TDE_OK) return crypto_failed(st, "hash a public key");
  return TDE_OK;
}

/* One of the key's public numbers, big endian; 0 on failure. */
static size_t public_number(EVP_PKEY *key, const char *name, uint8_t out[RSA_MAX_BYTES]) {
  BIGNUM *bn = NULL;
  size_t n = 0;
  if (EVP_PKEY_get_bn_param(key, name, &bn) == 1 && BN_num_bytes(bn) <= RSA_MAX_BYTES) {
    n = (size_t)BN_bn2bin(bn, out);
  }
  BN_free(bn);
  return n;
}

tde_class tde_rsa_info(EVP_PKEY *key, tde_key_info *info, tde_status *st) {
  uint8_t n[RSA_MAX_BYTES], e[RSA_MAX_BYTES];
  int bits = EVP_PKEY_get_bits(key);
  if (!EVP_PKEY_is_a(key, "RSA") || (bits != 2048 && bits != 3072 && bits != 4096)) {
    return tde_fail(st, TDE_UNSUPPORTED, "use an RSA key of 2048, 3072 or 4096 bits",
                    "the key is not RSA of 2048, 3072 or 4096 bits");
  }
  size_t nn = public_number(key, OSSL_PKEY_PARAM_RSA_N, n);
  size_t ne = public_number(key, OSSL_PKEY_PARAM_RSA_E, e);
  if (nn == 0 || ne == 0) return crypto_failed(st, "read a public key");
  snprintf(info->type, sizeof info->type, "RSA-%d", bits);
  snprintf(info->algorithm, sizeof info->algorithm, "%s", TDE_RSA_OAEP_256);
  info->enabled = 1;
  return tde_rsa_thumbprint(n, nn, e, ne, info->thumbprint, st);
}

int tde_no_password(char *buf, int size, int rwflag, void *arg) {
  (void)buf, (void)size, (void)rwflag, (void)arg;
  return -1;
}

tde_class tde_rsa_generate(int bits, EVP_PKEY **out, tde_status *st) {
  ERR_set_mark();
  *out = EVP_RSA_gen((unsigned int)bits);
  ERR_pop_to_mark();
  return *out != NULL ? TDE_OK : crypto_failed(st, "make an RSA key pair");
}

/* A context set to RSA-OAEP-256, or NULL. */
static EVP_PKEY_CTX *oaep(EVP_PKEY *key, int (*init)(EVP_PKEY_CTX *)) {
  EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
  if (ctx != NULL && init(ctx) == 1 &&
      EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) == 1 &&
      EVP_PKEY_CTX_set_rsa_oaep_md(ctx, EVP_sha256()) == 1 &&
      EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, EVP_sha256()) == 1) {
    return ctx;
  }
  EVP_PKEY_CTX_free(ctx);
  return NULL;
}

tde_class tde_rsa_wrap(EVP_PKEY *key, const uint8_t *dek, uint8_t wrapped[TDE_WRAPPED_MAX],
                       size_t *nwrapped, tde_status *st) {
  size_t n = TDE_WRAPPED_MAX;
  ERR_set_mark();
  EVP_PKEY_CTX *ctx = oaep(key, EVP_PKEY_encrypt_init);
  int ok = ctx != NULL && EVP_PKEY_encrypt(ctx, wrapped, &n, dek, TDE_KEY_BYTES) == 1;
  EVP_PKEY_CTX_free(ctx);
  ERR_pop_to_mark();
  *nwrapped = ok ? n : 0;
  return ok ? TDE_OK : crypto_failed(st, "wrap a key");
}

tde_class tde_rsa_unwrap(EVP_PKEY *key, const uint8_t *wrapped, size_t nwrapped, uint8_t *dek,
                         tde_status *st) {
  tde_class rc;
  size_t n = RSA_MAX_BYTES;
  if (nwrapped != (size_t)EVP_PKEY_get_size(key) || nwrapped > RSA_MAX_BYTES) {
    return tde_fail(st, TDE_CORRUPT,
                    "use the key that wrapped it, or restore the database from a backup",
                    "the wrapped key is %zu bytes long; this key makes %d", nwrapped,
                    EVP_PKEY_get_size(key));
  }
  /* The library wants room for the whole modulus, whatever the padding holds. */
  uint8_t *plain = tde_secret_alloc(RSA_MAX_BYTES);
  if (plain == NULL) return tde_nomem(st);
  ERR_set_mark();
  EVP_PKEY_CTX *ctx = oaep(key, EVP_PKEY_decrypt_init);
  if (ctx == NULL) {
    rc = crypto_failed(st, "prepare to unwrap a key");
  } else if (EVP_PKEY_decrypt(ctx, plain, &n, wrapped, nwrapped) != 1) {
    rc = tde_fail(st, TDE_WRONG_KEY,
                  "use the key that wrapped it, or restore the database from a backup",
                  "the wrapped key does not open: it was changed, or wrapped by another key");
  } else if (n != TDE_KEY_BYTES) {
    rc = tde_fail(st, TDE_CORRUPT, "restore the database from a backup",
                  "what the wrapped key holds is %zu bytes long, not %d", n, TDE_KEY_BYTES);
  } else {
    memcpy(dek, plain, TDE_KEY_BYTES);
    rc = TDE_OK;
  }
  EVP_PKEY_CTX_free(ctx);
  ERR_pop_to_mark();
  tde_secret_free(plain);
  return rc;
}
