/*
** token.c: where callers get their tokens, and how a vault checks them.
**
** The authority of every tenant: OAuth 2.0 client credentials (RFC 6749 section
** 4.4) with a secret, a certificate's assertion (RFC 7523) or a federated
** assertion, the metadata that clients ask for before, and the managed-identity
** endpoints of a virtual machine (IMDS) and of App Service. Error codes are
** those of Microsoft Entra (AADSTS...).
*/
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kv.h"

#define TOKEN_SECONDS 3599
#define MANAGED_SECONDS 86399
#define JWT_BEARER "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

char kv_identity_header[41];
static int64_t issued, revoked_up_to;

void kv_issuer(const char *tenant, char *out, size_t n) {
  snprintf(out, n, "https://" KV_LOGIN ":%u/%s/v2.0", kv_port[KV_HTTPS], tenant);
}

char *kv_issue(const kv_identity *who, const char *tenant, const char *audience, int64_t seconds) {
  char issuer[200], *out;
  json_int_t now = kv_now();
  json_t *claims;

  kv_issuer(tenant, issuer, sizeof(issuer));
  claims = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I}", "iss", issuer, "aud", audience,
                     "sub", who->object_id, "oid", who->object_id, "appid", who->client_id, "tid",
                     tenant, "iat", now, "nbf", now, "exp", now + seconds, "serial",
                     (json_int_t)++issued);
  out = kv_jwt_sign(kv_authority_key, claims);
  json_decref(claims);
  return out;
}

void kv_revoke_tokens(void) {
  revoked_up_to = issued;
}

static const char *text(json_t *claims, const char *name) {
  const char *value = json_string_value(json_object_get(claims, name));

  return value ? value : "";
}

static json_int_t number(json_t *claims, const char *name) {
  return json_integer_value(json_object_get(claims, name));
}

kv_identity *kv_authenticate(const char *token, const kv_vault *vault, const char **why) {
  json_t *claims = kv_jwt_verify(kv_authority_key, token);
  kv_identity *who = NULL;

  if (!claims) {
    *why = "AKV10001: Signature of the token is not valid.";
  } else if (kv_now() >= number(claims, "exp") || number(claims, "serial") <= revoked_up_to) {
    *why = "[TokenExpired] Error validating token: 'S2S12086'.";
  } else if (strcmp(text(claims, "aud"), kv_resource(vault)) != 0) {
    *why = "AKV10022: Invalid audience: the token is for another resource.";
  } else if (strcmp(text(claims, "tid"), vault->tenant) != 0) {
    *why = "AKV10032: Invalid issuer: the token is of another tenant than the vault.";
  } else {
    who = kv_find_client(text(claims, "appid"));
    *why = "AKV10030: The caller is not known.";
  }
  json_decref(claims);
  return who;
}

/* ---- the token endpoint ---- */

static void refuse(kv_request *r, int status, const char *error, int number_, const char *why) {
  char description[500], when[32];

  kv_time_text(kv_now(), when);
  snprintf(description, sizeof(description), "AADSTS%d: %s Trace ID: %s Timestamp: %s", number_,
           why, r->id, when);
  kv_reply(r, status,
           json_pack("{s:s,s:s,s:[i],s:s,s:s,s:s}", "error", error, "error_description",
                     description, "error_codes", number_, "timestamp", when, "trace_id", r->id,
                     "correlation_id", r->id));
}

static int hex(char c) {
  static const char digits[] = "0123456789abcdef";
  const char *at = c ? strchr(digits, c | 0x20) : NULL;

  return at ? (int)(at - digits) : -1;
}

/* application/x-www-form-urlencoded; the value is malloc'ed, NULL when absent. */
static char *form(const kv_request *r, const char *name) {
  const char *at = r->body;
  size_t n = strlen(name);
  char *out, *to;

  while (at && (strncmp(at, name, n) != 0 || at[n] != '=')) {
    at = strchr(at, '&');
    if (at) at++;
  }
  if (!at) return NULL;
  at += n + 1;
  out = to = malloc(strlen(at) + 1);
  for (; out && *at && *at != '&'; at++) {
    if (*at == '%' && hex(at[1]) >= 0 && hex(at[2]) >= 0) {
      *to++ = (char)(hex(at[1]) * 16 + hex(at[2]));
      at += 2;
    } else {
      *to++ = *at == '+' ? ' ' : *at;
    }
  }
  if (to) *to = 0;
  return out;
}

static bool audience_has(json_t *claims, const char *wanted) {
  json_t *aud = json_object_get(claims, "aud"), *item;
  size_t i;

  if (json_is_string(aud)) return strcmp(json_string_value(aud), wanted) == 0;
  json_array_foreach(aud, i, item) {
    if (json_is_string(item) && strcmp(json_string_value(item), wanted) == 0) return true;
  }
  return false;
}

/* Signed by the identity's own certificate, for this endpoint, now. */
static const char *check_certificate(const kv_identity *who, const char *assertion,
                                     const char *tenant, int *number_) {
  EVP_PKEY *key = who->certificate ? X509_get0_pubkey(who->certificate) : NULL;
  json_t *claims = key && kv_jwt_names(assertion, who->certificate) ? kv_jwt_verify(key, assertion)
                                                                    : NULL;
  char endpoint[300], short_form[300];
  const char *why = NULL;

  snprintf(endpoint, sizeof(endpoint), "https://" KV_LOGIN ":%u/%s/oauth2/v2.0/token",
           kv_port[KV_HTTPS], tenant);
  kv_issuer(tenant, short_form, sizeof(short_form));
  *number_ = 700027;
  if (!claims) {
    why =
        "The certificate with identifier used to sign the client assertion is not registered on "
        "application, or the signature is not valid.";
  } else if (strcmp(text(claims, "iss"), who->client_id) != 0 ||
             strcmp(text(claims, "sub"), who->client_id) != 0) {
    *number_ = 700021;
    why = "Client assertion application identifier doesn't match 'client_id' parameter.";
  } else if (!audience_has(claims, endpoint) && !audience_has(claims, short_form)) {
    *number_ = 700023;
    why = "Client assertion audience claim does not match Realm issuer.";
  } else if (kv_now() >= number(claims, "exp") || kv_now() + 300 < number(claims, "nbf")) {
    *number_ = 700024;
    why = "Client assertion is not within its valid time range.";
  }
  json_decref(claims);
  return why;
}

/* Issued by someone this identity trusts, for the exchange, now. */
static const char *check_federated(const kv_identity *who, const char *assertion, int *number_) {
  json_t *unverified = kv_jwt_part(assertion, 1), *claims, *record;
  bool cluster = strcmp(text(unverified, "iss"), KV_CLUSTER_ISSUER) == 0, found = false;
  char issuer[200];
  const char *why = NULL;
  size_t i;

  claims = kv_jwt_verify(cluster ? kv_cluster_key : kv_authority_key, assertion);
  json_array_foreach(json_object_get(who->conf, "federated"), i, record) {
    const char *from = text(record, "issuer");

    if (strcmp(from, "cluster") == 0)
      snprintf(issuer, sizeof(issuer), "%s", KV_CLUSTER_ISSUER);
    else
      kv_issuer(from, issuer, sizeof(issuer));
    found = found || (strcmp(issuer, text(claims, "iss")) == 0 &&
                      strcmp(text(record, "subject"), text(claims, "sub")) == 0);
  }
  *number_ = 700213;
  if (!claims || !found) {
    why = "No matching federated identity record found for presented assertion.";
  } else if (!audience_has(claims, KV_EXCHANGE)) {
    *number_ = 700212;
    why = "No matching federated identity record found for presented assertion audience.";
  } else if (kv_now() >= number(claims, "exp")) {
    *number_ = 700024;
    why = "Client assertion is not within its valid time range.";
  }
  json_decref(unverified);
  json_decref(claims);
  return why;
}

/* NULL when the credential is right. */
static const char *check_credential(const kv_request *r, const kv_identity *who, const char *tenant,
                                    int *number_) {
  char *secret = form(r, "client_secret"), *assertion = form(r, "client_assertion");
  char *type = form(r, "client_assertion_type");
  const char *why = NULL;

  *number_ = 7000215;
  if (assertion && type && strcmp(type, JWT_BEARER) == 0) {
    json_t *claims = kv_jwt_part(assertion, 1);
    bool self = strcmp(text(claims, "iss"), who->client_id) == 0;

    json_decref(claims);
    why = self ? check_certificate(who, assertion, tenant, number_)
               : check_federated(who, assertion, number_);
  } else if (!secret) {
    *number_ = 7000216;
    why = "'client_assertion' or 'client_secret' is required for the 'client_credentials' grant.";
  } else if (!who->secret || strcmp(secret, who->secret) != 0) {
    why = "Invalid client secret provided.";
  }
  free(secret);
  free(assertion);
  free(type);
  return why;
}

/* "https://vault.localtest/.default" to "https://vault.localtest"; false: not served. */
static bool audience_of(char *scope) {
  static const char tail[] = "/.default";
  size_t n = scope ? strlen(scope) : 0, ntail = sizeof(tail) - 1;

  if (n <= ntail || strcmp(scope + n - ntail, tail) != 0) return false;
  scope[n - ntail] = 0;
  if (n > ntail && scope[n - ntail - 1] == '/') scope[n - ntail - 1] = 0;
  return kv_resource_known(scope);
}

static void give_token(kv_request *r, const char *tenant) {
  char *client = form(r, "client_id"), *scope = form(r, "scope"), *grant = form(r, "grant_type");
  kv_identity *who = client ? kv_find_client(client) : NULL;
  char *token = NULL;
  const char *why;
  int code;

  if (who) snprintf(r->identity, sizeof(r->identity), "%s", who->name);
  if (!grant || strcmp(grant, "client_credentials") != 0) {
    refuse(r, 400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.");
  } else if (!who || !kv_in_tenant(who, tenant)) {
    refuse(r, 400, "unauthorized_client", 700016,
           "Application with this identifier was not found in the directory.");
  } else if ((why = check_credential(r, who, tenant, &code)) != NULL) {
    refuse(r, 401, "invalid_client", code, why);
  } else if (!audience_of(scope)) {
    refuse(r, 400, "invalid_scope", 70011, "The provided value for the scope is not valid.");
  } else if ((token = kv_issue(who, tenant, scope, TOKEN_SECONDS)) != NULL) {
    kv_reply(r, 200,
             json_pack("{s:s,s:i,s:i,s:s}", "token_type", "Bearer", "expires_in", TOKEN_SECONDS,
                       "ext_expires_in", TOKEN_SECONDS, "access_token", token));
  }
  free(token);
  free(client);
  free(scope);
  free(grant);
}

static void give_metadata(kv_request *r, const char *tenant) {
  char base[200], issuer[220], token[250], authorize[250], keys[250];

  snprintf(base, sizeof(base), "https://" KV_LOGIN ":%u/%s", kv_port[KV_HTTPS], tenant);
  snprintf(issuer, sizeof(issuer), "%s/v2.0", base);
  snprintf(token, sizeof(token), "%s/oauth2/v2.0/token", base);
  snprintf(authorize, sizeof(authorize), "%s/oauth2/v2.0/authorize", base);
  snprintf(keys, sizeof(keys), "%s/discovery/v2.0/keys", base);
  kv_reply(
      r, 200,
      json_pack("{s:s,s:s,s:s,s:s,s:[s,s],s:[s],s:[s]}", "issuer", issuer, "token_endpoint", token,
                "authorization_endpoint", authorize, "jwks_uri", keys,
                "token_endpoint_auth_methods_supported", "client_secret_post", "private_key_jwt",
                "response_types_supported", "token", "subject_types_supported", "pairwise"));
}

static void give_discovery(kv_request *r) {
  char endpoint[250], host[100];

  snprintf(host, sizeof(host), KV_LOGIN ":%u", kv_port[KV_HTTPS]);
  snprintf(endpoint, sizeof(endpoint), "https://%s/common/v2.0/.well-known/openid-configuration",
           host);
  kv_reply(r, 200,
           json_pack("{s:s,s:s,s:[{s:s,s:s,s:[s]}]}", "tenant_discovery_endpoint", endpoint,
                     "api-version", "1.1", "metadata", "preferred_network", host, "preferred_cache",
                     host, "aliases", host));
}

void kv_login_serve(kv_request *r) {
  const char *slash = strchr(r->path + 1, '/'), *rest = slash ? slash : "";
  char tenant[64];
  void (*give)(kv_request *, const char *) = NULL;

  snprintf(tenant, sizeof(tenant), "%.*s", (int)strcspn(r->path + 1, "/"), r->path + 1);
  if (strcmp(rest, "/oauth2/v2.0/token") == 0 && strcmp(r->method, "POST") == 0) {
    r->operation = "token";
    give = give_token;
  } else if (strcmp(rest, "/v2.0/.well-known/openid-configuration") == 0 ||
             strcmp(rest, "/.well-known/openid-configuration") == 0) {
    r->operation = "openid";
    give = give_metadata;
  } else if (strcmp(rest, "/discovery/instance") == 0) {
    r->operation = "discovery";
  } else {
    kv_error(r, 404, "NotFound", NULL, "No such resource.");
    return;
  }
  if (kv_fault_met(r, true)) return;
  if (!give)
    give_discovery(r);
  else if (!kv_tenant_known(tenant))
    refuse(r, 400, "invalid_request", 90002, "Tenant not found.");
  else
    give(r, tenant);
}

/* ---- managed identity ---- */

static void managed_error(kv_request *r, int status, const char *error, const char *why) {
  kv_reply(r, status, json_pack("{s:s,s:s}", "error", error, "error_description", why));
}

void kv_token_error(kv_request *r, int status, const char *code, const char *why) {
  if (r->listener == KV_HTTPS)
    refuse(r, status, code ? code : "invalid_request", 900000 + status, why);
  else
    managed_error(r, status, code ? code : "invalid_request", why);
}

static void give_managed(kv_request *r, bool imds) {
  const char *client = kv_query(r, "client_id"), *resource = kv_query(r, "resource");
  kv_identity *who = kv_find_managed(client);
  json_t *tenants = who ? json_object_get(who->conf, "tenants") : NULL;
  const char *tenant = json_string_value(json_array_get(tenants, 0));
  char audience[200] = "", seconds[32], until[32], *token;
  json_t *out;

  if (resource) snprintf(audience, sizeof(audience), "%s", resource);
  if (audience[0] && audience[strlen(audience) - 1] == '/') audience[strlen(audience) - 1] = 0;
  if (!who || !tenant) {
    managed_error(r, 400, "invalid_request", "Identity not found");
    return;
  }
  snprintf(r->identity, sizeof(r->identity), "%s", who->name);
  if (!kv_resource_known(audience)) {
    managed_error(r, 400, "invalid_resource",
                  "AADSTS500011: The resource principal was not found in the tenant.");
    return;
  }
  token = kv_issue(who, tenant, audience, MANAGED_SECONDS);
  snprintf(seconds, sizeof(seconds), "%d", MANAGED_SECONDS);
  snprintf(until, sizeof(until), "%lld", (long long)(kv_now() + MANAGED_SECONDS));
  out = json_pack("{s:s,s:s,s:s,s:s,s:s}", "access_token", token ? token : "", "client_id",
                  who->client_id, "expires_on", until, "resource", resource, "token_type",
                  "Bearer");
  if (imds) {
    json_object_set_new(out, "expires_in", json_string(seconds));
    json_object_set_new(out, "ext_expires_in", json_string(seconds));
  }
  kv_reply(r, 200, out);
  free(token);
}

void kv_managed_serve(kv_request *r) {
  bool imds = strncmp(r->path, "/metadata/identity/oauth2/token", 31) == 0 &&
              (!r->path[31] || strcmp(r->path + 31, "/") == 0);
  bool app = strcmp(r->path, "/msi/token") == 0 || strcmp(r->path, "/msi/token/") == 0;
  const char *metadata = kv_header(r, "Metadata"), *proof = kv_header(r, "X-IDENTITY-HEADER");
  const char *version = kv_query(r, "api-version");

  if ((!imds && !app) || strcmp(r->method, "GET") != 0) {
    managed_error(r, 404, "not_found", "No such resource.");
    return;
  }
  r->operation = imds ? "imds" : "appService";
  if (kv_fault_met(r, true)) return;
  if (imds && (!metadata || strcasecmp(metadata, "true") != 0))
    managed_error(r, 400, "invalid_request", "Required metadata header not specified");
  else if (app && (!proof || strcmp(proof, kv_identity_header) != 0))
    managed_error(r, 401, "unauthorized", "The identity header is missing or wrong.");
  else if (!version || strcmp(version, imds ? "2018-02-01" : "2019-08-01") != 0)
    managed_error(r, 400, "invalid_request", "api-version is missing or not served.");
  else
    give_managed(r, imds);
}
