/*
** store.c: tenants, identities, vaults and their keys, in memory.
**
** Filled from a configuration document (see sample.json and README.md) at start;
** what is secret in it is made here and written to the state folder. Vaults and
** identities live until the end, so that others may keep pointers to them;
** keys do not.
*/
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kv.h"

kv_vault *kv_vaults;
EVP_PKEY *kv_authority_key, *kv_cluster_key;
static kv_identity *identities;
static json_t *document;

static const char *text(json_t *object, const char *name) {
  return json_string_value(json_object_get(object, name));
}

static bool listed(json_t *array, const char *value) {
  size_t i;
  json_t *item;

  json_array_foreach(array, i, item) {
    if (json_is_string(item) && strcmp(json_string_value(item), value) == 0) return true;
  }
  return false;
}

kv_vault *kv_find_vault(const char *name) {
  kv_vault *v = kv_vaults;

  while (v && strcmp(v->name, name) != 0) v = v->next;
  return v;
}

const char *kv_suffix(const kv_vault *vault) {
  return vault->hsm ? KV_HSM_SUFFIX : KV_SUFFIX;
}

const char *kv_resource(const kv_vault *vault) {
  return vault->hsm ? "https://" KV_HSM_SUFFIX : "https://" KV_SUFFIX;
}

bool kv_resource_known(const char *resource) {
  return strcmp(resource, "https://" KV_SUFFIX) == 0 ||
         strcmp(resource, "https://" KV_HSM_SUFFIX) == 0 || strcmp(resource, KV_EXCHANGE) == 0;
}

static bool host_below(const char *host, const char *suffix, size_t *nlabel) {
  size_t n = strcspn(host, ":"), ns = strlen(suffix);

  *nlabel = n > ns + 1 ? n - ns - 1 : 0;
  return *nlabel > 0 && host[*nlabel] == '.' && strncmp(host + *nlabel + 1, suffix, ns) == 0;
}

bool kv_is_vault_host(const char *host) {
  size_t n;

  return host_below(host, KV_SUFFIX, &n) || host_below(host, KV_HSM_SUFFIX, &n);
}

kv_vault *kv_vault_at(const char *host) {
  kv_vault *v = kv_vaults;
  size_t n;

  while (v && (!host_below(host, kv_suffix(v), &n) || strlen(v->name) != n ||
               strncmp(v->name, host, n) != 0))
    v = v->next;
  return v;
}

kv_identity *kv_find_identity(const char *name) {
  kv_identity *i = identities;

  while (i && strcmp(i->name, name) != 0) i = i->next;
  return i;
}

kv_identity *kv_find_client(const char *client_id) {
  kv_identity *i = identities;

  while (i && strcmp(i->client_id, client_id) != 0) i = i->next;
  return i;
}

kv_identity *kv_find_managed(const char *client_id) {
  kv_identity *i = identities;

  for (; i; i = i->next) {
    const char *managed = text(i->conf, "managed");

    if (!managed) continue;
    if (client_id ? strcmp(i->client_id, client_id) == 0 : strcmp(managed, "system") == 0) break;
  }
  return i;
}

bool kv_tenant_known(const char *tenant) {
  size_t i;
  json_t *item;

  json_array_foreach(json_object_get(document, "tenants"), i, item) {
    const char *id = text(item, "id");

    if (id && strcmp(id, tenant) == 0) return true;
  }
  return false;
}

bool kv_in_tenant(const kv_identity *who, const char *tenant) {
  return listed(json_object_get(who->conf, "tenants"), tenant);
}

bool kv_granted(const kv_vault *vault, const char *identity, const char *permission) {
  return listed(json_object_get(vault->grants, identity), permission);
}

/* ---- keys ---- */

static void free_key(kv_key *key) {
  size_t i;

  for (i = 0; i < key->n; i++) {
    EVP_PKEY_free(key->versions[i].pkey);
    json_decref(key->versions[i].ops);
    json_decref(key->versions[i].tags);
  }
  free(key->versions);
  free(key);
}

void kv_drop_key(kv_vault *vault, kv_key *key) {
  kv_key **at = &vault->keys;

  while (*at && *at != key) at = &(*at)->next;
  if (*at) {
    *at = key->next;
    free_key(key);
  }
}

kv_key *kv_find_key(kv_vault *vault, const char *name, bool deleted) {
  kv_key *k = vault->keys;

  while (k && strcasecmp(k->name, name) != 0) k = k->next;
  /* The end of the retention period purges by itself. */
  if (k && k->deleted && kv_now() >= k->purge_at) {
    kv_drop_key(vault, k);
    k = NULL;
  }
  return k && (k->deleted != 0) == deleted ? k : NULL;
}

kv_version *kv_find_version(kv_key *key, const char *version) {
  size_t i;

  if (!version || !*version) return &key->versions[key->n - 1];
  for (i = 0; i < key->n; i++) {
    if (strcmp(key->versions[i].id, version) == 0) return &key->versions[i];
  }
  return NULL;
}

static kv_key *new_key(kv_vault *vault, const char *name) {
  kv_key *k = calloc(1, sizeof(*k)), **at = &vault->keys;

  if (!k) return NULL;
  snprintf(k->name, sizeof(k->name), "%s", name);
  while (*at) at = &(*at)->next;
  *at = k;
  return k;
}

kv_version *kv_add_version(kv_vault *vault, const char *name, const char *kty, int bits,
                           const uint8_t *oct) {
  kv_key *key = kv_find_key(vault, name, false);
  bool symmetric = strcmp(kty, "oct-HSM") == 0;
  EVP_PKEY *pkey = symmetric ? NULL : EVP_RSA_gen((unsigned)bits);
  kv_version *grown, *v;

  if (!symmetric && !pkey) return NULL;
  if (!key) key = new_key(vault, name);
  grown = key ? realloc(key->versions, (key->n + 1) * sizeof(*grown)) : NULL;
  if (!grown) abort(); /* a key without versions must not stay */
  key->versions = grown;
  v = &grown[key->n++];
  memset(v, 0, sizeof(*v));
  kv_random_hex(v->id, 16);
  snprintf(v->kty, sizeof(v->kty), "%s", kty);
  v->pkey = pkey;
  v->noct = symmetric ? (size_t)bits / 8 : 0;
  if (oct)
    memcpy(v->oct, oct, v->noct);
  else if (symmetric && RAND_bytes(v->oct, (int)v->noct) != 1)
    abort();
  v->ops = symmetric ? json_pack("[s,s,s,s]", "encrypt", "decrypt", "wrapKey", "unwrapKey")
                     : json_pack("[s,s,s,s,s,s]", "encrypt", "decrypt", "sign", "verify", "wrapKey",
                                 "unwrapKey");
  v->enabled = true;
  v->created = v->updated = kv_now();
  return v;
}

/* ---- loading ---- */

int kv_write_federated(kv_identity *who, int64_t seconds) {
  json_t *record = json_array_get(json_object_get(who->conf, "federated"), 0);
  const char *subject = text(record, "subject");
  json_t *claims;
  char name[200], *jwt;
  int rc = -1;

  if (!subject) return -1;
  claims = json_pack("{s:s,s:s,s:[s],s:I,s:I,s:I}", "iss", KV_CLUSTER_ISSUER, "sub", subject, "aud",
                     KV_EXCHANGE, "iat", kv_now(), "nbf", kv_now(), "exp", kv_now() + seconds);
  jwt = kv_jwt_sign(kv_cluster_key, claims);
  snprintf(name, sizeof(name), "identities/%s/federated-token", who->name);
  if (jwt) rc = kv_write_file(name, jwt);
  free(jwt);
  json_decref(claims);
  return rc;
}

static int make_secrets(kv_identity *who) {
  json_t *wanted = json_object_get(who->conf, "credentials");
  char name[200], *pem = NULL;
  int rc = 0;

  if (listed(wanted, "secret")) {
    who->secret = calloc(1, 50);
    if (!who->secret) return -1;
    kv_random_hex(who->secret, 20);
    snprintf(name, sizeof(name), "identities/%s/secret", who->name);
    rc |= kv_write_file(name, who->secret);
  }
  if (listed(wanted, "certificate")) {
    snprintf(name, sizeof(name), "identities/%s/certificate.pem", who->name);
    rc |= kv_client_certificate(who->name, &who->certificate, &pem);
    if (rc == 0) rc |= kv_write_file(name, pem);
    free(pem);
  }
  if (listed(wanted, "federated")) rc |= kv_write_federated(who, 86400);
  return rc;
}

static int load_identity(json_t *conf) {
  kv_identity *i = calloc(1, sizeof(*i));

  if (!i) return -1;
  i->conf = conf;
  i->name = text(conf, "name");
  i->client_id = text(conf, "client_id");
  i->object_id = text(conf, "object_id");
  i->next = identities;
  identities = i;
  if (!i->name || !i->client_id || !i->object_id || strchr(i->name, '/')) return -1;
  return make_secrets(i);
}

static int load_vault(json_t *conf) {
  kv_vault *v = calloc(1, sizeof(*v));
  const char *authorization = text(conf, "authorization");
  json_t *days = json_object_get(conf, "soft_delete_days"), *name;
  size_t i;

  if (!v) return -1;
  v->conf = conf;
  v->name = text(conf, "name");
  v->tenant = text(conf, "tenant");
  v->rbac = authorization && strcmp(authorization, "rbac") == 0;
  v->purge_protection = json_is_true(json_object_get(conf, "purge_protection"));
  v->hsm = json_is_true(json_object_get(conf, "hsm"));
  v->days = json_is_integer(days) ? json_integer_value(days) : 90;
  v->grants = json_object_get(conf, "grants");
  v->next = kv_vaults;
  kv_vaults = v;
  if (!v->name || !v->tenant || !json_is_object(v->grants)) return -1;
  json_array_foreach(json_object_get(conf, "keys"), i, name) {
    const char *key = text(name, "name"), *kty = text(name, "kty");
    int bits = (int)json_integer_value(json_object_get(name, "size"));

    if (!kty) kty = v->hsm ? "RSA-HSM" : "RSA";
    if (!key || bits > (strcmp(kty, "oct-HSM") == 0 ? 256 : 4096)) return -1;
    if (!kv_add_version(v, key, kty, bits, NULL)) return -1;
  }
  return 0;
}

int kv_store_load(const char *config) {
  json_error_t error;
  size_t i;
  json_t *item;

  document = json_load_file(config, JSON_REJECT_DUPLICATES, &error);
  if (!document) {
    fprintf(stderr, "keyvault: %s:%d: %s\n", config, error.line, error.text);
    return -1;
  }
  kv_authority_key = EVP_RSA_gen(2048);
  kv_cluster_key = EVP_RSA_gen(2048);
  if (!kv_authority_key || !kv_cluster_key) return -1;
  json_array_foreach(json_object_get(document, "identities"), i, item) {
    if (load_identity(item) != 0) {
      fprintf(stderr, "keyvault: %s: identity %zu is not usable\n", config, i);
      return -1;
    }
  }
  json_array_foreach(json_object_get(document, "vaults"), i, item) {
    if (load_vault(item) != 0) {
      fprintf(stderr, "keyvault: %s: vault %zu is not usable\n", config, i);
      return -1;
    }
  }
  return kv_vaults && kv_transit_load(document) == 0 ? 0 : -1;
}

void kv_store_free(void) {
  kv_transit_free();
  while (kv_vaults) {
    kv_vault *v = kv_vaults;

    while (v->keys) kv_drop_key(v, v->keys);
    kv_vaults = v->next;
    free(v);
  }
  while (identities) {
    kv_identity *i = identities;

    identities = i->next;
    free(i->secret);
    X509_free(i->certificate);
    free(i);
  }
  EVP_PKEY_free(kv_authority_key);
  EVP_PKEY_free(kv_cluster_key);
  json_decref(document);
}
