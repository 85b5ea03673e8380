/*
** vault.c: the data plane of one vault (Azure Key Vault REST API, version 7.4,
** operations on keys).
**
** Order of checks, as the service has it: api-version, token (401 and the
** challenge), permission (403), then the operation itself. Nothing is changed
** before all have passed.
*/
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kv.h"

#define NOT_FOUND                                                                                  \
  "A key with (name/id) %s was not found in this key vault. If you recently deleted this key you " \
  "may be able to recover it using the correct recovery command."

typedef struct {
  kv_request *r;
  kv_vault *vault;
  const char *name, *version; /* of the path; version may be NULL */
  json_t *body;
} call;

typedef struct {
  const char *operation, *method, *permission, *action;
  void (*perform)(call *);
  bool body;
} route;

/* ---- replies ---- */

static void set_kid(const call *c, const char *folder, const char *name, const char *version,
                    char *out, size_t n) {
  snprintf(out, n, "https://%s.%s:%u/%s/%s%s%s", c->vault->name, kv_suffix(c->vault),
           kv_port[KV_HTTPS], folder, name, version ? "/" : "", version ? version : "");
}

/* DeletionRecoveryLevel of the REST API: a retention of less than 90 days is a customized one. */
static const char *recovery_level(const kv_vault *vault) {
  if (vault->days < 90)
    return vault->purge_protection ? "CustomizedRecoverable" : "CustomizedRecoverable+Purgeable";
  return vault->purge_protection ? "Recoverable" : "Recoverable+Purgeable";
}

static json_t *attributes(const kv_vault *vault, const kv_version *v) {
  json_t *a = json_pack("{s:b,s:I,s:I,s:s,s:I}", "enabled", v->enabled, "created",
                        (json_int_t)v->created, "updated", (json_int_t)v->updated, "recoveryLevel",
                        recovery_level(vault),
                        "recoverableDays", (json_int_t)vault->days);

  if (vault->hsm) json_object_set_new(a, "exportable", json_false());
  if (v->nbf) json_object_set_new(a, "nbf", json_integer(v->nbf));
  if (v->exp) json_object_set_new(a, "exp", json_integer(v->exp));
  return a;
}

static json_t *bundle(const call *c, const kv_key *key, const kv_version *v) {
  char kid[600];
  json_t *out;

  set_kid(c, "keys", key->name, v->id, kid, sizeof(kid));
  out = json_pack("{s:o,s:o}", "key", kv_public_jwk(v, kid), "attributes", attributes(c->vault, v));
  if (v->tags) json_object_set(out, "tags", v->tags);
  return out;
}

static void add_deletion(const call *c, const kv_key *key, json_t *to) {
  char id[600];

  set_kid(c, "deletedkeys", key->name, NULL, id, sizeof(id));
  json_object_set_new(to, "recoveryId", json_string(id));
  json_object_set_new(to, "deletedDate", json_integer(key->deleted));
  json_object_set_new(to, "scheduledPurgeDate", json_integer(key->purge_at));
}

static void bad_parameter(const call *c, const char *what) {
  kv_error(c->r, 400, "BadParameter", NULL, "%s", what);
}

/* The key and version of the path; replies when there is none. */
static kv_version *wanted(const call *c, kv_key **key) {
  kv_version *v;

  *key = kv_find_key(c->vault, c->name, false);
  v = *key ? kv_find_version(*key, c->version) : NULL;
  if (!v)
    kv_error(c->r, 404, "KeyNotFound", NULL, NOT_FOUND, c->version && *key ? c->version : c->name);
  return v;
}

static kv_key *wanted_deleted(const call *c) {
  kv_key *key = kv_find_key(c->vault, c->name, true);

  if (!key) kv_error(c->r, 404, "KeyNotFound", NULL, "Deleted Key not found: %s", c->name);
  return key;
}

/* ---- lists, in pages ---- */

typedef struct {
  json_t *value;
  int64_t skip, max, seen, more;
} page;

static bool page_start(const call *c, page *p) {
  const char *max = kv_query(c->r, "maxresults"), *skip = kv_query(c->r, "$skiptoken");

  memset(p, 0, sizeof(*p));
  p->max = max ? strtol(max, NULL, 10) : KV_PAGE_MAX;
  p->skip = skip ? strtol(skip, NULL, 10) : 0;
  if (p->max < 1 || p->max > KV_PAGE_MAX || p->skip < 0) {
    bad_parameter(c, "Invalid maxresults: it must be between 1 and 25.");
    return false;
  }
  p->value = json_array();
  return true;
}

/* Takes item. */
static void page_add(page *p, json_t *item) {
  if (p->seen++ < p->skip || (int64_t)json_array_size(p->value) >= p->max) {
    if (p->seen > p->skip) p->more = 1;
    json_decref(item);
  } else {
    json_array_append_new(p->value, item);
  }
}

static void page_end(const call *c, page *p, const char *path) {
  char next[700];
  json_t *out = json_pack("{s:o,s:n}", "value", p->value, "nextLink");

  if (p->more) {
    snprintf(next, sizeof(next),
             "https://%s.%s:%u/%s?api-version=" KV_API_VERSION "&$skiptoken=%lld&maxresults=%lld",
             c->vault->name, kv_suffix(c->vault), kv_port[KV_HTTPS], path,
             (long long)(p->skip + p->max), (long long)p->max);
    json_object_set_new(out, "nextLink", json_string(next));
  }
  kv_reply(c->r, 200, out);
}

static json_t *list_item(const call *c, const kv_key *key, const kv_version *v, bool versioned) {
  char kid[600];
  json_t *item;

  set_kid(c, "keys", key->name, versioned ? v->id : NULL, kid, sizeof(kid));
  item = json_pack("{s:s,s:o}", "kid", kid, "attributes", attributes(c->vault, v));
  if (v->tags) json_object_set(item, "tags", v->tags);
  return item;
}

static void list_keys(call *c) {
  page p;
  kv_key *k;

  if (!page_start(c, &p)) return;
  for (k = c->vault->keys; k; k = k->next) {
    if (!k->deleted) page_add(&p, list_item(c, k, kv_find_version(k, NULL), false));
  }
  page_end(c, &p, "keys");
}

static void list_versions(call *c) {
  kv_key *key;
  char path[200];
  size_t i;
  page p;

  c->version = NULL;
  if (!wanted(c, &key) || !page_start(c, &p)) return;
  for (i = 0; i < key->n; i++) page_add(&p, list_item(c, key, &key->versions[i], true));
  snprintf(path, sizeof(path), "keys/%s/versions", key->name);
  page_end(c, &p, path);
}

static void list_deleted(call *c) {
  page p;
  kv_key *k, *next;

  if (!page_start(c, &p)) return;
  for (k = c->vault->keys; k; k = next) {
    json_t *item;

    next = k->next;
    if (!k->deleted || !kv_find_key(c->vault, k->name, true)) continue;
    item = list_item(c, k, kv_find_version(k, NULL), false);
    add_deletion(c, k, item);
    page_add(&p, item);
  }
  page_end(c, &p, "deletedkeys");
}

/* ---- one key ---- */

static void get_key(call *c) {
  kv_key *key;
  kv_version *v = wanted(c, &key);

  if (v) kv_reply(c->r, 200, bundle(c, key, v));
}

/* A time in seconds; null or absent clears nothing and is 0. */
static bool read_time(json_t *a, const char *name, int64_t *out) {
  json_t *value = json_object_get(a, name);

  if (!value) return true;
  if (json_is_null(value)) {
    *out = 0;
    return true;
  }
  if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
  *out = json_integer_value(value);
  return true;
}

/* Attributes, operations and tags of the body; all or none is taken. */
static bool take_properties(const call *c, kv_version *v) {
  json_t *a = json_object_get(c->body, "attributes"), *enabled = json_object_get(a, "enabled");
  json_t *ops = json_object_get(c->body, "key_ops"), *tags = json_object_get(c->body, "tags");
  int64_t nbf = v->nbf, exp = v->exp;

  if ((a && !json_is_object(a)) || (enabled && !json_is_boolean(enabled)) ||
      !read_time(a, "nbf", &nbf) || !read_time(a, "exp", &exp) || (nbf && exp && exp <= nbf) ||
      (ops && !json_is_array(ops)) || (tags && !json_is_object(tags))) {
    bad_parameter(c, "Invalid attributes, key_ops or tags.");
    return false;
  }
  v->nbf = nbf;
  v->exp = exp;
  if (enabled) v->enabled = json_is_true(enabled);
  if (ops) {
    json_decref(v->ops);
    v->ops = json_deep_copy(ops);
  }
  if (tags) {
    json_decref(v->tags);
    v->tags = json_deep_copy(tags);
  }
  v->updated = kv_now();
  return true;
}

static bool name_free(const call *c) {
  if (!kv_find_key(c->vault, c->name, true)) return true;
  kv_error(c->r, 409, "Conflict", "ObjectIsDeletedButRecoverable",
           "Key %s is currently in a deleted but recoverable state, and its name cannot be reused; "
           "in this state, the key can only be recovered or purged.",
           c->name);
  return false;
}

/* What the vault makes of a key type: a Managed HSM makes each one in hardware. */
static const char *offered(const call *c, const char *kty, int *bits) {
  bool oct = kty && (strcmp(kty, "oct-HSM") == 0 || strcmp(kty, "oct") == 0);

  if (*bits == 0) *bits = oct ? 256 : 2048;
  if (oct) {
    if (c->vault->hsm && (*bits == 128 || *bits == 192 || *bits == 256)) return "oct-HSM";
  } else if (kty && (strcmp(kty, "RSA") == 0 || strcmp(kty, "RSA-HSM") == 0)) {
    if (*bits == 2048 || *bits == 3072 || *bits == 4096) return c->vault->hsm ? "RSA-HSM" : kty;
  }
  bad_parameter(c,
                "Only RSA and RSA-HSM keys of 2048, 3072 and 4096 bits are offered here, and "
                "oct-HSM keys in a Managed HSM.");
  return NULL;
}

static void add_key(call *c, const char *kty, int bits, const uint8_t *oct) {
  kv_version trial = {0}, *v;

  if (!take_properties(c, &trial)) return;
  json_decref(trial.ops);
  json_decref(trial.tags);
  v = kv_add_version(c->vault, c->name, kty, bits, oct);
  if (!v || !take_properties(c, v)) {
    kv_error(c->r, 500, "InternalServerError", NULL, "No key could be made.");
    return;
  }
  kv_reply(c->r, 200, bundle(c, kv_find_key(c->vault, c->name, false), v));
}

static void create_key(call *c) {
  const char *kty = json_string_value(json_object_get(c->body, "kty"));
  json_t *size = json_object_get(c->body, "key_size");
  int bits = size ? (int)json_integer_value(size) : 0;

  if (!name_free(c)) return;
  kty = offered(c, kty, &bits);
  if (kty) add_key(c, kty, bits, NULL);
}

/* Of symmetric keys alone: known answers need a known key. */
static void import_key(call *c) {
  json_t *jwk = json_object_get(c->body, "key");
  const char *kty = json_string_value(json_object_get(jwk, "kty"));
  const char *text = json_string_value(json_object_get(jwk, "k"));
  size_t n = 0;
  uint8_t *oct = text ? kv_unbase64url(text, &n) : NULL;
  int bits = n <= 32 ? (int)n * 8 : -1;

  if (name_free(c)) {
    kty = oct ? offered(c, kty, &bits) : NULL;
    if (!oct)
      bad_parameter(c, "Only symmetric keys can be imported here.");
    else if (kty && strcmp(kty, "oct-HSM") == 0)
      add_key(c, kty, bits, oct);
  }
  free(oct);
}

static void update_key(call *c) {
  kv_key *key;
  kv_version *v = wanted(c, &key);

  if (v && take_properties(c, v)) kv_reply(c->r, 200, bundle(c, key, v));
}

static void rotate_key(call *c) {
  kv_key *key;
  kv_version *last = wanted(c, &key), *v;
  char kty[16];
  int bits;

  if (!last) return;
  snprintf(kty, sizeof(kty), "%s", last->kty);
  bits = last->pkey ? EVP_PKEY_get_bits(last->pkey) : (int)last->noct * 8;
  v = kv_add_version(c->vault, c->name, kty, bits, NULL);
  if (!v) {
    kv_error(c->r, 500, "InternalServerError", NULL, "No key could be made.");
    return;
  }
  json_decref(v->ops);
  v->ops = json_deep_copy(key->versions[key->n - 2].ops);
  v->tags = json_deep_copy(key->versions[key->n - 2].tags);
  kv_reply(c->r, 200, bundle(c, key, v));
}

static void delete_key(call *c) {
  kv_key *key;
  kv_version *v;
  json_t *out;

  c->version = NULL;
  v = wanted(c, &key);
  if (!v) return;
  key->deleted = kv_now();
  key->purge_at = key->deleted + c->vault->days * 86400;
  out = bundle(c, key, v);
  add_deletion(c, key, out);
  kv_reply(c->r, 200, out);
}

static void get_deleted(call *c) {
  kv_key *key = wanted_deleted(c);
  json_t *out;

  if (!key) return;
  out = bundle(c, key, kv_find_version(key, NULL));
  add_deletion(c, key, out);
  kv_reply(c->r, 200, out);
}

static void recover_key(call *c) {
  kv_key *key = wanted_deleted(c);

  if (!key) return;
  key->deleted = key->purge_at = 0;
  kv_reply(c->r, 200, bundle(c, key, kv_find_version(key, NULL)));
}

static void purge_key(call *c) {
  kv_key *key = wanted_deleted(c);

  if (!key) return;
  if (c->vault->purge_protection) {
    kv_error(c->r, 403, "Forbidden", NULL,
             "Operation \"purge\" is not allowed because purge protection is enabled for this "
             "vault. Key '%s' will be purged when its retention period ends.",
             c->name);
    return;
  }
  kv_drop_key(c->vault, key);
  kv_reply(c->r, 204, NULL);
}

/* ---- wrap and unwrap ---- */

static bool has_op(const kv_version *v, const char *op) {
  size_t i;
  json_t *item;

  json_array_foreach(v->ops, i, item) {
    if (json_is_string(item) && strcmp(json_string_value(item), op) == 0) return true;
  }
  return false;
}

/* Outside nbf and exp a key still unwraps; it does not wrap. */
static bool usable(const call *c, const kv_version *v, bool wrap) {
  const char *op = wrap ? "wrapKey" : "unwrapKey", *inner = NULL, *why = NULL;
  int64_t now = kv_now();

  if (!v->enabled) {
    inner = "KeyDisabled";
    why = "is not allowed on a disabled key";
  } else if (!has_op(v, op)) {
    inner = "KeyOperationForbidden";
    why = "is not permitted on this key";
  } else if (wrap && v->nbf && now < v->nbf) {
    inner = "KeyNotYetValid";
    why = "is not allowed on a key that is not yet valid";
  } else if (wrap && v->exp && now >= v->exp) {
    inner = "KeyExpired";
    why = "is not allowed on an expired key";
  }
  if (inner) kv_error(c->r, 403, "Forbidden", inner, "Operation %s %s.", op, why);
  return !inner;
}

/* The value wrapped or unwrapped; NULL, and why not. */
static uint8_t *transform(const kv_version *v, bool wrap, const char *alg, const uint8_t *in,
                          size_t nin, size_t *nout, const char **why) {
  char own[16];
  bool sha256 = strcmp(alg, "RSA-OAEP-256") == 0;

  snprintf(own, sizeof(own), "A%zuKW", v->noct * 8);
  *why = "The parameter is incorrect.";
  if (!v->pkey && strcmp(alg, own) == 0) return kv_aes_wrap(v, wrap, in, nin, nout);
  if (v->pkey && (sha256 || strcmp(alg, "RSA-OAEP") == 0))
    return kv_rsa(v->pkey, wrap, sha256, in, nin, nout);
  *why = "The algorithm does not fit the key, or is not offered here.";
  return NULL;
}

static void turn(call *c, bool wrap) {
  const char *alg = json_string_value(json_object_get(c->body, "alg")), *why;
  const char *value = json_string_value(json_object_get(c->body, "value"));
  uint8_t *in = NULL, *out = NULL;
  size_t nin = 0, nout = 0;
  char kid[600], *text = NULL;
  kv_key *key;
  kv_version *v = wanted(c, &key);

  if (!v || !usable(c, v, wrap)) return;
  if (!alg || !value) {
    bad_parameter(c, "Properties alg and value must be given.");
    return;
  }
  why = "The value is not base64url.";
  in = kv_unbase64url(value, &nin);
  if (in) out = transform(v, wrap, alg, in, nin, &nout, &why);
  if (out) text = kv_base64url(out, nout);
  set_kid(c, "keys", key->name, v->id, kid, sizeof(kid));
  if (text)
    kv_reply(c->r, 200, json_pack("{s:s,s:s}", "kid", kid, "value", text));
  else
    bad_parameter(c, why);
  if (text && c->vault->hsm) json_object_set_new(c->r->reply, "alg", json_string(alg));
  free(text);
  free(out);
  free(in);
}

static void wrap_key(call *c) {
  turn(c, true);
}

static void unwrap_key(call *c) {
  turn(c, false);
}

/* ---- routing ---- */

static const route routes[] = {
    {"getKey", "GET", "get", "read", get_key, false},
    {"listVersions", "GET", "list", "read", list_versions, false},
    {"listKeys", "GET", "list", "read", list_keys, false},
    {"createKey", "POST", "create", "create/action", create_key, true},
    {"importKey", "PUT", "import", "create/action", import_key, true},
    {"updateKey", "PATCH", "update", "update/action", update_key, true},
    {"rotateKey", "POST", "rotate", "rotate/action", rotate_key, false},
    {"wrapKey", "POST", "wrapKey", "wrap/action", wrap_key, true},
    {"unwrapKey", "POST", "unwrapKey", "unwrap/action", unwrap_key, true},
    {"deleteKey", "DELETE", "delete", "delete", delete_key, false},
    {"getDeletedKey", "GET", "get", "deletedkeys/read", get_deleted, false},
    {"listDeletedKeys", "GET", "list", "deletedkeys/read", list_deleted, false},
    {"recoverKey", "POST", "recover", "deletedkeys/recover/action", recover_key, false},
    {"purgeKey", "DELETE", "purge", "deletedkeys/purge/action", purge_key, false},
};

static const route *find_route(const char *operation) {
  size_t i;

  for (i = 0; operation && i < sizeof(routes) / sizeof(routes[0]); i++) {
    if (strcmp(routes[i].operation, operation) == 0) return &routes[i];
  }
  return NULL;
}

bool kv_vault_has(const char *operation) {
  return find_route(operation) != NULL;
}

/* Cuts path at its slashes, without trailing empty parts. */
static size_t split(char *path, char *parts[5]) {
  size_t n = 0;
  char *at = path + 1;

  while (n < 5) {
    parts[n++] = at;
    at = strchr(at, '/');
    if (!at) break;
    *at++ = 0;
  }
  if (at) return 6;
  while (n > 1 && !parts[n - 1][0]) n--;
  return n;
}

static const char *operation_on_key(const char *method, size_t n, char **parts, call *c) {
  const char *last = parts[n - 1];

  if (n == 2 && strcmp(method, "DELETE") == 0) return "deleteKey";
  if (n == 2 && strcmp(method, "PUT") == 0) return "importKey";
  if (n == 3 && strcmp(last, "create") == 0) return "createKey";
  if (n == 3 && strcmp(last, "rotate") == 0) return "rotateKey";
  if (n == 3 && strcmp(last, "versions") == 0) return "listVersions";
  if (n == 4) c->version = parts[2];
  if (n >= 3 && strcmp(last, "wrapkey") == 0) return "wrapKey";
  if (n >= 3 && strcmp(last, "unwrapkey") == 0) return "unwrapKey";
  if (n == 4) return NULL;
  if (n == 3) c->version = last;
  return strcmp(method, "PATCH") == 0 ? "updateKey" : "getKey";
}

static const char *operation_of(const char *method, size_t n, char **parts, call *c) {
  bool deleted = strcmp(parts[0], "deletedkeys") == 0;

  if (n > 4 || (!deleted && strcmp(parts[0], "keys") != 0)) return NULL;
  if (n == 1) return deleted ? "listDeletedKeys" : "listKeys";
  c->name = parts[1];
  if (!deleted) return operation_on_key(method, n, parts, c);
  if (n == 2) return strcmp(method, "DELETE") == 0 ? "purgeKey" : "getDeletedKey";
  return n == 3 && strcmp(parts[2], "recover") == 0 ? "recoverKey" : NULL;
}

void kv_challenge(kv_request *r, const kv_vault *vault) {
  snprintf(r->challenge, sizeof(r->challenge),
           "Bearer authorization=\"https://" KV_LOGIN ":%u/%s\", resource=\"%s\"",
           kv_port[KV_HTTPS], vault->tenant, kv_resource(vault));
}

/* A Managed HSM says no more than the challenge does. */
static void challenge(kv_request *r, const kv_vault *vault, const char *why) {
  kv_challenge(r, vault);
  if (vault->hsm)
    kv_reply(r, 401, NULL);
  else
    kv_error(r, 401, "Unauthorized", NULL, "%s", why);
}

static void deny(const call *c, const kv_identity *who, const route *op) {
  if (c->vault->rbac)
    kv_error(c->r, 403, "Forbidden", "ForbiddenByRbac",
             "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny "
             "assignments or role definitions were changed recently, please observe propagation "
             "time.\r\nCaller: appid=%s;oid=%s\r\nAction: 'Microsoft.KeyVault/vaults/keys/%s'\r\n"
             "Vault: %s;location=local",
             who->client_id, who->object_id, op->action, c->vault->name);
  else
    kv_error(c->r, 403, "Forbidden", "AccessDenied",
             "The user, group or application 'appid=%s;oid=%s' does not have keys %s permission on "
             "key vault '%s;location=local'.",
             who->client_id, who->object_id, op->permission, c->vault->name);
}

static bool name_valid(const char *name) {
  size_t n = strspn(name, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-");

  return n > 0 && n <= 127 && !name[n];
}

/* True when the caller is known and may; replies otherwise. */
static bool admitted(call *c, const route *op) {
  const char *header = kv_header(c->r, "Authorization"), *why = NULL;
  kv_identity *who = NULL;

  if (kv_fault_met(c->r, false)) return false;
  if (!header || strncasecmp(header, "Bearer ", 7) != 0)
    why = "AKV10000: Request is missing a Bearer or PoP token.";
  else
    who = kv_authenticate(header + 7, c->vault, &why);
  if (!who) {
    challenge(c->r, c->vault, why);
    return false;
  }
  snprintf(c->r->identity, sizeof(c->r->identity), "%s", who->name);
  if (kv_fault_met(c->r, true)) return false;
  if (kv_granted(c->vault, who->name, op->permission)) return true;
  deny(c, who, op);
  return false;
}

static void perform(call *c, const route *op) {
  json_error_t error;

  if (!admitted(c, op)) return;
  if (c->name && !name_valid(c->name)) {
    bad_parameter(c, "The request URI contains an invalid name.");
    return;
  }
  if (op->body) {
    c->body = json_loads(c->r->body, 0, &error);
    if (!json_is_object(c->body)) {
      bad_parameter(c, "The request body is not a JSON object.");
      json_decref(c->body);
      return;
    }
  }
  op->perform(c);
  json_decref(c->body);
}

void kv_vault_serve(kv_request *r, kv_vault *vault) {
  call c = {.r = r, .vault = vault};
  const char *version = kv_query(r, "api-version");
  char *path = strdup(r->path), *parts[5];
  size_t n = path ? split(path, parts) : 6;
  const char *operation = n <= 5 ? operation_of(r->method, n, parts, &c) : NULL;
  const route *op = find_route(operation);

  if (op) r->operation = op->operation;
  if (!c.vault) {
    kv_error(r, 404, "VaultNotFound", NULL, "There is no vault of this name.");
  } else if (!op) {
    kv_error(r, 404, "NotFound", NULL, "No such resource.");
  } else if (strcmp(op->method, r->method) != 0) {
    kv_error(r, 405, "MethodNotAllowed", NULL, "Method not allowed.");
  } else if (!version || strcmp(version, KV_API_VERSION) != 0) {
    kv_error(r, 400, "BadParameter", NULL,
             version ? "The specified version (%s) is not recognized. Consider using the latest "
                       "supported version (" KV_API_VERSION ")."
                     : "api-version must be specified",
             version);
  } else {
    perform(&c, op);
  }
  free(path);
}
