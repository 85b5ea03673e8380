/*
** azure.c: the provider of keys in Azure Key Vault and Managed HSM.
**
** An operation goes: ask without a token, and learn from the challenge which
** tenant and resource the vault belongs to (remembered for each vault); get a
** token (token.c); ask again. A wrap looks at the key first. A refused token is
** dropped and fetched once more.
**
** What must hold:
**  - Nothing is sent to a host that the instance does not allow, and no token
**    before the challenge was checked: a key id may come from a forged header.
**  - A DEK leaves in a request's secret memory and comes back into op->dek; the
**    JSON library never sees it.
**  - A reply about another key, or another version than was asked for, is
**    corrupt, whatever else it holds.
**  - A key that is disabled, outside its dates or could be purged never wraps.
**    An expired one is not kept from unwrapping.
**  - Outages and denials are told apart by the HTTP status first, the inner code
**    second; the service's prose is in no message. Only the vault itself can deny: who else
**    answers in its place makes an outage.
*/
#include "azure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "../ext/base/bytes.h"
#include "../ext/base/secret.h"
#include "challenge.h"
#include "instance.h"
#include "request.h"
#include "rsa.h"
#include "token.h"

#define SCHEME "https://"
#define SCHEME_LEN 8
#define NAME_MAX_LEN 127
#define VERSION_MAX_LEN 64
#define RSA_MAX_BYTES 512
#define PAGE_QUERY_MAX 2048
/* AES key wrap, RFC 3394, with a key of 256 bits: RFC 7518 section 4.4. */
#define A256KW "A256KW"
#define A256KW_BYTES (TDE_KEY_BYTES + 8)
#define LET_PURGEABLE                                          \
  "--enable-purge-protection true), or let such keys wrap " \
  "(tde_instance_set_policy('allow_purgeable_keys', 1))"
#define KEY_KINDS "use an RSA or RSA-HSM key of 2048, 3072 or 4096 bits, or in Managed HSM an oct-HSM key of 256"

/* Data-plane domains of the public and the sovereign clouds. */
static const char *const official[] = {
    "vault.azure.net",      "managedhsm.azure.net",      "vault.azure.cn",
    "managedhsm.azure.cn",  "vault.usgovcloudapi.net",   "managedhsm.usgovcloudapi.net",
    "vault.microsoftazure.de",
};

/* ---- key ids ---- */

typedef struct key_parts {
  char host[254];
  char name[NAME_MAX_LEN + 1];
  char version[VERSION_MAX_LEN + 1];
  size_t nbase;               /* bytes of the id up to the name's end */
} key_parts;

static int all_of(const char *p, size_t n, int dash) {
  for (size_t i = 0; i < n; i++) {
    int ok = (p[i] >= 'a' && p[i] <= 'z') || (p[i] >= 'A' && p[i] <= 'Z') ||
             (p[i] >= '0' && p[i] <= '9') || (dash && p[i] == '-');
    if (!ok) return 0;
  }
  return n > 0;
}

/* ":PORT", 1 to 65535, or nothing. */
static int port_valid(const char *p, size_t n) {
  long v = 0;
  if (n == 0) return 1;
  if (n < 2 || n > 6 || p[0] != ':' || p[1] == '0') return 0;
  for (size_t i = 1; i < n; i++) {
    if (p[i] < '0' || p[i] > '9') return 0;
    v = v * 10 + (p[i] - '0');
  }
  return v <= 65535;
}

/* Splits the n bytes of an id; 0 when it has another form. */
static int split_id(const char *id, size_t n, key_parts *out) {
  const char *end = id + n, *host = id + SCHEME_LEN;
  memset(out, 0, sizeof *out);
  if (n <= SCHEME_LEN || n >= TDE_KEY_ID_MAX || strncmp(id, SCHEME, SCHEME_LEN) != 0) return 0;
  const char *slash = memchr(host, '/', (size_t)(end - host));
  if (slash == NULL) return 0;
  const char *colon = memchr(host, ':', (size_t)(slash - host));
  size_t nhost = (size_t)((colon != NULL ? colon : slash) - host);
  if (!tde_host_valid(host, nhost) || memchr(host, '.', nhost) == NULL) return 0;
  if (colon != NULL && !port_valid(colon, (size_t)(slash - colon))) return 0;
  if (!tde_copy_part(out->host, sizeof out->host, host, nhost)) return 0;
  if (end - slash < 7 || memcmp(slash, "/keys/", 6) != 0) return 0;
  const char *name = slash + 6, *cut = memchr(name, '/', (size_t)(end - name));
  size_t nname = (size_t)((cut != NULL ? cut : end) - name);
  if (!all_of(name, nname, 1) || !tde_copy_part(out->name, sizeof out->name, name, nname)) return 0;
  out->nbase = (size_t)(name + nname - id);
  if (cut == NULL) return 1;
  size_t nver = (size_t)(end - cut - 1);
  return all_of(cut + 1, nver, 0) && tde_copy_part(out->version, sizeof out->version, cut + 1, nver);
}

/* Key Vault tells neither names by their case nor the default port from none: one key has
** one id here, the way that it is compared by everywhere. */
static void canonical_base(const char *id, const key_parts *parts, char out[TDE_KEY_ID_MAX]) {
  const char *port = id + SCHEME_LEN + strlen(parts->host);
  size_t nname = strlen(parts->name), nhead = parts->nbase - nname, at = (size_t)(port - id);
  memcpy(out, id, at);
  if (strncmp(port, ":443/", 5) == 0) port += 4;
  nhead -= (size_t)(port - id);
  memcpy(out + at, port, nhead);
  at += nhead;
  for (size_t i = 0; i < nname; i++) {
    char c = parts->name[i];
    out[at++] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
  }
  out[at] = 0;
}

static int azure_matches(const char *key_id) {
  return strncmp(key_id, SCHEME, SCHEME_LEN) == 0;
}

static tde_class azure_parse_id(const char *key_id, char base_id[TDE_KEY_ID_MAX],
                                char version[TDE_KEY_VERSION_MAX], tde_status *st) {
  key_parts parts;
  base_id[0] = version[0] = 0;
  if (!split_id(key_id, strlen(key_id), &parts)) {
    return tde_fail(st, TDE_MISCONFIGURED,
                    "write https://VAULT.vault.azure.net/keys/NAME or .../keys/NAME/VERSION, the host in "
                    "lower case",
                    "the key id %.200s is not that of a key in a vault", key_id);
  }
  canonical_base(key_id, &parts, base_id);
  memcpy(version, parts.version, sizeof parts.version);
  return TDE_OK;
}

/* ---- which hosts ---- */

/* The domain of vaults that the host is one of; "": of none. */
static const char *domain_of(const struct tde_instance *inst, const char *host) {
  const tde_suffix *own = tde_cloud_suffix(tde_instance_cloud(inst), host);
  for (size_t i = 0; i < sizeof official / sizeof official[0]; i++) {
    if (tde_host_below(host, official[i])) return official[i];
  }
  return own != NULL ? own->name : "";
}

int tde_azure_host_allowed(const struct tde_instance *inst, const char *host) {
  const char *own;
  key_parts parts;
  if (domain_of(inst, host)[0] != 0) return 1;
  for (size_t i = 0; (own = tde_instance_key_at(inst, i)) != NULL; i++) {
    if (split_id(own, strlen(own), &parts) && strcmp(parts.host, host) == 0) return 1;
  }
  return 0;
}

/* ---- an operation ---- */

typedef enum az_stage { STAGE_GET, STAGE_OP, STAGE_LIST } az_stage;

typedef struct az {
  key_parts key;
  az_stage stage;
  char page[PAGE_QUERY_MAX]; /* the query of the next page of a list; "": of the first */
  tde_token_flow *flow;      /* NULL: no token yet */
  int in_token;              /* the request under way is the flow's */
  int tried_again;           /* a token was refused already */
} az;

static int is_wrap(const tde_op *op) {
  return op->kind == TDE_OP_WRAP;
}

static const char *permission(const tde_op *op, az_stage stage) {
  if (stage == STAGE_GET) return "get";
  if (stage == STAGE_LIST) return "list";
  return is_wrap(op) ? "wrapKey" : "unwrapKey";
}

/* How the key wraps: as the wrapped DEK's header says, or as a look at the key said. */
static const char *algorithm_of(const tde_op *op) {
  if (!is_wrap(op) && op->algorithm[0] != 0) return op->algorithm;
  return op->info.algorithm[0] != 0 ? op->info.algorithm : TDE_RSA_OAEP_256;
}

/* {"alg":"RSA-OAEP-256","value":"..."}: the DEK, or the wrapped one. */
static tde_class fill_body(const tde_op *op, tde_request *req, tde_status *st) {
  const uint8_t *value = is_wrap(op) ? op->dek : op->wrapped;
  size_t n = is_wrap(op) ? (size_t)TDE_KEY_BYTES : op->nwrapped;
  tde_sbuf s;
  tde_sbuf_init(&s, 4096);
  tde_sbuf_add(&s, "{\"alg\":\"");
  tde_sbuf_add(&s, algorithm_of(op));
  tde_sbuf_add(&s, "\",\"value\":\"");
  tde_sbuf_base64url(&s, value, n);
  tde_sbuf_add(&s, "\"}");
  return tde_request_body(req, &s, "application/json", st);
}

/* The vault request of this stage; without a token it has no body either. */
static tde_step call_vault(tde_op *op, tde_request *req, tde_status *st) {
  az *a = op->state;
  char url[TDE_KEY_ID_MAX + PAGE_QUERY_MAX + 256], query[PAGE_QUERY_MAX];
  int get = a->stage != STAGE_OP;
  snprintf(query, sizeof query, "api-version=%s", tde_instance_cloud(op->instance)->api_version);
  if (a->page[0] != 0) memcpy(query, a->page, sizeof query);
  snprintf(url, sizeof url, "%s/%s%s?%s", op->base_id,
           a->stage == STAGE_LIST ? "versions" : op->version,
           get            ? ""
           : is_wrap(op)  ? "/wrapkey"
                          : "/unwrapkey",
           query);
  a->in_token = 0;
  tde_class rc = tde_request_begin(req, get ? "GET" : "POST", url, st);
  if (rc == TDE_OK) rc = tde_request_header(req, "Accept", "application/json", NULL, st);
  if (rc == TDE_OK && a->flow != NULL) {
    rc = tde_request_header(req, "Authorization", "Bearer ", tde_token_value(a->flow), st);
    if (rc == TDE_OK && !get) rc = fill_body(op, req, st);
  }
  return rc == TDE_OK ? TDE_STEP_SEND : TDE_STEP_FAILED;
}

static tde_step get_token(tde_op *op, const tde_challenge *challenge, tde_request *req,
                          tde_status *st) {
  az *a = op->state;
  tde_token_flow_free(a->flow);
  a->flow = tde_token_flow_new(op, challenge->tenant, challenge->resource, st);
  if (a->flow == NULL) return TDE_STEP_FAILED;
  tde_step step = tde_token_start(a->flow, req, st);
  if (step == TDE_STEP_DONE) return call_vault(op, req, st);
  a->in_token = step == TDE_STEP_SEND;
  return step;
}

static tde_step azure_start(tde_op *op, tde_request *req, tde_status *st) {
  tde_challenge challenge;
  if (op->instance == NULL) {
    tde_fail(st, TDE_MISUSE, NULL, "a vault's key needs an instance");
    return TDE_STEP_FAILED;
  }
  if (op->kind == TDE_OP_UNWRAP && op->algorithm[0] != 0 &&
      strcmp(op->algorithm, TDE_RSA_OAEP_256) != 0 && strcmp(op->algorithm, A256KW) != 0) {
    tde_fail(st, TDE_UNSUPPORTED, NULL, "vault keys do not unwrap with %s here", op->algorithm);
    return TDE_STEP_FAILED;
  }
  az *a = op->state = calloc(1, sizeof *a);
  if (a == NULL) {
    tde_nomem(st);
    return TDE_STEP_FAILED;
  }
  /* parse_id made base_id, so this does not fail. */
  split_id(op->base_id, strlen(op->base_id), &a->key);
  if (!tde_azure_host_allowed(op->instance, a->key.host)) {
    tde_fail(st, TDE_MISCONFIGURED,
             "if this host is yours, add its domain to azure.vault_suffixes in instance.json",
             "the key's host %.200s is not one that this instance trusts: nothing was sent to it",
             a->key.host);
    return TDE_STEP_FAILED;
  }
  int list = op->kind == TDE_OP_VERSIONS;
  if (op->kind == TDE_OP_LATEST || list) op->version[0] = 0;
  int known_version = op->version[0] != 0;
  a->stage = list ? STAGE_LIST : op->kind == TDE_OP_UNWRAP && known_version ? STAGE_OP : STAGE_GET;
  if (tde_challenge_get(op->instance, a->key.host, &challenge)) return get_token(op, &challenge, req, st);
  return call_vault(op, req, st);
}

static void azure_finish(tde_op *op) {
  az *a = op->state;
  if (a == NULL) return;
  tde_token_flow_free(a->flow);
  free(a);
}

/* ---- errors ---- */

/* What is wrong with a token has a number, which stands at the head of the prose alone: "AKV10032" of
** "AKV10032: Invalid issuer. ...". */
static void token_number(const char *message, char out[40]) {
  size_t n = message != NULL && strncmp(message, "AKV", 3) == 0 ? 3 + strspn(message + 3, "0123456789") : 0;
  if (n == 0 || message[n] != ':' || !tde_copy_part(out, 40, message, n)) out[0] = 0;
}

/* The vault has not got the key that tokens are signed with. It says so of good ones, for hours and in
** turn with taking them, while a part of it is ill. */
static int is_blind(const char *code) {
  return strcmp(code, "AKV10046") == 0;
}

/* Status, codes and request id into st; inner gets the most telling code. Returns whether the reply
** is the vault's: it has the form of its errors, or the id that it gives to each request. */
static int note_error(const tde_reply *reply, char inner[40], tde_status *st) {
  tde_json *root = NULL;
  char code[40] = "";
  inner[0] = 0;
  st->http_status = reply->status;
  tde_copy_code(st->request_id, sizeof st->request_id, tde_reply_header(reply, "x-ms-request-id"));
  st->service_code[0] = 0;
  int known = st->request_id[0] != 0;
  if (tde_json_parse(reply->body, reply->nbody, "reply", &root, NULL) != TDE_OK) return known;
  const tde_json *error = tde_json_get(root, "error");
  if (tde_json_get_text(error, "code") != NULL) known = 1;
  tde_copy_code(code, sizeof code, tde_json_get_text(error, "code"));
  tde_copy_code(inner, 40, tde_json_get_text(tde_json_get(error, "innererror"), "code"));
  if (inner[0] == 0) token_number(tde_json_get_text(error, "message"), inner);
  snprintf(st->service_code, sizeof st->service_code, "%.31s%s%.31s", code,
           code[0] != 0 && inner[0] != 0 ? "/" : "", inner);
  if (inner[0] == 0) memcpy(inner, code, sizeof code);
  tde_json_free(root);
  return known;
}

/* That it does not know the version of its API the vault says as of any bad parameter, but for its prose. */
static int is_api_version(const tde_reply *reply) {
  static const char says[] = "The specified version (";
  tde_json *root = NULL;
  if (tde_json_parse(reply->body, reply->nbody, "reply", &root, NULL) != TDE_OK) return 0;
  const char *message = tde_json_get_text(tde_json_get(root, "error"), "message");
  int found = message != NULL && strncmp(message, says, sizeof says - 1) == 0;
  tde_json_free(root);
  return found;
}

static tde_class read_challenge(const tde_op *op, const tde_reply *reply, tde_challenge *out,
                                tde_status *st) {
  const az *a = op->state;
  const tde_suffix *own = tde_cloud_suffix(tde_instance_cloud(op->instance), a->key.host);
  return tde_challenge_read(tde_reply_header(reply, "WWW-Authenticate"), a->key.host,
                            own != NULL ? own->resource : "", domain_of(op->instance, a->key.host), out, st);
}

/* A 401 of the vault needs no more than its challenge, where its id was taken out on the way. Whoever
** else wants a login names another resource, or none (RFC 6750). */
static int has_challenge(const tde_op *op, const tde_reply *reply) {
  tde_challenge challenge;
  return reply->status == 401 && read_challenge(op, reply, &challenge, NULL) == TDE_OK;
}

/* The vault's clock has not come to the moment at which the token begins: Managed HSM says so in words,
** Key Vault by the number that its library has for it. Who asks is let in. */
static int is_early(const tde_reply *reply) {
  static const char *const says[] = {"Token not yet valid", "Error validating token: IDX10222"};
  tde_json *root = NULL;
  int found = 0;
  if (tde_json_parse(reply->body, reply->nbody, "reply", &root, NULL) != TDE_OK) return 0;
  const char *message = tde_json_get_text(tde_json_get(root, "error"), "message");
  for (size_t i = 0; message != NULL && i < sizeof says / sizeof says[0]; i++) {
    found |= strncmp(message, says[i], strlen(says[i])) == 0;
  }
  tde_json_free(root);
  return found;
}

/* A proxy or a gateway on the way refuses by itself: that is no word on the key, which the vault was
** not asked for. */
static tde_class not_the_vault(const tde_op *op, int status, tde_status *st) {
  const az *a = op->state;
  return tde_fail(st, TDE_UNREACHABLE,
                  "look at the proxy, gateway or firewall between this machine and the vault",
                  "what answered for %.200s (%d) is not the vault", a->key.host, status);
}

/* Its names differ from those of a vault, and it has no access policies. */
static int is_hsm(const tde_op *op) {
  const az *a = op->state;
  return strstr(a->key.host, ".managedhsm.") != NULL;
}

static int is_code(const char *code, const char *const *list) {
  for (; *list != NULL; list++) {
    if (strcasecmp(code, *list) == 0) return 1;
  }
  return 0;
}

/* The key that a refusal is about, as far as it was named: names alone are the same in many vaults, and
** of one of several versions it is said which. */
static const char *key_of(const tde_op *op, char full[TDE_KEY_ID_MAX]) {
  tde_key_info named;
  memset(&named, 0, sizeof named);
  memcpy(named.base_id, op->base_id, sizeof named.base_id);
  memcpy(named.version, op->version, sizeof named.version);
  tde_key_full_id(&named, full);
  return full;
}

/* 403: why matters for what to do next. */
static tde_class forbidden(const tde_op *op, const char *code, tde_status *st) {
  static const char *const disabled[] = {"KeyDisabled", "KeyExpired", "KeyNotYetValid", NULL};
  static const char *const network[] = {"ForbiddenByFirewall", "ForbiddenByConnection", "ForbiddenByNsp", NULL};
  static const char *const key_ops[] = {"KeyOperationForbidden", "KeyOperationNotPermitted", NULL};
  const az *a = op->state;
  const char *what = permission(op, a->stage);
  const char *who = a->flow != NULL ? tde_token_identity(a->flow) : "(not signed in yet)";
  char remedy[320], full[TDE_KEY_ID_MAX];
  if (is_code(code, disabled)) {
    return tde_fail(st, TDE_DISABLED,
                    "enable the key version, or correct its dates (az keyvault key set-attributes)",
                    "the vault refuses %s: the key %.300s is disabled or outside its dates (403 %s)",
                    what, key_of(op, full), code);
  }
  if (is_code(code, network)) {
    return tde_fail(st, TDE_DENIED,
                    "allow this machine in the vault's firewall or private link (az keyvault network-rule add), or "
                    "in its network security perimeter",
                    "the vault refuses %s: this machine's network is not allowed (403 %s)", what,
                    code);
  }
  if (is_code(code, key_ops)) {
    snprintf(remedy, sizeof remedy,
             "add %s to the key's permitted operations (az keyvault key set-attributes --ops)", what);
    return tde_fail(st, TDE_DENIED, remedy, "the key %.300s does not permit %s (403 %s)",
                    key_of(op, full), what, code);
  }
  snprintf(remedy, sizeof remedy, "grant %s to the identity %.60s on this key (role %s%s)", what, who,
           is_hsm(op) ? "Managed HSM Crypto Service Encryption User: az keyvault role assignment create"
                      : "Key Vault Crypto Service Encryption User, or an access policy with get, wrapKey, unwrapKey",
           a->stage == STAGE_LIST && !is_hsm(op) ? ", list" : "");
  return tde_fail(st, TDE_DENIED, remedy, "the vault refuses %s on the key %.300s to the identity %s (403%s%s)",
                  what, key_of(op, full), who, code[0] != 0 ? " " : "", code);
}

static tde_class absent(const tde_op *op, const char *code, tde_status *st) {
  static const char *const moving[] = {"ObjectIsBeingRecovered", "ObjectIsBeingCreated", NULL};
  char full[TDE_KEY_ID_MAX];
  int s = st->http_status;
  if (s == 409 && is_code(code, moving)) {
    return tde_fail(st, TDE_UNREACHABLE, NULL, "the key %.300s is not ready yet (409)", key_of(op, full));
  }
  if (s == 409) {
    return tde_fail(st, TDE_MISSING, "recover the deleted key (az keyvault key recover)",
                    "the key %.300s is deleted, and may be recovered (409 %s)", key_of(op, full), code);
  }
  return tde_fail(st, TDE_MISSING,
                  "recover or restore the key (az keyvault key recover, az keyvault key restore), or correct its id",
                  "the vault has no key %.300s (%d)", key_of(op, full), s);
}

/* Every status but 200, and 401 when there is no more to try. */
static tde_class refused(const tde_op *op, const tde_reply *reply, tde_status *st) {
  const az *a = op->state;
  char code[40], full[TDE_KEY_ID_MAX];
  int s = reply->status, known = note_error(reply, code, st);
  if (s == 429) return tde_fail(st, TDE_THROTTLED, NULL, "the vault is busy (429)");
  if (s == 408 || s >= 500) {
    return tde_fail(st, TDE_UNREACHABLE, NULL, "the vault cannot serve the request now (%d)", s);
  }
  if (s >= 400 && !known && !has_challenge(op, reply)) return not_the_vault(op, s, st);
  if (s == 401 && is_blind(code)) {
    return tde_fail(st, TDE_UNREACHABLE,
                    "wait, and look at the health of Key Vault in its region; if it stays so, check azure.authority",
                    "the vault cannot check tokens now (401 %s)", code);
  }
  if (s == 401 && is_early(reply)) {
    return tde_fail(st, TDE_UNREACHABLE,
                    "wait: the vault's clock and that of who gives the tokens differ; if it stays so, check the clock "
                    "of whoever gives them here (azure.authority, azure.imds_endpoint)",
                    "the vault takes no token yet that was given now (401)");
  }
  if (s == 401) {
    return tde_fail(st, TDE_UNAUTHENTICATED,
                    "check that the identity belongs to the vault's tenant, and this machine's clock",
                    "the vault does not accept the token of the identity %s (401%s%s)",
                    a->flow != NULL ? tde_token_identity(a->flow) : "", code[0] != 0 ? " " : "", code);
  }
  if (s == 403) return forbidden(op, code, st);
  if (s == 404 || s == 409 || s == 410) return absent(op, code, st);
  if (s == 400 && is_api_version(reply)) {
    return tde_fail(st, TDE_MISCONFIGURED, "correct azure.api_version in instance.json; without it, it is 7.4",
                    "the vault does not know the version %s of its API (400)",
                    tde_instance_cloud(op->instance)->api_version);
  }
  if (s == 400 && a->stage == STAGE_OP && op->kind == TDE_OP_UNWRAP) {
    return tde_fail(st, TDE_WRONG_KEY,
                    "use the key version that wrapped it, or restore the database from a backup",
                    "the key %.300s does not unwrap what the header holds (400 %s)", key_of(op, full), code);
  }
  if (s >= 400) {
    return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS,
                    "the vault does not take the request %s (%d %s)", permission(op, a->stage), s,
                    code);
  }
  return tde_fail(st, TDE_CORRUPT, "check what answers at the vault's address",
                  "the vault replied with status %d, which is not followed", s);
}

/* ---- replies ---- */

static tde_class corrupt(tde_status *st, const char *what) {
  return tde_fail(st, TDE_CORRUPT, "try again; if it stays so, check what answers at the vault's address",
                  "the vault's reply %s", what);
}

/* What the JSON reader found, with the next step for a vault's reply. */
static tde_class unreadable(tde_class rc, tde_status *st) {
  if (rc != TDE_CORRUPT || st->remedy[0] != 0) return rc;
  return tde_fail(st, rc, "try again; if it stays so, check what answers at the vault's address",
                  "%s", st->message);
}

/* A reply's kid: of this vault and key, and of the version asked for, if one
** was. version gets what it names. */
static tde_class check_kid(const tde_op *op, const char *kid, size_t n,
                           char version[VERSION_MAX_LEN + 1], tde_status *st) {
  const az *a = op->state;
  key_parts got;
  if (!split_id(kid, n, &got) || got.version[0] == 0) return corrupt(st, "names no key version");
  /* Names of keys do not differ by case alone (Key Vault object identifiers). */
  if (strcmp(got.host, a->key.host) != 0 || strcasecmp(got.name, a->key.name) != 0) {
    return corrupt(st, "is about another key");
  }
  if (op->version[0] != 0 && strcmp(op->version, got.version) != 0) {
    return corrupt(st, "is about another version of the key");
  }
  memcpy(version, got.version, VERSION_MAX_LEN + 1);
  return TDE_OK;
}

/* A symmetric key has no public part, and its reply no size: a smaller one than 256
** bits is refused by the vault. Its thumbprint is that of its name, in one spelling. */
static tde_class read_symmetric(const az *a, tde_key_info *info, tde_status *st) {
  char id[TDE_KEY_ID_MAX];
  size_t n = (size_t)snprintf(id, sizeof id, SCHEME "%s/keys/", a->key.host);
  for (const char *p = a->key.name; *p != 0; p++) {
    id[n++] = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
  }
  id[n] = 0;
  snprintf(info->type, sizeof info->type, "oct-HSM");
  snprintf(info->algorithm, sizeof info->algorithm, A256KW);
  return tde_opaque_thumbprint("azure", id, info->version, info->thumbprint, st);
}

/* type, algorithm and thumbprint from kty, n and e. */
static tde_class read_public(const az *a, const tde_json *key, tde_key_info *info,
                             tde_status *st) {
  uint8_t n[RSA_MAX_BYTES + 1], e[16];
  const char *kty = tde_json_get_text(key, "kty");
  const char *n64 = tde_json_get_text(key, "n"), *e64 = tde_json_get_text(key, "e");
  if (kty == NULL) return corrupt(st, "does not name the key's type");
  if (strcmp(kty, "oct-HSM") == 0) return read_symmetric(a, info, st);
  if (strcmp(kty, "RSA") != 0 && strcmp(kty, "RSA-HSM") != 0) {
    return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS, "the key's type is neither RSA nor oct-HSM");
  }
  long nn = n64 != NULL ? tde_unbase64url(n64, strlen(n64), n, sizeof n) : -1;
  long ne = e64 != NULL ? tde_unbase64url(e64, strlen(e64), e, sizeof e) : -1;
  if (nn <= 0 || ne <= 0) return corrupt(st, "holds no RSA public key");
  const uint8_t *p = n;
  while (nn > 0 && *p == 0) p++, nn--;
  if ((nn != 256 && nn != 384 && nn != 512) || (*p & 0x80) == 0) {
    return tde_fail(st, TDE_UNSUPPORTED, KEY_KINDS, "the key is not of 2048, 3072 or 4096 bits");
  }
  snprintf(info->type, sizeof info->type, "%s-%ld", kty, 8 * nn);
  snprintf(info->algorithm, sizeof info->algorithm, TDE_RSA_OAEP_256);
  return tde_rsa_thumbprint(p, (size_t)nn, e, (size_t)ne, info->thumbprint, st);
}

/* A time in seconds; 0 when absent, -1 when of another type. */
static int64_t time_of(const tde_json *attributes, const char *name) {
  const tde_json *v = tde_json_get(attributes, name);
  if (v == NULL || tde_json_is_null(v)) return 0;
  int64_t t = tde_json_get_int(attributes, name, -1);
  return t >= 0 ? t : -1;
}

static tde_class read_attributes(const tde_json *attributes, tde_key_info *info, tde_status *st) {
  if (!tde_json_is_bool(tde_json_get(attributes, "enabled"))) {
    return corrupt(st, "does not say whether the key is enabled");
  }
  info->enabled = tde_json_get_bool(attributes, "enabled", 0);
  info->created = time_of(attributes, "created");
  info->not_before = time_of(attributes, "nbf");
  info->expires = time_of(attributes, "exp");
  if (info->created < 0 || info->not_before < 0 || info->expires < 0) {
    return corrupt(st, "holds a malformed date");
  }
  return TDE_OK;
}

/* "Recoverable", with or without "+ProtectedSubscription" and "Customized";
** "...+Purgeable" and "Purgeable" can be destroyed at once. */
static int purge_protected(const char *level) {
  return level != NULL && strstr(level, "Recoverable") != NULL && strstr(level, "Purgeable") == NULL;
}

/* No list: the vault does not restrict the key. */
static int permits(const tde_json *key, const char *what) {
  const tde_json *ops = tde_json_get(key, "key_ops");
  if (ops == NULL) return 1;
  for (size_t i = 0; i < tde_json_count(ops); i++) {
    const char *name = tde_json_text_at(ops, i);
    if (name != NULL && strcasecmp(name, what) == 0) return 1;
  }
  return 0;
}

static tde_class may_wrap(const tde_op *op, const tde_json *key, const char *level,
                          tde_status *st) {
  const tde_key_info *info = &op->info;
  int64_t now = (int64_t)time(NULL);
  const char *why = NULL;
  if (!info->enabled) why = "is disabled";
  else if (info->expires != 0 && now >= info->expires) why = "has expired";
  else if (info->not_before != 0 && now < info->not_before) why = "is not active yet";
  if (why != NULL) {
    return tde_fail(st, TDE_DISABLED, "use another key version, or change this one's dates or state",
                    "the key %.300s %s: it must not wrap a key", info->base_id, why);
  }
  if (!permits(key, "wrapKey") || !permits(key, "unwrapKey")) {
    return tde_fail(st, TDE_DENIED,
                    "add wrapKey and unwrapKey to the key's permitted operations (az keyvault key "
                    "set-attributes --ops)",
                    "the key %.300s does not permit both wrapKey and unwrapKey", info->base_id);
  }
  if (!tde_instance_cloud(op->instance)->allow_purgeable_keys && !purge_protected(level)) {
    return tde_fail(st, TDE_MISCONFIGURED,
                    is_hsm(op) ? "turn on purge protection of the HSM (az keyvault update-hsm " LET_PURGEABLE
                               : "turn on purge protection of the vault (az keyvault update " LET_PURGEABLE,
                    "the key %.300s could be purged, and every database with it", info->base_id);
  }
  return TDE_OK;
}

static tde_class read_key(tde_op *op, const tde_json *root, tde_status *st) {
  const tde_json *key = tde_json_get(root, "key"), *attributes = tde_json_get(root, "attributes");
  const char *kid = tde_json_get_text(key, "kid");
  char version[VERSION_MAX_LEN + 1] = "";
  if (kid == NULL || !tde_json_is_object(attributes)) return corrupt(st, "describes no key");
  tde_class rc = check_kid(op, kid, strlen(kid), version, st);
  if (rc != TDE_OK) return rc;
  memset(&op->info, 0, sizeof op->info);
  memcpy(op->info.base_id, op->base_id, sizeof op->info.base_id);
  memcpy(op->info.version, version, sizeof version);
  memcpy(op->version, version, sizeof version);
  rc = read_public(op->state, key, &op->info, st);
  if (rc == TDE_OK) rc = read_attributes(attributes, &op->info, st);
  if (rc == TDE_OK && is_wrap(op)) {
    rc = may_wrap(op, key, tde_json_get_text(attributes, "recoveryLevel"), st);
  }
  return rc;
}

static tde_step on_key(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  az *a = op->state;
  tde_json *root = NULL;
  tde_class rc = tde_json_parse(reply->body, reply->nbody, "vault's reply", &root, st);
  rc = unreadable(rc, st);
  if (rc == TDE_OK) rc = read_key(op, root, st);
  tde_json_free(root);
  if (rc != TDE_OK) return TDE_STEP_FAILED;
  if (op->kind == TDE_OP_GET || op->kind == TDE_OP_LATEST) return TDE_STEP_DONE;
  a->stage = STAGE_OP;
  return call_vault(op, req, st);
}

/* How long a DEK is when this key has wrapped it: an RSA key's modulus, e.g. 384 of
** "RSA-HSM-3072". */
static size_t wrapped_bytes(const tde_key_info *info) {
  if (strcmp(info->algorithm, A256KW) == 0) return A256KW_BYTES;
  const char *dash = strrchr(info->type, '-');
  return dash != NULL ? (size_t)strtoul(dash + 1, NULL, 10) / 8 : 0;
}

/* The value: a wrapped DEK into op->wrapped, or a DEK into op->dek. */
static tde_class take_value(tde_op *op, const tde_json_span *value, tde_status *st) {
  if (is_wrap(op)) {
    long n = tde_unbase64url(value->at, value->n, op->wrapped, sizeof op->wrapped);
    if (n <= 0 || (size_t)n != wrapped_bytes(&op->info)) {
      return corrupt(st, "holds a wrapped key of a wrong length");
    }
    op->nwrapped = (size_t)n;
    return TDE_OK;
  }
  if (tde_unbase64url(value->at, value->n, op->dek, TDE_KEY_BYTES) != TDE_KEY_BYTES) {
    return corrupt(st, "holds something that is no DEK");
  }
  return TDE_OK;
}

static tde_class on_result(tde_op *op, const tde_reply *reply, tde_status *st) {
  static const char what[] = "vault's reply";
  tde_json_span kid, value;
  char version[VERSION_MAX_LEN + 1] = "";
  tde_class rc = tde_json_find(reply->body, reply->nbody, what, "kid", &kid, st);
  if (rc == TDE_OK) rc = tde_json_find(reply->body, reply->nbody, what, "value", &value, st);
  if (rc == TDE_MISSING || (rc == TDE_OK && (!kid.is_text || !value.is_text))) {
    return corrupt(st, "lacks a key id or a value");
  }
  rc = unreadable(rc, st);
  if (rc == TDE_OK) rc = check_kid(op, kid.at, kid.n, version, st);
  if (rc == TDE_OK) rc = take_value(op, &value, st);
  if (rc != TDE_OK || is_wrap(op)) return rc;
  memcpy(op->info.base_id, op->base_id, sizeof op->info.base_id);
  memcpy(op->info.version, version, sizeof version);
  return TDE_OK;
}

/* One entry of a list of versions. */
static tde_class take_version(tde_op *op, const tde_json *item, tde_status *st) {
  const char *kid = tde_json_get_text(item, "kid");
  const tde_json *attributes = tde_json_get(item, "attributes");
  char version[VERSION_MAX_LEN + 1] = "";
  tde_key_info info;
  memset(&info, 0, sizeof info);
  if (kid == NULL || !tde_json_is_object(attributes)) return corrupt(st, "lists what is no key");
  tde_class rc = check_kid(op, kid, strlen(kid), version, st);
  if (rc == TDE_OK) rc = read_attributes(attributes, &info, st);
  if (rc != TDE_OK) return rc;
  memcpy(info.base_id, op->base_id, sizeof info.base_id);
  memcpy(info.version, version, sizeof version);
  return tde_op_add_version(op, &info, st);
}

/* The query of the next page. Only the query is taken of what the reply names,
** and only if it names this vault and this list: the token goes nowhere else. */
static tde_class take_next(az *a, const char *link, tde_status *st) {
  const char *host = strncmp(link, SCHEME, SCHEME_LEN) == 0 ? link + SCHEME_LEN : "";
  size_t nhost = strcspn(host, ":/?#"), nport = strspn(host + nhost, ":0123456789");
  const char *path = host + nhost + nport, *query = strchr(path, '?');
  char want[NAME_MAX_LEN + 32];
  snprintf(want, sizeof want, "/keys/%s/versions", a->key.name);
  size_t nwant = strlen(want);
  if (nhost != strlen(a->key.host) || strncmp(host, a->key.host, nhost) != 0 ||
      strncasecmp(path, want, nwant) != 0 || query != path + nwant) {
    return corrupt(st, "continues somewhere else");
  }
  size_t n = strlen(++query);
  /* RFC 3986 section 3.4, without what a URL must escape. */
  static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                            "-._~!$&'()*+,;=:@/?%";
  if (n == 0 || strspn(query, set) != n || !tde_copy_part(a->page, sizeof a->page, query, n)) {
    return corrupt(st, "names a malformed next page");
  }
  return TDE_OK;
}

static tde_step on_list(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  az *a = op->state;
  tde_json *root = NULL;
  tde_class rc = tde_json_parse(reply->body, reply->nbody, "vault's reply", &root, st);
  rc = unreadable(rc, st);
  const tde_json *items = tde_json_get(root, "value"), *next = tde_json_get(root, "nextLink");
  const char *link = tde_json_get_text(root, "nextLink");
  a->page[0] = 0;
  if (rc == TDE_OK && !tde_json_is_array(items)) rc = corrupt(st, "lists no versions");
  for (size_t i = 0; rc == TDE_OK && i < tde_json_count(items); i++) {
    rc = take_version(op, tde_json_at(items, i), st);
  }
  /* A link of another type must not pass for the end of the list. */
  if (rc == TDE_OK && link == NULL && next != NULL && !tde_json_is_null(next)) {
    rc = corrupt(st, "names a malformed next page");
  }
  if (rc == TDE_OK && link != NULL && link[0] != 0) rc = take_next(a, link, st);
  tde_json_free(root);
  if (rc != TDE_OK) return TDE_STEP_FAILED;
  return a->page[0] != 0 ? call_vault(op, req, st) : TDE_STEP_DONE;
}

/* A token is refused without a challenge that tells who gives another: RFC 6750 section 3 asks for
** error="invalid_token" alone, and continuous access evaluation names claims and no resource. What
** is known of the vault serves. It is a denial all the same, if it is the vault that has answered. */
static tde_step without_challenge(tde_op *op, const tde_reply *reply, tde_request *req,
                                  tde_status *st) {
  const az *a = op->state;
  tde_challenge challenge;
  if (tde_challenge_get(op->instance, a->key.host, &challenge)) return get_token(op, &challenge, req, st);
  refused(op, reply, st);
  return TDE_STEP_FAILED;
}

/* A challenge: the first answer, or a token that is not accepted (any more). */
static tde_step on_challenge(tde_op *op, const tde_reply *reply, tde_request *req,
                             tde_status *st) {
  az *a = op->state;
  tde_challenge challenge;
  if (a->flow != NULL && a->tried_again) {
    refused(op, reply, st);
    return TDE_STEP_FAILED;
  }
  if (a->flow != NULL) {
    tde_token_drop(a->flow);
    a->tried_again = 1;
  }
  tde_class rc = read_challenge(op, reply, &challenge, st);
  if (rc == TDE_CORRUPT && a->flow != NULL) return without_challenge(op, reply, req, st);
  if (rc != TDE_OK) {
    char code[40];
    int known = note_error(reply, code, st);
    if (rc == TDE_CORRUPT && !known) not_the_vault(op, reply->status, st);
    return TDE_STEP_FAILED;
  }
  tde_challenge_put(op->instance, a->key.host, &challenge);
  return get_token(op, &challenge, req, st);
}

/* After a step of the token's flow. A tenant that gives no token may no longer be
** the vault's: the next operation asks the vault again. */
static tde_step after_token(tde_op *op, tde_step step, tde_request *req, tde_status *st) {
  const az *a = op->state;
  if (step == TDE_STEP_DONE) return call_vault(op, req, st);
  if (step == TDE_STEP_FAILED && !tde_class_is_outage(st->code)) {
    tde_challenge_forget(op->instance, a->key.host);
  }
  return step;
}

static tde_step azure_reply(tde_op *op, const tde_reply *reply, tde_request *req, tde_status *st) {
  az *a = op->state;
  if (a->in_token) return after_token(op, tde_token_reply(a->flow, reply, req, st), req, st);
  if (reply->status == 401) return on_challenge(op, reply, req, st);
  if (reply->status != 200) {
    refused(op, reply, st);
    return TDE_STEP_FAILED;
  }
  /* Only a request with a token may be granted anything. */
  if (a->flow == NULL) {
    corrupt(st, "grants a request that had no token");
    return TDE_STEP_FAILED;
  }
  if (a->stage == STAGE_GET) return on_key(op, reply, req, st);
  if (a->stage == STAGE_LIST) return on_list(op, reply, req, st);
  return on_result(op, reply, st) == TDE_OK ? TDE_STEP_DONE : TDE_STEP_FAILED;
}

/* Only a token can be had from elsewhere than from a reply. */
static tde_step azure_unanswered(tde_op *op, tde_request *req, tde_status *st) {
  az *a = op->state;
  if (!a->in_token) return TDE_STEP_FAILED;
  return after_token(op, tde_token_unanswered(a->flow, req, st), req, st);
}

static int azure_serves(const char *key_id, const tde_identity *id) {
  (void)key_id;
  return id->kind < TDE_ID_VAULT_TOKEN;
}

const tde_provider tde_provider_azure = {
    .name = "azure",
    .matches = azure_matches,
    .parse_id = azure_parse_id,
    .start = azure_start,
    .reply = azure_reply,
    .finish = azure_finish,
    .unanswered = azure_unanswered,
    .serves = azure_serves,
};
