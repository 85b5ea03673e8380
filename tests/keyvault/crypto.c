/*
** crypto.c: base64url, JSON web signatures, RSA-OAEP and certificates.
**
** JWS: RFC 7515; RS256 and PS256: RFC 7518 section 3; x5t: RFC 7515 section
** 4.1.7. Keys and certificates live for one run of the server.
*/
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#include "kv.h"

char *kv_base64url(const uint8_t *p, size_t n) {
  char *out = malloc(4 * ((n + 2) / 3) + 1);
  size_t i, len;

  if (!out) return NULL;
  out[0] = 0;
  if (n > 0) EVP_EncodeBlock((unsigned char *)out, p, (int)n);
  len = strcspn(out, "=");
  out[len] = 0;
  for (i = 0; i < len; i++) {
    if (out[i] == '+') out[i] = '-';
    if (out[i] == '/') out[i] = '_';
  }
  return out;
}

static int sextet(char c) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const char *at = c ? strchr(digits, c) : NULL;

  return at ? (int)(at - digits) : -1;
}

uint8_t *kv_unbase64url(const char *text, size_t *n) {
  size_t len = strlen(text), i;
  uint32_t bits = 0;
  int have = 0;
  uint8_t *out;

  while (len > 0 && text[len - 1] == '=') len--;
  out = malloc(len + 1);
  *n = 0;
  for (i = 0; out && i < len; i++) {
    int v = sextet(text[i]);

    if (v < 0) {
      free(out);
      return NULL;
    }
    bits = (bits << 6) | (uint32_t)v;
    have += 6;
    if (have >= 8) {
      have -= 8;
      out[(*n)++] = (uint8_t)(bits >> have);
    }
  }
  return out;
}

void kv_random_hex(char *out, size_t nbytes) {
  unsigned char b[64];
  size_t i;

  if (nbytes > sizeof(b) || RAND_bytes(b, (int)nbytes) != 1) abort();
  for (i = 0; i < nbytes; i++) snprintf(out + 2 * i, 3, "%02x", b[i]);
}

void kv_uuid(char out[37]) {
  char h[33];

  kv_random_hex(h, 16);
  snprintf(out, 37, "%.8s-%.4s-4%.3s-a%.3s-%.12s", h, h + 8, h + 13, h + 17, h + 20);
}

static char *encode_json(json_t *value) {
  char *text = json_dumps(value, JSON_COMPACT), *out = NULL;

  if (text) out = kv_base64url((const uint8_t *)text, strlen(text));
  free(text);
  return out;
}

char *kv_jwt_sign(EVP_PKEY *key, json_t *claims) {
  json_t *header = json_pack("{s:s,s:s}", "alg", "RS256", "typ", "JWT");
  char *h = encode_json(header), *c = encode_json(claims), *s = NULL, *out = NULL;
  size_t n = h && c ? strlen(h) + strlen(c) + 2 : 0, nsig = 0;
  EVP_MD_CTX *md = EVP_MD_CTX_new();
  uint8_t *sig = NULL;
  char *input = n ? malloc(n) : NULL;

  json_decref(header);
  if (!input || !md) goto end;
  snprintf(input, n, "%s.%s", h, c);
  if (EVP_DigestSignInit(md, NULL, EVP_sha256(), NULL, key) != 1 ||
      EVP_DigestSign(md, NULL, &nsig, (uint8_t *)input, n - 1) != 1)
    goto end;
  sig = malloc(nsig);
  if (!sig || EVP_DigestSign(md, sig, &nsig, (uint8_t *)input, n - 1) != 1) goto end;
  s = kv_base64url(sig, nsig);
  out = s ? malloc(n + strlen(s) + 1) : NULL;
  if (out) snprintf(out, n + strlen(s) + 1, "%s.%s", input, s);
end:
  EVP_MD_CTX_free(md);
  free(h);
  free(c);
  free(s);
  free(sig);
  free(input);
  return out;
}

json_t *kv_jwt_part(const char *jwt, int part) {
  const char *from = jwt;
  char *text;
  uint8_t *bytes;
  size_t n;
  json_t *out = NULL;

  while (part-- > 0) {
    from = strchr(from, '.');
    if (!from) return NULL;
    from++;
  }
  text = strndup(from, strcspn(from, "."));
  bytes = text ? kv_unbase64url(text, &n) : NULL;
  if (bytes) out = json_loadb((char *)bytes, n, 0, NULL);
  free(text);
  free(bytes);
  return out;
}

json_t *kv_jwt_verify(EVP_PKEY *key, const char *jwt) {
  const char *last = strrchr(jwt, '.');
  json_t *header = kv_jwt_part(jwt, 0), *out = NULL;
  const char *alg = json_string_value(json_object_get(header, "alg"));
  EVP_MD_CTX *md = EVP_MD_CTX_new();
  EVP_PKEY_CTX *ctx = NULL;
  uint8_t *sig = NULL;
  size_t nsig;
  bool pss = alg && strcmp(alg, "PS256") == 0;

  if (!last || !alg || !md || (!pss && strcmp(alg, "RS256") != 0)) goto end;
  sig = kv_unbase64url(last + 1, &nsig);
  if (!sig || EVP_DigestVerifyInit(md, &ctx, EVP_sha256(), NULL, key) != 1) goto end;
  if (pss && (EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PSS_PADDING) != 1 ||
              EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, RSA_PSS_SALTLEN_DIGEST) != 1))
    goto end;
  if (EVP_DigestVerify(md, sig, nsig, (const uint8_t *)jwt, (size_t)(last - jwt)) == 1)
    out = kv_jwt_part(jwt, 1);
end:
  json_decref(header);
  EVP_MD_CTX_free(md);
  free(sig);
  return out;
}

static bool digest_is(X509 *certificate, const EVP_MD *md, const char *text) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned n;
  char *ours = NULL;
  bool same;

  if (!text || X509_digest(certificate, md, hash, &n) != 1) return false;
  ours = kv_base64url(hash, n);
  same = ours && strcmp(ours, text) == 0;
  free(ours);
  return same;
}

bool kv_jwt_names(const char *jwt, X509 *certificate) {
  json_t *header = kv_jwt_part(jwt, 0);
  bool named = digest_is(certificate, EVP_sha1(),
                         json_string_value(json_object_get(header, "x5t"))) ||
               digest_is(certificate, EVP_sha256(),
                         json_string_value(json_object_get(header, "x5t#S256")));

  json_decref(header);
  return named;
}

uint8_t *kv_rsa(EVP_PKEY *key, bool wrap, bool sha256, const uint8_t *in, size_t nin,
                size_t *nout) {
  EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key, NULL);
  const EVP_MD *md = sha256 ? EVP_sha256() : EVP_sha1();
  int (*turn)(EVP_PKEY_CTX *, unsigned char *, size_t *, const unsigned char *,
              size_t) = wrap ? EVP_PKEY_encrypt : EVP_PKEY_decrypt;
  uint8_t *out = NULL;

  if (!ctx || (wrap ? EVP_PKEY_encrypt_init(ctx) : EVP_PKEY_decrypt_init(ctx)) != 1 ||
      EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_OAEP_PADDING) != 1 ||
      EVP_PKEY_CTX_set_rsa_oaep_md(ctx, md) != 1 || EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, md) != 1 ||
      turn(ctx, NULL, nout, in, nin) != 1)
    goto end;
  out = malloc(*nout);
  if (out && turn(ctx, out, nout, in, nin) != 1) {
    free(out);
    out = NULL;
  }
end:
  EVP_PKEY_CTX_free(ctx);
  return out;
}

static json_t *number_member(EVP_PKEY *key, const char *param) {
  BIGNUM *bn = NULL;
  unsigned char b[1024];
  char *text = NULL;
  json_t *out = NULL;

  if (EVP_PKEY_get_bn_param(key, param, &bn) == 1 && BN_num_bytes(bn) <= (int)sizeof(b))
    text = kv_base64url(b, (size_t)BN_bn2bin(bn, b));
  if (text) out = json_string(text);
  BN_free(bn);
  free(text);
  return out;
}

json_t *kv_public_jwk(const kv_version *key, const char *kid) {
  json_t *out = json_pack("{s:s,s:s,s:O}", "kid", kid, "kty", key->kty, "key_ops", key->ops);

  if (key->pkey) {
    json_object_set_new(out, "n", number_member(key->pkey, "n"));
    json_object_set_new(out, "e", number_member(key->pkey, "e"));
  }
  return out;
}

uint8_t *kv_aes_wrap(const kv_version *key, bool wrap, const uint8_t *in, size_t nin,
                     size_t *nout) {
  const EVP_CIPHER *cipher = key->noct == 16   ? EVP_aes_128_wrap()
                             : key->noct == 24 ? EVP_aes_192_wrap()
                                               : EVP_aes_256_wrap();
  EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
  uint8_t *out = malloc(nin + 16);
  int n = 0, tail = 0;

  if (ctx) EVP_CIPHER_CTX_set_flags(ctx, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
  if (!ctx || !out || nin > 4096 ||
      EVP_CipherInit_ex(ctx, cipher, NULL, key->oct, NULL, wrap) != 1 ||
      EVP_CipherUpdate(ctx, out, &n, in, (int)nin) != 1 ||
      EVP_CipherFinal_ex(ctx, out + n, &tail) != 1 || n + tail <= 0) {
    free(out);
    out = NULL;
  }
  EVP_CIPHER_CTX_free(ctx);
  *nout = (size_t)(n + tail);
  return out;
}

/* ---- certificates ---- */

static int add_extension(X509 *x, X509 *issuer, int nid, const char *value) {
  X509V3_CTX ctx;
  X509_EXTENSION *e;
  int ok;

  X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
  e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
  ok = e && X509_add_ext(x, e, -1) == 1;
  X509_EXTENSION_free(e);
  return ok;
}

/* issuer NULL: self-signed. from and until: seconds from now. */
static X509 *certificate(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *signer, long from,
                         long until, const char *san) {
  X509 *x = X509_new();
  X509_NAME *subject = x ? X509_get_subject_name(x) : NULL;
  uint64_t serial = 0;
  int ok = x && RAND_bytes((unsigned char *)&serial, 7) == 1 && X509_set_version(x, 2) &&
           ASN1_INTEGER_set_uint64(X509_get_serialNumber(x), serial) &&
           X509_gmtime_adj(X509_getm_notBefore(x), from) &&
           X509_gmtime_adj(X509_getm_notAfter(x), until) && X509_set_pubkey(x, key) &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1,
                                      -1, 0) &&
           X509_set_issuer_name(x, issuer ? X509_get_subject_name(issuer) : subject);

  if (ok && !issuer)
    ok = add_extension(x, x, NID_basic_constraints,
                       san ? "critical,CA:FALSE" : "critical,CA:TRUE") &&
         add_extension(x, x, NID_subject_key_identifier, "hash");
  if (ok && issuer)
    ok = add_extension(x, issuer, NID_basic_constraints, "critical,CA:FALSE") &&
         add_extension(x, issuer, NID_ext_key_usage, "serverAuth") &&
         add_extension(x, issuer, NID_authority_key_identifier, "keyid");
  if (ok && !issuer && !san)
    ok = add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign");
  if (ok && san) ok = add_extension(x, issuer ? issuer : x, NID_subject_alt_name, san);
  if (ok && X509_sign(x, issuer ? signer : key, EVP_sha256()) > 0) return x;
  X509_free(x);
  return NULL;
}

/* key may be NULL; the certificates a and b too. */
static char *pem(EVP_PKEY *key, X509 *a, X509 *b) {
  BIO *bio = BIO_new(BIO_s_mem());
  char *data, *out = NULL;
  long n;
  int ok = bio && (!key || PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1) &&
           (!a || PEM_write_bio_X509(bio, a) == 1) && (!b || PEM_write_bio_X509(bio, b) == 1);

  if (ok && (n = BIO_get_mem_data(bio, &data)) > 0) out = strndup(data, (size_t)n);
  BIO_free(bio);
  return out;
}

kv_certificate kv_certificate_of(const char *name) {
  static const char *const names[] = {"good", "expired", "wrong-host", "unknown-ca"};
  int i = 0;

  while (i < KV_CERTIFICATES && (!name || strcmp(names[i], name) != 0)) i++;
  return (kv_certificate)i;
}

static int make_leaf(kv_certificate kind, X509 *ca, EVP_PKEY *cakey, kv_tls *out) {
  const char *san = kind == KV_WRONG_HOST ? "DNS:elsewhere.invalid"
                                          : "DNS:*." KV_SUFFIX ",DNS:*." KV_HSM_SUFFIX
                                            ",DNS:" KV_LOGIN ",DNS:" KV_TRANSIT ",DNS:localhost,IP:127.0.0.1";
  bool expired = kind == KV_EXPIRED;
  EVP_PKEY *key = EVP_EC_gen("P-256");
  X509 *leaf = key ? certificate("Test key server", key, ca, cakey, expired ? -2 * 86400 : -3600,
                                 expired ? -86400 : 30 * 86400, san)
                   : NULL;

  out->key = leaf ? pem(key, NULL, NULL) : NULL;
  out->chain = leaf ? pem(NULL, leaf, ca) : NULL;
  X509_free(leaf);
  EVP_PKEY_free(key);
  return out->key && out->chain ? 0 : -1;
}

int kv_tls_make(kv_tls out[KV_CERTIFICATES], char **ca_pem) {
  EVP_PKEY *key = EVP_EC_gen("P-256"), *otherkey = EVP_EC_gen("P-256");
  X509 *ca = NULL, *other = NULL;
  int kind, rc = -1;

  *ca_pem = NULL;
  if (key && otherkey) {
    ca = certificate("Test key server CA", key, NULL, NULL, -3 * 86400, 30 * 86400, NULL);
    other = certificate("Another CA", otherkey, NULL, NULL, -86400, 30 * 86400, NULL);
  }
  if (ca && other) {
    *ca_pem = pem(NULL, ca, NULL);
    rc = *ca_pem ? 0 : -1;
  }
  for (kind = 0; rc == 0 && kind < KV_CERTIFICATES; kind++) {
    bool stranger = kind == KV_UNKNOWN_CA;

    rc = make_leaf((kv_certificate)kind, stranger ? other : ca, stranger ? otherkey : key,
                   &out[kind]);
  }
  X509_free(ca);
  X509_free(other);
  EVP_PKEY_free(key);
  EVP_PKEY_free(otherkey);
  return rc;
}

int kv_client_certificate(const char *name, X509 **cert, char **pem_out) {
  EVP_PKEY *key = EVP_RSA_gen(2048);

  *pem_out = NULL;
  *cert = key ? certificate(name, key, NULL, NULL, -3600, 30 * 86400, "URI:urn:test-client") : NULL;
  if (*cert) *pem_out = pem(key, *cert, NULL);
  EVP_PKEY_free(key);
  return *pem_out ? 0 : -1;
}
