/*
** jwt.c: signed assertions for token requests, through OpenSSL's EVP.
**
** What must hold: a private key is in the crypto library's memory only, which
** wipes it; the library's error queue is left as it was found; each assertion
** has an id of its own, so that a service can refuse a replayed one.
*/
#include "jwt.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"
#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "json.h"
#include "request.h"
#include "rsa.h"

#define SIGNATURE_MAX 1024 /* bytes: RSA of 8192 bits */

/* Signs the n bytes at text; 0 on failure. */
static size_t sign(EVP_PKEY *key, const char *text, size_t n, uint8_t out[SIGNATURE_MAX]) {
  size_t len = SIGNATURE_MAX;
  ERR_set_mark();
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  /* PKCS#1 v1.5 is the library's padding for RSA unless told otherwise. */
  int ok = ctx != NULL && EVP_PKEY_get_size(key) <= SIGNATURE_MAX &&
           EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) == 1 &&
           EVP_DigestSign(ctx, out, &len, (const unsigned char *)text, n) == 1;
  EVP_MD_CTX_free(ctx);
  ERR_pop_to_mark();
  return ok ? len : 0;
}

tde_class tde_jwt_rs256(EVP_PKEY *key, const char *header, const char *payload, char **out,
                        tde_status *st) {
  uint8_t signature[SIGNATURE_MAX];
  tde_sbuf s;
  size_t nh = strlen(header), np = strlen(payload), nsig = 0;
  *out = NULL;
  if (nh > 4096 || np > 8192) return tde_fail(st, TDE_MISUSE, NULL, "an assertion too large");
  tde_sbuf_init(&s, 4 * (nh + np + SIGNATURE_MAX) / 3 + 32);
  tde_sbuf_base64url(&s, (const uint8_t *)header, nh);
  tde_sbuf_add(&s, ".");
  tde_sbuf_base64url(&s, (const uint8_t *)payload, np);
  if (!s.bad) {
    nsig = sign(key, s.p, s.n, signature);
    if (nsig == 0) {
      tde_sbuf_free(&s);
      return tde_fail(st, TDE_CRYPTO, "check the key of the identity's certificate",
                      "the crypto library failed to sign an assertion");
    }
  }
  tde_sbuf_add(&s, ".");
  tde_sbuf_base64url(&s, signature, nsig);
  *out = tde_sbuf_take(&s);
  return *out != NULL ? TDE_OK : tde_nomem(st);
}

/* Certificate and key out of one text, in either order. */
static tde_class read_pair(const char *pem, size_t n, X509 **cert, EVP_PKEY **key,
                           tde_status *st) {
  *cert = NULL;
  *key = NULL;
  ERR_set_mark();
  BIO *a = BIO_new_mem_buf(pem, (int)n), *b = BIO_new_mem_buf(pem, (int)n);
  if (a != NULL) *cert = PEM_read_bio_X509(a, NULL, tde_no_password, NULL);
  if (b != NULL) *key = PEM_read_bio_PrivateKey(b, NULL, tde_no_password, NULL);
  BIO_free(a);
  BIO_free(b);
  const char *why = NULL;
  if (*cert == NULL || *key == NULL) why = "holds no certificate and unencrypted private key in PEM form";
  else if (!EVP_PKEY_is_a(*key, "RSA")) why = "holds a key that is not RSA";
  else if (X509_check_private_key(*cert, *key) != 1) why = "holds a certificate of another key";
  ERR_pop_to_mark();
  if (why == NULL) return TDE_OK;
  return tde_fail(st, TDE_MISCONFIGURED, "correct \"certificate_file\": certificate and RSA key, PEM",
                  "the identity's certificate file %s", why);
}

/* The claims as JSON, malloc'd; NULL: out of memory. */
static char *claims(const char *audience, const char *client_id, const char *id, int64_t now) {
  tde_json *root = tde_json_object();
  int failed = tde_json_set_text(root, "aud", audience) |
               tde_json_set_text(root, "iss", client_id) |
               tde_json_set_text(root, "sub", client_id) | tde_json_set_text(root, "jti", id) |
               tde_json_set_int(root, "nbf", now) | tde_json_set_int(root, "iat", now) |
               tde_json_set_int(root, "exp", now + TDE_ASSERTION_SECONDS);
  char *text = failed ? NULL : tde_json_text(root, NULL);
  tde_json_free(root);
  return text;
}

tde_class tde_jwt_client_assertion(const char *pem, size_t n, const char *audience,
                                   const char *client_id, int64_t now, char **out,
                                   tde_status *st) {
  X509 *cert = NULL;
  EVP_PKEY *key = NULL;
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int ndigest = 0;
  uint8_t raw[16];
  char id[37], x5t[64], header[128];
  char *payload = NULL;
  *out = NULL;
  tde_class rc = read_pair(pem, n, &cert, &key, st);
  if (rc == TDE_OK) rc = tde_random(raw, sizeof raw, st);
  if (rc == TDE_OK) {
    tde_uuid_text(raw, id);
    payload = claims(audience, client_id, id, now);
    if (payload == NULL) rc = tde_nomem(st);
  }
  if (rc == TDE_OK && (X509_digest(cert, EVP_sha1(), digest, &ndigest) != 1 || ndigest != 20)) {
    rc = tde_fail(st, TDE_CRYPTO, NULL, "the crypto library failed to hash a certificate");
  }
  if (rc == TDE_OK) {
    tde_base64url(digest, ndigest, x5t);
    snprintf(header, sizeof header, "{\"alg\":\"RS256\",\"typ\":\"JWT\",\"x5t\":\"%s\"}", x5t);
    rc = tde_jwt_rs256(key, header, payload, out, st);
  }
  free(payload);
  EVP_PKEY_free(key);
  X509_free(cert);
  return rc;
}
