/*
** test_azure.c: Azure Key Vault, tokens, assertions and their configuration,
** against canned replies.
**
** The sender here answers from a script and keeps what it was asked. Every
** secret in this file (tokens, client secrets, keys) holds the mark SECRET in
** clear or is looked for by value; each report is searched for it, and each test that
** sends one checks that the search does find it in the request.
*/
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/secret.h"
#include "keyprovider/azure.h"
#include "keyprovider/challenge.h"
#include "keyprovider/http.h"
#include "keyprovider/instance.h"
#include "keyprovider/jwt.h"
#include "keyprovider/keydoc.h"
#include "keyprovider/request.h"
#include "keyprovider/token.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define TENANT "11111111-2222-3333-4444-555555555555"
#define OTHER_TENANT "99999999-2222-3333-4444-555555555555"
#define VAULT "https://v.vault.azure.net"
#define KEY VAULT "/keys/k"
#define VERSION "0123456789abcdef0123456789abcdef"
#define CHALLENGE                                                    \
  "Bearer authorization=\"https://login.microsoftonline.com/" TENANT \
  "\", resource=\"https://vault.azure.net\""
#define ZEROS "00000000000000000000000000000000"
#define LOCAL_VERSION "0123456789abcdef0123456789abcdef01234567"
/* RFC 7638 section 3.1: a public key, and its thumbprint. */
#define RFC7638_N                                                                         \
  "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSo" \
  "c_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YG" \
  "jQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt" \
  "-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
#define RFC7638_THUMB "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
#define PAGE_LINK 2300 /* longer than a query may be */
#define DEK64 "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

static char root_dir[256];

/* ---- the sender ---- */

typedef struct step {
  int status;
  const char *body, *challenge;
} step;

typedef struct asked {
  char method[8], url[600], headers[2048], body[8192];
  int max_ms;
} asked;

static struct {
  pthread_mutex_t mutex;
  const step *script;
  int nscript, n, tokens;
  asked log[40];
} wire = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* The replies are those of somebody on the way, who does not know the service's ids. */
static int no_request_id;

static const char *header_of(const tde_reply *reply, const char *name) {
  const step *s = reply->impl;
  if (strcasecmp(name, "WWW-Authenticate") == 0) return s->challenge;
  return strcasecmp(name, "x-ms-request-id") == 0 && !no_request_id ? "req-42" : NULL;
}

static void keep(asked *a, const tde_request *req) {
  size_t n = 0;
  memset(a, 0, sizeof *a);
  snprintf(a->method, sizeof a->method, "%s", req->method);
  snprintf(a->url, sizeof a->url, "%s", req->url);
  for (char **h = req->headers; h != NULL && *h != NULL && n < sizeof a->headers; h++) {
    n += (size_t)snprintf(a->headers + n, sizeof a->headers - n, "%s\n", *h);
  }
  a->max_ms = req->max_ms;
  if (req->body != NULL) snprintf(a->body, sizeof a->body, "%s", req->body);
}

static tde_class wire_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                           tde_status *st) {
  (void)op;
  pthread_mutex_lock(&wire.mutex);
  int i = wire.n++;
  if (i < (int)COUNT(wire.log)) keep(&wire.log[i], req);
  const step *s = i < wire.nscript ? &wire.script[i] : NULL;
  pthread_mutex_unlock(&wire.mutex);
  if (s == NULL || s->status == 0) return tde_fail(st, TDE_UNREACHABLE, NULL, "no answer");
  *reply = (tde_reply){s->status, s->body, strlen(s->body), header_of, NULL, (void *)(uintptr_t)s};
  return TDE_OK;
}

static void script(const step *s, int n) {
  wire.script = s;
  wire.nscript = n;
  wire.n = 0;
  memset(wire.log, 0, sizeof wire.log);
}

static void forget(void) {
  tde_token_drop_cache();
  tde_challenge_drop_cache();
}

/* ---- instances and operations ---- */

static void write_file(const char *path, const char *text, mode_t mode) {
  FILE *f = fopen(path, "w");
  if (!CHECK(f != NULL)) return;
  fputs(text, f);
  fclose(f);
  chmod(path, mode);
}

static tde_class open_instance(const char *members, const tde_instance **out, tde_status *st) {
  static int number;
  char dir[512], path[600], text[8192];
  snprintf(dir, sizeof dir, "%s/i%d", root_dir, number++);
  mkdir(dir, 0700);
  snprintf(path, sizeof path, "%s/instance.json", dir);
  snprintf(text, sizeof text, "{\"version\":1,\"default_protector\":\"%s\"%s}",
           "https://v.own.example/keys/k", members);
  write_file(path, text, 0600);
  return tde_instance_open(dir, 0, out, st);
}

static const tde_instance *instance(const char *members) {
  const tde_instance *inst = NULL;
  tde_status st;
  tde_status_clear(&st);
  if (open_instance(members, &inst, &st) != TDE_OK) {
    printf("no instance: %s\n", st.message);
    exit(1);
  }
  return inst;
}

#define SECRET_IDENTITY                                                                            \
  ",\"identities\":{\"app\":{\"kind\":\"client_secret\",\"client_id\":\"cid\",\"secret_env\":\"T_" \
  "SECRET\"}}"

static const tde_instance *usual(void) {
  static const tde_instance *inst;
  if (inst == NULL) inst = instance(SECRET_IDENTITY);
  return inst;
}

static uint8_t *dek;
static tde_status last;

static tde_class run(tde_op_kind kind, const tde_instance *inst, const char *id, tde_op *op) {
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->instance = inst;
  op->dek = dek;
  if (kind == TDE_OP_UNWRAP) {
    memset(dek, 0x55, TDE_KEY_BYTES);
    memset(op->wrapped, 7, 256);
    op->nwrapped = 256;
  }
  tde_class rc = tde_provider_run(op, id, &last);
  if (rc != TDE_OK) {
    CHECK(last.message[0] != 0 && last.remedy[0] != 0 && last.key_id[0] != 0);
    CHECK(strstr(last.message, "SECRET") == NULL && strstr(last.remedy, "SECRET") == NULL);
    CHECK(strstr(last.remedy, "header") == NULL);
    CHECK(strstr(last.message, DEK64) == NULL && strstr(last.service_code, "SECRET") == NULL);
    if (kind == TDE_OP_UNWRAP) CHECK(tde_all_zero(dek, TDE_KEY_BYTES));
  }
  return rc;
}

#define TOKEN_REPLY \
  "{\"token_type\":\"Bearer\",\"expires_in\":3599,\"access_token\":\"SECRET.TOKEN-1\"}"
#define KEY_JSON(kid, kty, n, ops, attrs)                                            \
  "{\"key\":{\"kid\":\"" kid "\",\"kty\":\"" kty "\",\"key_ops\":" ops ",\"n\":\"" n \
  "\",\"e\":\"AQAB\"},\"attributes\":{" attrs "}}"
#define ALL_OPS "[\"wrapKey\",\"unwrapKey\"]"
#define GOOD_ATTRS                                                                    \
  "\"enabled\":true,\"created\":1700000000,\"updated\":1700000000,\"recoveryLevel\":" \
  "\"Recoverable\""
#define KEY_REPLY KEY_JSON(KEY "/" VERSION, "RSA", RFC7638_N, ALL_OPS, GOOD_ATTRS)
#define UNWRAP_REPLY "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"" DEK64 "\"}"
#define SHORT_TOKEN(text) "{\"expires_in\":4,\"access_token\":\"" text "\"}"
#define DENY \
  { 401, "", CHALLENGE }
#define TOKEN \
  { 200, TOKEN_REPLY, NULL }

static const char *wrap_reply(void) {
  static char text[600];
  uint8_t raw[256];
  char b64[400];
  memset(raw, 9, sizeof raw);
  tde_base64url(raw, sizeof raw, b64);
  snprintf(text, sizeof text, "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"%s\"}", b64);
  return text;
}

/* ---- ids, hosts, challenges ---- */

static void key_ids(void) {
  static const char *const good[] = {KEY, KEY "/" VERSION, "https://a.b:8443/keys/K-1/v"};
  static const char *const bad[] = {"https://",
                                    "https://v.vault.azure.net",
                                    VAULT "/keys",
                                    VAULT "/keys/",
                                    VAULT "/keys//v",
                                    VAULT "/keys/k/",
                                    KEY "/v/w",
                                    VAULT "/secrets/k",
                                    KEY "?a=b",
                                    KEY "#f",
                                    KEY "%2f",
                                    KEY "/..",
                                    VAULT "/keys/../k",
                                    VAULT "/keys/k_1",
                                    "https://V.vault.azure.net/keys/k",
                                    "https://u@v.vault.azure.net/keys/k",
                                    "https://vault/keys/k",
                                    "https://v..net/keys/k",
                                    "https://-v.net/keys/k",
                                    "https://v.net-/keys/k",
                                    "https://v.net:0/keys/k",
                                    "https://v.net:65536/keys/k",
                                    "https://v.net:/keys/k",
                                    "https://v.net:1x/keys/k",
                                    "https://[::1]/keys/k",
                                    "http://v.vault.azure.net/keys/k",
                                    "https:/v.net/keys/k"};
  char base[TDE_KEY_ID_MAX], version[128], text[TDE_KEY_ID_MAX + 64];
  for (size_t i = 0; i < COUNT(good); i++) {
    CHECK(tde_provider_find(good[i], NULL) == &tde_provider_azure);
    CHECK(tde_provider_azure.parse_id(good[i], base, version, NULL) == TDE_OK);
  }
  CHECK(tde_provider_azure.parse_id(KEY "/" VERSION, base, version, NULL) == TDE_OK);
  CHECK(strcmp(base, KEY) == 0 && strcmp(version, VERSION) == 0);
  for (size_t i = 0; i < COUNT(bad); i++) {
    int refused = tde_provider_azure.parse_id(bad[i], base, version, NULL) == TDE_MISCONFIGURED;
    if (!refused) printf("taken: %s\n", bad[i]);
    CHECK(refused && base[0] == 0);
  }
  static const char *const same[] = {"https://v.vault.azure.net:443/keys/Key-1", "https://v.vault.azure.net/keys/KEY-1",
                                     "https://v.vault.azure.net/keys/key-1"};
  for (size_t i = 0; i < COUNT(same); i++) {
    CHECK(tde_provider_azure.parse_id(same[i], base, version, NULL) == TDE_OK);
    CHECK(strcmp(base, "https://v.vault.azure.net/keys/key-1") == 0 && version[0] == 0);
  }
  CHECK(tde_provider_azure.parse_id("https://v.net:4430/keys/K/V1", base, version, NULL) == TDE_OK);
  CHECK(strcmp(base, "https://v.net:4430/keys/k") == 0 && strcmp(version, "V1") == 0);
  memset(text, 'k', sizeof text);
  memcpy(text, VAULT "/keys/", strlen(VAULT "/keys/"));
  text[sizeof text - 1] = 0;
  CHECK(tde_provider_azure.parse_id(text, base, version, NULL) == TDE_MISCONFIGURED);
}

/* A file keeps the spelling that an id had when it was written. */
static void spellings(void) {
  tde_key_info old = {.base_id = "https://v.vault.azure.net:443/keys/MyKey", .version = "abc1"}, now = old;
  static const char *const yes[] = {"https://v.vault.azure.net/keys/mykey", "https://v.vault.azure.net/keys/MYKEY/abc1",
                                    "https://v.vault.azure.net:443/keys/mykey/ABC1"};
  static const char *const no[] = {"https://v.vault.azure.net/keys/mykey2", "https://v.vault.azure.net/keys/mykey/abc2",
                                   "https://v.vault.azure.net:444/keys/mykey", "https://w.vault.azure.net/keys/mykey",
                                   "local:mykey", "mykey", ""};
  for (size_t i = 0; i < COUNT(yes); i++) CHECK(tde_key_named(&old, yes[i]));
  for (size_t i = 0; i < COUNT(no); i++) CHECK(!tde_key_named(&old, no[i]));
  snprintf(now.base_id, sizeof now.base_id, "https://v.vault.azure.net/keys/mykey");
  CHECK(tde_key_same_version(&old, &now));
  snprintf(now.version, sizeof now.version, "abc2");
  CHECK(!tde_key_same_version(&old, &now));
}

static void hosts(void) {
  const tde_instance *inst = instance(SECRET_IDENTITY
                                      ",\"azure\":{\"vault_suffixes\":[\"vault.localtest\"]}");
  static const char *const yes[] = {"v.vault.azure.net", "a.managedhsm.azure.net",
                                    "x.vault.localtest", "v.own.example", "v.vault.azure.cn"};
  static const char *const no[] = {"evil.example",     "vault.azure.net",
                                   "xvault.azure.net", "v.vault.azure.net.evil.example",
                                   "w.own.example",    "own.example"};
  for (size_t i = 0; i < COUNT(yes); i++) CHECK(tde_azure_host_allowed(inst, yes[i]));
  for (size_t i = 0; i < COUNT(no); i++) CHECK(!tde_azure_host_allowed(inst, no[i]));
  CHECK(strcmp(tde_instance_key_at(inst, 0), "https://v.own.example/keys/k") == 0);
  CHECK(tde_instance_key_at(inst, 1) == NULL && tde_instance_key_at(inst, 2) == NULL);
  inst = instance(",\"service_managed_key\":{\"name\":\"smk\",\"version\":\"" LOCAL_VERSION "\",\"created\":1},"
                  "\"keys\":[{\"key_id\":\"local:a\",\"version\":\"" LOCAL_VERSION "\",\"type\":\"RSA-2048\","
                  "\"thumbprint\":\"" ZEROS ZEROS "\"},{\"key_id\":\"https://v.listed.example/keys/k\","
                  "\"version\":\"1\",\"type\":\"RSA-2048\",\"thumbprint\":\"" ZEROS ZEROS "\"}]");
  CHECK(strncmp(tde_instance_key_at(inst, 1), "local:smk/", 10) == 0);
  CHECK(strcmp(tde_instance_key_at(inst, 3), "https://v.listed.example/keys/k") == 0);
  CHECK(tde_instance_key_at(inst, 4) == NULL);
  CHECK(tde_azure_host_allowed(inst, "v.listed.example") && tde_azure_host_allowed(inst, "v.own.example"));
  CHECK(!tde_azure_host_allowed(inst, "w.listed.example"));
  tde_op op;
  script(NULL, 0);
  CHECK(run(TDE_OP_UNWRAP, inst, "https://v.evil.example/keys/k/1", &op) == TDE_MISCONFIGURED);
  CHECK(wire.n == 0);
}

static void challenges(void) {
  static const struct {
    const char *text, *host;
    tde_class rc;
  } all[] = {
      {CHALLENGE, "v.vault.azure.net", TDE_OK},
      {"bearer resource=https://vault.azure.net,authorization=https://l.net/t1",
       "v.vault.azure.net", TDE_OK},
      {"Bearer authorization=\"https://l/t/oauth2\", scope=\"https://vault.azure.net/.default\"",
       "v.vault.azure.net", TDE_OK},
      {CHALLENGE, "v.vault.azure.cn", TDE_MISCONFIGURED},
      {CHALLENGE, "vault.azure.net", TDE_MISCONFIGURED},
      {CHALLENGE, "evilvault.azure.net", TDE_MISCONFIGURED},
      {"Bearer authorization=\"https://l/t\", resource=\"https://management.azure.com\"",
       "v.vault.azure.net", TDE_MISCONFIGURED},
      {"Bearer authorization=\"https://l/t\", resource=\"https://net\"", "v.vault.azure.net",
       TDE_CORRUPT},
      {"Bearer authorization=\"https://l/t\", resource=\"http://vault.azure.net\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l/t\", resource=\"https://vault.azure.net/x\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l/../x\", resource=\"https://vault.azure.net\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l/%2e\", resource=\"https://vault.azure.net\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l\", resource=\"https://vault.azure.net\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"http://l/t\", resource=\"https://vault.azure.net\"",
       "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer resource=\"https://vault.azure.net\"", "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l/t\"", "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer authorization=\"https://l/t", "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer =,=,==\"", "v.vault.azure.net", TDE_CORRUPT},
      {"Bearer ", "v.vault.azure.net", TDE_CORRUPT},
      {"Basic realm=x", "v.vault.azure.net", TDE_CORRUPT},
      {"", "v.vault.azure.net", TDE_CORRUPT},
      {NULL, "v.vault.azure.net", TDE_CORRUPT},
  };
  tde_challenge c;
  for (size_t i = 0; i < COUNT(all); i++) {
    tde_class rc = tde_challenge_read(all[i].text, all[i].host, "", "", &c, NULL);
    if (rc != all[i].rc) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == all[i].rc);
  }
  CHECK(tde_challenge_read(CHALLENGE, "v.vault.azure.net", "", "", &c, NULL) == TDE_OK);
  CHECK(strcmp(c.tenant, TENANT) == 0 && strcmp(c.resource, "https://vault.azure.net") == 0);
  char huge[6000];
  memset(huge, ' ', sizeof huge);
  memcpy(huge, "Bearer", 6);
  huge[sizeof huge - 1] = 0;
  CHECK(tde_challenge_read(huge, "v.vault.azure.net", "", "", &c, NULL) == TDE_CORRUPT);
}

/* A domain of one's own in front of a vault: its tokens are for what the instance says, and
** for nothing else. */
static void custom_domain(void) {
  static const char members[] =
      SECRET_IDENTITY ",\"azure\":{\"vault_suffixes\":[\"vault.example\",\"kv.deep.example\","
                      "{\"suffix\":\"keys.corp.example\","
                      "\"resource\":\"https://vault.azure.net\"},{\"suffix\":\"kv.stack.example\","
                      "\"resource\":\"https://vault.adfs.stack.example/0f1e2d\"}]}";
  static const struct {
    const char *id, *resource;
    tde_class rc;
  } all[] = {
      {"https://keys.corp.example/keys/k", "https://vault.azure.net", TDE_OK},
      {"https://v.keys.corp.example/keys/k", "https://vault.azure.net", TDE_OK},
      {"https://v.kv.stack.example/keys/k", "https://vault.adfs.stack.example/0f1e2d", TDE_OK},
      {"https://v.keys.corp.example/keys/k", "https://keys.corp.example", TDE_MISCONFIGURED},
      {"https://v.keys.corp.example/keys/k", "https://management.azure.com", TDE_MISCONFIGURED},
      {"https://v.kv.stack.example/keys/k", "https://vault.azure.net", TDE_MISCONFIGURED},
      {"https://v.vault.example/keys/k", "https://vault.azure.net", TDE_MISCONFIGURED},
      {"https://v.vault.example/keys/k", "https://vault.example", TDE_OK},
      {"https://v.kv.deep.example/keys/k", "https://kv.deep.example", TDE_OK},
      {"https://v.a.kv.deep.example/keys/k", "https://a.kv.deep.example", TDE_OK},
      {"https://v.kv.deep.example/keys/k", "https://deep.example", TDE_MISCONFIGURED},
      {"https://v.vault.azure.net/keys/k", "https://azure.net", TDE_MISCONFIGURED},
  };
  const tde_instance *inst = instance(members);
  char header[512], body[1024], want[300];
  tde_op op;
  for (size_t i = 0; i < COUNT(all); i++) {
    snprintf(header, sizeof header, "Bearer authorization=\"https://l/t\", resource=\"%s\"", all[i].resource);
    snprintf(body, sizeof body, "{\"kid\":\"%s/v\",\"value\":\"" DEK64 "\"}", all[i].id);
    step s[] = {{401, "", header}, TOKEN, {200, body, NULL}};
    char id[200];
    snprintf(id, sizeof id, "%s/v", all[i].id);
    forget();
    script(s, 3);
    tde_class rc = run(TDE_OP_UNWRAP, inst, id, &op);
    if (rc != all[i].rc) printf("%zu: %s %s\n", i, tde_class_name(rc), last.message);
    CHECK(rc == all[i].rc && wire.n == (rc == TDE_OK ? 3 : 1));
    snprintf(want, sizeof want, "scope=https%%3A%%2F%%2F%.40s", all[i].resource + 8);
    want[strcspn(want, "/")] = 0;
    if (rc == TDE_OK) CHECK(strstr(wire.log[1].body, want) != NULL);
  }
  script(NULL, 0);
  CHECK(run(TDE_OP_UNWRAP, inst, "https://vault.example/keys/k/v", &op) == TDE_MISCONFIGURED);
  CHECK(run(TDE_OP_UNWRAP, inst, "https://corp.example/keys/k/v", &op) == TDE_MISCONFIGURED && wire.n == 0);
}

/* ---- operations ---- */

static void get_key(void) {
  static const step cold[] = {DENY, TOKEN, {200, KEY_REPLY, NULL}};
  static const step warm[] = {{200, KEY_REPLY, NULL}};
  tde_op op;
  char thumb[64];
  forget();
  script(cold, 3);
  CHECK(run(TDE_OP_GET, usual(), KEY, &op) == TDE_OK && wire.n == 3);
  tde_base64url(op.info.thumbprint, TDE_THUMB_BYTES, thumb);
  CHECK(strcmp(thumb, RFC7638_THUMB) == 0);
  CHECK(strcmp(op.info.base_id, KEY) == 0 && strcmp(op.info.version, VERSION) == 0);
  CHECK(strcmp(op.info.type, "RSA-2048") == 0 && op.info.enabled && op.info.created == 1700000000);
  CHECK(strcmp(op.info.algorithm, "RSA-OAEP-256") == 0);
  /* No token and no body before the challenge; then the token, in a header only. */
  CHECK(strstr(wire.log[0].headers, "Authorization") == NULL && wire.log[0].body[0] == 0);
  CHECK(strcmp(wire.log[0].url, KEY "/?api-version=7.4") == 0);
  CHECK(strcmp(wire.log[1].url, "https://login.microsoftonline.com/" TENANT "/oauth2/v2.0/token") ==
        0);
  CHECK(strstr(wire.log[1].body, "client_secret=SECRET%2Fvalue") != NULL);
  CHECK(strstr(wire.log[1].body, "scope=https%3A%2F%2Fvault.azure.net%2F.default") != NULL);
  CHECK(strstr(wire.log[2].headers, "Authorization: Bearer SECRET.TOKEN-1\n") != NULL);
  CHECK(strstr(wire.log[2].url, "SECRET") == NULL);
  script(warm, 1);
  CHECK(run(TDE_OP_LATEST, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 1);
  CHECK(strcmp(wire.log[0].url, KEY "/?api-version=7.4") == 0);
}

static void wrap_and_unwrap(void) {
  step wrap[] = {DENY, TOKEN, {200, KEY_REPLY, NULL}, {200, wrap_reply(), NULL}};
  static const step unwrap[] = {{200, UNWRAP_REPLY, NULL}};
  static const step cold[] = {DENY, TOKEN, {200, UNWRAP_REPLY, NULL}};
  tde_op op;
  forget();
  for (int i = 0; i < TDE_KEY_BYTES; i++) dek[i] = (uint8_t)i;
  script(wrap, 4);
  CHECK(run(TDE_OP_WRAP, usual(), KEY, &op) == TDE_OK && op.nwrapped == 256 && op.wrapped[3] == 9);
  CHECK(strcmp(wire.log[3].url, KEY "/" VERSION "/wrapkey?api-version=7.4") == 0);
  CHECK(strcmp(wire.log[3].body, "{\"alg\":\"RSA-OAEP-256\",\"value\":\"" DEK64 "\"}") == 0);
  CHECK(strcmp(op.info.version, VERSION) == 0);
  script(unwrap, 1);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && dek[31] == 31 &&
        dek[1] == 1);
  /* Cold: exactly one token request, one unwrap that is granted. */
  forget();
  script(cold, 3);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 3);
  CHECK(wire.log[0].body[0] == 0 && wire.log[2].body[0] != 0);
}

static void may_wrap(void) {
  static const struct {
    const char *key;
    tde_class rc;
  } all[] = {
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS,
                "\"enabled\":false,\"recoveryLevel\":\"Recoverable\""),
       TDE_DISABLED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS,
                "\"enabled\":true,\"exp\":1000,\"recoveryLevel\":\"Recoverable\""),
       TDE_DISABLED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS,
                "\"enabled\":true,\"nbf\":99999999999,\"recoveryLevel\":\"Recoverable\""),
       TDE_DISABLED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS,
                "\"enabled\":true,\"recoveryLevel\":\"Recoverable+Purgeable\""),
       TDE_MISCONFIGURED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS,
                "\"enabled\":true,\"recoveryLevel\":\"Purgeable\""),
       TDE_MISCONFIGURED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, ALL_OPS, "\"enabled\":true"), TDE_MISCONFIGURED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, "[\"sign\",\"unwrapKey\"]", GOOD_ATTRS), TDE_DENIED},
      {KEY_JSON(KEY "/1", "RSA", RFC7638_N, "[]", GOOD_ATTRS), TDE_DENIED},
  };
  tde_op op;
  for (size_t i = 0; i < COUNT(all); i++) {
    step s[] = {DENY, TOKEN, {200, all[i].key, NULL}};
    forget();
    script(s, 3);
    CHECK(run(TDE_OP_WRAP, usual(), KEY, &op) == all[i].rc && wire.n == 3 && op.nwrapped == 0);
    /* Looking is allowed. */
    forget();
    script(s, 3);
    CHECK(run(TDE_OP_GET, usual(), KEY, &op) == TDE_OK);
  }
  step s[] = {
      DENY,
      TOKEN,
      {200, KEY_JSON(KEY "/" VERSION, "RSA-HSM", RFC7638_N, ALL_OPS, "\"enabled\":true"), NULL},
      {200, wrap_reply(), NULL}};
  forget();
  script(s, 4);
  CHECK(run(TDE_OP_WRAP, instance(SECRET_IDENTITY ",\"policy\":{\"allow_purgeable_keys\":true}"),
            KEY, &op) == TDE_OK);
  CHECK(strcmp(op.info.type, "RSA-HSM-2048") == 0);
}

/* ---- Managed HSM ---- */

#define HSM_KEY "https://h.managedhsm.azure.net/keys/Kek"
#define HSM_VERSION "70e288c11c3500290431c99887a27d16"
/* As the service replies: no size, and a port in the key's id. */
#define HSM_REPLY                                                                              \
  "{\"attributes\":{\"created\":1613785438,\"enabled\":true,\"exportable\":false,"                \
  "\"recoverableDays\":90,\"recoveryLevel\":\"Recoverable\",\"updated\":1613785438},\"key\":{"       \
  "\"key_ops\":[\"wrapKey\",\"unwrapKey\"],\"kid\":\"https://h.managedhsm.azure.net:443/keys/Kek/" \
  HSM_VERSION "\",\"kty\":\"oct-HSM\"}}"
#define HSM_DENY                                                                                   \
  {                                                                                                \
    401, "", "Bearer authorization=\"https://login.microsoftonline.com/" TENANT "\", resource=\"https:" \
             "//managedhsm.azure.net\""                                                            \
  }
/* RFC 3394 section 4.6: a key of 256 bits, wrapped by one of 256 bits. */
#define KW_DEK "ABEiM0RVZneImaq7zN3u_wABAgMEBQYHCAkKCwwNDg8"
#define KW_WRAPPED "KMn0BMS4EPTLzLNc-4f4Jj9XhuLYDtMmy8fw5xqZ9Dv7mIubegLdIQ"
#define HSM_RESULT(value) \
  "{\"alg\":\"A256KW\",\"kid\":\"" HSM_KEY "/" HSM_VERSION "\",\"value\":\"" value "\"}"

static void symmetric_key(void) {
  static const step get[] = {HSM_DENY, TOKEN, {200, HSM_REPLY, NULL}};
  static const step wrap[] = {{200, HSM_REPLY, NULL}, {200, HSM_RESULT(KW_WRAPPED), NULL}};
  static const step longer[] = {{200, HSM_REPLY, NULL}, {200, HSM_RESULT(KW_WRAPPED "AAAA"), NULL}};
  static const step unwrap[] = {{200, HSM_RESULT(KW_DEK), NULL}};
  static const step looked[] = {{200, HSM_REPLY, NULL}, {200, HSM_RESULT(KW_DEK), NULL}};
  char text[64];
  uint8_t raw[64];
  tde_op op;
  forget();
  script(get, 3);
  REQUIRE(run(TDE_OP_GET, usual(), HSM_KEY, &op) == TDE_OK);
  CHECK(strstr(wire.log[1].body, "scope=https%3A%2F%2Fmanagedhsm.azure.net%2F.default") != NULL);
  CHECK(strcmp(op.info.type, "oct-HSM") == 0 && strcmp(op.info.algorithm, "A256KW") == 0);
  /* SHA-256 of "azure\nhttps://h.managedhsm.azure.net/keys/kek\nVERSION\n", by another program. */
  tde_base64url(op.info.thumbprint, TDE_THUMB_BYTES, text);
  CHECK(strcmp(text, "W0CGEQXDU_3FxAvwET2rzQ3Gdl_-Y6B4OXg4oHXlHVY") == 0);
  CHECK(tde_unbase64url(KW_DEK, strlen(KW_DEK), dek, TDE_KEY_BYTES) == TDE_KEY_BYTES);
  script(wrap, 2);
  CHECK(run(TDE_OP_WRAP, usual(), HSM_KEY, &op) == TDE_OK && op.nwrapped == 40);
  CHECK(strcmp(wire.log[1].body, "{\"alg\":\"A256KW\",\"value\":\"" KW_DEK "\"}") == 0);
  CHECK(tde_unbase64url(KW_WRAPPED, strlen(KW_WRAPPED), raw, sizeof raw) == 40 &&
        memcmp(raw, op.wrapped, 40) == 0);
  script(longer, 2);
  CHECK(run(TDE_OP_WRAP, usual(), HSM_KEY, &op) == TDE_CORRUPT);
  /* The header says how it was wrapped; without its word the key is looked at. */
  memset(&op, 0, sizeof op);
  op = (tde_op){.kind = TDE_OP_UNWRAP, .instance = usual(), .dek = dek, .nwrapped = 40, .algorithm = "A256KW"};
  memcpy(op.wrapped, raw, 40);
  script(unwrap, 1);
  CHECK(tde_provider_run(&op, HSM_KEY "/" HSM_VERSION, &last) == TDE_OK && dek[1] == 0x11);
  CHECK(strcmp(wire.log[0].body, "{\"alg\":\"A256KW\",\"value\":\"" KW_WRAPPED "\"}") == 0);
  op.algorithm[0] = 0;
  script(looked, 2);
  CHECK(tde_provider_run(&op, HSM_KEY, &last) == TDE_OK);
  CHECK(strstr(wire.log[1].body, "A256KW") != NULL);
  snprintf(op.algorithm, sizeof op.algorithm, "A128KW");
  script(unwrap, 1);
  CHECK(tde_provider_run(&op, HSM_KEY "/" HSM_VERSION, &last) == TDE_UNSUPPORTED && wire.n == 0);
}

/* Runs kind with a warm token and this reply. */
static tde_class with_reply(tde_op_kind kind, int status, const char *body) {
  step s[] = {DENY, TOKEN, {status, body, NULL}};
  tde_op op;
  forget();
  script(s, 3);
  return run(kind, usual(), KEY "/" VERSION, &op);
}

static void bad_key_replies(void) {
  static const char *const corrupt[] = {
      "",
      "{",
      "[]",
      "{}",
      "null",
      "\"x\"",
      "{\"key\":1}",
      "{\"key\":{}}",
      "{\"key\":{\"kid\":1}}",
      KEY_JSON("https://w.vault.azure.net/keys/k/" VERSION, "RSA", RFC7638_N, ALL_OPS, GOOD_ATTRS),
      KEY_JSON(VAULT "/keys/other/" VERSION, "RSA", RFC7638_N, ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY "/ffff", "RSA", RFC7638_N, ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY, "RSA", RFC7638_N, ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY "/" VERSION, "RSA", "", ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY "/" VERSION, "RSA", "!!!", ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY "/" VERSION, "RSA", RFC7638_N RFC7638_N RFC7638_N, ALL_OPS, GOOD_ATTRS),
      KEY_JSON(KEY "/" VERSION, "RSA", RFC7638_N, ALL_OPS, "\"enabled\":1"),
      KEY_JSON(KEY "/" VERSION, "RSA", RFC7638_N, ALL_OPS, "\"enabled\":true,\"exp\":\"x\""),
      KEY_JSON(KEY "/" VERSION, "RSA", RFC7638_N, ALL_OPS, "\"enabled\":true,\"nbf\":-5"),
      KEY_REPLY "x",
      "<html>SECRET</html>",
  };
  for (size_t i = 0; i < COUNT(corrupt); i++) {
    tde_class rc = with_reply(TDE_OP_GET, 200, corrupt[i]);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT);
  }
  CHECK(with_reply(TDE_OP_GET, 200, KEY_JSON(KEY "/" VERSION, "EC", "", ALL_OPS, GOOD_ATTRS)) ==
        TDE_UNSUPPORTED);
  CHECK(
      with_reply(TDE_OP_GET, 200, KEY_JSON(KEY "/" VERSION, "RSA", "AQAB", ALL_OPS, GOOD_ATTRS)) ==
      TDE_UNSUPPORTED);
  CHECK(with_reply(TDE_OP_GET, 200, KEY_REPLY) == TDE_OK);
  char part[sizeof KEY_REPLY];
  for (size_t n = 0; n < sizeof KEY_REPLY - 1; n += 7) {
    memcpy(part, KEY_REPLY, n);
    part[n] = 0;
    CHECK(with_reply(TDE_OP_GET, 200, part) == TDE_CORRUPT);
  }
}

static void bad_unwrap_replies(void) {
  static const char *const corrupt[] = {
      "",
      "{}",
      "[]",
      "{\"kid\":\"" KEY "/" VERSION "\"}",
      "{\"value\":\"" DEK64 "\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":5}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"AAECAw\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"" DEK64 "AA\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"" DEK64 "=\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"\\u0041" DEK64 "\"}",
      "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"" DEK64 "\",\"value\":\"" DEK64 "\"}",
      "{\"kid\":\"" KEY "/ffff\",\"value\":\"" DEK64 "\"}",
      "{\"kid\":\"" VAULT "/keys/x/" VERSION "\",\"value\":\"" DEK64 "\"}",
      "{\"x\":{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"" DEK64 "\"}}",
  };
  for (size_t i = 0; i < COUNT(corrupt); i++) {
    tde_class rc = with_reply(TDE_OP_UNWRAP, 200, corrupt[i]);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT);
  }
  CHECK(with_reply(TDE_OP_UNWRAP, 200, UNWRAP_REPLY) == TDE_OK && dek[5] == 5);
  char part[sizeof UNWRAP_REPLY];
  for (size_t n = 0; n < sizeof UNWRAP_REPLY - 1; n++) {
    memcpy(part, UNWRAP_REPLY, n);
    part[n] = 0;
    CHECK(with_reply(TDE_OP_UNWRAP, 200, part) == TDE_CORRUPT);
  }
  char *huge = malloc(1000001);
  memset(huge, '[', 1000000);
  huge[1000000] = 0;
  CHECK(with_reply(TDE_OP_UNWRAP, 200, huge) == TDE_CORRUPT);
  CHECK(with_reply(TDE_OP_GET, 200, huge) == TDE_CORRUPT);
  CHECK(with_reply(TDE_OP_GET, 403, huge) == TDE_DENIED);
  free(huge);
}

#define ERROR(code, inner)       \
  "{\"error\":{\"code\":\"" code \
  "\",\"message\":\"SECRET prose\",\"innererror\":{\"code\":\"" inner "\"}}}"

static void error_classes(void) {
  static const struct {
    int status;
    const char *body, *says; /* in message or remedy */
    tde_class rc;
  } all[] = {
      {403, ERROR("Forbidden", "AccessDenied"), "grant unwrapKey to the identity app", TDE_DENIED},
      {403, ERROR("Forbidden", "ForbiddenByRbac"), "grant unwrapKey", TDE_DENIED},
      {403, ERROR("Forbidden", "ForbiddenByFirewall"), "firewall", TDE_DENIED},
      {403, ERROR("Forbidden", "KeyOperationForbidden"), "permitted operations", TDE_DENIED},
      {403, ERROR("Forbidden", "KeyDisabled"), "enable", TDE_DISABLED},
      {403, "SECRET", "grant unwrapKey", TDE_DENIED},
      {404, ERROR("KeyNotFound", ""), "recover", TDE_MISSING},
      {409, ERROR("Conflict", "ObjectIsDeletedButRecoverable"), "recover", TDE_MISSING},
      {409, ERROR("Conflict", "ObjectIsBeingRecovered"), "", TDE_UNREACHABLE},
      {429, ERROR("Throttled", ""), "busy", TDE_THROTTLED},
      {500, "", "", TDE_UNREACHABLE},
      {503, "", "", TDE_UNREACHABLE},
      {400, ERROR("BadParameter", ""), "does not unwrap", TDE_WRONG_KEY},
      {400,
       "{\"error\":{\"code\":\"BadParameter\",\"message\":\"The specified version (7.9) is not recognized. "
       "Consider using the latest supported version (7.4).\"}}",
       "azure.api_version", TDE_MISCONFIGURED},
      {307, "", "not followed", TDE_CORRUPT},
      {204, "", "", TDE_CORRUPT},
      {418, "{\"error\":{\"code\":\"\\u001b[31mSECRET prose with spaces\"}}", "", TDE_UNSUPPORTED},
  };
  for (size_t i = 0; i < COUNT(all); i++) {
    tde_class rc = with_reply(TDE_OP_UNWRAP, all[i].status, all[i].body);
    if (rc != all[i].rc) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == all[i].rc && last.http_status == all[i].status);
    CHECK(strstr(last.message, all[i].says) != NULL || strstr(last.remedy, all[i].says) != NULL);
    CHECK(strcmp(last.request_id, "req-42") == 0);
  }
  with_reply(TDE_OP_UNWRAP, 403, all[0].body);
  CHECK(strcmp(last.service_code, "Forbidden/AccessDenied") == 0);
  with_reply(TDE_OP_GET, 403, all[0].body);
  CHECK(strstr(last.remedy, "grant get") != NULL);
  /* A vault that grants without a token is none. */
  static const step s[] = {{200, KEY_REPLY, NULL}};
  tde_op op;
  forget();
  script(s, 1);
  CHECK(run(TDE_OP_GET, usual(), KEY, &op) == TDE_CORRUPT);
}

/* The next step in the words of what refused: a Managed HSM has roles of its own, and no access
** policies; what its own command changes, that of vaults does not. */
static void next_steps(void) {
  static const step denied[] = {HSM_DENY, TOKEN, {403, "{\"error\":{\"code\":\"Forbidden\"}}", NULL}};
  static const char key[] = KEY_JSON(HSM_KEY "/" HSM_VERSION, "RSA-HSM", RFC7638_N, ALL_OPS, "\"enabled\":true");
  static const step purgeable[] = {HSM_DENY, TOKEN, {200, key, NULL}};
  static const struct {
    int status;
    const char *body, *says;
  } vault[] = {{404, ERROR("KeyNotFound", ""), "az keyvault key recover"},
               {403, ERROR("Forbidden", "KeyDisabled"), "az keyvault key set-attributes"},
               {403, ERROR("Forbidden", "KeyOperationForbidden"), "az keyvault key set-attributes --ops"},
               {403, ERROR("Forbidden", "ForbiddenByFirewall"), "az keyvault network-rule add"},
               {403, ERROR("Forbidden", "ForbiddenByNsp"), "network security perimeter"},
               {403, ERROR("Forbidden", "ForbiddenByRbac"), "role Key Vault Crypto Service Encryption User"}};
  tde_op op;
  for (size_t i = 0; i < COUNT(vault); i++) {
    CHECK(with_reply(TDE_OP_UNWRAP, vault[i].status, vault[i].body) != TDE_OK);
    CHECK(strstr(last.remedy, vault[i].says) != NULL);
  }
  forget();
  script(denied, 3);
  CHECK(run(TDE_OP_GET, usual(), HSM_KEY, &op) == TDE_DENIED);
  CHECK(strstr(last.remedy, "role Managed HSM Crypto Service Encryption User") != NULL);
  CHECK(strstr(last.remedy, "Key Vault") == NULL && strstr(last.remedy, "access policy") == NULL);
  forget();
  script(purgeable, 3);
  CHECK(run(TDE_OP_WRAP, usual(), HSM_KEY, &op) == TDE_MISCONFIGURED);
  CHECK(strstr(last.remedy, "az keyvault update-hsm --enable-purge-protection true") != NULL);
}

/* What a proxy or a gateway refuses by itself is no word of the vault on the key; what the vault
** refuses is, in its form or by its request id. */
static void strangers(void) {
  static const int statuses[] = {400, 401, 403, 404, 405, 409, 410, 413, 451};
  static const char *const bodies[] = {"", "SECRET", "<html><body>403 Forbidden</body></html>",
                                       "{\"statusCode\":403,\"message\":\"SECRET\"}",
                                       "{\"error\":\"SECRET prose\"}", "{\"error\":{\"code\":\"For"};
  static const tde_op_kind kinds[] = {TDE_OP_UNWRAP, TDE_OP_GET, TDE_OP_VERSIONS};
  tde_op op;
  for (size_t i = 0; i < COUNT(statuses) * COUNT(bodies) * COUNT(kinds); i++) {
    int status = statuses[i % COUNT(statuses)];
    const char *body = bodies[i / COUNT(statuses) % COUNT(bodies)];
    tde_op_kind kind = kinds[i / COUNT(statuses) / COUNT(bodies)];
    const step s[] = {DENY, TOKEN, {status, body, NULL}, TOKEN, {status, body, NULL}};
    const char *id = kind == TDE_OP_VERSIONS ? KEY : KEY "/" VERSION;
    forget();
    no_request_id = 1;
    script(s, 5);
    tde_class rc = run(kind, usual(), id, &op);
    if (rc != TDE_UNREACHABLE) printf("%d %s: %s\n", status, body, tde_class_name(rc));
    CHECK(rc == TDE_UNREACHABLE && last.http_status == status && wire.n == (status == 401 ? 5 : 3));
    CHECK(strstr(last.remedy, "proxy") != NULL && strstr(last.message, "v.vault.azure.net") != NULL);
    no_request_id = 0;
    forget();
    script(s, 5);
    CHECK(!tde_class_is_outage(run(kind, usual(), id, &op)));
  }
  static const step first[] = {{403, "<html>", NULL}}, own[] = {DENY, TOKEN, {404, ERROR("KeyNotFound", ""), NULL}};
  static const step bearer[] = {DENY, TOKEN, DENY, TOKEN, DENY};
  /* A gateway that has a login of its own, in the form of RFC 6750, or that of a cloud's. */
  static const char *const gateways[] = {
      "Bearer realm=\"gateway\"", "Bearer error=\"invalid_token\"",
      "Bearer authorization=\"https://l/t\", resource=\"https://management.azure.com\"",
      "Bearer authorization_uri=\"https://l/common/oauth2/authorize\", error=\"insufficient_claims\""};
  for (size_t i = 0; i < COUNT(gateways); i++) {
    const step at_first[] = {{401, "", gateways[i]}};
    const step then[] = {DENY, TOKEN, {401, "", gateways[i]}, TOKEN, {401, "", gateways[i]}};
    no_request_id = 1;
    forget();
    script(at_first, 1);
    tde_class rc = run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op);
    CHECK((rc == TDE_UNREACHABLE || rc == TDE_MISCONFIGURED) && last.http_status == 401 && wire.n == 1);
    CHECK(strstr(last.remedy, "gateway") != NULL);
    forget();
    script(then, 5);
    rc = run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op);
    CHECK((rc == TDE_UNREACHABLE || rc == TDE_MISCONFIGURED) && last.http_status == 401);
    CHECK(strstr(last.remedy, "gateway") != NULL);
  }
  no_request_id = 1;
  forget();
  script(first, 1);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNREACHABLE && wire.n == 1);
  forget();
  script(own, 3);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_MISSING);
  forget();
  script(bearer, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED);
  no_request_id = 0;
}

#define VERSION_OF(key, v, created)                                                           \
  "{\"kid\":\"" key "/" v "\",\"attributes\":{\"enabled\":true,\"created\":" created          \
  ",\"updated\":1700000000,\"recoveryLevel\":\"Recoverable\"}}"
#define PAGE(items, next) "{\"value\":[" items "],\"nextLink\":" next "}"
#define NEXT(query) "\"" VAULT ":443/keys/k/versions?api-version=7.4&" query "\""

static void list_versions(void) {
  static const step s[] = {
      DENY,
      TOKEN,
      {200, PAGE(VERSION_OF(KEY, "v2", "200") "," VERSION_OF(VAULT ":443/keys/K", "v1", "100"),
                 NEXT("$skiptoken=eyJ%3D&maxresults=2")),
       NULL},
      {200, PAGE("", NEXT("$skiptoken=2")), NULL},
      DENY, /* the token is no longer accepted in the middle */
      TOKEN,
      {200,
       PAGE("{\"kid\":\"" KEY "/v4\",\"attributes\":{\"enabled\":false,\"nbf\":5,\"exp\":6,"
            "\"created\":300}}," VERSION_OF(KEY, "v3", "300"),
            "null"),
       NULL}};
  static const char *const order[] = {"v4", "v3", "v2", "v1"};
  tde_op op;
  char full[TDE_KEY_ID_MAX];
  forget();
  script(s, 7);
  REQUIRE(run(TDE_OP_VERSIONS, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 7);
  REQUIRE(op.nversions == 4);
  for (int i = 0; i < 4; i++) {
    tde_key_full_id(&op.versions[i], full);
    CHECK(strncmp(full, KEY "/", strlen(KEY "/")) == 0 &&
          strcmp(full + strlen(KEY "/"), order[i]) == 0);
    CHECK(op.versions[i].type[0] == 0 && op.versions[i].algorithm[0] == 0);
  }
  CHECK(!op.versions[0].enabled && op.versions[0].not_before == 5 && op.versions[0].expires == 6);
  CHECK(op.versions[3].enabled && op.versions[3].created == 100);
  free(op.versions);
  CHECK(strcmp(wire.log[0].url, KEY "/versions?api-version=7.4") == 0);
  CHECK(strcmp(wire.log[3].url,
               KEY "/versions?api-version=7.4&$skiptoken=eyJ%3D&maxresults=2") == 0);
  CHECK(strcmp(wire.log[4].url, KEY "/versions?api-version=7.4&$skiptoken=2") == 0);
  CHECK(strcmp(wire.log[6].url, wire.log[4].url) == 0);
  CHECK(strstr(wire.log[6].headers, "Authorization: Bearer SECRET.TOKEN-1\n") != NULL);
}

/* A first page that continues at link: nothing is sent after it. */
static tde_class continued(const char *link) {
  char page[4096];
  step s[] = {DENY, TOKEN, {200, page, NULL}, {200, PAGE("", "null"), NULL}};
  tde_op op;
  snprintf(page, sizeof page, PAGE(VERSION_OF(KEY, "v1", "1"), "%s"), link);
  forget();
  script(s, 4);
  tde_class rc = run(TDE_OP_VERSIONS, usual(), KEY, &op);
  CHECK(op.versions == NULL || rc == TDE_OK);
  CHECK(rc == TDE_OK || wire.n == 3);
  if (rc == TDE_OK) free(op.versions);
  return rc;
}

static void bad_version_lists(void) {
  static const char *const corrupt[] = {
      "",
      "[]",
      "{}",
      "{\"value\":{}}",
      "{\"value\":[5]}",
      "{\"value\":[{}]}",
      PAGE(VERSION_OF(KEY, "v1", "\"x\""), "null"),
      PAGE(VERSION_OF(KEY, "v1", "-1"), "null"),
      PAGE("{\"kid\":\"" KEY "/v1\"}", "null"),
      PAGE("{\"kid\":\"" KEY "\",\"attributes\":{\"enabled\":true}}", "null"),
      PAGE(VERSION_OF(VAULT "/keys/other", "v1", "1"), "null"),
      PAGE(VERSION_OF("https://w.vault.azure.net/keys/k", "v1", "1"), "null"),
      PAGE(VERSION_OF(KEY, "v1", "1") "," VERSION_OF(KEY, "v2", "2") "," VERSION_OF(KEY, "v1", "3"),
           "null"),
      "<html>SECRET</html>",
  };
  static const char *const elsewhere[] = {
      "5",
      "{}",
      "\"x\"",
      "\"http://v.vault.azure.net/keys/k/versions?a=b\"",
      "\"https://w.vault.azure.net/keys/k/versions?a=b\"",
      "\"https://v.vault.azure.net.evil.example/keys/k/versions?a=b\"",
      "\"https://v.vault.azure.net@evil.example/keys/k/versions?a=b\"",
      "\"https://v.vault.azure.net:443@evil.example/keys/k/versions?a=b\"",
      "\"https://v.vault.azure/keys/k/versions?a=b\"",
      "\"xttps://v.vault.azure.net/keys/k/versions?a=b\"",
      "\"https://v.vault.azure.net/keys/j/versions?a=b\"",
      "\"https://v.vault.azure.net/keys/other/versions?a=b\"",
      "\"https://v.vault.azure.net/keys/k/versions/../x?a=b\"",
      "\"https://v.vault.azure.net/keys/k/versions\"",
      "\"https://v.vault.azure.net/keys/k/versions?\"",
      "\"https://v.vault.azure.net/keys/k/versions?a=b c\"",
      "\"https://v.vault.azure.net/keys/k/versions?a=b#c\"",
      "\"https://v.vault.azure.net/keys/k/versions?a=\\r\\nX: y\"",
      "\"/keys/k/versions?a=b\"",
  };
  for (size_t i = 0; i < COUNT(corrupt); i++) {
    tde_class rc = with_reply(TDE_OP_VERSIONS, 200, corrupt[i]);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT);
  }
  for (size_t i = 0; i < COUNT(elsewhere); i++) {
    tde_class rc = continued(elsewhere[i]);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT);
  }
  char link[PAGE_LINK + 8];
  snprintf(link, sizeof link, "\"" KEY "/versions?%0*d\"", PAGE_LINK - 100, 1);
  CHECK(continued(link) == TDE_CORRUPT);
  CHECK(continued("\"" KEY "/versions?a=b\"") == TDE_OK);
  CHECK(continued("\"\"") == TDE_OK);
  CHECK(with_reply(TDE_OP_VERSIONS, 200, PAGE("", "null")) == TDE_MISSING);
  CHECK(with_reply(TDE_OP_VERSIONS, 404, ERROR("KeyNotFound", "")) == TDE_MISSING);
  CHECK(with_reply(TDE_OP_VERSIONS, 403, ERROR("Forbidden", "AccessDenied")) == TDE_DENIED);
  CHECK(strstr(last.remedy, "grant list to the identity app") != NULL);
}

/* Pages that never end, and more versions than anyone has. */
static tde_class endless_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                              tde_status *st) {
  static char page[16384];
  static step deny = DENY, token = TOKEN, list = {200, page, NULL};
  const step *s = &list;
  (void)op, (void)st;
  if (strstr(req->url, "/oauth2/") != NULL) {
    s = &token;
  } else if (wire.n++ == 0) {
    s = &deny;
  } else {
    int n = snprintf(page, sizeof page, "{\"nextLink\":" NEXT("$skiptoken=%d") ",\"value\":[", wire.n);
    for (int i = 0; i < wire.nscript; i++) {
      n += snprintf(page + n, sizeof page - (size_t)n, "%s" VERSION_OF(KEY, "v%dx%d", "1"),
                    i > 0 ? "," : "", wire.n, i);
    }
    snprintf(page + n, sizeof page - (size_t)n, "]}");
  }
  *reply = (tde_reply){s->status, s->body, strlen(s->body), header_of, NULL, (void *)(uintptr_t)s};
  return TDE_OK;
}

static void endless_lists(void) {
  tde_op op;
  tde_http_sender = endless_send;
  forget();
  script(NULL, 0);
  CHECK(run(TDE_OP_VERSIONS, usual(), KEY, &op) == TDE_CORRUPT && op.versions == NULL);
  CHECK(wire.n < TDE_OP_REQUESTS_MAX);
  forget();
  script(NULL, 25);
  CHECK(run(TDE_OP_VERSIONS, usual(), KEY, &op) == TDE_UNSUPPORTED && op.versions == NULL);
  CHECK(wire.n == 1 + TDE_VERSIONS_MAX / 25 + 1);
  tde_http_sender = wire_send;
}

static void refused_token(void) {
  static const step twice[] = {DENY, TOKEN, DENY, TOKEN, DENY, TOKEN};
  static const step once[] = {
      DENY,
      TOKEN,
      DENY,
      {200, "{\"expires_in\":\"3599\",\"access_token\":\"SECRET.TOKEN-2\"}", NULL},
      {200, UNWRAP_REPLY, NULL}};
  tde_op op;
  forget();
  script(twice, 6);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED && wire.n == 5);
  CHECK(last.http_status == 401);
  forget();
  script(once, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 5);
  CHECK(strstr(wire.log[4].headers, "SECRET.TOKEN-2") != NULL);
  /* The same without a challenge. */
  static const step silent[] = {
      DENY, TOKEN, {401, "", NULL}, {200, SHORT_TOKEN("SECRET.TOKEN-2"), NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step silent_twice[] = {DENY, TOKEN, {401, "", NULL}, TOKEN, {401, "", NULL}};
  forget();
  script(silent, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 5);
  forget();
  script(silent_twice, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED && wire.n == 5);
  /* A first answer without one is no vault's. */
  forget();
  script(silent + 2, 3);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_CORRUPT && wire.n == 1);
  /* A stranger's challenge after a token: nothing more is sent. */
  static const step turned[] = {
      DENY,
      TOKEN,
      {401, "", "Bearer authorization=\"https://l/t\", resource=\"https://graph.microsoft.com\""}};
  forget();
  script(turned, 3);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_MISCONFIGURED && wire.n == 3);
}

/* A 401 to a token is a denial, whatever its challenge lacks: as an outage it would keep the DEK for
** the grace. */
static void refused_token_claims(void) {
  static const char claims[] =
      "Bearer realm=\"\", authorization_uri=\"https://login.example/common/oauth2/authorize\", "
      "error=\"insufficient_claims\", claims=\"eyJhIjp7fX0=\"";
  const step all[] = {DENY, TOKEN, {401, "", claims}, TOKEN, {401, "", claims}, TOKEN};
  const step once[] = {DENY, TOKEN, {401, "", "Bearer error=\"invalid_token\""}, TOKEN,
                       {200, UNWRAP_REPLY, NULL}};
  tde_op op;
  forget();
  script(all, 6);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED && wire.n == 5);
  CHECK(last.http_status == 401);
  forget();
  script(once, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 5);
}

#define AKV(text) "{\"error\":{\"code\":\"Unauthorized\",\"message\":\"" text " SECRET\"}}"
#define DENY_AKV(text) \
  { 401, AKV(text), CHALLENGE }

/* Key Vault numbers what is wrong with a token. That it has not got the key that tokens are signed with
** is its own trouble. */
static void refused_token_numbers(void) {
  static const step blind[] = {DENY, TOKEN, DENY_AKV("AKV10046: Unable"), TOKEN, DENY_AKV("AKV10046: Unable")};
  static const step once[] = {DENY, TOKEN, DENY_AKV("AKV10046: Unable"), TOKEN, {200, UNWRAP_REPLY, NULL}};
  static const step sees[] = {DENY, TOKEN, DENY_AKV("AKV10046: Unable"), TOKEN, DENY};
  static const step issuer[] = {DENY, TOKEN, DENY_AKV("AKV10032: Invalid."), TOKEN, DENY_AKV("AKV10032: Invalid.")};
  static const step prose[] = {DENY, TOKEN, DENY_AKV("AKV10046 Unable"), TOKEN, DENY_AKV("see AKV10046: Unable")};
  /* Nor is it a word on the key that the vault's clock has not come to a token's beginning. */
  static const char *const early[] = {AKV("Token not yet valid (Activity ID: 1-2)"),
                                      AKV("Error validating token: IDX10222")};
  static const char *const other[] = {AKV("Token not valid yet"), AKV("Error validating token: IDX10223"),
                                      AKV("IDX10222")};
  tde_op op;
  for (size_t i = 0; i < COUNT(early) + COUNT(other); i++) {
    int is = i < COUNT(early);
    const char *body = is ? early[i] : other[i - COUNT(early)];
    const step s[] = {DENY, TOKEN, {401, body, CHALLENGE}, TOKEN, {401, body, CHALLENGE}};
    forget();
    script(s, 5);
    tde_class rc = run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op);
    CHECK(rc == (is ? TDE_UNREACHABLE : TDE_UNAUTHENTICATED) && last.http_status == 401);
    CHECK(!is || strstr(last.remedy, "clock") != NULL);
  }
  forget();
  script(blind, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNREACHABLE && wire.n == 5);
  CHECK(last.http_status == 401 && strcmp(last.service_code, "Unauthorized/AKV10046") == 0);
  forget();
  script(once, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK && wire.n == 5);
  forget();
  script(sees, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED && wire.n == 5);
  forget();
  script(issuer, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED && wire.n == 5);
  CHECK(strcmp(last.service_code, "Unauthorized/AKV10032") == 0 && strstr(last.message, "AKV10032") != NULL);
  forget();
  script(prose, 5);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNAUTHENTICATED);
  CHECK(strcmp(last.service_code, "Unauthorized") == 0);
}

/* ---- tokens ---- */

static void token_replies(void) {
  static const struct {
    int status;
    const char *body;
    tde_class rc;
  } all[] = {
      {200, "", TDE_CORRUPT},
      {200, "{}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\"}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\",\"expires_in\":0}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\",\"expires_in\":-5}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\",\"expires_in\":\"1e3\"}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\",\"expires_in\":99999999999}", TDE_CORRUPT},
      {200, "{\"access_token\":5,\"expires_in\":60}", TDE_CORRUPT},
      {200, "{\"access_token\":\"\",\"expires_in\":60}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SEC RET\",\"expires_in\":60}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\\r\\nX: y\",\"expires_in\":60}", TDE_CORRUPT},
      {200, "{\"access_token\":\"SECRET\",\"access_token\":\"B\",\"expires_in\":60}", TDE_CORRUPT},
      {302, "", TDE_CORRUPT},
      {400,
       "{\"error\":\"invalid_client\",\"error_description\":\"SECRET\",\"error_codes\":[7000215],"
       "\"trace_id\":\"tr-1\"}",
       TDE_UNAUTHENTICATED},
      {401, "SECRET", TDE_UNAUTHENTICATED},
      {400, "{\"error\":\"temporarily_unavailable\"}", TDE_UNREACHABLE},
      {429, "", TDE_THROTTLED},
      {500, "", TDE_UNREACHABLE},
      {503, "SECRET", TDE_UNREACHABLE},
  };
  tde_op op;
  for (size_t i = 0; i < COUNT(all); i++) {
    step s[] = {DENY, {all[i].status, all[i].body, NULL}, {200, UNWRAP_REPLY, NULL}};
    forget();
    script(s, 3);
    tde_class rc = run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op);
    if (rc != all[i].rc) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == all[i].rc && wire.n == 2 && last.http_status == all[i].status);
    if (i == 13) {
      CHECK(strcmp(last.service_code, "invalid_client/AADSTS7000215") == 0);
      CHECK(strcmp(last.request_id, "tr-1") == 0);
    }
    /* The claim is free again; after a denial the vault is asked for its tenant anew. */
    step good[] = {DENY, TOKEN, {200, UNWRAP_REPLY, NULL}};
    int outage = tde_class_is_outage(rc);
    script(good + outage, 3 - outage);
    CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_OK);
  }
  static const step gone[] = {DENY, {0, "", NULL}};
  forget();
  script(gone, 2);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_UNREACHABLE);
  char part[sizeof TOKEN_REPLY];
  for (size_t n = 0; n < sizeof TOKEN_REPLY - 1; n++) {
    memcpy(part, TOKEN_REPLY, n);
    part[n] = 0;
    step s[] = {DENY, {200, part, NULL}};
    forget();
    script(s, 2);
    CHECK(run(TDE_OP_UNWRAP, usual(), KEY "/" VERSION, &op) == TDE_CORRUPT);
  }
}

/* The same of who gives tokens: OAuth's form (RFC 6749 section 5.2) or Entra's request id; App Service
** answers in a form of its own. */
static void token_strangers(void) {
  static const struct {
    int status;
    const char *body;
    tde_class authority, machine;
  } all[] = {{400, "", TDE_UNREACHABLE, TDE_UNREACHABLE},
             {401, "SECRET", TDE_UNREACHABLE, TDE_UNREACHABLE},
             {403, "<html><body>403 Forbidden</body></html>", TDE_UNREACHABLE, TDE_UNREACHABLE},
             {404, "{\"error\":\"inval", TDE_UNREACHABLE, TDE_UNREACHABLE},
             {400, "{\"statusCode\":400,\"message\":\"SECRET\"}", TDE_UNREACHABLE, TDE_UNAUTHENTICATED},
             {400, "{\"error\":\"invalid_request\"}", TDE_UNAUTHENTICATED, TDE_UNAUTHENTICATED}};
  const tde_instance *machine = instance(",\"identities\":{\"m\":{\"kind\":\"managed_identity\"}}");
  tde_op op;
  no_request_id = 1;
  for (size_t i = 0; i < 2 * COUNT(all); i++) {
    const step s[] = {DENY, {all[i / 2].status, all[i / 2].body, NULL}};
    tde_class want = i & 1 ? all[i / 2].machine : all[i / 2].authority;
    forget();
    script(s, 2);
    tde_class rc = run(TDE_OP_UNWRAP, i & 1 ? machine : usual(), KEY "/" VERSION, &op);
    if (rc != want) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == want && wire.n == 2 && last.http_status == all[i / 2].status);
  }
  no_request_id = 0;
}

/* ---- renewals ---- */

#define NO_ANSWER \
  { 0, "", NULL }

static void half_life(void) {
  struct timespec nap = {2, 100000000};
  nanosleep(&nap, NULL);
}

/* An unwrap with what the caches hold. */
static tde_class again(const tde_instance *inst, const char *identity, const step *s, int n) {
  tde_op op;
  memset(&op, 0, sizeof op);
  op.kind = TDE_OP_UNWRAP;
  op.instance = inst;
  op.identity = identity;
  op.dek = dek;
  op.nwrapped = 256;
  script(s, n);
  return tde_provider_run(&op, KEY "/" VERSION, &last);
}

/* A token is renewed at half of a short life. While the endpoint is away, the old
** one serves, and the endpoint is left alone for a while. */
static void renewal(void) {
  static const step cold[] = {DENY, {200, SHORT_TOKEN("SECRET-OLD"), NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step gone[] = {NO_ANSWER, {200, UNWRAP_REPLY, NULL}};
  static const step busy[] = {{503, "", NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step denied[] = {{401, "{\"error\":\"invalid_client\"}", NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step fine[] = {{200, SHORT_TOKEN("SECRET-NEW"), NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step warm[] = {{200, UNWRAP_REPLY, NULL}};
  static const struct {
    const step *steps;
    tde_class rc;
    const char *token; /* that the vault is shown then */
  } all[] = {{gone, TDE_OK, "SECRET-OLD"},
             {busy, TDE_OK, "SECRET-OLD"},
             {fine, TDE_OK, "SECRET-NEW"},
             {denied, TDE_UNAUTHENTICATED, NULL}};
  const tde_instance *inst[COUNT(all)];
  for (size_t i = 0; i < COUNT(all); i++) inst[i] = instance(SECRET_IDENTITY);
  forget();
  for (size_t i = 0; i < COUNT(all); i++) CHECK(again(inst[i], NULL, cold, 3) == TDE_OK);
  CHECK(wire.log[1].max_ms == 0 && again(inst[0], NULL, warm, 1) == TDE_OK);
  half_life();
  for (size_t i = 0; i < COUNT(all); i++) {
    CHECK(again(inst[i], NULL, all[i].steps, 2) == all[i].rc);
    CHECK(strstr(wire.log[0].url, "/oauth2/") != NULL && wire.log[0].max_ms == TDE_TOKEN_HURRY_MS);
    CHECK(wire.n == 1 + (all[i].token != NULL));
    if (all[i].token != NULL) CHECK(strstr(wire.log[1].headers, all[i].token) != NULL);
  }
  CHECK(again(inst[0], NULL, warm, 1) == TDE_OK && wire.n == 1);
  half_life();
  /* The old one has ended: now the failure counts. */
  CHECK(again(inst[0], NULL, gone, 1) == TDE_UNREACHABLE && wire.log[0].max_ms == 0);
  /* The vault may have moved to another tenant: it is asked anew after a denial. */
  CHECK(again(inst[3], NULL, cold, 3) == TDE_OK && wire.n == 3);
}

/* The same for the assertion of a federated identity, whose token is of no use. */
static void renewal_of_an_assertion(void) {
  static const step cold[] = {DENY, {200, SHORT_TOKEN("SECRET-MI"), NULL}, TOKEN, {200, UNWRAP_REPLY, NULL}};
  static const step gone[] = {NO_ANSWER, TOKEN, {200, UNWRAP_REPLY, NULL}};
  static const step other[] = {{401, "", "Bearer authorization=\"https://l/" OTHER_TENANT
                                         "\", resource=\"https://vault.azure.net\""},
                               NO_ANSWER,
                               TOKEN,
                               {200, UNWRAP_REPLY, NULL}};
  const tde_instance *inst = instance(
      ",\"identities\":{\"m\":{\"kind\":\"managed_identity\"},\"f\":{\"kind\":\"federated\","
      "\"client_id\":\"fc\",\"via\":\"m\"}}");
  forget();
  CHECK(again(inst, "f", cold, 4) == TDE_OK);
  half_life();
  /* Another vault's tenant needs a token of its own, from the same assertion. */
  tde_challenge_drop_cache();
  CHECK(again(inst, "f", other, 4) == TDE_OK && wire.n == 4);
  CHECK(strstr(wire.log[1].url, "169.254") != NULL);
  CHECK(strstr(wire.log[2].body, "client_assertion=SECRET-MI") != NULL);
  half_life();
  tde_token_drop_cache();
  CHECK(again(inst, "f", gone, 3) == TDE_UNREACHABLE && wire.n == 1);
}

/* A failure that was recovered from leaves no trace in a later one's report. */
static void old_failure_is_forgotten(void) {
  static const step cold[] = {DENY, {200, SHORT_TOKEN("SECRET-OLD"), NULL}, {200, UNWRAP_REPLY, NULL}};
  static const step s[] = {{503, "{\"error\":\"server_error\",\"trace_id\":\"tr-9\"}", NULL}, NO_ANSWER};
  const tde_instance *inst = instance(SECRET_IDENTITY);
  forget();
  CHECK(again(inst, NULL, cold, 3) == TDE_OK);
  half_life();
  CHECK(again(inst, NULL, s, 2) == TDE_UNREACHABLE && wire.n == 2);
  CHECK(last.http_status == 0 && last.service_code[0] == 0 && last.request_id[0] == 0);
}

/* Unwraps cold with these identities; what was asked is in wire.log. */
static tde_class unwrap_as(const char *identities, const char *identity, const char *federated,
                           const step *s, int n) {
  char members[4096];
  tde_op op;
  snprintf(members, sizeof members, ",\"identities\":{%s}", identities);
  memset(&op, 0, sizeof op);
  op.kind = TDE_OP_UNWRAP;
  op.instance = instance(members);
  op.identity = identity;
  op.federated_client_id = federated;
  op.dek = dek;
  op.nwrapped = 256;
  forget();
  script(s, n);
  tde_class rc = tde_provider_run(&op, KEY "/" VERSION, &last);
  CHECK(strstr(last.message, "SECRET") == NULL);
  return rc;
}

static const step three[] = {DENY, TOKEN, {200, UNWRAP_REPLY, NULL}};

static void managed_identities(void) {
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", NULL, NULL, three, 3) == TDE_OK);
  CHECK(strcmp(wire.log[1].url,
               "http://169.254.169.254/metadata/identity/oauth2/token?api-version="
               "2018-02-01&resource=https%3A%2F%2Fvault.azure.net") == 0);
  CHECK(strstr(wire.log[1].headers, "Metadata: true\n") != NULL);
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\",\"client_id\":\"uid\"}", "m", NULL, three,
                  3) == TDE_OK);
  CHECK(strstr(wire.log[1].url, "&client_id=uid") != NULL);
  CHECK(unwrap_as("\"m\":{\"kind\":\"app_service\"}", "m", NULL, three, 3) == TDE_MISCONFIGURED);
  setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:4141/msi/token", 1);
  setenv("IDENTITY_HEADER", "SECRET-HEADER", 1);
  CHECK(unwrap_as("\"m\":{\"kind\":\"app_service\"}", "m", NULL, three, 3) == TDE_OK);
  CHECK(strncmp(wire.log[1].url,
                "http://127.0.0.1:4141/msi/token?api-version=2019-08-01&resource=", 64) == 0);
  CHECK(strstr(wire.log[1].headers, "X-IDENTITY-HEADER: SECRET-HEADER\n") != NULL);
  setenv("IDENTITY_HEADER", "x\r\nEvil: 1", 1);
  CHECK(unwrap_as("\"m\":{\"kind\":\"app_service\"}", "m", NULL, three, 3) == TDE_MISCONFIGURED);
  /* Azure Arc sets the first alone. */
  unsetenv("IDENTITY_HEADER");
  CHECK(unwrap_as("\"m\":{\"kind\":\"app_service\"}", "m", NULL, three, 3) == TDE_MISCONFIGURED);
  CHECK(strstr(last.message, "IDENTITY_HEADER is not set, or") != NULL);
  unsetenv("IDENTITY_ENDPOINT");
  /* Where nothing answers, this may be no machine that has one. */
  static const step silent[] = {DENY, NO_ANSWER};
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", "m", NULL, silent, 2) == TDE_UNREACHABLE);
  CHECK(strstr(last.remedy, "managed identity") != NULL && strstr(last.message, "no answer") != NULL);
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", "other", NULL, three, 3) ==
        TDE_MISCONFIGURED);
}

static void federation(void) {
  static const step four[] = {
      DENY,
      {200, "{\"access_token\":\"SECRET-MI\",\"expires_in\":\"86399\"}", NULL},
      TOKEN,
      {200, UNWRAP_REPLY, NULL}};
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\",\"client_id\":\"uid\"}", "m", "fed-client",
                  four, 4) == TDE_OK);
  CHECK(strstr(wire.log[1].url, "resource=api%3A%2F%2FAzureADTokenExchange&client_id=uid") != NULL);
  CHECK(strstr(wire.log[2].url, "/" TENANT "/oauth2/v2.0/token") != NULL);
  CHECK(strstr(wire.log[2].body, "client_id=fed-client&") != NULL);
  CHECK(strstr(wire.log[2].body, "client_assertion=SECRET-MI") != NULL &&
        strstr(wire.log[2].body, "jwt-bearer") != NULL);
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"},\"f\":{\"kind\":\"federated\",\"client_"
                  "id\":\"fc\",\"via\":\"m\"}",
                  "f", NULL, four, 4) == TDE_OK);
  CHECK(strstr(wire.log[2].body, "client_id=fc&") != NULL);
  CHECK(unwrap_as(
            "\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_env\":\"T_SECRET\"}",
            "a", "fed", four, 4) == TDE_MISCONFIGURED);
  /* An assertion that is refused is fetched once more, and not kept. */
  static const step stale[] = {
      DENY,
      {200, "{\"access_token\":\"SECRET-STALE\",\"expires_in\":\"86399\"}", NULL},
      {401, "{\"error\":\"invalid_client\"}", NULL},
      {200, "{\"access_token\":\"SECRET-FRESH\",\"expires_in\":\"86399\"}", NULL},
      TOKEN,
      {200, UNWRAP_REPLY, NULL}};
  static const step refused_twice[] = {DENY,
                                       {200, "{\"access_token\":\"SECRET-STALE\",\"expires_in\":60}", NULL},
                                       {401, "", NULL},
                                       {200, "{\"access_token\":\"SECRET-STALE\",\"expires_in\":60}", NULL},
                                       {401, "", NULL},
                                       TOKEN};
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", "m", "fed", stale, 6) == TDE_OK && wire.n == 6);
  CHECK(strstr(wire.log[2].body, "SECRET-STALE") != NULL && strstr(wire.log[4].body, "SECRET-FRESH") != NULL);
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", "m", "fed", refused_twice, 6) ==
        TDE_UNAUTHENTICATED && wire.n == 5);
  static const step inner_fails[] = {DENY, {400, "{\"error\":\"invalid_request\"}", NULL}};
  CHECK(unwrap_as("\"m\":{\"kind\":\"managed_identity\"}", "m", "fed", inner_fails, 2) ==
        TDE_UNAUTHENTICATED);
}

/* Certificate and key in one PEM at path. */
static EVP_PKEY *write_certificate(const char *path, const char *other_key) {
  EVP_PKEY *key = EVP_RSA_gen(2048), *put = other_key != NULL ? EVP_RSA_gen(2048) : NULL;
  X509 *cert = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 7);
  X509_gmtime_adj(X509_getm_notBefore(cert), 0);
  X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
  X509_set_pubkey(cert, key);
  CHECK(X509_sign(cert, key, EVP_sha256()) > 0);
  FILE *f = fopen(path, "w");
  CHECK(f != NULL);
  PEM_write_X509(f, cert);
  PEM_write_PrivateKey(f, put != NULL ? put : key, NULL, NULL, 0, NULL, NULL);
  fclose(f);
  chmod(path, 0600);
  X509_free(cert);
  EVP_PKEY_free(put);
  return key;
}

static void secret_sources(void) {
  char path[512], text[1024];
  snprintf(path, sizeof path, "%s/secret", root_dir);
  snprintf(text, sizeof text,
           "\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_file\":\"%s\"}", path);
  CHECK(unwrap_as(text, "a", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  write_file(path, "SECRET-F\n", 0600);
  CHECK(unwrap_as(text, "a", NULL, three, 3) == TDE_OK);
  size_t n = strlen(wire.log[1].body);
  CHECK(n > 9 && strcmp(wire.log[1].body + n - 9, "=SECRET-F") == 0);
  for (mode_t bits = 1; bits <= 040; bits <<= 1) {
    chmod(path, 0600 | bits);
    CHECK(unwrap_as(text, "a", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  }
  CHECK(
      unwrap_as("\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_env\":\"T_UNSET\"}",
                "a", NULL, three, 3) == TDE_MISCONFIGURED);
  CHECK(unwrap_as("\"a\":{\"kind\":\"client_secret\",\"tenant\":\"" OTHER_TENANT
                  "\",\"client_id\":\"c\",\"secret_env\":\"T_SECRET\"}",
                  "a", NULL, three, 3) == TDE_MISCONFIGURED &&
        wire.n == 1);
  snprintf(path, sizeof path, "%s/federated", root_dir);
  write_file(path, "SECRET-W1\n", 0644);
  snprintf(text, sizeof text,
           "\"w\":{\"kind\":\"workload_identity\",\"client_id\":\"c\",\"token_file\":\"%s\"}",
           path);
  CHECK(unwrap_as(text, "w", NULL, three, 3) == TDE_OK &&
        strstr(wire.log[1].body, "client_assertion=SECRET-W1") != NULL);
  write_file(path, "SECRET-W2\n", 0644);
  CHECK(unwrap_as(text, "w", NULL, three, 3) == TDE_OK &&
        strstr(wire.log[1].body, "=SECRET-W2") != NULL);
  for (mode_t bits = 002; bits <= 020; bits <<= 3) {
    chmod(path, 0644 | bits);
    CHECK(unwrap_as(text, "w", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  }
}

static void environment(void) {
  static const char env[] = "\"e\":{\"kind\":\"environment\"}";
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_MISCONFIGURED);
  setenv("AZURE_TENANT_ID", TENANT, 1);
  setenv("AZURE_CLIENT_ID", "env-client", 1);
  setenv("AZURE_CLIENT_SECRET", "SECRET+ENV", 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_OK);
  CHECK(strstr(wire.log[1].body, "client_id=env-client&") != NULL &&
        strstr(wire.log[1].body, "SECRET%2BENV") != NULL);
  unsetenv("AZURE_CLIENT_SECRET");
  char path[512];
  snprintf(path, sizeof path, "%s/env-cert.pem", root_dir);
  EVP_PKEY_free(write_certificate(path, NULL));
  setenv("AZURE_CLIENT_CERTIFICATE_PATH", path, 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_OK &&
        strstr(wire.log[1].body, "client_assertion=ey") != NULL);
  chmod(path, 0640);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  unsetenv("AZURE_CLIENT_CERTIFICATE_PATH");
  snprintf(path, sizeof path, "%s/federated2", root_dir);
  write_file(path, "SECRET-W3", 0600);
  setenv("AZURE_FEDERATED_TOKEN_FILE", path, 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_OK &&
        strstr(wire.log[1].body, "=SECRET-W3") != NULL);
  CHECK(unwrap_as("\"w\":{\"kind\":\"workload_identity\"}", "w", NULL, three, 3) == TDE_OK);
  /* A sovereign cloud's authority; the instance's own word counts more, and other kinds
  ** do not look at the environment. */
  setenv("AZURE_AUTHORITY_HOST", "https://login.chinacloudapi.cn/", 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_OK);
  CHECK(strcmp(wire.log[1].url, "https://login.chinacloudapi.cn/" TENANT "/oauth2/v2.0/token") == 0);
  CHECK(unwrap_as("\"w\":{\"kind\":\"workload_identity\"}},\"azure\":{\"authority\":"
                  "\"https://login.own.example\"", "w", NULL, three, 3) == TDE_OK);
  CHECK(strncmp(wire.log[1].url, "https://login.own.example/", 26) == 0);
  CHECK(unwrap_as("\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_env\":\"T_SECRET\"}",
                  "a", NULL, three, 3) == TDE_OK);
  CHECK(strncmp(wire.log[1].url, "https://login.microsoftonline.com/", 34) == 0);
  setenv("AZURE_AUTHORITY_HOST", "https://evil.example/x?y", 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  unsetenv("AZURE_AUTHORITY_HOST");
  unsetenv("AZURE_FEDERATED_TOKEN_FILE");
  setenv("AZURE_CLIENT_ID", "a&b=c", 1);
  CHECK(unwrap_as(env, "e", NULL, three, 3) == TDE_MISCONFIGURED);
  unsetenv("AZURE_TENANT_ID");
  unsetenv("AZURE_CLIENT_ID");
}

/* Many threads, all cold: one token request. */
static tde_class slow_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                           tde_status *st) {
  static const step deny = DENY, token = TOKEN, key = {200, UNWRAP_REPLY, NULL};
  const step *s = &key;
  (void)op, (void)st;
  if (strstr(req->url, "/oauth2/") != NULL) {
    struct timespec nap = {0, 200000000};
    pthread_mutex_lock(&wire.mutex);
    wire.tokens++;
    pthread_mutex_unlock(&wire.mutex);
    nanosleep(&nap, NULL);
    s = &token;
  } else if (req->body == NULL) {
    s = &deny;
  }
  *reply = (tde_reply){s->status, s->body, strlen(s->body), header_of, NULL, (void *)(uintptr_t)s};
  return TDE_OK;
}

static atomic_int opened;

static void *opener(void *arg) {
  tde_op op;
  tde_status st;
  memset(&op, 0, sizeof op);
  op.kind = TDE_OP_UNWRAP;
  op.instance = arg;
  op.dek = tde_secret_alloc(TDE_KEY_BYTES);
  op.nwrapped = 256;
  opened += op.dek != NULL && tde_provider_run(&op, KEY "/" VERSION, &st) == TDE_OK;
  tde_secret_free(op.dek);
  return NULL;
}

static void one_request(void) {
  pthread_t t[16];
  const tde_instance *inst = usual();
  forget();
  wire.tokens = 0;
  opened = 0;
  tde_http_sender = slow_send;
  for (size_t i = 0; i < COUNT(t); i++)
    CHECK(pthread_create(&t[i], NULL, opener, (void *)(uintptr_t)inst) == 0);
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], NULL);
  tde_http_sender = wire_send;
  CHECK(opened == (int)COUNT(t) && wire.tokens == 1);
  /* Who waits for another's request has a deadline of its own. */
  const tde_instance *hasty = instance(SECRET_IDENTITY ",\"http\":{\"timeout_ms\":20}");
  forget();
  opened = 0;
  tde_http_sender = slow_send;
  CHECK(pthread_create(&t[0], NULL, opener, (void *)(uintptr_t)hasty) == 0);
  CHECK(pthread_create(&t[1], NULL, opener, (void *)(uintptr_t)hasty) == 0);
  for (size_t i = 0; i < 2; i++) pthread_join(t[i], NULL);
  tde_http_sender = wire_send;
  CHECK(opened == 1);
}

/* ---- configuration ---- */

static void configuration(void) {
  static const char *const bad[] = {
      ",\"allow_loopback_http\":1",
      ",\"http\":[]",
      ",\"http\":{\"timeout_ms\":\"5\"}",
      ",\"http\":{\"timeout_ms\":1}",
      ",\"http\":{\"connect_to\":\"x\"}",
      ",\"http\":{\"ca_file\":\"relative.pem\"}",
      ",\"azure\":{\"authority\":\"login.example\"}",
      ",\"azure\":{\"authority\":\"https://login.example/path\"}",
      ",\"azure\":{\"authority\":\"https://u@login.example\"}",
      ",\"azure\":{\"authority\":5}",
      ",\"azure\":{\"api_version\":\"7.4&x=y\"}",
      ",\"azure\":{\"api_version\":\"9.9\"}", ",\"azure\":{\"api_version\":\"latest\"}",
      ",\"azure\":{\"vault_suffixes\":\"x.y\"}",
      ",\"azure\":{\"vault_suffixes\":[\"net\"]}",
      ",\"azure\":{\"vault_suffixes\":[\".azure.net\"]}",
      ",\"azure\":{\"vault_suffixes\":[5]}",
      ",\"azure\":{\"vault_suffixes\":[{}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"net\"}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"a.b\",\"resource\":5}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"a.b\",\"resource\":\"http://a.b\"}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"a.b\",\"resource\":\"https://a.b/?c\"}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"a.b\",\"resource\":\"https://a.b/\"}]}",
      ",\"azure\":{\"vault_suffixes\":[{\"suffix\":\"a.b\",\"resource\":\"https:///x\"}]}",
      ",\"policy\":{\"allow_purgeable_keys\":\"yes\"}",
      ",\"identities\":[]",
      ",\"identities\":{\"a\":5}",
      ",\"identities\":{\"a b\":{\"kind\":\"managed_identity\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"magic\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"managed_identity\",\"client_id\":\"a&b\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret\":"
      "\"SECRET\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"client_secret\":"
      "\"SECRET\",\"secret_env\":\"E\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_file\":\"/"
      "a\",\"secret_env\":\"E\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_file\":"
      "\"a\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"client_certificate\",\"client_id\":\"c\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"federated\",\"client_id\":\"c\",\"via\":\"b\"}}",
      ",\"identities\":{\"a\":{\"kind\":\"federated\",\"client_id\":\"c\",\"via\":\"a\"}}",
  };
  for (size_t i = 0; i < COUNT(bad); i++) {
    const tde_instance *inst = NULL;
    tde_status st;
    tde_class rc = open_instance(bad[i], &inst, &st);
    if (rc != TDE_MISCONFIGURED) printf("taken: %s\n", bad[i]);
    CHECK(rc == TDE_MISCONFIGURED && strstr(st.message, "SECRET") == NULL);
  }
  const tde_cloud *c = tde_instance_cloud(
      instance(",\"azure\":{\"authority\":\"https://127.0.0.1:8444/\",\"ca_file\":\"/"
               "ca.pem\",\"vault_suffixes\":[\"vault.localtest\"]},"
               "\"http\":{\"timeout_ms\":1234},\"unknown\":{}"));
  CHECK(strcmp(c->authority, "https://127.0.0.1:8444") == 0 && strcmp(c->ca_file, "/ca.pem") == 0);
  CHECK(c->total_ms == 1234 && c->connect_ms == 5000 &&
        strcmp(c->suffixes[0].name, "vault.localtest") == 0 && c->suffixes[0].resource[0] == 0);
}

/* ---- assertions ---- */

/* RFC 7515 appendix A.2: key, message and signature. */
#define A2_N                                                                                 \
  "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt" \
  "0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSX" \
  "ndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5" \
  "IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
#define A2_D                                                                                 \
  "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol" \
  "2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn43" \
  "9X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8" \
  "bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ"
#define A2_JWS                                                                               \
  "eyJhbGciOiJSUzI1NiJ9."                                                                    \
  "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0" \
  "cnVlfQ."                                                                                  \
  "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W" \
  "2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkS" \
  "jtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnv" \
  "Wh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"

static BIGNUM *number(const char *b64) {
  uint8_t raw[512];
  long n = tde_unbase64url(b64, strlen(b64), raw, sizeof raw);
  return n > 0 ? BN_bin2bn(raw, (int)n, NULL) : NULL;
}

static void jwt_vector(void) {
  OSSL_PARAM_BLD *bld = OSSL_PARAM_BLD_new();
  BIGNUM *n = number(A2_N), *d = number(A2_D), *e = number("AQAB");
  OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_N, n);
  OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_E, e);
  OSSL_PARAM_BLD_push_BN(bld, OSSL_PKEY_PARAM_RSA_D, d);
  OSSL_PARAM *params = OSSL_PARAM_BLD_to_param(bld);
  EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
  EVP_PKEY *key = NULL;
  char *jws = NULL;
  CHECK(EVP_PKEY_fromdata_init(ctx) == 1 &&
        EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_KEYPAIR, params) == 1);
  CHECK(tde_jwt_rs256(
            key, "{\"alg\":\"RS256\"}",
            "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
            &jws, NULL) == TDE_OK);
  CHECK(jws != NULL && strcmp(jws, A2_JWS) == 0);
  tde_secret_free(jws);
  EVP_PKEY_free(key);
  EVP_PKEY_CTX_free(ctx);
  OSSL_PARAM_free(params);
  OSSL_PARAM_BLD_free(bld);
  BN_free(n), BN_free(d), BN_free(e);
}

static void client_certificate(void) {
  char path[512], text[1024], payload[1024] = "";
  uint8_t sig[512];
  snprintf(path, sizeof path, "%s/cert.pem", root_dir);
  EVP_PKEY *key = write_certificate(path, NULL);
  snprintf(
      text, sizeof text,
      "\"c\":{\"kind\":\"client_certificate\",\"client_id\":\"cc\",\"certificate_file\":\"%s\"}",
      path);
  CHECK(unwrap_as(text, "c", NULL, three, 3) == TDE_OK);
  const char *jws = strstr(wire.log[1].body, "client_assertion=");
  REQUIRE(jws != NULL);
  jws += 17;
  const char *dot = strchr(jws, '.'), *second = dot != NULL ? strchr(dot + 1, '.') : NULL;
  REQUIRE(second != NULL);
  long n = tde_unbase64url(jws, (size_t)(dot - jws), (uint8_t *)payload, sizeof payload - 1);
  CHECK(n > 0 && strncmp(payload, "{\"alg\":\"RS256\",\"typ\":\"JWT\",\"x5t\":\"", 34) == 0 &&
        n == 34 + 27 + 2);
  memset(payload, 0, sizeof payload);
  n = tde_unbase64url(dot + 1, (size_t)(second - dot - 1), (uint8_t *)payload, sizeof payload - 1);
  CHECK(n > 0 && strstr(payload, "\"aud\":\"https://login.microsoftonline.com/" TENANT
                                 "/oauth2/v2.0/token\"") != NULL);
  CHECK(strstr(payload, "\"iss\":\"cc\"") != NULL && strstr(payload, "\"sub\":\"cc\"") != NULL);
  n = tde_unbase64url(second + 1, strlen(second + 1), sig, sizeof sig);
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  CHECK(n == 256 && EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, key) == 1 &&
        EVP_DigestVerify(ctx, sig, (size_t)n, (const unsigned char *)jws, (size_t)(second - jws)) ==
            1);
  EVP_MD_CTX_free(ctx);
  EVP_PKEY_free(key);
  for (mode_t bits = 1; bits <= 040; bits <<= 1) {
    chmod(path, 0600 | bits);
    CHECK(unwrap_as(text, "c", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  }
  EVP_PKEY_free(write_certificate(path, "another"));
  CHECK(unwrap_as(text, "c", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
  write_file(path, "no PEM, but a SECRET", 0600);
  CHECK(unwrap_as(text, "c", NULL, three, 3) == TDE_MISCONFIGURED && wire.n == 1);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"key_ids", key_ids},
      {"spellings", spellings},
      {"hosts", hosts},
      {"challenges", challenges},
      {"custom_domain", custom_domain},
      {"get_key", get_key},
      {"wrap_and_unwrap", wrap_and_unwrap},
      {"may_wrap", may_wrap},
      {"symmetric_key", symmetric_key},
      {"bad_key_replies", bad_key_replies},
      {"bad_unwrap_replies", bad_unwrap_replies},
      {"error_classes", error_classes},
      {"next_steps", next_steps},
      {"strangers", strangers},
      {"list_versions", list_versions},
      {"bad_version_lists", bad_version_lists},
      {"endless_lists", endless_lists},
      {"refused_token", refused_token},
      {"refused_token_claims", refused_token_claims},
      {"refused_token_numbers", refused_token_numbers},
      {"token_replies", token_replies},
      {"token_strangers", token_strangers},
      {"renewal", renewal},
      {"renewal_of_an_assertion", renewal_of_an_assertion},
      {"old_failure_is_forgotten", old_failure_is_forgotten},
      {"managed_identities", managed_identities},
      {"federation", federation},
      {"secret_sources", secret_sources},
      {"environment", environment},
      {"one_request", one_request},
      {"configuration", configuration},
      {"jwt_vector", jwt_vector},
      {"client_certificate", client_certificate},
  };
  snprintf(root_dir, sizeof root_dir, "/tmp/tde-azure-XXXXXX");
  if (mkdtemp(root_dir) == NULL || tde_crypto_init(NULL) != TDE_OK) return 1;
  dek = tde_secret_alloc(TDE_KEY_BYTES);
  if (dek == NULL) return 1;
  setenv("T_SECRET", "SECRET/value", 1);
  tde_http_sender = wire_send;
  int rc = unit_main(argc, argv, tests, COUNT(tests));
  tde_secret_free(dek);
  remove_tree(root_dir);
  return rc;
}
