/*
** transit.c: the Transit engine of HashiCorp Vault and OpenBao, and how one logs in to them.
**
** The host bao.localtest. Paths are below /v1/, with namespaces as a part of them. Real keys: what is
** encrypted is decrypted by this key and version alone, with the associated data that it was given.
** Replies and errors are those of the API's reference and of the engine's own texts
** (keysutil/policy.go, path_encrypt.go, path_decrypt.go, logical/response_util.go).
**
** Who asks has a policy: paths (one '*' at the end) with their capabilities, which the admin port changes.
*/
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kv.h"

#define TAG 16
#define NONCE 12
#define VERSIONS 32

typedef struct tr_version {
  uint8_t oct[32];
  EVP_PKEY *pkey; /* NULL: a symmetric key */
  int64_t created;
} tr_version;

typedef struct tr_key {
  char mount[128], name[128], type[32];
  tr_version v[VERSIONS]; /* version 1 at 0 */
  int n, min_decryption, min_encryption, min_available;
  bool deletion_allowed, exportable, backup, derived;
  struct tr_key *next;
} tr_key;

typedef struct tr_token {
  char text[64];
  const char *identity;
  int64_t expires, limit; /* 0: never */
  bool revoked;
  struct tr_token *next;
} tr_token;

static json_t *conf; /* the "transit" member of the configuration, with what was changed since */
static tr_key *keys;
static tr_token *tokens;
static bool sealed, old; /* old: of a server that does not know associated data */
static int64_t ttl = 3600;

typedef struct call {
  kv_request *r;
  json_t *body;
  char *path;         /* below /v1/ */
  char *mount, *name; /* of a key's path */
  const char *rest;   /* what follows the key's name, or "" */
  const char *identity;
} call;

static const char *text(json_t *object, const char *name) {
  const char *value = json_string_value(json_object_get(object, name));

  return value ? value : "";
}

bool kv_is_transit_host(const char *host) {
  return strcmp(host, KV_TRANSIT) == 0;
}

bool kv_transit_has(const char *operation) {
  static const char *const names[] = {
      "transitRead",    "transitCreate",  "transitConfig", "transitRotate", "transitDelete",
      "transitEncrypt", "transitDecrypt", "transitLogin",  "transitRenew",  "transitTrim"};
  size_t i;

  for (i = 0; operation && i < sizeof(names) / sizeof(names[0]); i++) {
    if (strcmp(names[i], operation) == 0) return true;
  }
  return false;
}

void kv_transit_error(kv_request *r, int status, const char *why) {
  kv_reply(r, status, why ? json_pack("{s:[s]}", "errors", why) : json_pack("{s:[]}", "errors"));
}

/* As Vault wraps an error of the core. */
static void core_error(kv_request *r, int status, const char *why) {
  char whole[300];

  snprintf(whole, sizeof(whole), "1 error occurred:\n\t* %s\n\n", why);
  kv_transit_error(r, status, whole);
}

static void data_reply(const call *c, json_t *data) {
  kv_reply(c->r, 200,
           json_pack("{s:s,s:s,s:b,s:i,s:o,s:n,s:n,s:n}", "request_id", c->r->id, "lease_id", "",
                     "renewable", 0, "lease_duration", 0, "data", data, "wrap_info", "warnings",
                     "auth"));
}

/* ---- base64 of RFC 4648 section 4 ---- */

static char *base64(const uint8_t *p, size_t n) {
  char *out = malloc(4 * ((n + 2) / 3) + 1);

  if (out) EVP_EncodeBlock((unsigned char *)out, p, (int)n);
  return out;
}

static uint8_t *unbase64(const char *in, size_t *n) {
  size_t len = strlen(in), pad = 0;
  uint8_t *out = len % 4 == 0 ? malloc(len / 4 * 3 + 1) : NULL;
  int got = out ? EVP_DecodeBlock(out, (const unsigned char *)in, (int)len) : -1;

  while (pad < 2 && pad < len && in[len - 1 - pad] == '=') pad++;
  if (got < 0 || (size_t)got < pad) {
    free(out);
    return NULL;
  }
  *n = (size_t)got - pad;
  return out;
}

/* ---- keys ---- */

static tr_key *find_key(const char *mount, const char *name) {
  tr_key *k = keys;

  while (k && (strcmp(k->mount, mount) != 0 || strcmp(k->name, name) != 0)) k = k->next;
  return k;
}

static bool symmetric(const tr_key *k) {
  return strncmp(k->type, "rsa-", 4) != 0;
}

static bool add_version(tr_key *k) {
  tr_version *v = &k->v[k->n];

  if (k->n == VERSIONS) return false;
  memset(v, 0, sizeof(*v));
  v->created = kv_now();
  if (symmetric(k)) {
    if (RAND_bytes(v->oct, sizeof(v->oct)) != 1) abort();
  } else {
    v->pkey = EVP_RSA_gen((unsigned)strtoul(k->type + 4, NULL, 10));
    if (!v->pkey) return false;
  }
  k->n++;
  return true;
}

static tr_key *add_key(const char *mount, const char *name, const char *type) {
  static const char *const types[] = {"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305",
                                      "rsa-2048",     "rsa-3072",     "rsa-4096"};
  tr_key *k;
  size_t i = 0;

  while (i < sizeof(types) / sizeof(types[0]) && strcmp(types[i], type) != 0) i++;
  if (i == sizeof(types) / sizeof(types[0])) return NULL;
  k = calloc(1, sizeof(*k));
  if (!k) abort();
  snprintf(k->mount, sizeof(k->mount), "%s", mount);
  snprintf(k->name, sizeof(k->name), "%s", name);
  snprintf(k->type, sizeof(k->type), "%s", type);
  k->min_decryption = 1;
  if (!add_version(k)) abort();
  k->next = keys;
  keys = k;
  return k;
}

static void free_key(tr_key *k) {
  int i;

  for (i = 0; i < k->n; i++) EVP_PKEY_free(k->v[i].pkey);
  free(k);
}

static void drop_key(tr_key *k) {
  tr_key **at = &keys;

  while (*at != k) at = &(*at)->next;
  *at = k->next;
  free_key(k);
}

static json_t *public_part(const tr_version *v, const char *type) {
  BIO *bio = BIO_new(BIO_s_mem());
  char when[32], *data;
  json_t *out;
  long n;

  if (!bio || PEM_write_bio_PUBKEY(bio, v->pkey) != 1) abort();
  n = BIO_get_mem_data(bio, &data);
  kv_time_text(v->created, when);
  out = json_pack("{s:s,s:s,s:s%}", "name", type, "creation_time", when, "public_key", data,
                  (size_t)n);
  BIO_free(bio);
  return out;
}

static json_t *describe(const tr_key *k) {
  json_t *versions = json_object();
  char number[12];
  int i;

  /* The older ones are archived. */
  for (i = k->min_decryption; i <= k->n; i++) {
    snprintf(number, sizeof(number), "%d", i);
    json_object_set_new(
        versions, number,
        symmetric(k) ? json_integer(k->v[i - 1].created) : public_part(&k->v[i - 1], k->type));
  }
  return json_pack("{s:s,s:s,s:b,s:b,s:b,s:b,s:i,s:i,s:i,s:i,s:b,s:b,s:o}", "name", k->name, "type",
                   k->type, "derived", k->derived, "deletion_allowed", k->deletion_allowed,
                   "exportable", k->exportable, "allow_plaintext_backup", k->backup,
                   "min_available_version", k->min_available, "min_decryption_version",
                   k->min_decryption, "min_encryption_version", k->min_encryption, "latest_version",
                   k->n, "supports_encryption", 1, "supports_decryption", 1, "keys", versions);
}

/* ---- encryption ---- */

/* One way or the other; NULL: it is not this key's, or other associated data. */
static uint8_t *aead(const tr_key *k, const tr_version *v, bool seal, const uint8_t *in, size_t nin,
                     const uint8_t *ad, size_t nad, size_t *nout) {
  const EVP_CIPHER *cipher = strcmp(k->type, "chacha20-poly1305") == 0 ? EVP_chacha20_poly1305()
                             : strcmp(k->type, "aes128-gcm96") == 0    ? EVP_aes_128_gcm()
                                                                       : EVP_aes_256_gcm();
  EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
  uint8_t *out = malloc(nin + NONCE + TAG), nonce[NONCE];
  const uint8_t *from = seal ? in : in + NONCE;
  uint8_t *to = seal ? out + NONCE : out;
  size_t body = seal ? nin : nin - NONCE - TAG;
  int n = 0, tail = 0;
  bool ok = ctx && out && (seal || nin >= NONCE + TAG);

  if (ok && seal) ok = RAND_bytes(nonce, NONCE) == 1;
  if (ok && !seal) memcpy(nonce, in, NONCE);
  ok = ok && EVP_CipherInit_ex(ctx, cipher, NULL, v->oct, nonce, seal) == 1 &&
       (nad == 0 || EVP_CipherUpdate(ctx, NULL, &n, ad, (int)nad) == 1) &&
       EVP_CipherUpdate(ctx, to, &n, from, (int)body) == 1;
  if (ok && !seal)
    ok = EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG,
                             (void *)(uintptr_t)(in + nin - TAG)) == 1;
  ok = ok && EVP_CipherFinal_ex(ctx, to + n, &tail) == 1;
  if (ok && seal) {
    memcpy(out, nonce, NONCE);
    ok = EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, out + NONCE + body) == 1;
  }
  EVP_CIPHER_CTX_free(ctx);
  *nout = seal ? NONCE + body + TAG : body;
  if (ok) return out;
  free(out);
  return NULL;
}

static void on_encrypt(call *c) {
  tr_key *k = find_key(c->mount, c->name);
  json_t *wanted = json_object_get(c->body, "key_version");
  int version = json_is_integer(wanted) ? (int)json_integer_value(wanted) : 0;
  size_t nin = 0, nad = 0, nout = 0;
  uint8_t *in = unbase64(text(c->body, "plaintext"), &nin),
          *ad = unbase64(text(c->body, "associated_data"), &nad), *out = NULL;
  char *b64 = NULL, whole[2000];

  /* Who may create on this path makes a key that is not there. */
  if (!k) k = add_key(c->mount, c->name, "aes256-gcm96");
  if (version == 0) version = k->n;
  if (!in || !ad) {
    kv_transit_error(c->r, 400, "failed to base64-decode plaintext");
  } else if (version > k->n) {
    kv_transit_error(c->r, 400,
                     "requested version for encryption is higher than the latest key version");
  } else if (version < k->min_encryption || version < 1) {
    kv_transit_error(
        c->r, 400,
        "requested version for encryption is less than the minimum encryption key version");
  } else if (nad > 0 && !symmetric(k) && !old) {
    kv_transit_error(c->r, 400, "[associated_data] provided for non-AEAD cipher suite");
  } else {
    if (old) nad = 0;
    out = symmetric(k) ? aead(k, &k->v[version - 1], true, in, nin, ad, nad, &nout)
                       : kv_rsa(k->v[version - 1].pkey, true, true, in, nin, &nout);
    b64 = out ? base64(out, nout) : NULL;
    if (!b64) abort();
    snprintf(whole, sizeof(whole), "vault:v%d:%s", version, b64);
    data_reply(c, json_pack("{s:s,s:i}", "ciphertext", whole, "key_version", version));
  }
  free(in), free(ad), free(out), free(b64);
}

/* "vault:vN:..." */
static const char *ciphertext_parts(const char *whole, long *version) {
  char *end = NULL;

  if (strncmp(whole, "vault:v", 7) != 0) return NULL;
  *version = strtol(whole + 7, &end, 10);
  return end && *end == ':' ? end + 1 : NULL;
}

static void on_decrypt(call *c) {
  tr_key *k = find_key(c->mount, c->name);
  long version = 0;
  const char *b64 = ciphertext_parts(text(c->body, "ciphertext"), &version);
  size_t nin = 0, nad = 0, nout = 0;
  uint8_t *in = NULL, *ad = NULL, *out = NULL;
  char *plain = NULL;

  if (!k) {
    kv_transit_error(c->r, 400, "encryption key not found");
  } else if (!b64) {
    kv_transit_error(c->r, 400, "invalid ciphertext: no prefix");
  } else if (version > k->n) {
    kv_transit_error(c->r, 400, "invalid ciphertext: version is too new");
  } else if (version < k->min_decryption) {
    kv_transit_error(c->r, 400,
                     "ciphertext or signature version is disallowed by policy (too old)");
  } else {
    in = unbase64(b64, &nin);
    ad = unbase64(text(c->body, "associated_data"), &nad);
    if (old) nad = 0;
    if (in && ad && symmetric(k)) out = aead(k, &k->v[version - 1], false, in, nin, ad, nad, &nout);
    if (in && ad && !symmetric(k))
      out = kv_rsa(k->v[version - 1].pkey, false, true, in, nin, &nout);
    plain = out ? base64(out, nout) : NULL;
    if (plain) {
      data_reply(c, json_pack("{s:s}", "plaintext", plain));
    } else if (symmetric(k)) {
      kv_transit_error(c->r, 400, "cipher: message authentication failed");
    } else {
      core_error(c->r, 500, "failed to RSA decrypt the ciphertext: crypto/rsa: decryption error");
    }
  }
  free(in), free(ad), free(out), free(plain);
}

/* ---- the other operations on keys ---- */

static void on_read(call *c) {
  tr_key *k = find_key(c->mount, c->name);

  if (k)
    data_reply(c, describe(k));
  else
    kv_transit_error(c->r, 404, NULL);
}

static void on_create(call *c) {
  const char *type = text(c->body, "type");
  tr_key *k = find_key(c->mount, c->name);

  if (!k) k = add_key(c->mount, c->name, type[0] ? type : "aes256-gcm96");
  if (!k) {
    kv_transit_error(c->r, 400, "unknown key type");
    return;
  }
  k->exportable |= json_is_true(json_object_get(c->body, "exportable"));
  k->backup |= json_is_true(json_object_get(c->body, "allow_plaintext_backup"));
  k->derived |= json_is_true(json_object_get(c->body, "derived"));
  data_reply(c, describe(k));
}

static void take_number(call *c, const char *name, int *out) {
  json_t *value = json_object_get(c->body, name);

  if (json_is_integer(value)) *out = (int)json_integer_value(value);
}

static void on_config(call *c) {
  tr_key *k = find_key(c->mount, c->name);
  json_t *deletion = json_object_get(c->body, "deletion_allowed");

  if (!k) {
    kv_transit_error(c->r, 400, "no existing key named so could be found");
    return;
  }
  take_number(c, "min_decryption_version", &k->min_decryption);
  take_number(c, "min_encryption_version", &k->min_encryption);
  take_number(c, "min_available_version", &k->min_available);
  if (json_is_boolean(deletion)) k->deletion_allowed = json_is_true(deletion);
  data_reply(c, describe(k));
}

static void on_rotate(call *c) {
  tr_key *k = find_key(c->mount, c->name);

  if (!k || !add_version(k))
    kv_transit_error(c->r, 400, "key not found");
  else
    data_reply(c, describe(k));
}

static void on_delete(call *c) {
  tr_key *k = find_key(c->mount, c->name);

  if (!k || !k->deletion_allowed) {
    kv_transit_error(
        c->r, 400, k ? "deletion is not allowed for this key" : "could not delete key; not found");
    return;
  }
  drop_key(k);
  kv_reply(c->r, 204, NULL);
}

/* ---- tokens ---- */

static json_t *identity_of(const char *name) {
  return json_object_get(json_object_get(conf, "identities"), name);
}

static tr_token *add_token(const char *identity, int64_t seconds) {
  tr_token *t = calloc(1, sizeof(*t));
  char random[41];

  if (!t) abort();
  kv_random_hex(random, 20);
  snprintf(t->text, sizeof(t->text), "hvs.%s", random);
  t->identity = identity;
  t->expires = seconds > 0 ? kv_now() + seconds : 0;
  t->limit = seconds > 0 ? kv_now() + 10 * seconds : 0;
  t->next = tokens;
  tokens = t;
  return t;
}

static tr_token *find_token(const char *value) {
  tr_token *t = tokens;

  while (t && (!value || strcmp(t->text, value) != 0)) t = t->next;
  return t && !t->revoked && (t->expires == 0 || kv_now() < t->expires) ? t : NULL;
}

void kv_transit_revoke(void) {
  tr_token *t;

  for (t = tokens; t; t = t->next) t->revoked |= t->expires != 0;
}

static void auth_reply(const call *c, const tr_token *t) {
  int64_t left = t->expires == 0 ? 0 : t->expires - kv_now();

  kv_reply(
      c->r, 200,
      json_pack("{s:s,s:n,s:{s:s,s:s,s:[s],s:I,s:b,s:s}}", "request_id", c->r->id, "data", "auth",
                "client_token", t->text, "accessor", "a", "policies", t->identity, "lease_duration",
                (json_int_t)left, "renewable", t->expires != 0, "token_type", "service"));
}

static void on_renew(call *c) {
  tr_token *t = find_token(kv_header(c->r, "X-Vault-Token"));

  if (!t || t->expires == 0) {
    kv_transit_error(c->r, 400, "lease is not renewable");
    return;
  }
  t->expires = kv_now() + ttl < t->limit ? kv_now() + ttl : t->limit;
  auth_reply(c, t);
}

/* The identity of that role, whose own secret this is. */
static void log_in(call *c, const char *kind) {
  const char *name;
  json_t *who;

  json_object_foreach(json_object_get(conf, "identities"), name, who) {
    bool approle = strcmp(kind, "approle") == 0;
    json_t *claims = approle ? NULL : kv_jwt_verify(kv_cluster_key, text(c->body, "jwt"));
    bool good = strcmp(text(who, "kind"), kind) == 0 &&
                strcmp(text(who, "role"), text(c->body, approle ? "role_id" : "role")) == 0 &&
                (approle ? strcmp(text(who, "secret"), text(c->body, "secret_id")) == 0
                         : strcmp(text(claims, "sub"), text(who, "subject")) == 0 &&
                               json_integer_value(json_object_get(claims, "exp")) > kv_now());

    json_decref(claims);
    if (!good) continue;
    snprintf(c->r->identity, sizeof(c->r->identity), "%s", name);
    if (kv_fault_met(c->r, true)) return;
    auth_reply(c, add_token(name, ttl));
    return;
  }
  kv_transit_error(
      c->r, 400,
      strcmp(kind, "approle") == 0 ? "invalid role or secret ID" : "error validating token");
}

/* ---- policies ---- */

static bool covers(const char *rule, const char *path) {
  size_t n = strlen(rule);

  if (n > 0 && rule[n - 1] == '*') return strncmp(rule, path, n - 1) == 0;
  return strcmp(rule, path) == 0;
}

static bool permitted(const char *identity, const char *path, const char *capability) {
  json_t *rules = json_object_get(identity_of(identity), "rules"), *list, *item;
  const char *rule;
  size_t i;

  json_object_foreach(rules, rule, list) {
    if (!covers(rule, path)) continue;
    json_array_foreach(list, i, item) {
      if (strcmp(json_string_value(item), capability) == 0) return true;
    }
  }
  return false;
}

static const struct op {
  const char *operation, *method, *verb, *rest, *capability;
  void (*perform)(call *);
} ops[] = {
    {"transitRead", "GET", "keys", "", "read", on_read},
    {"transitCreate", "POST", "keys", "", "update", on_create},
    {"transitDelete", "DELETE", "keys", "", "delete", on_delete},
    {"transitConfig", "POST", "keys", "config", "update", on_config},
    {"transitTrim", "POST", "keys", "trim", "update", on_config},
    {"transitRotate", "POST", "keys", "rotate", "update", on_rotate},
    {"transitEncrypt", "POST", "encrypt", "", "update", on_encrypt},
    {"transitDecrypt", "POST", "decrypt", "", "update", on_decrypt},
};

static bool is_mount(const char *path) {
  size_t i;
  json_t *item;

  json_array_foreach(json_object_get(conf, "mounts"), i, item) {
    if (strcmp(json_string_value(item), path) == 0) return true;
  }
  return false;
}

/* Splits MOUNT/VERB/NAME[/REST]; NULL: no such operation. */
static const struct op *op_of(call *c, char *path) {
  static const char *const verbs[] = {"keys", "encrypt", "decrypt"};
  size_t i, k;

  for (k = 0; k < 3; k++) {
    char middle[16], *at, *slash;

    snprintf(middle, sizeof(middle), "/%s/", verbs[k]);
    at = strstr(path, middle);
    if (!at || at == path) continue;
    *at = 0;
    c->mount = path;
    c->name = at + strlen(middle);
    slash = strchr(c->name, '/');
    if (slash) *slash = 0;
    c->rest = slash ? slash + 1 : "";
    for (i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
      bool method = strcmp(ops[i].method, c->r->method) == 0 ||
                    (strcmp(c->r->method, "PUT") == 0 && strcmp(ops[i].method, "POST") == 0);

      if (method && strcmp(ops[i].verb, verbs[k]) == 0 && strcmp(ops[i].rest, c->rest) == 0)
        return &ops[i];
    }
    return NULL;
  }
  return NULL;
}

static void serve_key(call *c) {
  char *copy = strdup(c->path), whole[400];
  const struct op *op = copy ? op_of(c, copy) : NULL;
  tr_token *t = find_token(kv_header(c->r, "X-Vault-Token"));
  const char *capability = op ? op->capability : "read";

  if (op) c->r->operation = op->operation;
  if (kv_fault_met(c->r, false)) {
  } else if (!t) {
    kv_transit_error(c->r, 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n");
  } else {
    snprintf(c->r->identity, sizeof(c->r->identity), "%s", t->identity);
    if (op && op->perform == on_encrypt && !find_key(c->mount, c->name)) capability = "create";
    if (kv_fault_met(c->r, true)) {
    } else if (!permitted(t->identity, c->path, capability)) {
      core_error(c->r, 403, "permission denied");
    } else if (!op || !is_mount(c->mount)) {
      snprintf(whole, sizeof(whole), "no handler for route \"%.200s\". route entry not found.",
               c->path);
      kv_transit_error(c->r, 404, whole);
    } else {
      op->perform(c);
    }
  }
  free(copy);
}

static bool ends_with(const char *whole, const char *end) {
  size_t n = strlen(whole), m = strlen(end);

  return n >= m && strcmp(whole + n - m, end) == 0 && (n == m || whole[n - m - 1] == '/');
}

void kv_transit_serve(kv_request *r) {
  call c = {.r = r, .path = strncmp(r->path, "/v1/", 4) == 0 ? r->path + 4 : r->path};
  static json_t *none;

  if (!none) none = json_object();
  c.body = r->nbody > 0 ? json_loads(r->body, 0, NULL) : json_incref(none);
  if (ends_with(c.path, "auth/approle/login") || ends_with(c.path, "auth/kubernetes/login"))
    r->operation = "transitLogin";
  if (ends_with(c.path, "auth/token/renew-self")) r->operation = "transitRenew";
  if (sealed) {
    kv_transit_error(r, 503, "Vault is sealed");
  } else if (!json_is_object(c.body)) {
    kv_transit_error(r, 400, "error parsing JSON");
  } else if (!r->operation) {
    serve_key(&c);
  } else if (!kv_fault_met(r, false)) {
    if (strcmp(r->operation, "transitRenew") == 0)
      on_renew(&c);
    else
      log_in(&c, strstr(c.path, "approle") ? "approle" : "kubernetes");
  }
  json_decref(c.body);
}

/* What a fault does to a right reply: a bit of what was wrapped or unwrapped, another version or name. */
void kv_transit_bend(kv_request *r) {
  json_t *data = json_object_get(r->reply, "data");
  const char *part = text(r->fault_spec, "part");
  const char *member = json_object_get(data, "plaintext") ? "plaintext" : "ciphertext";
  char *copy = strdup(text(data, member)), *at = copy ? strrchr(copy, ':') : NULL;

  if (r->fault == KV_FAULT_FLIP && copy && copy[0]) {
    at = at ? at + 3 : copy + 3;
    *at = *at == 'A' ? 'B' : 'A';
    json_object_set_new(data, member, json_string(copy));
  }
  if (r->fault == KV_FAULT_WRONG_KID && json_object_get(data, "name"))
    json_object_set_new(data, "name", json_string("another"));
  if (r->fault == KV_FAULT_WRONG_KID && copy && at && part[0] == 0) {
    copy[7] = copy[7] == '9' ? '8' : '9';
    json_object_set_new(data, member, json_string(copy));
  }
  free(copy);
}

/* ---- from the admin port ---- */

void kv_transit_admin(kv_request *r, json_t *body) {
  json_t *flag = json_object_get(body, "sealed"), *seconds = json_object_get(body, "ttl");
  json_t *who = identity_of(text(body, "identity")), *rules = json_object_get(body, "rules");

  if (json_is_boolean(flag)) sealed = json_is_true(flag);
  flag = json_object_get(body, "old");
  if (json_is_boolean(flag)) old = json_is_true(flag);
  if (json_is_integer(seconds)) ttl = json_integer_value(seconds);
  if (rules && !who) {
    kv_reply(r, 400, json_pack("{s:s}", "error", "no such identity"));
    return;
  }
  if (rules) json_object_set(who, "rules", rules);
  kv_reply(r, 200, json_pack("{s:b}", "ok", 1));
}

/* ---- start and end ---- */

static int write_secret(const char *identity, const char *file, const char *value) {
  char name[200];

  snprintf(name, sizeof(name), "identities/%s/%s", identity, file);
  return kv_write_file(name, value);
}

static int make_identity(const char *name, json_t *who) {
  const char *kind = text(who, "kind");
  char secret[41], *jwt;
  json_t *claims;
  int rc;

  if (strcmp(kind, "token") == 0) return write_secret(name, "token", add_token(name, 0)->text);
  if (strcmp(kind, "approle") == 0) {
    kv_random_hex(secret, 20);
    json_object_set_new(who, "secret", json_string(secret));
    return write_secret(name, "secret-id", secret);
  }
  claims = json_pack("{s:s,s:s,s:I,s:I}", "iss", KV_CLUSTER_ISSUER, "sub", text(who, "subject"),
                     "iat", kv_now(), "exp", kv_now() + 86400);
  jwt = kv_jwt_sign(kv_cluster_key, claims);
  rc = jwt ? write_secret(name, "jwt", jwt) : -1;
  json_decref(claims);
  free(jwt);
  return rc;
}

int kv_transit_load(json_t *document) {
  const char *name;
  json_t *who, *item;
  size_t i;
  int rc = 0;

  conf = json_incref(json_object_get(document, "transit"));
  json_object_foreach(json_object_get(conf, "identities"), name, who)
      rc |= make_identity(name, who);
  json_array_foreach(json_object_get(conf, "keys"), i, item) {
    if (!add_key(text(item, "mount"), text(item, "name"), text(item, "type"))) rc = -1;
  }
  return rc;
}

void kv_transit_free(void) {
  while (keys) drop_key(keys);
  while (tokens) {
    tr_token *t = tokens;

    tokens = t->next;
    free(t);
  }
  json_decref(conf);
}
