/*
** token.c: token requests to Microsoft's identity platform.
**
** What must hold:
**  - A claim (token_cache.h) that is taken is settled in every case. Claims are taken in
**    the order token, then the assertion that it needs, so that nobody waits in a circle.
**  - A token goes into secret memory, from the reply on. It is in no message.
**  - Secrets are read anew for each request: a rotated one is found at once.
*/
#include "token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "credential.h"
#include "instance.h"
#include "jwt.h"
#include "request.h"

#define ASSERTION_TYPE "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

/* ---- a flow ---- */

struct tde_token_flow {
  const tde_cloud *cloud;
  tde_identity id;           /* resolved: never TDE_ID_ENVIRONMENT */
  tde_identity via;          /* of a federated one */
  char file[TDE_CLOUD_PATH_MAX]; /* of id, where the environment names it */
  char tenant[128];
  char resource[256];
  char authority[256];
  tde_want outer;            /* the token for the resource */
  tde_want inner;            /* the managed identity's, as an assertion */
  int asking_inner;          /* which one the request under way is for */
  int renewed_inner;         /* the assertion was refused once already */
  int64_t deadline;          /* the operation's */
};

static tde_class env_copy(const char *name, char *out, size_t cap, int plain, tde_status *st) {
  const char *v = tde_credential_env(name);
  if (v[0] == 0) return TDE_OK;
  if (strlen(v) >= cap || (plain ? !tde_plain_name(v) : v[0] != '/')) {
    return tde_fail(st, TDE_MISCONFIGURED, "correct the variable",
                    "the environment variable %s does not hold what its name says", name);
  }
  memcpy(out, v, strlen(v) + 1);
  return TDE_OK;
}

/* Where tokens of the environment's identity come from, unless the instance says it. */
static tde_class resolve_authority(tde_token_flow *f, tde_status *st) {
  const char *v = tde_credential_env("AZURE_AUTHORITY_HOST");
  if (f->cloud->authority_given || v[0] == 0) return TDE_OK;
  snprintf(f->authority, sizeof f->authority, "%s", v);
  if (strlen(v) < sizeof f->authority && tde_endpoint_valid(f->authority)) return TDE_OK;
  return tde_fail(st, TDE_MISCONFIGURED, "write https://login.microsoftonline.com or another authority",
                  "the environment variable AZURE_AUTHORITY_HOST is not of the form https://host");
}

/* The kinds that read the AZURE_* variables. */
static tde_class resolve_environment(tde_token_flow *f, tde_status *st) {
  tde_identity *id = &f->id;
  int any = id->kind == TDE_ID_ENVIRONMENT;
  if (!any && id->kind != TDE_ID_WORKLOAD) return TDE_OK;
  tde_class rc = resolve_authority(f, st);
  if (rc == TDE_OK && id->tenant[0] == 0) {
    rc = env_copy("AZURE_TENANT_ID", id->tenant, sizeof id->tenant, 1, st);
  }
  if (rc == TDE_OK && id->client_id[0] == 0) {
    rc = env_copy("AZURE_CLIENT_ID", id->client_id, sizeof id->client_id, 1, st);
  }
  if (rc == TDE_OK && any && tde_credential_env("AZURE_CLIENT_SECRET")[0] != 0) {
    id->kind = TDE_ID_CLIENT_SECRET;
    snprintf(id->secret_env, sizeof id->secret_env, "AZURE_CLIENT_SECRET");
  } else if (rc == TDE_OK && any && tde_credential_env("AZURE_CLIENT_CERTIFICATE_PATH")[0] != 0) {
    id->kind = TDE_ID_CLIENT_CERTIFICATE;
    rc = env_copy("AZURE_CLIENT_CERTIFICATE_PATH", f->file, sizeof f->file, 0, st);
    id->certificate_file = f->file;
  } else if (rc == TDE_OK) {
    id->kind = TDE_ID_WORKLOAD;
    if (id->token_file[0] == 0) {
      rc = env_copy("AZURE_FEDERATED_TOKEN_FILE", f->file, sizeof f->file, 0, st);
      id->token_file = f->file;
    }
    if (rc == TDE_OK && id->token_file[0] == 0) {
      rc = tde_fail(st, TDE_MISCONFIGURED,
                    any ? "set AZURE_CLIENT_SECRET, AZURE_CLIENT_CERTIFICATE_PATH or "
                          "AZURE_FEDERATED_TOKEN_FILE"
                        : "set AZURE_FEDERATED_TOKEN_FILE, or \"token_file\" in instance.json",
                    "the environment does not hold what the identity %s needs", id->name);
    }
  }
  if (rc == TDE_OK && id->client_id[0] == 0) {
    rc = tde_fail(st, TDE_MISCONFIGURED, "set AZURE_CLIENT_ID, or \"client_id\" in instance.json",
                  "the identity %s has no client id", id->name);
  }
  return rc;
}

static int is_managed(const tde_identity *id) {
  return id->kind == TDE_ID_MANAGED || id->kind == TDE_ID_APP_SERVICE;
}

/* A managed identity that acts for an application in the vault's tenant. */
static tde_class resolve_federation(tde_token_flow *f, const char *federated, tde_status *st) {
  const tde_identity *via = NULL;
  if (f->id.kind == TDE_ID_FEDERATED) {
    via = tde_cloud_identity(f->cloud, f->id.via, st);
    if (via == NULL) return TDE_MISCONFIGURED;
    f->via = *via;
  }
  if (federated == NULL || federated[0] == 0) return TDE_OK;
  if (!tde_plain_name(federated) || strlen(federated) >= sizeof f->id.client_id) {
    return tde_fail(st, TDE_MISCONFIGURED, NULL, "the federated client id is malformed");
  }
  if (is_managed(&f->id)) {
    f->via = f->id;
    f->id.kind = TDE_ID_FEDERATED;
    f->id.tenant[0] = 0;
  } else if (f->id.kind != TDE_ID_FEDERATED) {
    return tde_fail(st, TDE_MISCONFIGURED, "use a managed identity, or no federated client id",
                    "the identity %s cannot act for another client id", f->id.name);
  }
  memcpy(f->id.client_id, federated, strlen(federated) + 1);
  return TDE_OK;
}

static int is_guid(const char *text) {
  return strlen(text) == 36 && strspn(text, "0123456789abcdefABCDEF-") == 36;
}

/* The identity's own tenant, if it names one, must be the vault's: a token of
** another would be refused. A tenant may also be named by a domain. */
static tde_class resolve_tenant(tde_token_flow *f, tde_status *st) {
  if (f->id.tenant[0] == 0 || is_managed(&f->id)) {
    return TDE_OK;
  }
  if (is_guid(f->id.tenant) && is_guid(f->tenant) && strcasecmp(f->id.tenant, f->tenant) != 0) {
    return tde_fail(st, TDE_MISCONFIGURED,
                    "use an identity of the vault's tenant, or a federated client id in it",
                    "the vault belongs to tenant %s, the identity %s to %s", f->tenant, f->id.name,
                    f->id.tenant);
  }
  memcpy(f->tenant, f->id.tenant, sizeof f->tenant);
  return TDE_OK;
}

/* What makes one token another: everything that goes into its request, save
** the secrets themselves. Each text with its NUL, so that none runs into the next. */
static tde_class make_key(const tde_token_flow *f, const tde_op *op, const tde_identity *id,
                          const char *resource, tde_want *w, tde_status *st) {
  /* A managed identity's token is for its own tenant, whatever the vault's is. */
  const char *const parts[] = {id->name, id->client_id, id->via, id->secret_file, id->secret_env,
                               id->certificate_file, id->token_file, f->via.client_id,
                               is_managed(id) ? "" : f->tenant, resource, f->authority,
                               f->cloud->imds_endpoint, tde_instance_dir(op->instance)};
  char text[TDE_PATH_MAX + 5 * TDE_CLOUD_PATH_MAX];
  size_t n = 0;
  text[n++] = (char)('0' + id->kind);
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
    size_t len = strlen(parts[i]) + 1;
    if (len > sizeof text - n) return tde_fail(st, TDE_INTERNAL, NULL, "an identity is too long");
    memcpy(text + n, parts[i], len);
    n += len;
  }
  if (tde_sha256(text, n, w->key) == TDE_OK) return TDE_OK;
  return tde_fail(st, TDE_CRYPTO, NULL, "the crypto library failed to hash an identity");
}

/* For whom a managed identity's token is issued that is exchanged for another one: by cloud
** (Microsoft Entra, "Workload identity federation": audiences). */
static const char *exchange_resource(const tde_token_flow *f) {
  if (strstr(f->authority, "//login.microsoftonline.us") != NULL) {
    return "api://AzureADTokenExchangeUSGov";
  }
  if (strstr(f->authority, "//login.partner.microsoftonline.cn") != NULL ||
      strstr(f->authority, "//login.chinacloudapi.cn") != NULL) {
    return "api://AzureADTokenExchangeChina";
  }
  return "api://AzureADTokenExchange";
}

/* There is none of that name, or it is Vault's. */
static void no_identity(const tde_cloud *c, const char *name, tde_status *st) {
  const tde_identity *other = tde_cloud_identity(c, name, st);
  if (other == NULL) return;
  tde_fail(st, TDE_MISCONFIGURED,
           "name one of Azure's, or none, and let the instance choose: tde_set_identity(NULL)",
           "the identity %s, of kind %s, does not ask for keys in Azure", other->name,
           tde_identity_kind_name(other->kind));
}

tde_token_flow *tde_token_flow_new(const tde_op *op, const char *tenant, const char *resource,
                                   tde_status *st) {
  const tde_cloud *c = tde_instance_cloud(op->instance);
  const tde_identity *id = tde_cloud_asker(c, op->identity, &tde_provider_azure, op->base_id);
  tde_token_flow *f = id != NULL ? calloc(1, sizeof *f) : NULL;
  if (id == NULL) {
    no_identity(c, op->identity, st);
    return NULL;
  }
  if (f == NULL) {
    tde_nomem(st);
    return NULL;
  }
  f->cloud = c;
  f->id = *id;
  f->deadline = op->deadline;
  snprintf(f->tenant, sizeof f->tenant, "%s", tenant);
  snprintf(f->resource, sizeof f->resource, "%s", resource);
  memcpy(f->authority, c->authority, sizeof f->authority);
  tde_class rc = resolve_environment(f, st);
  if (rc == TDE_OK) rc = resolve_federation(f, op->federated_client_id, st);
  if (rc == TDE_OK) rc = resolve_tenant(f, st);
  if (rc == TDE_OK) rc = make_key(f, op, &f->id, f->resource, &f->outer, st);
  if (rc == TDE_OK && f->id.kind == TDE_ID_FEDERATED) {
    rc = make_key(f, op, &f->via, exchange_resource(f), &f->inner, st);
  }
  if (rc == TDE_OK) return f;
  free(f);
  return NULL;
}

/* ---- requests ---- */

/* Asks for a token of the machine's own identity. s: the address, up to the API's version. */
static tde_class ask_machine(tde_sbuf *s, const tde_identity *id, const char *resource,
                             const char *header, const char *value, tde_request *req,
                             tde_status *st) {
  tde_sbuf_add(s, "&resource=");
  tde_sbuf_escaped(s, resource);
  if (id->client_id[0] != 0) {
    tde_sbuf_add(s, "&client_id=");
    tde_sbuf_escaped(s, id->client_id);
  }
  char *url = tde_sbuf_take(s);
  if (url == NULL) return tde_nomem(st);
  tde_class rc = tde_request_begin(req, "GET", url, st);
  tde_secret_free(url);
  return rc == TDE_OK ? tde_request_header(req, header, value, NULL, st) : rc;
}

static tde_class ask_imds(const tde_token_flow *f, const tde_identity *id, const char *resource,
                          tde_request *req, tde_status *st) {
  tde_sbuf s;
  tde_sbuf_init(&s, 2048);
  tde_sbuf_add(&s, f->cloud->imds_endpoint);
  tde_sbuf_add(&s, "/metadata/identity/oauth2/token?api-version=2018-02-01");
  return ask_machine(&s, id, resource, "Metadata", "true", req, st);
}

static tde_class ask_app_service(const tde_identity *id, const char *resource, tde_request *req,
                                 tde_status *st) {
  const char *endpoint = tde_credential_env("IDENTITY_ENDPOINT"), *header = tde_credential_env("IDENTITY_HEADER");
  tde_sbuf s;
  if (endpoint[0] == 0 || header[0] == 0 || strlen(endpoint) > 1024 || strlen(header) > 4096) {
    int first = endpoint[0] == 0 || strlen(endpoint) > 1024;
    return tde_fail(st, TDE_MISCONFIGURED,
                    "use another kind of identity outside of App Service (Azure Arc's is not supported)",
                    "the environment variable %s is not set, or too long",
                    first ? "IDENTITY_ENDPOINT" : "IDENTITY_HEADER");
  }
  tde_sbuf_init(&s, 4096);
  tde_sbuf_add(&s, endpoint);
  tde_sbuf_add(&s, strchr(endpoint, '?') != NULL ? "&" : "?");
  tde_sbuf_add(&s, "api-version=2019-08-01");
  return ask_machine(&s, id, resource, "X-IDENTITY-HEADER", header, req, st);
}

/* A renewal before its time is not worth a long wait. */
static void hurry(tde_request *req, const tde_want *w) {
  if (w->renewing) req->max_ms = TDE_TOKEN_HURRY_MS;
}

static tde_class ask_managed(const tde_token_flow *f, const tde_identity *id, const char *resource,
                             tde_request *req, tde_status *st) {
  if (id->kind == TDE_ID_APP_SERVICE) return ask_app_service(id, resource, req, st);
  return ask_imds(f, id, resource, req, st);
}

static tde_class add_secret(const tde_identity *id, tde_sbuf *s, tde_status *st) {
  char *text = NULL;
  tde_class rc = TDE_OK;
  tde_sbuf_add(s, "&client_secret=");
  if (id->secret_env[0] != 0) {
    const char *v = tde_credential_env(id->secret_env);
    if (v[0] == 0) {
      return tde_fail(st, TDE_MISCONFIGURED, "set it in the environment of this process",
                      "the environment variable %s is not set", id->secret_env);
    }
    tde_sbuf_escaped(s, v);
    return TDE_OK;
  }
  rc = tde_credential_file(id->secret_file, TDE_CREDENTIAL_TEXT_MAX, &text, NULL, st);
  if (rc == TDE_OK) tde_sbuf_escaped(s, text);
  tde_secret_free(text);
  return rc;
}

static void add_assertion(tde_sbuf *s, const char *assertion) {
  tde_sbuf_add(s, "&client_assertion_type=");
  tde_sbuf_escaped(s, ASSERTION_TYPE);
  tde_sbuf_add(s, "&client_assertion=");
  tde_sbuf_escaped(s, assertion);
}

/* How the client proves who it is. */
static tde_class add_proof(const tde_token_flow *f, const char *url, tde_sbuf *s, tde_status *st) {
  char *text = NULL, *assertion = NULL;
  size_t n = 0;
  tde_class rc = TDE_OK;
  switch (f->id.kind) {
    case TDE_ID_CLIENT_SECRET: return add_secret(&f->id, s, st);
    case TDE_ID_CLIENT_CERTIFICATE:
      rc = tde_credential_file(f->id.certificate_file, TDE_CREDENTIAL_FILE_MAX, &text, &n, st);
      if (rc == TDE_OK) {
        rc = tde_jwt_client_assertion(text, n, url, f->id.client_id, (int64_t)time(NULL),
                                      &assertion, st);
      }
      break;
    case TDE_ID_WORKLOAD:
      rc = tde_credential_workload(f->id.token_file, "check AZURE_FEDERATED_TOKEN_FILE or \"token_file\"",
                                   &assertion, st);
      break;
    default:
      add_assertion(s, f->inner.text);
      return TDE_OK;
  }
  if (rc == TDE_OK) add_assertion(s, assertion);
  tde_secret_free(text);
  tde_secret_free(assertion);
  return rc;
}

/* The client credentials request; the proof is there or read here. */
static tde_class ask_authority(const tde_token_flow *f, tde_request *req, tde_status *st) {
  char url[512];
  tde_sbuf s;
  if (!tde_plain_name(f->tenant)) {
    return tde_fail(st, TDE_MISCONFIGURED, NULL, "the tenant of the vault is malformed");
  }
  snprintf(url, sizeof url, "%s/%s/oauth2/v2.0/token", f->authority, f->tenant);
  tde_class rc = tde_request_begin(req, "POST", url, st);
  if (rc != TDE_OK) return rc;
  tde_sbuf_init(&s, TDE_FORM_MAX);
  tde_sbuf_add(&s, "grant_type=client_credentials&client_id=");
  tde_sbuf_escaped(&s, f->id.client_id);
  tde_sbuf_add(&s, "&scope=");
  tde_sbuf_escaped(&s, f->resource);
  tde_sbuf_escaped(&s, "/.default");
  rc = add_proof(f, url, &s, st);
  if (rc == TDE_OK) rc = tde_request_body(req, &s, "application/x-www-form-urlencoded", st);
  tde_sbuf_free(&s);
  return rc == TDE_OK ? tde_request_header(req, "Accept", "application/json", NULL, st) : rc;
}

static tde_step ended(tde_token_flow *f, const tde_status *st) {
  tde_status unknown;
  if (st == NULL || st->code == TDE_OK) {
    tde_status_clear(&unknown);
    tde_fail(&unknown, TDE_UNREACHABLE, NULL, "a token request failed");
    st = &unknown;
  }
  tde_want_settle_failed(&f->inner, st);
  tde_want_settle_failed(&f->outer, st);
  return TDE_STEP_FAILED;
}

/* Nothing was asked, as st says. In an outage what is still good of the token serves. */
static tde_step not_asked(tde_token_flow *f, const tde_status *st) {
  int outage = st != NULL && tde_class_is_outage(st->code);
  ended(f, st);
  return outage && tde_want_old(&f->outer) ? TDE_STEP_DONE : TDE_STEP_FAILED;
}

/* The request for the outer token, whose claim is ours. A federated one needs
** the managed identity's token first. */
static tde_step ask_outer(tde_token_flow *f, tde_request *req, tde_status *st) {
  tde_class rc;
  f->asking_inner = 0;
  if (f->id.kind == TDE_ID_FEDERATED && f->inner.text == NULL) {
    tde_want_outcome o = tde_want_token(&f->inner, f->deadline, st);
    if (o == TDE_WANT_FAILED) return not_asked(f, st);
    if (o == TDE_WANT_LEAD) {
      f->asking_inner = 1;
      rc = ask_managed(f, &f->via, exchange_resource(f), req, st);
      hurry(req, &f->inner);
      hurry(req, &f->outer);
      return rc == TDE_OK ? TDE_STEP_SEND : not_asked(f, st);
    }
  }
  if (is_managed(&f->id)) {
    rc = ask_managed(f, &f->id, f->resource, req, st);
  } else {
    rc = ask_authority(f, req, st);
  }
  hurry(req, &f->outer);
  return rc == TDE_OK ? TDE_STEP_SEND : not_asked(f, st);
}

/* The request under way failed as st says. In an outage, what is still good of
** an older assertion or token serves. An assertion that is refused may be too old,
** whatever the cache says: it is fetched once more. */
static tde_step not_renewed(tde_token_flow *f, tde_request *req, tde_status *st) {
  int outage = tde_class_is_outage(st->code);
  if (st->code == TDE_UNAUTHENTICATED && !f->asking_inner && f->id.kind == TDE_ID_FEDERATED) {
    tde_want_drop(&f->inner);
    if (!f->renewed_inner) {
      f->renewed_inner = 1;
      return ask_outer(f, req, st);
    }
  }
  if (outage && f->asking_inner) {
    tde_want_settle_failed(&f->inner, st);
    if (tde_want_old(&f->inner)) return ask_outer(f, req, st);
  }
  ended(f, st);
  return outage && tde_want_old(&f->outer) ? TDE_STEP_DONE : TDE_STEP_FAILED;
}

tde_step tde_token_unanswered(tde_token_flow *f, tde_request *req, tde_status *st) {
  int near = is_managed(f->asking_inner ? &f->via : &f->id);
  if (near && st->code == TDE_UNREACHABLE && st->remedy[0] == 0) {
    tde_fail(st, st->code, "try again; use another kind of identity where there is no managed identity of Azure's",
             "%s", st->message);
  }
  return not_renewed(f, req, st);
}

tde_step tde_token_start(tde_token_flow *f, tde_request *req, tde_status *st) {
  switch (tde_want_token(&f->outer, f->deadline, st)) {
    case TDE_WANT_READY: return TDE_STEP_DONE;
    case TDE_WANT_LEAD: return ask_outer(f, req, st);
    default: return TDE_STEP_FAILED;
  }
}

/* ---- replies ---- */

static tde_class malformed(tde_status *st, const char *what) {
  return tde_fail(st, TDE_CORRUPT, "check what answers at the identity's endpoint",
                  "the reply to a token request %s", what);
}

static tde_class accept_token(const tde_reply *reply, tde_want *w, tde_status *st) {
  static const char what[] = "reply to a token request";
  tde_json_span text, life, expires_on;
  tde_status inner;
  int64_t seconds = -1;
  tde_class rc = tde_json_find(reply->body, reply->nbody, what, "access_token", &text, st);
  if (rc == TDE_CORRUPT) return malformed(st, "is not valid JSON");
  if (rc != TDE_OK || !text.is_text || !tde_token_form(text.at, text.n)) {
    return malformed(st, "holds no access_token of the right form");
  }
  if (tde_json_find(reply->body, reply->nbody, what, "expires_in", &life, &inner) == TDE_OK) {
    seconds = tde_token_seconds(&life);
  } else if (tde_json_find(reply->body, reply->nbody, what, "expires_on", &expires_on, &inner) ==
             TDE_OK) {
    /* App Service names the moment, in Unix time. */
    seconds = tde_token_seconds(&expires_on);
    if (seconds >= 0) seconds -= (int64_t)time(NULL);
  }
  if (seconds <= 0) return malformed(st, "does not say how long the token lives");
  return tde_want_settle(w, text.at, text.n, seconds, st);
}

/* The service's codes and request id into st; its prose stays out. Returns whether the reply is the
** service's own, by its form or by that id: App Service (managed) has a form of its own. */
static int note_error(const tde_reply *reply, int managed, tde_status *st) {
  tde_json *root = NULL;
  char code[48] = "", id[sizeof st->request_id] = "";
  int known = 0;
  st->http_status = reply->status;
  if (tde_json_parse(reply->body, reply->nbody, "reply", &root, NULL) == TDE_OK) {
    const tde_json *codes = tde_json_get(root, "error_codes");
    known = tde_json_get_text(root, "error") != NULL || (managed && tde_json_is_object(root));
    tde_copy_code(code, sizeof code, tde_json_get_text(root, "error"));
    tde_copy_code(id, sizeof id, tde_json_get_text(root, "trace_id"));
    int64_t number = tde_json_int_at(codes, 0, 0);
    if (number > 0) {
      snprintf(st->service_code, sizeof st->service_code, "%.40s/AADSTS%lld", code,
               (long long)(number % 100000000));
    } else {
      snprintf(st->service_code, sizeof st->service_code, "%s", code);
    }
  }
  tde_json_free(root);
  if (id[0] == 0) tde_copy_code(id, sizeof id, tde_reply_header(reply, "x-ms-request-id"));
  memcpy(st->request_id, id, sizeof id);
  return known || id[0] != 0;
}

static tde_class refused(const tde_token_flow *f, const tde_reply *reply, tde_status *st) {
  const tde_identity *id = f->asking_inner ? &f->via : &f->id;
  int managed = is_managed(id);
  int s = reply->status, known = note_error(reply, managed, st);
  if (s == 429) {
    return tde_fail(st, TDE_THROTTLED, NULL, "the token endpoint of the identity %s is busy (429)",
                    id->name);
  }
  if (s >= 500 || s == 408 || (managed && (s == 404 || s == 410)) ||
      strncmp(st->service_code, "temporarily_unavailable", 23) == 0) {
    return tde_fail(st, TDE_UNREACHABLE, NULL,
                    "the token endpoint of the identity %s has no token now (%d)", id->name, s);
  }
  if (s < 400) return malformed(st, "has a status that none should have");
  if (!known) {
    return tde_fail(st, TDE_UNREACHABLE,
                    managed ? "look at what answers at the endpoint of the managed identity: a proxy?"
                            : "check azure.authority, and look at the proxy, gateway or firewall on the way to it",
                    "what answered for the token endpoint of the identity %s (%d) is none", id->name, s);
  }
  return tde_fail(st, TDE_UNAUTHENTICATED,
                  managed ? "assign the managed identity to this machine, and check \"client_id\""
                          : "check the identity's tenant, client id, and its secret, certificate or "
                            "federated credential; in a sovereign cloud, azure.authority, too",
                  "no token for the identity %s: %s (%d)", id->name,
                  st->service_code[0] != 0 ? st->service_code : "refused", s);
}

tde_step tde_token_reply(tde_token_flow *f, const tde_reply *reply, tde_request *req,
                         tde_status *st) {
  tde_want *w = f->asking_inner ? &f->inner : &f->outer;
  tde_class rc = reply->status == 200 ? accept_token(reply, w, st) : refused(f, reply, st);
  if (rc != TDE_OK) {
    st->http_status = reply->status;
    return not_renewed(f, req, st);
  }
  if (!f->asking_inner) return TDE_STEP_DONE;
  return ask_outer(f, req, st);
}

const char *tde_token_value(const tde_token_flow *f) {
  return f->outer.text;
}

const char *tde_token_identity(const tde_token_flow *f) {
  return f->id.name;
}

void tde_token_drop(tde_token_flow *f) {
  tde_want_drop(&f->outer);
  /* The assertion may be what was wrong with it. */
  if (f->id.kind == TDE_ID_FEDERATED) tde_want_drop(&f->inner);
}

void tde_token_flow_free(tde_token_flow *f) {
  if (f == NULL) return;
  ended(f, NULL);
  tde_secret_free(f->outer.text);
  tde_secret_free(f->inner.text);
  free(f);
}
