/*
** cloud.c: reads the part of instance.json that is about key services.
**
** What must hold: a member of a wrong type or form is an error that names it,
** never passed over: what protects a token (authority, certificate
** authorities) must not fall back to something else by a typing error. A secret
** in the file itself is refused.
*/
#include "cloud.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/base/bytes.h"

static tde_class bad(tde_status *st, const char *file, const char *field, const char *what) {
  return tde_fail(st, TDE_MISCONFIGURED, TDE_CORRECT_INSTANCE, "%s: \"%s\" %s", file, field, what);
}

int tde_plain_name(const char *text) {
  static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return text[0] != 0 && strspn(text, set) == strlen(text);
}

void tde_copy_code(char *out, size_t cap, const char *text) {
  size_t n = text != NULL && tde_plain_name(text) ? strlen(text) : 0;
  if (n >= cap) n = 0;
  memcpy(out, text != NULL ? text : "", n);
  out[n] = 0;
}

int tde_host_valid(const char *host, size_t n) {
  size_t label = 0;
  if (n == 0 || n > 253) return 0;
  for (size_t i = 0; i < n; i++) {
    char c = host[i];
    if (c == '.') {
      if (label == 0 || host[i - 1] == '-') return 0;
      label = 0;
      continue;
    }
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c == '-' && label > 0))) return 0;
    if (++label > 63) return 0;
  }
  return label > 0 && host[n - 1] != '-';
}

int tde_host_below(const char *host, const char *suffix) {
  size_t nh = strlen(host), ns = strlen(suffix);
  return nh > ns + 1 && host[nh - ns - 1] == '.' && strcmp(host + nh - ns, suffix) == 0;
}

/* Where a reading stands: which object, of which name, and the outcome. */
typedef struct reader {
  const tde_json *obj;
  const char *file, *path;
  tde_status *st;
} reader;

static tde_class bad_member(const reader *r, const char *name, const char *what) {
  char field[160];
  snprintf(field, sizeof field, "%.80s%s%.60s", r->path, r->path[0] != 0 ? "." : "", name);
  return bad(r->st, r->file, field, what);
}

static tde_class text(const reader *r, const char *name, char *out, size_t cap) {
  const tde_json *v = tde_json_get(r->obj, name);
  if (v == NULL || tde_json_is_null(v)) return TDE_OK;
  const char *t = tde_json_get_text(r->obj, name);
  if (t == NULL) return bad_member(r, name, "is no text");
  if (t[0] == 0 || strlen(t) >= cap) return bad_member(r, name, "is empty or too long");
  memcpy(out, t, strlen(t) + 1);
  return TDE_OK;
}

static tde_class name_text(const reader *r, const char *name, char *out, size_t cap) {
  tde_class rc = text(r, name, out, cap);
  if (rc == TDE_OK && out[0] != 0 && !tde_plain_name(out)) {
    return bad_member(r, name, "may hold letters, digits, '.', '_' and '-' only");
  }
  return rc;
}

static tde_class path_text(const reader *r, const char *name, char *out) {
  tde_class rc = text(r, name, out, TDE_CLOUD_PATH_MAX);
  if (rc == TDE_OK && out[0] != 0 && out[0] != '/') return bad_member(r, name, "is no absolute path");
  return rc;
}

/* The same, for an identity: few have one. */
static tde_class own_path(const reader *r, const char *name, char **out) {
  char path[TDE_CLOUD_PATH_MAX] = "";
  tde_class rc = path_text(r, name, path);
  if (rc != TDE_OK) return rc;
  *out = strdup(path);
  return *out != NULL ? TDE_OK : tde_nomem(r->st);
}

static tde_class own_text(const reader *r, const char *name, char **out) {
  char copy[256] = "";
  tde_class rc = text(r, name, copy, sizeof copy);
  if (rc != TDE_OK) return rc;
  *out = strdup(copy);
  return *out != NULL ? TDE_OK : tde_nomem(r->st);
}

static tde_class flag(const reader *r, const char *name, int *out) {
  const tde_json *v = tde_json_get(r->obj, name);
  if (v == NULL) return TDE_OK;
  if (!tde_json_is_bool(v)) return bad_member(r, name, "is neither true nor false");
  *out = tde_json_get_bool(r->obj, name, 0);
  return TDE_OK;
}

static tde_class millis(const reader *r, const char *name, int *out) {
  const tde_json *v = tde_json_get(r->obj, name);
  if (v == NULL) return TDE_OK;
  int64_t n = tde_json_get_int(r->obj, name, -1);
  if (n < 10 || n > 300000) return bad_member(r, name, "is no number from 10 to 300000");
  *out = (int)n;
  return TDE_OK;
}

int tde_endpoint_valid(char *text) {
  static const char set[] = "abcdefghijklmnopqrstuvwxyz0123456789.:-[]";
  size_t n = strlen(text);
  if (n > 0 && text[n - 1] == '/') text[--n] = 0;
  const char *host = strncmp(text, "https://", 8) == 0  ? text + 8
                     : strncmp(text, "http://", 7) == 0 ? text + 7
                                                        : "";
  return host[0] != 0 && strspn(host, set) == strlen(host);
}

int tde_https_address(char *text) {
  const char *host = text + 8;
  if (!tde_endpoint_valid(text) || strncmp(text, "https://", 8) != 0) return 0;
  char *colon = strchr(text + 8, ':');
  if (!tde_host_valid(host, strcspn(host, ":"))) return 0;
  if (colon == NULL) return 1;
  size_t n = strspn(colon + 1, "0123456789");
  long port = n > 0 && n < 6 ? strtol(colon + 1, NULL, 10) : 0;
  if (colon[1 + n] != 0 || colon[1] == '0' || port < 1 || port > 65535) return 0;
  if (port == 443) *colon = 0;
  return 1;
}

int tde_name_path(const char *text, size_t n) {
  char before = '/';
  for (size_t i = 0; i <= n; i++) {
    char c = i < n ? text[i] : '/';
    int word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    int inner = c == '-' || c == '.';
    if (!word && !inner && c != '/') return 0;
    if ((inner && before == '/') || (c == '/' && (before == '/' || before == '-' || before == '.'))) return 0;
    before = c;
  }
  return n > 0;
}

/* *given: whether the member is there. */
static tde_class endpoint(const reader *r, const char *name, char out[256], int *given) {
  const tde_json *v = tde_json_get(r->obj, name);
  *given = v != NULL && !tde_json_is_null(v);
  tde_class rc = text(r, name, out, 256);
  if (rc == TDE_OK && !tde_endpoint_valid(out)) {
    rc = bad_member(r, name, "is not of the form https://host or https://host:port, in lower case");
  }
  return rc;
}

static tde_class sub(const reader *r, const char *name, reader *out) {
  *out = *r;
  out->obj = tde_json_get(r->obj, name);
  out->path = name;
  if (out->obj == NULL || tde_json_is_object(out->obj)) return TDE_OK;
  return bad_member(r, name, "is no object");
}

static tde_class read_http(const reader *root, tde_cloud *c) {
  reader r;
  tde_class rc = sub(root, "http", &r);
  if (rc != TDE_OK || r.obj == NULL) return rc;
  rc = millis(&r, "connect_timeout_ms", &c->connect_ms);
  if (rc == TDE_OK) rc = millis(&r, "timeout_ms", &c->total_ms);
  if (rc == TDE_OK) rc = path_text(&r, "ca_file", c->ca_file);
  if (rc == TDE_OK) rc = flag(&r, "proxy_from_environment", &c->proxy_from_environment);
  if (rc == TDE_OK) rc = text(&r, "connect_to", c->connect_to, sizeof c->connect_to);
  static const char set[] = "abcdefghijklmnopqrstuvwxyz0123456789.:-[]";
  if (rc == TDE_OK && c->connect_to[0] != 0 &&
      (strspn(c->connect_to, set) != strlen(c->connect_to) || strchr(c->connect_to, ':') == NULL)) {
    rc = bad_member(&r, "connect_to", "is not of the form host:port");
  }
  return rc;
}

/* "https://host" or "https://host/path", as a token's resource is written. */
static int resource_valid(const char *text) {
  static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/";
  const char *host = strncmp(text, "https://", 8) == 0 ? text + 8 : "";
  return tde_host_valid(host, strcspn(host, "/")) && strspn(host, set) == strlen(host) &&
         text[strlen(text) - 1] != '/';
}

static tde_class read_suffix(const reader *r, const tde_json *item, tde_suffix *out) {
  reader one = {item, r->file, "azure.vault_suffixes", r->st};
  tde_class rc = text(&one, "suffix", out->name, sizeof out->name);
  if (rc == TDE_OK) rc = text(&one, "resource", out->resource, sizeof out->resource);
  if (rc == TDE_OK && out->resource[0] != 0 && !resource_valid(out->resource)) {
    rc = bad_member(&one, "resource", "is not of the form https://host or https://host/path");
  }
  return rc;
}

static tde_class read_suffixes(const reader *r, tde_cloud *c) {
  const tde_json *list = tde_json_get(r->obj, "vault_suffixes");
  if (list == NULL) return TDE_OK;
  size_t n = tde_json_count(list);
  if (!tde_json_is_array(list) || n > TDE_SUFFIXES_MAX) {
    return bad_member(r, "vault_suffixes", "is no array of at most 8 names");
  }
  for (size_t i = 0; i < n; i++) {
    tde_suffix *out = &c->suffixes[c->nsuffixes];
    const tde_json *item = tde_json_at(list, i);
    const char *name = tde_json_text_at(list, i);
    tde_class rc = TDE_OK;
    if (name != NULL && strlen(name) < sizeof out->name) memcpy(out->name, name, strlen(name) + 1);
    if (tde_json_is_object(item)) rc = read_suffix(r, item, out);
    if (rc != TDE_OK) return rc;
    if (!tde_host_valid(out->name, strlen(out->name)) || strchr(out->name, '.') == NULL) {
      return bad_member(r, "vault_suffixes",
                        "holds what is no domain name of two labels or more in lower case");
    }
    c->nsuffixes++;
  }
  return TDE_OK;
}

const tde_suffix *tde_cloud_suffix(const tde_cloud *c, const char *host) {
  for (int i = 0; i < c->nsuffixes; i++) {
    const tde_suffix *s = &c->suffixes[i];
    if (tde_host_below(host, s->name)) return s;
    if (s->resource[0] != 0 && strcmp(host, s->name) == 0) return s;
  }
  return NULL;
}

/* "7.4", "7.6-preview.2", "2025-07-01". Whether the vault knows it the vault says. */
static int api_version_valid(const char *text) {
  size_t n = strspn(text, "0123456789");
  if (strncmp(text, "7.", 2) == 0) return strspn(text + 2, "0123456789") > 0;
  return n == 4 && text[4] == '-' && strlen(text) >= 10;
}

static tde_class read_azure(const reader *root, tde_cloud *c) {
  reader r;
  int given = 0;
  tde_class rc = sub(root, "azure", &r);
  if (rc != TDE_OK || r.obj == NULL) return rc;
  rc = endpoint(&r, "authority", c->authority, &c->authority_given);
  if (rc == TDE_OK) rc = endpoint(&r, "imds_endpoint", c->imds_endpoint, &given);
  if (rc == TDE_OK) rc = path_text(&r, "ca_file", c->ca_file);
  if (rc == TDE_OK) rc = name_text(&r, "api_version", c->api_version, sizeof c->api_version);
  if (rc == TDE_OK && !api_version_valid(c->api_version)) {
    rc = bad_member(&r, "api_version", "is not of the form 7.N, or a date such as 2025-07-01");
  }
  return rc == TDE_OK ? read_suffixes(&r, c) : rc;
}

const char *tde_identity_kind_name(tde_identity_kind kind) {
  static const char *const names[] = {"managed_identity",  "app_service", "client_secret",
                                      "client_certificate", "workload_identity", "federated",
                                      "environment", "vault_token", "vault_approle", "vault_jwt"};
  return names[kind];
}

static tde_class read_kind(const reader *r, tde_identity *id) {
  const char *kind = tde_json_get_text(r->obj, "kind");
  for (int i = 0; kind != NULL && i <= TDE_ID_VAULT_JWT; i++) {
    if (strcmp(kind, tde_identity_kind_name((tde_identity_kind)i)) == 0) {
      id->kind = (tde_identity_kind)i;
      return TDE_OK;
    }
  }
  return bad_member(r, "kind",
                    "is none of managed_identity, app_service, client_secret, client_certificate, "
                    "workload_identity, federated, environment, vault_token, vault_approle, vault_jwt");
}

static tde_class check_secrets(const reader *r) {
  for (size_t i = 0; i < tde_json_members(r->obj); i++) {
    const char *name = tde_json_member_name(r->obj, i);
    if (tde_is_one_of(name, TDE_IDENTITY_SECRETS)) {
      return bad_member(r, name,
                        "stands in the file itself; name a file (secret_file, certificate_file, token_file) or a "
                        "variable (secret_env, token_env) instead");
    }
  }
  return TDE_OK;
}

/* Where a member is to be names of a path, or a name. */
static tde_class check_path(const reader *r, const char *name, const char *value) {
  if (value[0] == 0 || tde_name_path(value, strlen(value))) return TDE_OK;
  return bad_member(r, name, "is no path of Vault's: letters, digits, '_', '-' and '.', with slashes between");
}

/* One of two members, and not both. */
static tde_class check_either(const reader *r, const char *file, const char *variable, const char *a, const char *b) {
  char what[80];
  if ((a[0] == 0) != (b[0] == 0)) return TDE_OK;
  snprintf(what, sizeof what, "or \"%s\", one of them, is needed", variable);
  return bad_member(r, file, what);
}

/* The kinds that ask Vault. */
static tde_class check_vault(const reader *r, tde_identity *id) {
  if (id->address[0] == 0) return bad_member(r, "address", "is missing: https://HOST or https://HOST:PORT");
  if (!tde_https_address(id->address)) {
    return bad_member(r, "address", "is not of the form https://host or https://host:port, in lower case");
  }
  tde_class rc = check_path(r, "namespace", id->vault_namespace);
  if (rc == TDE_OK) rc = check_path(r, "mount", id->mount);
  if (rc != TDE_OK) return rc;
  if (id->kind == TDE_ID_VAULT_TOKEN) {
    return check_either(r, "token_file", "token_env", id->token_file, id->token_env);
  }
  if (id->role[0] == 0 || !tde_plain_name(id->role)) {
    return bad_member(r, id->kind == TDE_ID_VAULT_JWT ? "role" : "role_id",
                      "is missing, or has other characters than letters, digits, '.', '_' and '-'");
  }
  if (id->kind == TDE_ID_VAULT_JWT) {
    return id->token_file[0] != 0 ? TDE_OK : bad_member(r, "token_file", "is missing");
  }
  return check_either(r, "secret_file", "secret_env", id->secret_file, id->secret_env);
}

/* What a kind cannot do without. */
static tde_class check_identity(const reader *r, tde_identity *id) {
  tde_class rc = check_secrets(r);
  if (rc != TDE_OK) return rc;
  if (id->kind >= TDE_ID_VAULT_TOKEN) return check_vault(r, id);
  int needs_client = id->kind == TDE_ID_CLIENT_SECRET || id->kind == TDE_ID_CLIENT_CERTIFICATE ||
                     id->kind == TDE_ID_FEDERATED;
  if (needs_client && id->client_id[0] == 0) return bad_member(r, "client_id", "is missing");
  if (id->kind == TDE_ID_CLIENT_SECRET) {
    return check_either(r, "secret_file", "secret_env", id->secret_file, id->secret_env);
  }
  if (id->kind == TDE_ID_CLIENT_CERTIFICATE && id->certificate_file[0] == 0) {
    return bad_member(r, "certificate_file", "is missing");
  }
  if (id->kind == TDE_ID_FEDERATED && id->via[0] == 0) return bad_member(r, "via", "is missing");
  return TDE_OK;
}

/* Each auth method has a usual mount. */
static tde_class own_mount(const reader *r, tde_identity *id) {
  tde_class rc = own_text(r, "mount", &id->mount);
  if (rc != TDE_OK || id->mount[0] != 0) return rc;
  free(id->mount);
  id->mount = strdup(id->kind == TDE_ID_VAULT_APPROLE ? "approle" : id->kind == TDE_ID_VAULT_JWT ? "kubernetes" : "");
  return id->mount != NULL ? TDE_OK : tde_nomem(r->st);
}

static tde_class read_identity(const reader *r, tde_identity *id) {
  tde_class rc = read_kind(r, id);
  if (rc == TDE_OK) rc = name_text(r, "tenant", id->tenant, sizeof id->tenant);
  if (rc == TDE_OK) rc = name_text(r, "client_id", id->client_id, sizeof id->client_id);
  if (rc == TDE_OK) rc = name_text(r, "via", id->via, sizeof id->via);
  if (rc == TDE_OK) rc = name_text(r, "secret_env", id->secret_env, sizeof id->secret_env);
  if (rc == TDE_OK) rc = own_path(r, "secret_file", &id->secret_file);
  if (rc == TDE_OK) rc = own_path(r, "certificate_file", &id->certificate_file);
  if (rc == TDE_OK) rc = own_path(r, "token_file", &id->token_file);
  if (rc == TDE_OK) rc = own_text(r, "token_env", &id->token_env);
  if (rc == TDE_OK) rc = own_text(r, "address", &id->address);
  if (rc == TDE_OK) rc = own_text(r, "namespace", &id->vault_namespace);
  if (rc == TDE_OK) rc = own_mount(r, id);
  if (rc == TDE_OK) rc = own_text(r, id->kind == TDE_ID_VAULT_APPROLE ? "role_id" : "role", &id->role);
  return rc == TDE_OK ? check_identity(r, id) : rc;
}

/* A federated identity stands on a managed one, which needs no secret. */
static tde_class check_via(const reader *root, const tde_cloud *c) {
  for (int i = 0; i < c->nids; i++) {
    const tde_identity *id = &c->ids[i], *via = NULL;
    if (id->kind != TDE_ID_FEDERATED) continue;
    for (int k = 0; k < c->nids; k++) {
      if (strcmp(c->ids[k].name, id->via) == 0) via = &c->ids[k];
    }
    if (via == NULL || (via->kind != TDE_ID_MANAGED && via->kind != TDE_ID_APP_SERVICE)) {
      char path[128];
      snprintf(path, sizeof path, "identities.%s", id->name);
      reader r = *root;
      r.path = path;
      return bad_member(&r, "via", "names no identity of kind managed_identity or app_service");
    }
  }
  return TDE_OK;
}

static tde_class read_identities(const reader *root, tde_cloud *c) {
  reader r;
  char path[128];
  tde_class rc = sub(root, "identities", &r);
  if (rc != TDE_OK || r.obj == NULL) return rc;
  size_t n = tde_json_members(r.obj);
  if (n > TDE_IDENTITIES_MAX) {
    return bad_member(root, "identities",
                      "holds more than 256, which an instance may have: put the others into another "
                      "instance directory, or use one identity with a federated_client_id for each "
                      "database");
  }
  c->ids = calloc(n > 0 ? n : 1, sizeof *c->ids);
  if (c->ids == NULL) return tde_nomem(root->st);
  for (size_t i = 0; i < n && rc == TDE_OK; i++) {
    const char *name = tde_json_member_name(r.obj, i);
    tde_identity *id = &c->ids[c->nids];
    if (name == NULL || !tde_plain_name(name) || strlen(name) >= sizeof id->name) {
      return bad_member(root, "identities",
                        "holds a name that is longer than 63 bytes or has other characters than "
                        "letters, digits, '.', '_' and '-'");
    }
    memcpy(id->name, name, strlen(name) + 1);
    snprintf(path, sizeof path, "identities.%s", name);
    reader one = {tde_json_get(r.obj, name), root->file, path, root->st};
    if (!tde_json_is_object(one.obj)) return bad_member(&one, "", "is no object");
    c->nids++;
    rc = read_identity(&one, id);
  }
  return rc == TDE_OK ? check_via(root, c) : rc;
}

tde_class tde_cloud_read(const tde_json *root, const char *file, tde_cloud *out, tde_status *st) {
  reader r = {root, file, "", st}, policy;
  memset(out, 0, sizeof *out);
  out->connect_ms = TDE_CONNECT_MS;
  out->total_ms = TDE_REQUEST_MS;
  snprintf(out->authority, sizeof out->authority, "https://login.microsoftonline.com");
  snprintf(out->imds_endpoint, sizeof out->imds_endpoint, "http://169.254.169.254");
  snprintf(out->api_version, sizeof out->api_version, "7.4");
  tde_class rc = flag(&r, "allow_loopback_http", &out->allow_loopback_http);
  if (rc == TDE_OK) rc = read_http(&r, out);
  if (rc == TDE_OK) rc = read_azure(&r, out);
  if (rc == TDE_OK) rc = read_identities(&r, out);
  if (rc == TDE_OK) rc = sub(&r, "policy", &policy);
  if (rc == TDE_OK && policy.obj != NULL) {
    rc = flag(&policy, "allow_purgeable_keys", &out->allow_purgeable_keys);
    if (rc == TDE_OK) rc = flag(&policy, "allow_exportable_keys", &out->allow_exportable_keys);
  }
  return rc;
}

void tde_cloud_free(tde_cloud *c) {
  for (int i = 0; i < c->nids; i++) {
    free(c->ids[i].secret_file);
    free(c->ids[i].certificate_file);
    free(c->ids[i].token_file);
    free(c->ids[i].token_env);
    free(c->ids[i].address);
    free(c->ids[i].vault_namespace);
    free(c->ids[i].mount);
    free(c->ids[i].role);
  }
  free(c->ids);
  c->ids = NULL;
  c->nids = 0;
}

const tde_identity *tde_cloud_identity(const tde_cloud *c, const char *name, tde_status *st) {
  if (name == NULL && c->nids == 1) return &c->ids[0];
  for (int i = 0; i < c->nids; i++) {
    if (strcmp(c->ids[i].name, name != NULL ? name : "default") == 0) return &c->ids[i];
  }
  if (name == NULL) name = "default";
  char remedy[320];
  snprintf(remedy, sizeof remedy,
           "add it, e.g. tde_instance_set_identity('%.100s', '{\"kind\": \"managed_identity\"}')", name);
  tde_fail(st, TDE_MISCONFIGURED, remedy, "the instance has no identity named %.100s", name);
  return NULL;
}

const tde_identity *tde_cloud_asker(const tde_cloud *c, const char *name, const tde_provider *p,
                                    const char *key_id) {
  const tde_identity *only = NULL;
  int n = 0;
  for (int i = 0; i < c->nids; i++) {
    const tde_identity *id = &c->ids[i];
    if (p->serves != NULL && !p->serves(key_id, id)) continue;
    if (strcmp(id->name, name != NULL ? name : "default") == 0) return id;
    only = id;
    n++;
  }
  return name == NULL && n == 1 ? only : NULL;
}
