/*
** test_vault.c: HashiCorp Vault's and OpenBao's Transit engine, logins and their configuration, against
** canned replies.
**
** The sender here answers from a script and keeps what it was asked. Every secret in this file (tokens,
** secret ids, keys) holds the mark SECRET in clear or is looked for by value; each report is searched for
** it, and each test that sends one checks that the search does find it in the request. The replies are
** those of the API's reference, and of the engine's own errors (keysutil/policy.go, response_util.go).
*/
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/secret.h"
#include "keyprovider/instance.h"
#include "keyprovider/instance_edit.h"
#include "keyprovider/json.h"
#include "keyprovider/rsa.h"
#include "keyprovider/token_cache.h"
#include "keyprovider/vault.h"
#include "keyprovider/vault_token.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

#define ADDRESS "https://vault.example:8200"
#define BASE "vault:" ADDRESS "/transit/keys/tde"
#define KEY BASE "/2"
#define DEK64 "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
#define UUID_TEXT "00010203-0405-0607-0809-0a0b0c0d0e0f"

static char root_dir[256];

/* ---- the sender ---- */

typedef struct step {
  int status;
  const char *body;
} step;

typedef struct asked {
  char method[8], url[600], headers[2048], body[8192];
  int max_ms;
} asked;

static struct {
  pthread_mutex_t mutex;
  const step *script;
  int nscript, n, logins, tokens;
  asked log[40];
} wire = {.mutex = PTHREAD_MUTEX_INITIALIZER};

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
  *reply = (tde_reply){.status = s->status, .body = s->body, .nbody = strlen(s->body)};
  return TDE_OK;
}

static void script(const step *s, int n) {
  wire.script = s;
  wire.nscript = n;
  wire.n = 0;
  memset(wire.log, 0, sizeof wire.log);
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
  snprintf(text, sizeof text, "{\"version\":1,\"default_protector\":\"%s\"%s}", BASE, members);
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

#define TOKEN_ID(name) \
  "\"" name "\":{\"kind\":\"vault_token\",\"address\":\"" ADDRESS "\",\"token_env\":\"T_TOKEN\"}"
#define APPROLE_ID(name)                                            \
  "\"" name "\":{\"kind\":\"vault_approle\",\"address\":\"" ADDRESS \
  "\",\"role_id\":\"role-1\",\"secret_env\":\"T_"                   \
  "SECRET\"}"
#define WITH(ids) ",\"identities\":{" ids "}"
#define AZURE_ID(name) "\"" name "\":{\"kind\":\"managed_identity\"}"

static const tde_instance *usual(void) {
  static const tde_instance *inst;
  if (inst == NULL) inst = instance(WITH(TOKEN_ID("tok")));
  return inst;
}

static uint8_t *dek;
static tde_status last;

/* algorithm: of a wrapped DEK, with its length. */
static tde_class run_as(tde_op_kind kind, const tde_instance *inst, const char *id,
                        const char *identity, const char *algorithm, tde_op *op) {
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->instance = inst;
  op->identity = identity;
  op->dek = dek;
  for (int i = 0; i < TDE_UUID_BYTES; i++) op->context[i] = (uint8_t)i;
  for (int i = 0; kind == TDE_OP_WRAP && i < TDE_KEY_BYTES; i++) dek[i] = (uint8_t)i;
  if (kind == TDE_OP_UNWRAP) {
    memset(dek, 0x55, TDE_KEY_BYTES);
    memset(op->wrapped, 7, 512);
    op->nwrapped = strcmp(algorithm, TDE_RSA_OAEP_256) == 0 ? 384 : 60;
    snprintf(op->algorithm, sizeof op->algorithm, "%s", algorithm);
  }
  tde_class rc = tde_provider_run(op, id, &last);
  if (rc != TDE_OK) {
    CHECK(last.message[0] != 0 && last.remedy[0] != 0 && last.key_id[0] != 0);
    CHECK(strstr(last.message, "SECRET") == NULL && strstr(last.remedy, "SECRET") == NULL);
    CHECK(strstr(last.message, "PROSE") == NULL && strstr(last.remedy, "PROSE") == NULL);
    CHECK(strstr(last.message, DEK64) == NULL && last.service_code[0] == 0);
    CHECK(strstr(last.message, "Azure") == NULL && strstr(last.remedy, "az ") == NULL);
    if (kind == TDE_OP_UNWRAP) CHECK(tde_all_zero(dek, TDE_KEY_BYTES));
  }
  return rc;
}

static tde_class run(tde_op_kind kind, const tde_instance *inst, const char *id, tde_op *op) {
  return run_as(kind, inst, id, NULL, "aes256-gcm96", op);
}

/* One reply to one operation. */
static tde_class with_reply(tde_op_kind kind, int status, const char *body) {
  step s[] = {{status, body}};
  tde_op op;
  script(s, 1);
  tde_class rc = run(kind, usual(), kind == TDE_OP_UNWRAP ? KEY : BASE, &op);
  free(op.versions);
  return rc;
}

#define KEY_OF(type, keys, flags)                                     \
  "{\"request_id\":\"r\",\"data\":{\"name\":\"tde\",\"type\":\"" type \
  "\",\"derived\":false,\"keys\":{" keys                              \
  "},\"latest_version\":2,\"min_available_version\":0," flags "}}"
#define GOOD_FLAGS                                                                          \
  "\"deletion_allowed\":false,\"exportable\":false,\"allow_plaintext_backup\":false,\"min_" \
  "decryption_version\":1,"                                                                 \
  "\"min_encryption_version\":0"
#define TWO_KEYS "\"1\":1700000001,\"2\":1700000002"
#define KEY_REPLY KEY_OF("aes256-gcm96", TWO_KEYS, GOOD_FLAGS)
#define UNWRAP_REPLY "{\"data\":{\"plaintext\":\"" DEK64 "\"}}"
#define ERRORS(text) "{\"errors\":[\"" text "\"]}"
#define DENIED_TEXT "1 error occurred:\\n\\t* permission denied\\n\\n"
#define LOGIN_REPLY(text, life)                                                     \
  "{\"data\":null,\"auth\":{\"client_token\":\"" text "\",\"lease_duration\":" life \
  ",\"renewable\":true}}"
#define NOT_BOUND \
  { 400, ERRORS("cipher: message authentication failed") }

static const char *wrap_reply(const char *version, size_t n) {
  static char text[1200];
  uint8_t raw[512];
  char b64[800];
  memset(raw, 9, sizeof raw);
  tde_base64(raw, n, b64);
  snprintf(text, sizeof text, "{\"data\":{\"ciphertext\":\"vault:v%s:%s\",\"key_version\":2}}",
           version, b64);
  return text;
}

static int header_is(int i, const char *line) {
  char whole[300];
  snprintf(whole, sizeof whole, "%s\n", line);
  return strstr(wire.log[i].headers, whole) != NULL;
}

/* ---- ids ---- */

static void key_ids(void) {
  static const char *const good[][3] = {
      {BASE, BASE, ""},
      {KEY, BASE, "2"},
      {BASE "/2147483647", BASE, "2147483647"},
      {"vault:https://vault.example:443/transit/keys/k/1",
       "vault:https://vault.example/transit/keys/k", "1"},
      {"vault:https://vault.example/admin/team-1/transit_2/keys/My.Key-1",
       "vault:https://vault.example/admin/team-1/transit_2/keys/My.Key-1", ""},
      {"vault:https://vault/t/keys/keys", "vault:https://vault/t/keys/keys", ""},
      {"vault:https://vault/t/keys/keys/7", "vault:https://vault/t/keys/keys", "7"},
      {"vault:https://127.0.0.1:8200/t/keys/k", "vault:https://127.0.0.1:8200/t/keys/k", ""},
      {"vault:https://h/a/b/c/d/e/f/g/h/keys/k", "vault:https://h/a/b/c/d/e/f/g/h/keys/k", ""},
  };
  static const char *const bad[] = {"vault:",
                                    "vault:https://",
                                    "vault:https://h",
                                    "vault:https://h/",
                                    "vault:https://h/keys/k",
                                    "vault:https://h//keys/k",
                                    "vault:https://h/transit",
                                    "vault:https://h/transit/keys",
                                    "vault:https://h/transit/keys/",
                                    "vault:https://h/transit/k",
                                    "vault:https://h/transit/keys//1",
                                    BASE "/",
                                    BASE "/0",
                                    BASE "/01",
                                    BASE "/-1",
                                    BASE "/1/2",
                                    BASE "/1a",
                                    BASE "/v1",
                                    BASE "/2147483648",
                                    BASE "/99999999999",
                                    BASE "?a=b",
                                    BASE "#f",
                                    BASE "%2f",
                                    BASE "/..",
                                    BASE "\\x",
                                    BASE "\"",
                                    BASE "'",
                                    "vault:https://h/transit/keys/../k",
                                    "vault:https://h/transit/keys/.k",
                                    "vault:https://h/transit/keys/k.",
                                    "vault:https://h/transit/keys/-k",
                                    "vault:https://h/transit/keys/k-",
                                    "vault:https://h/../keys/k",
                                    "vault:https://h/a/../keys/k",
                                    "vault:https://h/a//b/keys/k",
                                    "vault:https://h/.a/keys/k",
                                    "vault:https://h/a./keys/k",
                                    "vault:https://h/a%20b/keys/k",
                                    "vault:https://h/a@b/keys/k",
                                    "vault:https://h/keys/keys/k",
                                    "vault:https://h/a/keys/b/keys/k",
                                    "vault:https://h/a/b/c/d/e/f/g/h/i/keys/k",
                                    "vault:https://H/transit/keys/k",
                                    "vault:https://u@h/transit/keys/k",
                                    "vault:https://u:p@h/transit/keys/k",
                                    "vault:https://h:0/transit/keys/k",
                                    "vault:https://h:08200/transit/keys/k",
                                    "vault:https://h:65536/transit/keys/k",
                                    "vault:https://h:/transit/keys/k",
                                    "vault:https://h:1x/transit/keys/k",
                                    "vault:https://h:1:2/transit/keys/k",
                                    "vault:https://[::1]:8200/transit/keys/k",
                                    "vault:https://-h/transit/keys/k",
                                    "vault:https://h-/transit/keys/k",
                                    "vault:https://h..x/transit/keys/k",
                                    "vault:https://?/transit/keys/k",
                                    "vault:http://h/transit/keys/k",
                                    "vault:http://127.0.0.1:8200/transit/keys/k",
                                    "vault:h/transit/keys/k",
                                    "vault:https:/h/transit/keys/k",
                                    "vault:HTTPS://h/transit/keys/k",
                                    "vault:transit/keys/k"};
  char base[TDE_KEY_ID_MAX], version[128];
  for (size_t i = 0; i < COUNT(good); i++) {
    CHECK(tde_provider_find(good[i][0], NULL) == &tde_provider_vault);
    CHECK(!tde_provider_azure.matches(good[i][0]) && !tde_provider_local.matches(good[i][0]));
    int taken = tde_provider_vault.parse_id(good[i][0], base, version, NULL) == TDE_OK &&
                strcmp(base, good[i][1]) == 0 && strcmp(version, good[i][2]) == 0;
    if (!taken) printf("refused: %s: %s %s\n", good[i][0], base, version);
    CHECK(taken);
    CHECK(tde_provider_vault.parse_id(good[i][1], base, version, NULL) == TDE_OK &&
          strcmp(base, good[i][1]) == 0);
  }
  for (size_t i = 0; i < COUNT(bad); i++) {
    int refused = tde_provider_vault.parse_id(bad[i], base, version, &last) == TDE_MISCONFIGURED;
    if (!refused) printf("taken: %s\n", bad[i]);
    CHECK(refused && base[0] == 0 && version[0] == 0 &&
          strstr(last.remedy, "vault:https://HOST") != NULL);
  }
}

static void other_ids(void) {
  static const char *const others[] = {
      "https://h/transit/keys/k",  "VAULT:https://h/transit/keys/k", "local:vault", "vault",
      "xvault:https://h/t/keys/k", "hvault:https://h/t/keys/k"};
  char base[TDE_KEY_ID_MAX], version[128], text[TDE_KEY_ID_MAX + 64];
  for (size_t i = 0; i < COUNT(others); i++) {
    CHECK(tde_provider_find(others[i], NULL) != &tde_provider_vault);
  }
  for (size_t n = 100; n < sizeof text; n++) {
    memset(text, 'k', sizeof text);
    memcpy(text, BASE, strlen(BASE));
    text[n] = 0;
    int fits = n - strlen(BASE) + 3 <= 127;
    CHECK((tde_provider_vault.parse_id(text, base, version, NULL) == TDE_OK) == fits);
  }
  CHECK(tde_key_ids_match("vault:https://vault.example:443/t/keys/k",
                          "vault:https://vault.example/t/keys/k/3"));
  CHECK(!tde_key_ids_match("vault:https://vault.example/t/keys/K",
                           "vault:https://vault.example/t/keys/k"));
  CHECK(!tde_key_ids_match("vault:https://vault.example:8200/t/keys/k",
                           "vault:https://vault.example/t/keys/k"));
  CHECK(!tde_key_ids_match("vault:https://h/t/keys/k/1", "vault:https://h/t/keys/k/11"));
}

/* ---- operations ---- */

static void get_key(void) {
  static const step s[] = {{200, KEY_REPLY}};
  tde_op op;
  uint8_t thumb[TDE_THUMB_BYTES];
  script(s, 1);
  REQUIRE(run(TDE_OP_GET, usual(), BASE, &op) == TDE_OK);
  CHECK(wire.n == 1 && strcmp(wire.log[0].method, "GET") == 0);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/transit/keys/tde") == 0 && wire.log[0].body[0] == 0);
  CHECK(header_is(0, "X-Vault-Token: hvs.SECRET-1") && header_is(0, "X-Vault-Request: true"));
  CHECK(strcmp(op.info.base_id, BASE) == 0 && strcmp(op.info.version, "2") == 0 && op.info.enabled);
  CHECK(strcmp(op.info.type, "aes256-gcm96") == 0 &&
        strcmp(op.info.algorithm, "aes256-gcm96") == 0);
  CHECK(op.info.created == 1700000002 && op.info.expires == 0);
  CHECK(tde_opaque_thumbprint("vault", BASE, "2", thumb, NULL) == TDE_OK);
  CHECK(memcmp(thumb, op.info.thumbprint, sizeof thumb) == 0);
  script(s, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE "/1", &op) == TDE_OK && op.info.created == 1700000001);
  script(s, 1);
  CHECK(run(TDE_OP_LATEST, usual(), BASE "/1", &op) == TDE_OK && strcmp(op.info.version, "2") == 0);
  script(s, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE "/3", &op) == TDE_MISSING &&
        strstr(last.message, "no version 3") != NULL);
  script(s, 1);
  CHECK(run(TDE_OP_VERSIONS, usual(), BASE "/9", &op) == TDE_OK && op.nversions == 2);
  CHECK(strcmp(op.versions[0].version, "2") == 0 && op.versions[1].created == 1700000001 &&
        op.versions[0].enabled);
  free(op.versions);
}

/* What is sent, byte for byte, and that what comes back is kept apart from its prefix. */
static void wrap_and_unwrap(void) {
  step s[] = {{200, KEY_REPLY}, {200, wrap_reply("2", 60)}, NOT_BOUND}, u[] = {{200, UNWRAP_REPLY}};
  uint8_t nines[60], text[100];
  tde_op op;
  char want[400];
  memset(nines, 9, sizeof nines);
  script(s, 3);
  REQUIRE(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_OK && wire.n == 3);
  CHECK(op.nwrapped == 60 && memcmp(op.wrapped, nines, 60) == 0 &&
        strcmp(op.info.version, "2") == 0);
  CHECK(strcmp(wire.log[1].url, ADDRESS "/v1/transit/encrypt/tde") == 0 &&
        strcmp(wire.log[1].method, "POST") == 0);
  const char *ad = "c3FsaXRlLXRkZTowMDAxMDIwMy0wNDA1LTA2MDctMDgwOS0wYTBiMGMwZDBlMGY=";
  CHECK(tde_unbase64(ad, strlen(ad), text, sizeof text) == 47 &&
        memcmp(text, "sqlite-tde:" UUID_TEXT, 47) == 0);
  snprintf(want, sizeof want,
           "{\"plaintext\":\"" DEK64 "\",\"key_version\":2,\"associated_data\":\"%s\"}", ad);
  CHECK(strcmp(wire.log[1].body, want) == 0);
  CHECK(strcmp(wire.log[2].url, ADDRESS "/v1/transit/decrypt/tde") == 0);
  CHECK(strncmp(wire.log[2].body, "{\"ciphertext\":\"vault:v2:CQkJ", 28) == 0);
  CHECK(strstr(wire.log[2].body, "associated_data") == NULL);
  script(u, 1);
  REQUIRE(run(TDE_OP_UNWRAP, usual(), KEY, &op) == TDE_OK && wire.n == 1);
  for (int i = 0; i < TDE_KEY_BYTES; i++) CHECK(dek[i] == i);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/transit/decrypt/tde") == 0 &&
        strcmp(op.info.version, "2") == 0);
  char b64[120];
  tde_base64(op.wrapped, 60, b64);
  snprintf(want, sizeof want, "{\"ciphertext\":\"vault:v2:%s\",\"associated_data\":\"%s\"}", b64,
           ad);
  CHECK(strcmp(wire.log[0].body, want) == 0);
  /* A namespace is a part of the path. */
  const tde_instance *inst = instance(WITH(TOKEN_ID("tok")));
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, inst, "vault:" ADDRESS "/admin/ns/t2/keys/K.1/7", &op) == TDE_OK);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/admin/ns/t2/decrypt/K.1") == 0);
  CHECK(strncmp(wire.log[0].body, "{\"ciphertext\":\"vault:v7:", 24) == 0);
  script(u, 1);
  CHECK(run_as(TDE_OP_UNWRAP, usual(), KEY, NULL, "chacha20-poly1305", &op) == TDE_OK);
}

/* A server that passes associated data over wraps without it: the DEK would be bound to nothing, and lost
** when the server is brought up to date. */
static void bound(void) {
  step old[] = {{200, KEY_REPLY}, {200, wrap_reply("2", 60)}, {200, UNWRAP_REPLY}};
  step denied[] = {{200, KEY_REPLY}, {200, wrap_reply("2", 60)}, {403, ERRORS(DENIED_TEXT)}};
  step sealed[] = {{200, KEY_REPLY}, {200, wrap_reply("2", 60)}, {503, ERRORS("Vault is sealed")}};
  step proxy[] = {{200, KEY_REPLY}, {200, wrap_reply("2", 60)}, {400, "<html>PROSE</html>"}};
  tde_op op;
  script(old, 3);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_UNSUPPORTED && op.nwrapped == 0);
  CHECK(strstr(last.message, "associated_data") != NULL && strstr(last.remedy, "1.13") != NULL);
  script(denied, 3);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_DENIED && op.nwrapped == 0);
  CHECK(strstr(last.remedy, "path \"transit/decrypt/tde\" { capabilities = [\"update\"] }") !=
        NULL);
  script(sealed, 3);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_UNREACHABLE);
  script(proxy, 3);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_UNREACHABLE);
}

/* A public key of that size in PEM, its lines joined by \n as JSON has them. */
static const char *public_pem(int bits, uint8_t thumb[TDE_THUMB_BYTES]) {
  static char out[3000];
  EVP_PKEY *key = EVP_RSA_gen((unsigned)bits);
  BIO *bio = BIO_new(BIO_s_mem());
  char *data;
  size_t n = 0;
  tde_key_info info;
  PEM_write_bio_PUBKEY(bio, key);
  long all = BIO_get_mem_data(bio, &data);
  for (long i = 0; i < all; i++) {
    if (data[i] == '\n')
      out[n++] = '\\', out[n++] = 'n';
    else
      out[n++] = data[i];
  }
  out[n] = 0;
  memset(&info, 0, sizeof info);
  if (tde_rsa_info(key, &info, NULL) == TDE_OK)
    memcpy(thumb, info.thumbprint, sizeof info.thumbprint);
  BIO_free(bio);
  EVP_PKEY_free(key);
  return out;
}

static const char *rsa_reply(const char *type, const char *pem, const char *created) {
  static char text[4000];
  snprintf(text, sizeof text,
           "{\"data\":{\"name\":\"tde\",\"type\":\"%s\",\"keys\":{\"2\":{\"name\":\"%s\","
           "\"creation_time\":\"%s\","
           "\"public_key\":\"%s\"}},\"latest_version\":2," GOOD_FLAGS "}}",
           type, type, created, pem);
  return text;
}

static void rsa_key(void) {
  static const struct {
    const char *text;
    int64_t at;
  } dates[] = {{"2023-11-14T22:13:20.123456789Z", 1700000000},
               {"2023-11-14T22:13:20Z", 1700000000},
               {"2023-11-15T00:13:20+02:00", 1700000000},
               {"2023-11-14T17:43:20.5-04:30", 1700000000},
               {"0001-01-01T00:00:00Z", 0},
               {"PROSE", 0},
               {"2023-11-14T22:13:20", 0},
               {"", 0}};
  uint8_t thumb[TDE_THUMB_BYTES];
  const char *pem = public_pem(2048, thumb);
  tde_op op;
  for (size_t i = 0; i < COUNT(dates); i++) {
    step s[] = {{200, rsa_reply("rsa-2048", pem, dates[i].text)}};
    script(s, 1);
    CHECK(run(TDE_OP_GET, usual(), BASE, &op) == TDE_OK && op.info.created == dates[i].at);
  }
  CHECK(strcmp(op.info.type, "RSA-2048") == 0 && strcmp(op.info.algorithm, TDE_RSA_OAEP_256) == 0);
  CHECK(memcmp(op.info.thumbprint, thumb, sizeof thumb) == 0 && op.info.enabled);
  step w[] = {{200, rsa_reply("rsa-2048", pem, "2023-11-14T22:13:20Z")},
              {200, wrap_reply("2", 256)}};
  script(w, 2);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_OK && wire.n == 2 && op.nwrapped == 256);
  CHECK(strcmp(wire.log[1].body, "{\"plaintext\":\"" DEK64 "\",\"key_version\":2}") == 0);
  step u[] = {{200, UNWRAP_REPLY}};
  script(u, 1);
  CHECK(run_as(TDE_OP_UNWRAP, usual(), KEY, NULL, TDE_RSA_OAEP_256, &op) == TDE_OK);
  CHECK(strstr(wire.log[0].body, "associated_data") == NULL && dek[31] == 31);
  /* What is not its own an RSA key answers with 500. */
  step wrong[] = {{500, ERRORS("1 error occurred:\\n\\t* failed to RSA decrypt the ciphertext: "
                               "crypto/rsa: decryption error")}};
  script(wrong, 1);
  CHECK(run_as(TDE_OP_UNWRAP, usual(), KEY, NULL, TDE_RSA_OAEP_256, &op) == TDE_WRONG_KEY &&
        last.http_status == 500);
  /* The public part must be what the type says. */
  step other[] = {{200, rsa_reply("rsa-4096", pem, "2023-11-14T22:13:20Z")}};
  script(other, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE, &op) == TDE_CORRUPT);
  static const char *const broken[] = {
      "", "-----BEGIN PUBLIC KEY-----\\nAAAA\\n-----END PUBLIC KEY-----\\n", "SECRET"};
  for (size_t i = 0; i < COUNT(broken); i++) {
    step s[] = {{200, rsa_reply("rsa-2048", broken[i], "2023-11-14T22:13:20Z")}};
    script(s, 1);
    CHECK(run(TDE_OP_GET, usual(), BASE, &op) == TDE_CORRUPT);
  }
  step lengths[] = {{200, rsa_reply("rsa-2048", pem, "2023-11-14T22:13:20Z")},
                    {200, wrap_reply("2", 384)}};
  script(lengths, 2);
  CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_CORRUPT && op.nwrapped == 0);
}

/* ---- which keys may wrap ---- */

#define FLAGS(deletion, exportable, backup, decryption, encryption)               \
  "\"deletion_allowed\":" deletion ",\"exportable\":" exportable                  \
  ",\"allow_plaintext_backup\":" backup ",\"min_decryption_version\":" decryption \
  ",\"min_encryption_version\":" encryption

static void may_wrap(void) {
  static const struct {
    const char *body, *policy, *id;
    tde_class rc;
    const char *says;
  } all[] = {
      {KEY_REPLY, "", BASE, TDE_OK, ""},
      {KEY_OF("chacha20-poly1305", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_OK, ""},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("true", "false", "false", "1", "0")), "", BASE,
       TDE_MISCONFIGURED, "transit/keys/tde/config deletion_allowed=false"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("true", "false", "false", "1", "0")),
       "\"allow_purgeable_keys\":true", BASE, TDE_OK, ""},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("false", "true", "false", "1", "0")),
       "\"allow_purgeable_keys\":true", BASE, TDE_MISCONFIGURED, "allow_exportable_keys"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("false", "false", "true", "1", "0")),
       "\"allow_purgeable_keys\":true", BASE, TDE_MISCONFIGURED, "allow_exportable_keys"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("false", "true", "true", "1", "0")),
       "\"allow_exportable_keys\":true", BASE, TDE_OK, ""},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("true", "true", "true", "1", "0")),
       "\"allow_exportable_keys\":true", BASE, TDE_MISCONFIGURED, "allow_purgeable_keys"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, "\"exportable\":false,\"allow_plaintext_backup\":false"),
       "", BASE, TDE_MISCONFIGURED, "deletion_allowed"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, "\"deletion_allowed\":false,\"exportable\":false"), "",
       BASE, TDE_MISCONFIGURED, "allow_exportable_keys"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("0", "false", "false", "1", "0")), "", BASE,
       TDE_MISCONFIGURED, ""},
      {KEY_OF("aes256-gcm96", "\"2\":1", FLAGS("false", "false", "false", "2", "0")), "", BASE "/1",
       TDE_DISABLED, "min_decryption_version=1"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("false", "false", "false", "1", "2")), "", BASE "/1",
       TDE_DISABLED, "min_encryption_version=1"},
      {KEY_OF("aes256-gcm96", TWO_KEYS, FLAGS("false", "false", "false", "1", "2")), "", BASE,
       TDE_OK, ""},
      {KEY_OF("aes128-gcm96", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_UNSUPPORTED, "aes256-gcm96"},
      {KEY_OF("xchacha20-poly1305", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_UNSUPPORTED,
       "aes256-gcm96"},
      {KEY_OF("ed25519", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_UNSUPPORTED, "aes256-gcm96"},
      {KEY_OF("hmac", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_UNSUPPORTED, "aes256-gcm96"},
      {KEY_OF("managed_key", TWO_KEYS, GOOD_FLAGS), "", BASE, TDE_UNSUPPORTED, "aes256-gcm96"},
      {"{\"data\":{\"name\":\"tde\",\"type\":\"aes256-gcm96\",\"derived\":true,\"keys\":{\"1\":1},"
       "\"latest_version\":1}}",
       "", BASE, TDE_UNSUPPORTED, "derived=false"},
      {"{\"data\":{\"name\":\"tde\",\"type\":\"aes256-gcm96\",\"convergent_encryption\":true,"
       "\"keys\":{\"1\":1},"
       "\"latest_version\":1}}",
       "", BASE, TDE_UNSUPPORTED, "derived=false"},
  };
  char members[600];
  tde_op op;
  for (size_t i = 0; i < COUNT(all); i++) {
    step s[] = {{200, all[i].body}, {200, wrap_reply("2", 60)}, NOT_BOUND};
    snprintf(members, sizeof members, WITH(TOKEN_ID("tok")) ",\"policy\":{%s}", all[i].policy);
    script(s, 3);
    tde_class rc = run(TDE_OP_WRAP, instance(members), all[i].id, &op);
    if (rc != all[i].rc) printf("%zu: %s %s\n", i, tde_class_name(rc), last.message);
    CHECK(rc == all[i].rc && wire.n == (rc == TDE_OK ? 3 : 1));
    if (rc != TDE_OK && strstr(last.remedy, all[i].says) == NULL)
      printf("%zu: %s\n", i, last.remedy);
    if (rc != TDE_OK) CHECK(strstr(last.remedy, all[i].says) != NULL);
  }
  /* Reading one that may not wrap is no error; and it unwraps. */
  step g[] = {{200, KEY_OF("aes256-gcm96", "\"2\":1", FLAGS("true", "true", "true", "2", "0"))}};
  script(g, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE, &op) == TDE_OK && op.info.enabled);
  script(g, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE "/1", &op) == TDE_OK && !op.info.enabled &&
        op.info.created == 0);
  step trimmed[] = {{200,
                     "{\"data\":{\"name\":\"tde\",\"type\":\"aes256-gcm96\",\"keys\":{\"3\":1,"
                     "\"4\":2},\"latest_version\":4,"
                     "\"min_available_version\":2,\"min_decryption_version\":3}}"}};
  script(trimmed, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE "/1", &op) == TDE_MISSING);
  script(trimmed, 1);
  CHECK(run(TDE_OP_GET, usual(), BASE "/2", &op) == TDE_OK && !op.info.enabled);
  CHECK(strstr(tde_instance_dir(usual()), "i") != NULL);
}

/* ---- replies that are none ---- */

static void bad_key_replies(void) {
  static const char *const corrupt[] = {
      "",
      "{",
      "[]",
      "{}",
      "null",
      "<html>SECRET</html>",
      "{\"data\":null}",
      "{\"data\":[]}",
      "{\"data\":{}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"latest_version\":1}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":[],\"latest_version\":1}}",
      "{\"data\":{\"type\":5,\"keys\":{},\"latest_version\":1}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1}}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"latest_version\":0}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"latest_version\":\"1\"}}",
      "{\"data\":{\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"latest_version\":3000000000}}",
      "{\"data\":{\"name\":\"other\",\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"latest_"
      "version\":1}}",
      "{\"data\":{\"name\":\"TDE\",\"type\":\"aes256-gcm96\",\"keys\":{\"1\":1},\"latest_version\":"
      "1}}",
      KEY_REPLY "x",
      "{\"data\":{\"type\":\"rsa-3072\",\"keys\":{\"1\":1},\"latest_version\":1}}",
      "{\"data\":{\"type\":\"rsa-3072\",\"keys\":{\"1\":{\"public_key\":7}},\"latest_version\":1}}",
  };
  static const char *const lists[] = {KEY_OF("aes256-gcm96", "\"x\":1", GOOD_FLAGS),
                                      KEY_OF("aes256-gcm96", "\"0\":1", GOOD_FLAGS),
                                      KEY_OF("aes256-gcm96", "\"01\":1", GOOD_FLAGS),
                                      KEY_OF("aes256-gcm96", "\"1\":1,\"../x\":1", GOOD_FLAGS)};
  static const tde_op_kind kinds[] = {TDE_OP_GET, TDE_OP_LATEST, TDE_OP_WRAP, TDE_OP_VERSIONS};
  for (size_t k = 0; k < COUNT(kinds); k++) {
    for (size_t i = 0; i < COUNT(corrupt); i++) {
      tde_class rc = with_reply(kinds[k], 200, corrupt[i]);
      if (rc != TDE_CORRUPT) printf("%zu %zu: %s %s\n", k, i, tde_class_name(rc), last.message);
      CHECK(rc == TDE_CORRUPT && wire.n == 1);
    }
  }
  for (size_t i = 0; i < COUNT(lists); i++)
    CHECK(with_reply(TDE_OP_VERSIONS, 200, lists[i]) == TDE_CORRUPT);
  CHECK(with_reply(TDE_OP_VERSIONS, 200, KEY_OF("aes256-gcm96", "", GOOD_FLAGS)) == TDE_MISSING);
  CHECK(with_reply(TDE_OP_GET, 200, KEY_OF("aes256-gcm96", "\"1\":1", GOOD_FLAGS)) == TDE_MISSING);
}

static void bad_results(void) {
  static const char *const wraps[] = {"",
                                      "{}",
                                      "{\"data\":{}}",
                                      "{\"data\":{\"ciphertext\":7}}",
                                      "{\"data\":{\"ciphertext\":\"\"}}",
                                      "{\"ciphertext\":\"vault:v2:AAAA\"}",
                                      "{\"data\":{\"ciphertext\":\"vault:v2:\"}}",
                                      "{\"data\":{\"ciphertext\":\"vault:v2\"}}",
                                      "{\"data\":{\"ciphertext\":\"AAAA\"}}",
                                      "{\"data\":{\"ciphertext\":\"vault:v2:AAAA\"}}",
                                      "{\"data\":{\"ciphertext\":\"vault:v2:!!!!\"}}",
                                      "<html>SECRET</html>"};
  static const char *const unwraps[] = {
      "",
      "{}",
      "{\"data\":{}}",
      "{\"data\":{\"plaintext\":null}}",
      "{\"data\":{\"plaintext\":\"\"}}",
      "{\"plaintext\":\"" DEK64 "\"}",
      "{\"data\":{\"plaintext\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==\"}}",
      "{\"data\":{\"plaintext\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\"}}",
      "{\"data\":{\"plaintext\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8A\"}}",
      "{\"data\":{\"plaintext\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh-=\"}}",
      "{\"data\":{\"plaintext\":\"" DEK64 "\",\"plaintext\":\"" DEK64 "\"}}",
      "{\"data\":{\"plaintext\":\"\\u0041AECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"}}",
      UNWRAP_REPLY "x",
      "<html>SECRET</html>"};
  static const char *const versions[] = {"1", "3", "22", "02", "-2", ""};
  tde_op op;
  for (size_t i = 0; i < COUNT(wraps); i++) {
    step s[] = {{200, KEY_REPLY}, {200, wraps[i]}, NOT_BOUND};
    script(s, 3);
    tde_class rc = run(TDE_OP_WRAP, usual(), BASE, &op);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT && wire.n == 2 && op.nwrapped == 0);
  }
  for (size_t i = 0; i < COUNT(versions); i++) {
    step s[] = {{200, KEY_REPLY}, {200, wrap_reply(versions[i], 60)}, NOT_BOUND};
    script(s, 3);
    CHECK(run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_CORRUPT);
  }
  for (size_t n = 0; n < 100; n++) {
    step s[] = {{200, KEY_REPLY}, {200, wrap_reply("2", n)}, NOT_BOUND};
    script(s, 3);
    CHECK((run(TDE_OP_WRAP, usual(), BASE, &op) == TDE_OK) == (n == 60));
  }
  for (size_t i = 0; i < COUNT(unwraps); i++) {
    tde_class rc = with_reply(TDE_OP_UNWRAP, 200, unwraps[i]);
    if (rc != TDE_CORRUPT) printf("%zu: %s\n", i, tde_class_name(rc));
    CHECK(rc == TDE_CORRUPT);
  }
  /* Nothing is sent of what no key of the kind has made. */
  static const struct {
    const char *algorithm;
    size_t n;
    tde_class rc;
  } odd[] = {{"aes256-gcm96", 59, TDE_CORRUPT},      {"aes256-gcm96", 256, TDE_CORRUPT},
             {"chacha20-poly1305", 61, TDE_CORRUPT}, {TDE_RSA_OAEP_256, 60, TDE_CORRUPT},
             {TDE_RSA_OAEP_256, 255, TDE_CORRUPT},   {"A256KW", 40, TDE_UNSUPPORTED},
             {"aes128-gcm96", 60, TDE_UNSUPPORTED},  {"", 60, TDE_UNSUPPORTED}};
  for (size_t i = 0; i < COUNT(odd); i++) {
    memset(&op, 0, sizeof op);
    op = (tde_op){.kind = TDE_OP_UNWRAP, .instance = usual(), .dek = dek, .nwrapped = odd[i].n};
    snprintf(op.algorithm, sizeof op.algorithm, "%s", odd[i].algorithm);
    script(NULL, 0);
    CHECK(tde_provider_run(&op, KEY, &last) == odd[i].rc && wire.n == 0 && last.remedy[0] != 0);
  }
  CHECK(run(TDE_OP_UNWRAP, usual(), BASE, &op) == TDE_MISUSE && wire.n == 0);
  /* The list of a key with versions of one second stands in the order of the numbers. */
  step many[] = {{200,
                  "{\"data\":{\"name\":\"tde\",\"type\":\"aes256-gcm96\",\"keys\":{\"9\":5,\"10\":"
                  "5,\"8\":5,\"11\":5},"
                  "\"latest_version\":11}}"}};
  script(many, 1);
  REQUIRE(run(TDE_OP_VERSIONS, usual(), BASE, &op) == TDE_OK && op.nversions == 4);
  CHECK(strcmp(op.versions[0].version, "11") == 0 && strcmp(op.versions[1].version, "10") == 0 &&
        strcmp(op.versions[3].version, "8") == 0);
  free(op.versions);
}

/* ---- errors ---- */

static void error_classes(void) {
  static const struct {
    tde_op_kind kind;
    int status;
    const char *body;
    tde_class rc;
    const char *says; /* the message, or the remedy */
  } all[] = {
      {TDE_OP_GET, 403, ERRORS(DENIED_TEXT), TDE_DENIED,
       "path \"transit/keys/tde\" { capabilities = [\"read\"] }"},
      {TDE_OP_UNWRAP, 403, ERRORS(DENIED_TEXT), TDE_DENIED,
       "path \"transit/decrypt/tde\" { capabilities = [\"update\"] }"},
      {TDE_OP_UNWRAP, 403, ERRORS("permission denied"), TDE_DENIED, "or its token has expired"},
      {TDE_OP_UNWRAP, 403,
       ERRORS("2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n"),
       TDE_UNAUTHENTICATED, "put a new token there"},
      {TDE_OP_UNWRAP, 403, ERRORS("bad token"), TDE_UNAUTHENTICATED, "put a new token there"},
      {TDE_OP_UNWRAP, 423, ERRORS("locked PROSE"), TDE_DENIED, "transit/decrypt/tde"},
      {TDE_OP_GET, 404, "{\"errors\":[]}", TDE_MISSING, "no key tde at transit"},
      {TDE_OP_GET, 404,
       ERRORS("no handler for route \\\"transit/keys/tde\\\". route entry not found."), TDE_MISSING,
       "no Transit engine at transit"},
      {TDE_OP_UNWRAP, 404, ERRORS("1 error occurred:\\n\\t* unsupported path\\n\\n"), TDE_MISSING,
       "enable the Transit engine"},
      {TDE_OP_UNWRAP, 400, ERRORS("encryption key not found"), TDE_MISSING, "restore the key"},
      {TDE_OP_UNWRAP, 400, ERRORS("policy not found"), TDE_MISSING, "restore the key"},
      {TDE_OP_UNWRAP, 400, ERRORS("transit key is soft-deleted"), TDE_MISSING, "restore the key"},
      {TDE_OP_UNWRAP, 400,
       ERRORS("ciphertext or signature version is disallowed by policy (too old)"), TDE_DISABLED,
       "vault write transit/keys/tde/config min_decryption_version=2"},
      {TDE_OP_UNWRAP, 400, ERRORS("invalid ciphertext: version is too new"), TDE_MISSING,
       "no version 2"},
      {TDE_OP_UNWRAP, 400, ERRORS("cipher: message authentication failed"), TDE_WRONG_KEY,
       "does not unwrap"},
      {TDE_OP_UNWRAP, 400, ERRORS("invalid ciphertext: unable to decrypt"), TDE_WRONG_KEY,
       "does not unwrap"},
      {TDE_OP_UNWRAP, 400, ERRORS("PROSE that nobody knows"), TDE_WRONG_KEY, "does not unwrap"},
      {TDE_OP_GET, 400, ERRORS("PROSE"), TDE_UNSUPPORTED, "does not take the request keys"},
      {TDE_OP_GET, 405, ERRORS("1 error occurred:\\n\\t* unsupported operation\\n\\n"),
       TDE_UNSUPPORTED, "no Transit engine"},
      {TDE_OP_GET, 413, ERRORS("PROSE"), TDE_UNSUPPORTED, ""},
      {TDE_OP_GET, 503, ERRORS("Vault is sealed"), TDE_UNREACHABLE, "is sealed"},
      {TDE_OP_UNWRAP, 503, ERRORS("Vault is sealed"), TDE_UNREACHABLE, "unseal"},
      {TDE_OP_UNWRAP, 503, "", TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 500, ERRORS("internal error"), TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_GET, 500, ERRORS("failed to RSA decrypt the ciphertext"), TDE_UNREACHABLE,
       "cannot serve"},
      {TDE_OP_UNWRAP, 501, ERRORS("not initialized"), TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 502, "<html>PROSE</html>", TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 504, "", TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 408, "", TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 412, ERRORS("required index state not present"), TDE_UNREACHABLE,
       "cannot serve"},
      {TDE_OP_UNWRAP, 472, ERRORS("PROSE"), TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 473, ERRORS("PROSE"), TDE_UNREACHABLE, "cannot serve"},
      {TDE_OP_UNWRAP, 307, "", TDE_UNREACHABLE, "a standby node"},
      {TDE_OP_UNWRAP, 302, "<html>PROSE</html>", TDE_UNREACHABLE, "not followed"},
      {TDE_OP_UNWRAP, 429, ERRORS("request path \\\"transit\\\": rate limit quota exceeded"),
       TDE_THROTTLED, "busy"},
      {TDE_OP_UNWRAP, 204, "", TDE_CORRUPT, "status 204"},
      {TDE_OP_UNWRAP, 201, "{}", TDE_CORRUPT, "status 201"},
  };
  for (size_t i = 0; i < COUNT(all); i++) {
    tde_class rc = with_reply(all[i].kind, all[i].status, all[i].body);
    int says = strstr(last.message, all[i].says) != NULL ||
               strstr(last.remedy, all[i].says) != NULL;
    if (rc != all[i].rc || !says)
      printf("%zu: %s: %s; %s\n", i, tde_class_name(rc), last.message, last.remedy);
    CHECK(rc == all[i].rc && says && last.http_status == all[i].status && wire.n == 1);
    CHECK(strcmp(last.key_id, all[i].kind == TDE_OP_UNWRAP ? KEY : BASE) == 0);
  }
}

/* Of an encryption, and of none. */
static void more_errors(void) {
  static const struct {
    int status;
    const char *body;
    tde_class rc;
    const char *says;
  } wraps[] = {
      {403, ERRORS(DENIED_TEXT), TDE_DENIED,
       "path \"transit/encrypt/tde\" { capabilities = [\"update\"] }"},
      {400, ERRORS("encryption key not found"), TDE_MISSING, "restore the key"},
      {400,
       ERRORS("requested version for encryption is less than the minimum encryption key version"),
       TDE_DISABLED, "min_encryption_version=2"},
      {400, ERRORS("requested version for encryption is higher than the latest key version"),
       TDE_MISSING, "no version 2"},
      {400, ERRORS("PROSE"), TDE_UNSUPPORTED, "does not take the request encrypt"},
      {503, ERRORS("Vault is sealed"), TDE_UNREACHABLE, "is sealed"},
  };
  tde_op op;
  for (size_t i = 0; i < COUNT(wraps); i++) {
    step s[] = {{200, KEY_REPLY}, {wraps[i].status, wraps[i].body}};
    script(s, 2);
    tde_class rc = run(TDE_OP_WRAP, usual(), BASE, &op);
    int says = strstr(last.message, wraps[i].says) != NULL ||
               strstr(last.remedy, wraps[i].says) != NULL;
    if (rc != wraps[i].rc || !says)
      printf("%zu: %s: %s; %s\n", i, tde_class_name(rc), last.message, last.remedy);
    CHECK(rc == wraps[i].rc && says && op.nwrapped == 0);
  }
  script(NULL, 0);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY, &op) == TDE_UNREACHABLE);
  /* A line that would be cut is told in general terms. */
  char id[400], name[128];
  memset(name, 'n', sizeof name);
  name[127] = 0;
  snprintf(id, sizeof id, "vault:" ADDRESS "/transit/keys/%s/2", name);
  step denied[] = {{403, ERRORS(DENIED_TEXT)}};
  script(denied, 1);
  CHECK(run(TDE_OP_UNWRAP, usual(), id, &op) == TDE_DENIED);
  CHECK(strstr(last.remedy, "path \"PATH/decrypt/NAME\" { capabilities = [\"update\"] }") != NULL);
}

/* Somebody on the way refuses: that is no word of Vault's. */
static void strangers(void) {
  static const int statuses[] = {400, 401, 403, 404, 405, 407, 410, 413, 423, 451, 499};
  static const char *const bodies[] = {
      "",   "<html>PROSE</html>", "{\"error\":\"PROSE\"}", "{\"errors\":\"PROSE\"}",
      "[]", "{\"errors\":{}}"};
  for (size_t i = 0; i < COUNT(statuses); i++) {
    for (size_t k = 0; k < COUNT(bodies); k++) {
      CHECK(with_reply(TDE_OP_UNWRAP, statuses[i], bodies[k]) == TDE_UNREACHABLE && wire.n == 1);
      CHECK(strstr(last.message, "is not Vault") != NULL && strstr(last.message, ADDRESS) != NULL);
      CHECK(with_reply(TDE_OP_GET, statuses[i], bodies[k]) == TDE_UNREACHABLE);
    }
  }
}

/* ---- who asks, and where ---- */

static void addresses(void) {
  static const char *const elsewhere[] = {
      "vault:https://evil.example:8200/transit/keys/tde/2",
      "vault:https://vault.example/transit/keys/tde/2",
      "vault:https://vault.example:8201/transit/keys/tde/2",
      "vault:https://vault.example.evil:8200/transit/keys/tde/2",
      "vault:https://xvault.example:8200/transit/keys/tde/2"};
  step u[] = {{200, UNWRAP_REPLY}};
  tde_op op;
  for (size_t i = 0; i < COUNT(elsewhere); i++) {
    script(u, 1);
    CHECK(run(TDE_OP_UNWRAP, usual(), elsewhere[i], &op) == TDE_MISCONFIGURED && wire.n == 0);
    CHECK(strstr(last.message, "nothing was sent") != NULL &&
          strstr(last.remedy, "vault_approle") != NULL);
    CHECK(run_as(TDE_OP_UNWRAP, usual(), elsewhere[i], "tok", "aes256-gcm96", &op) ==
              TDE_MISCONFIGURED &&
          wire.n == 0);
    CHECK(strstr(last.message, "tok") != NULL && strstr(last.message, "nothing was sent") != NULL);
  }
  const tde_instance *same = instance(
      WITH("\"v\":{\"kind\":\"vault_token\",\"address\":\"https://vault.example:443/\","
           "\"token_env\":\"T_TOKEN\"}"));
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, same, "vault:https://vault.example/transit/keys/tde/2", &op) == TDE_OK);
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, same, "vault:https://vault.example:443/transit/keys/tde/2", &op) ==
        TDE_OK);
  CHECK(strncmp(wire.log[0].url, "https://vault.example/v1/", 25) == 0);
}

/* Azure's and Vault's in one instance: each key is asked for by one that can. */
static void mixed(void) {
  const tde_instance *both = instance(WITH(AZURE_ID("default") "," TOKEN_ID("tok")));
  const tde_instance *two = instance(WITH(AZURE_ID("a") "," TOKEN_ID("v1") "," TOKEN_ID("v2")));
  const tde_instance *chosen = instance(
      WITH(AZURE_ID("a") "," TOKEN_ID("default") "," APPROLE_ID("v2")));
  const char *azure = "https://v.vault.azure.net/keys/k/1";
  step u[] = {{200, UNWRAP_REPLY}};
  tde_op op;
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, both, KEY, &op) == TDE_OK &&
        header_is(0, "X-Vault-Token: hvs.SECRET-1"));
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, two, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
  CHECK(strstr(last.remedy, "name one default") != NULL);
  CHECK(run_as(TDE_OP_UNWRAP, two, KEY, "v2", "aes256-gcm96", &op) == TDE_OK);
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, chosen, KEY, &op) == TDE_OK && wire.n == 1);
  CHECK(run_as(TDE_OP_UNWRAP, both, KEY, "default", "aes256-gcm96", &op) == TDE_MISCONFIGURED);
  CHECK(strstr(last.message, "managed_identity") != NULL &&
        strstr(last.remedy, "tde_set_identity(NULL)") != NULL);
  CHECK(run_as(TDE_OP_UNWRAP, both, KEY, "nobody", "aes256-gcm96", &op) == TDE_MISCONFIGURED);
  CHECK(strcmp(tde_instance_asker(both, BASE), "tok") == 0 &&
        strcmp(tde_instance_asker(both, azure), "default") == 0);
  CHECK(tde_instance_asker(two, BASE) == NULL && strcmp(tde_instance_asker(two, azure), "a") == 0);
  CHECK(tde_instance_asker(both, "vault:https://other/transit/keys/k") == NULL);
  /* A Vault identity is not tried on Azure, nor named where one of Azure's is alone. */
  step challenge[] = {{200, "{}"}};
  script(challenge, 1);
  memset(&op, 0, sizeof op);
  op = (tde_op){
      .kind = TDE_OP_UNWRAP, .instance = usual(), .dek = dek, .nwrapped = 256, .identity = "tok"};
  tde_token_drop_cache();
  CHECK(tde_cloud_asker(tde_instance_cloud(usual()), "tok", &tde_provider_azure, azure) == NULL);
  CHECK(tde_cloud_asker(tde_instance_cloud(usual()), NULL, &tde_provider_azure, azure) == NULL);
  op.federated_client_id = "fid";
  CHECK(tde_provider_run(&op, KEY, &last) == TDE_MISCONFIGURED && wire.n == 0);
  CHECK(strstr(last.message, "federated") != NULL);
  /* Who asks for the default protector is not taken away, named or not. */
  CHECK(tde_instance_set_identity(tde_instance_dir(both), "tok", NULL, &last) == TDE_MISUSE);
  CHECK(strstr(last.message, "tok") != NULL);
  CHECK(tde_instance_set_identity(tde_instance_dir(both), "default", NULL, &last) == TDE_OK);
}

/* ---- logins ---- */

#define ROLE_LOGIN "{\"role_id\":\"role-1\",\"secret_id\":\"SECRET-id\"}"

static void approle(void) {
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
  step s[] = {{200, LOGIN_REPLY("hvs.SECRET-2", "3600")}, {200, UNWRAP_REPLY}};
  step warm[] = {{200, UNWRAP_REPLY}};
  tde_op op;
  tde_token_drop_cache();
  script(s, 2);
  REQUIRE(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 2);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/auth/approle/login") == 0 &&
        strcmp(wire.log[0].method, "POST") == 0);
  CHECK(strcmp(wire.log[0].body, ROLE_LOGIN) == 0 &&
        strstr(wire.log[0].headers, "X-Vault-Token") == NULL);
  CHECK(header_is(0, "X-Vault-Request: true") && header_is(1, "X-Vault-Token: hvs.SECRET-2"));
  script(warm, 1);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 1);
  /* Each instance, and each address, has tokens of its own. */
  const tde_instance *other = instance(WITH(APPROLE_ID("app")));
  script(s, 2);
  CHECK(run(TDE_OP_UNWRAP, other, KEY, &op) == TDE_OK && wire.n == 2);
  char members[1024], path[400];
  snprintf(path, sizeof path, "%s/secret-id", root_dir);
  write_file(path, "SECRET-file\n", 0600);
  snprintf(members, sizeof members,
           WITH("\"app\":{\"kind\":\"vault_approle\",\"address\":\"" ADDRESS
                "\",\"namespace\":\"admin/team\",\"mount\":\"my/roles\","
                "\"role_id\":\"role-1\",\"secret_file\":\"%s\"}"),
           path);
  inst = instance(members);
  script(s, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/admin/team/auth/my/roles/login") == 0);
  CHECK(strcmp(wire.log[0].body, "{\"role_id\":\"role-1\",\"secret_id\":\"SECRET-file\"}") == 0);
  tde_token_drop_cache();
  static const char *const none[] = {"SECRET\"id", "SECRET\\id", "SECRET id", "SECRET\nid", "\n"};
  for (size_t i = 0; i < COUNT(none); i++) {
    write_file(path, none[i], 0600);
    script(s, 2);
    CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
  }
  write_file(path, "SECRET-file\n", 0640);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
  unlink(path);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
}

static void jwt(void) {
  char members[1024], path[400];
  step s[] = {{200, LOGIN_REPLY("hvs.SECRET-2", "3600")}, {200, UNWRAP_REPLY}};
  tde_op op;
  snprintf(path, sizeof path, "%s/jwt", root_dir);
  write_file(path, "eySECRET.a.b", 0644);
  snprintf(members, sizeof members,
           WITH("\"k8s\":{\"kind\":\"vault_jwt\",\"address\":\"" ADDRESS
                "\",\"role\":\"app\",\"token_file\":\"%s\"}"),
           path);
  const tde_instance *inst = instance(members);
  tde_token_drop_cache();
  script(s, 2);
  REQUIRE(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 2);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/auth/kubernetes/login") == 0);
  CHECK(strcmp(wire.log[0].body, "{\"role\":\"app\",\"jwt\":\"eySECRET.a.b\"}") == 0);
  tde_token_drop_cache();
  chmod(path, 0666);
  script(s, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
  unlink(path);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_MISCONFIGURED && wire.n == 0);
  CHECK(strstr(last.remedy, "token_file") != NULL && strstr(last.remedy, "AZURE") == NULL);
}

static void static_token(void) {
  char members[1024], path[400];
  step u[] = {{200, UNWRAP_REPLY}};
  step other[] = {{403, ERRORS(DENIED_TEXT)}, {200, UNWRAP_REPLY}};
  tde_op op;
  snprintf(path, sizeof path, "%s/token", root_dir);
  write_file(path, "hvs.SECRET-a\n", 0600);
  snprintf(
      members, sizeof members,
      WITH("\"t\":{\"kind\":\"vault_token\",\"address\":\"" ADDRESS "\",\"token_file\":\"%s\"}"),
      path);
  const tde_instance *inst = instance(members);
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK &&
        header_is(0, "X-Vault-Token: hvs.SECRET-a"));
  write_file(path, "hvs.SECRET-b", 0600);
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK &&
        header_is(0, "X-Vault-Token: hvs.SECRET-b"));
  /* The same one is not tried again. */
  script(other, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_DENIED && wire.n == 1);
  unsetenv("T_TOKEN");
  script(u, 1);
  CHECK(run(TDE_OP_UNWRAP, usual(), KEY, &op) == TDE_MISCONFIGURED && wire.n == 0 &&
        strstr(last.message, "T_TOKEN") != NULL);
  setenv("T_TOKEN", "hvs.SECRET-1", 1);
}

/* What replaces the token's file while the first one is being refused. */
static char swap_path[400];
static tde_class swap_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                           tde_status *st) {
  if (wire.n == 0) write_file(swap_path, "hvs.SECRET-new", 0600);
  return wire_send(op, req, reply, st);
}

static void replaced_token(void) {
  char members[1024];
  step s[] = {{403, ERRORS(DENIED_TEXT)}, {200, UNWRAP_REPLY}};
  tde_op op;
  snprintf(swap_path, sizeof swap_path, "%s/swap", root_dir);
  write_file(swap_path, "hvs.SECRET-old", 0600);
  snprintf(
      members, sizeof members,
      WITH("\"t\":{\"kind\":\"vault_token\",\"address\":\"" ADDRESS "\",\"token_file\":\"%s\"}"),
      swap_path);
  const tde_instance *inst = instance(members);
  tde_http_sender = swap_send;
  script(s, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 2);
  CHECK(header_is(0, "X-Vault-Token: hvs.SECRET-old") &&
        header_is(1, "X-Vault-Token: hvs.SECRET-new"));
  tde_http_sender = wire_send;
}

/* One that logs in does so anew when its token is refused: once. */
static void refused_token(void) {
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
#define INVALID \
  {403, ERRORS("2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n")}
  step once[] = {{200, LOGIN_REPLY("hvs.SECRET-2", "3600")},
                 INVALID,
                 {200, LOGIN_REPLY("hvs.SECRET-3", "3600")},
                 {200, UNWRAP_REPLY}};
  step twice[] = {INVALID,
                  {200, LOGIN_REPLY("hvs.SECRET-4", "3600")},
                  INVALID,
                  {200, LOGIN_REPLY("hvs.SECRET-5", "3600")},
                  {200, UNWRAP_REPLY}};
  step denied[] = {
      {200, LOGIN_REPLY("hvs.SECRET-6", "3600")}, {403, ERRORS(DENIED_TEXT)}, {200, UNWRAP_REPLY}};
  step anew[] = {
      {403, ERRORS(DENIED_TEXT)}, {200, LOGIN_REPLY("hvs.SECRET-7", "3600")}, {200, UNWRAP_REPLY}};
  tde_op op;
  tde_token_drop_cache();
  script(once, 4);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 4 &&
        header_is(3, "X-Vault-Token: hvs.SECRET-3"));
  script(twice, 5);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_UNAUTHENTICATED && wire.n == 3 &&
        last.http_status == 403);
  /* A fresh one has what rights there are. */
  tde_token_drop_cache();
  script(denied, 3);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_DENIED && wire.n == 2);
  CHECK(strstr(last.remedy, "has expired") == NULL);
  struct timespec t = {TDE_VAULT_FRESH, 200000000};
  nanosleep(&t, NULL);
  script(anew, 3);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 3 &&
        header_is(2, "X-Vault-Token: hvs.SECRET-7"));
}

static void login_replies(void) {
  static const struct {
    int status;
    const char *body;
    tde_class rc;
    const char *says;
  } all[] = {
      {400, ERRORS("invalid role or secret ID"), TDE_UNAUTHENTICATED, "auth/approle"},
      {403, ERRORS("permission denied"), TDE_UNAUTHENTICATED,
       "does not let the identity app log in"},
      {404, ERRORS("no handler for route"), TDE_UNAUTHENTICATED, "log in (404)"},
      {500, ERRORS("PROSE"), TDE_UNREACHABLE, ""},
      {503, ERRORS("Vault is sealed"), TDE_UNREACHABLE, "is sealed"},
      {412, ERRORS("PROSE"), TDE_UNREACHABLE, ""},
      {429, ERRORS("PROSE"), TDE_THROTTLED, ""},
      {307, "", TDE_UNREACHABLE, "standby"},
      {403, "<html>PROSE</html>", TDE_UNREACHABLE, "is not Vault"},
      {400, "", TDE_UNREACHABLE, "is not Vault"},
      {204, "", TDE_CORRUPT, ""},
      {200, "", TDE_CORRUPT, ""},
      {200, "{}", TDE_CORRUPT, ""},
      {200, "{\"auth\":null}", TDE_CORRUPT, "client_token"},
      {200, "{\"auth\":{\"client_token\":\"\",\"lease_duration\":5,\"mfa_requirement\":{}}}",
       TDE_CORRUPT, "second factor"},
      {200, "{\"auth\":{\"client_token\":5,\"lease_duration\":5}}", TDE_CORRUPT, ""},
      {200, "{\"auth\":{\"client_token\":\"hvs.SECRET\"}}", TDE_CORRUPT, "how long"},
      {200, LOGIN_REPLY("hvs.SECRET", "-1"), TDE_CORRUPT, "how long"},
      {200, LOGIN_REPLY("hvs.SECRET", "true"), TDE_CORRUPT, "how long"},
      {200, LOGIN_REPLY("hvs. SECRET", "5"), TDE_CORRUPT, ""},
      {200, LOGIN_REPLY("hvs.\\u0041SECRET", "5"), TDE_CORRUPT, ""},
      {200, "{\"client_token\":\"hvs.SECRET\",\"lease_duration\":5}", TDE_CORRUPT, ""},
  };
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
  tde_op op;
  for (size_t i = 0; i < COUNT(all); i++) {
    step s[] = {{all[i].status, all[i].body}, {200, UNWRAP_REPLY}};
    tde_token_drop_cache();
    script(s, 2);
    tde_class rc = run(TDE_OP_UNWRAP, inst, KEY, &op);
    int says = strstr(last.message, all[i].says) != NULL ||
               strstr(last.remedy, all[i].says) != NULL;
    if (rc != all[i].rc || !says)
      printf("%zu: %s: %s; %s\n", i, tde_class_name(rc), last.message, last.remedy);
    CHECK(rc == all[i].rc && says && wire.n == 1 && last.http_status == all[i].status);
  }
  step forever[] = {{200, LOGIN_REPLY("hvs.SECRET-2", "0")}, {200, UNWRAP_REPLY}};
  tde_token_drop_cache();
  script(forever, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK);
  script(forever + 1, 1);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 1);
  tde_token_drop_cache();
  script(NULL, 0);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_UNREACHABLE && wire.n == 1);
}

static void half_life(void) {
  struct timespec t = {2, 200000000};
  nanosleep(&t, NULL);
}

static void renewal(void) {
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
  step first[] = {{200, LOGIN_REPLY("hvs.SECRET-1st", "4")}, {200, UNWRAP_REPLY}};
  step renewed[] = {
      {200, LOGIN_REPLY("hvs.SECRET-1st", "3600")}, {200, UNWRAP_REPLY}, {200, UNWRAP_REPLY}};
  step at_end[] = {{200, LOGIN_REPLY("hvs.SECRET-1st", "5")},
                   {200, LOGIN_REPLY("hvs.SECRET-2nd", "3600")},
                   {200, UNWRAP_REPLY}};
  step refused[] = {{400, ERRORS("lease is not renewable")},
                    {200, LOGIN_REPLY("hvs.SECRET-2nd", "3600")},
                    {200, UNWRAP_REPLY}};
  step outage[] = {{503, ERRORS("Vault is sealed")}, {200, UNWRAP_REPLY}};
  step late[] = {{400, ERRORS("lease is not renewable")}, {503, ""}, {200, UNWRAP_REPLY}};
  step ended[] = {{403, ERRORS("permission denied")},
                  {400, ERRORS("invalid role or secret ID")},
                  {200, UNWRAP_REPLY}};
  tde_op op;
  const struct {
    step *s;
    int n;
    tde_class rc;
    const char *token;
  } all[] = {{renewed, 2, TDE_OK, "X-Vault-Token: hvs.SECRET-1st"},
             {at_end, 3, TDE_OK, "X-Vault-Token: hvs.SECRET-2nd"},
             {refused, 3, TDE_OK, "X-Vault-Token: hvs.SECRET-2nd"},
             {outage, 2, TDE_OK, "X-Vault-Token: hvs.SECRET-1st"},
             {late, 3, TDE_OK, "X-Vault-Token: hvs.SECRET-1st"},
             {ended, 2, TDE_UNAUTHENTICATED, NULL}};
  for (size_t i = 0; i < COUNT(all); i++) {
    tde_token_drop_cache();
    script(first, 2);
    CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 2);
    half_life();
    script(all[i].s, 3);
    tde_class rc = run(TDE_OP_UNWRAP, inst, KEY, &op);
    if (rc != all[i].rc) printf("%zu: %s %s\n", i, tde_class_name(rc), last.message);
    CHECK(rc == all[i].rc && wire.n == all[i].n);
    CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/auth/token/renew-self") == 0 &&
          strcmp(wire.log[0].body, "{}") == 0);
    CHECK(header_is(0, "X-Vault-Token: hvs.SECRET-1st") &&
          wire.log[0].max_ms == TDE_TOKEN_HURRY_MS);
    if (all[i].token != NULL) CHECK(header_is(all[i].n - 1, all[i].token));
    /* What came of it is kept. */
    if (all[i].token == NULL || all[i].s == outage || all[i].s == late) continue;
    script(&first[1], 1);
    CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 1 && header_is(0, all[i].token));
  }
  /* No answer to the renewal: what is still good serves; when it has ended, there is none. */
  tde_token_drop_cache();
  script(first, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK);
  half_life();
  step silent[] = {{0, ""}, {200, UNWRAP_REPLY}};
  script(silent, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_OK && wire.n == 2);
  half_life();
  script(silent, 2);
  CHECK(run(TDE_OP_UNWRAP, inst, KEY, &op) == TDE_UNREACHABLE && wire.n == 1);
  CHECK(strcmp(wire.log[0].url, ADDRESS "/v1/auth/approle/login") == 0);
}

/* Many threads, all cold: one login. */
static tde_class slow_send(const tde_op *op, const tde_request *req, tde_reply *reply,
                           tde_status *st) {
  static const step login = {200, LOGIN_REPLY("hvs.SECRET-2", "3600")},
                    unwrapped = {200, UNWRAP_REPLY};
  int is_login = strstr(req->url, "/login") != NULL;
  const step *s = is_login ? &login : &unwrapped;
  struct timespec t = {0, 100000000};
  (void)op, (void)st;
  pthread_mutex_lock(&wire.mutex);
  wire.logins += is_login;
  wire.tokens += strstr(req->url, "/decrypt/") != NULL;
  pthread_mutex_unlock(&wire.mutex);
  nanosleep(&t, NULL);
  *reply = (tde_reply){.status = s->status, .body = s->body, .nbody = strlen(s->body)};
  return TDE_OK;
}

static void *opener(void *arg) {
  tde_op *op = calloc(1, sizeof *op);
  uint8_t *own = tde_secret_alloc(TDE_KEY_BYTES);
  if (CHECK(op != NULL && own != NULL)) {
    *op = (tde_op){.kind = TDE_OP_UNWRAP, .instance = arg, .dek = own, .nwrapped = 60};
    snprintf(op->algorithm, sizeof op->algorithm, "aes256-gcm96");
    CHECK(tde_provider_run(op, KEY, NULL) == TDE_OK && own[31] == 31);
  }
  tde_secret_free(own);
  free(op);
  return NULL;
}

static void one_login(void) {
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
  pthread_t t[12];
  tde_token_drop_cache();
  wire.logins = wire.tokens = 0;
  tde_http_sender = slow_send;
  for (size_t i = 0; i < COUNT(t); i++)
    CHECK(pthread_create(&t[i], NULL, opener, (void *)(uintptr_t)inst) == 0);
  for (size_t i = 0; i < COUNT(t); i++) pthread_join(t[i], NULL);
  CHECK(wire.logins == 1 && wire.tokens == (int)COUNT(t));
  tde_http_sender = wire_send;
}

/* Of everything that was sent and of the tests' own texts: the search above does find a secret. */
static void search_finds(void) {
  const tde_instance *inst = instance(WITH(APPROLE_ID("app")));
  step s[] = {{200, LOGIN_REPLY("hvs.SECRET-2", "3600")},
              {200, KEY_REPLY},
              {200, wrap_reply("2", 60)},
              NOT_BOUND};
  tde_op op;
  tde_token_drop_cache();
  script(s, 4);
  CHECK(run(TDE_OP_WRAP, inst, BASE, &op) == TDE_OK);
  CHECK(strstr(wire.log[0].body, "SECRET") != NULL &&
        strstr(wire.log[1].headers, "SECRET") != NULL);
  CHECK(strstr(wire.log[2].body, DEK64) != NULL);
}

/* ---- configuration ---- */

static void configuration(void) {
#define V(rest) ",\"identities\":{\"v\":{\"kind\":" rest "}}"
#define AT "\"address\":\"" ADDRESS "\""
  static const char *const good[] = {
      V("\"vault_token\"," AT ",\"token_env\":\"VAULT_TOKEN\""),
      V("\"vault_token\"," AT ",\"token_file\":\"/run/token\""),
      V("\"vault_token\",\"address\":\"https://v\",\"token_env\":\"T\""),
      V("\"vault_approle\"," AT
        ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"namespace\":\"a/b\",\"mount\":\"m/n\""),
      V("\"vault_jwt\"," AT ",\"role\":\"r\",\"token_file\":\"/t\",\"mount\":\"jwt\""),
      ",\"policy\":{\"allow_exportable_keys\":true}",
  };
  static const struct {
    const char *members, *says;
  } bad[] = {
      {V("\"vault_token\",\"token_env\":\"T\""), "identities.v.address"},
      {V("\"vault_token\"," AT), "identities.v.token_file"},
      {V("\"vault_token\"," AT ",\"token_env\":\"T\",\"token_file\":\"/t\""),
       "identities.v.token_file"},
      {V("\"vault_token\"," AT ",\"token_file\":\"t\""), "identities.v.token_file"},
      {V("\"vault_token\"," AT ",\"token\":\"hvs.SECRET\""), "identities.v.token"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_id\":\"SECRET\""),
       "identities.v.secret_id"},
      {V("\"vault_token\",\"address\":\"http://vault:8200\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":\"https://Vault\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":\"https://v/ui\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":\"https://u@v\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":\"https://v:0\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":\"https://v:x\",\"token_env\":\"T\""),
       "identities.v.address"},
      {V("\"vault_token\",\"address\":5,\"token_env\":\"T\""), "identities.v.address"},
      {V("\"vault_approle\"," AT ",\"secret_file\":\"/s\""), "identities.v.role_id"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"a b\",\"secret_file\":\"/s\""),
       "identities.v.role_id"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"a\\\"b\",\"secret_file\":\"/s\""),
       "identities.v.role_id"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\""), "identities.v.secret_file"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"secret_env\":\"S\""),
       "identities.v.secret_file"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"mount\":\"../sys\""),
       "identities.v.mount"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"mount\":\"a/\""),
       "identities.v.mount"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"namespace\":\"/a\""),
       "identities.v.namespace"},
      {V("\"vault_approle\"," AT ",\"role_id\":\"r\",\"secret_file\":\"/s\",\"namespace\":\"a?b\""),
       "identities.v.namespace"},
      {V("\"vault_jwt\"," AT ",\"token_file\":\"/t\""), "identities.v.role"},
      {V("\"vault_jwt\"," AT ",\"role\":\"r\""), "identities.v.token_file"},
      {V("\"vault\"," AT), "identities.v.kind"},
      {",\"policy\":{\"allow_exportable_keys\":1}", "policy.allow_exportable_keys"},
  };
  const tde_instance *inst;
  for (size_t i = 0; i < COUNT(good); i++) {
    tde_class rc = open_instance(good[i], &inst, &last);
    if (rc != TDE_OK) printf("%zu: %s\n", i, last.message);
    CHECK(rc == TDE_OK && tde_json_count(tde_instance_unknown(inst)) == 0);
  }
  for (size_t i = 0; i < COUNT(bad); i++) {
    tde_class rc = open_instance(bad[i].members, &inst, &last);
    char quoted[80];
    snprintf(quoted, sizeof quoted, "\"%s\"", bad[i].says);
    if (rc != TDE_MISCONFIGURED || strstr(last.message, quoted) == NULL)
      printf("%zu: %s\n", i, last.message);
    CHECK(rc == TDE_MISCONFIGURED && strstr(last.message, quoted) != NULL &&
          strstr(last.message, "SECRET") == NULL);
  }
  /* What is shown has all but secrets. */
  inst = instance(good[3]);
  tde_json *shown = tde_instance_describe(inst);
  const tde_json *v = tde_json_get(tde_json_get(shown, "identities"), "v");
  CHECK(tde_same_text(tde_json_get_text(v, "address"), ADDRESS) &&
        tde_same_text(tde_json_get_text(v, "mount"), "m/n") &&
        tde_same_text(tde_json_get_text(v, "role_id"), "r") &&
        tde_same_text(tde_json_get_text(v, "namespace"), "a/b"));
  CHECK(tde_json_is_bool(tde_json_get(tde_json_get(shown, "policy"), "allow_exportable_keys")));
  tde_json_free(shown);
  CHECK(tde_instance_set_identity(tde_instance_dir(inst), "w",
                                  "{\"kind\":\"vault_token\"," AT ",\"token_env\":\"T\"}",
                                  &last) == TDE_OK);
  CHECK(tde_instance_set_identity(tde_instance_dir(inst), "x",
                                  "{\"kind\":\"vault_token\"," AT ",\"token\":\"hvs.SECRET\"}",
                                  &last) != TDE_OK);
  CHECK(strstr(last.message, "stands in the file itself") != NULL &&
        strstr(last.message, "SECRET") == NULL);
}

static void json_members(void) {
  static const char text[] =
      "{\"a\":{\"b\":\"x\",\"n\":5,\"o\":{\"b\":\"deep\"}},\"b\":\"outer\",\"t\":\"text\"}";
  tde_json_span s;
  size_t n = sizeof text - 1;
  CHECK(tde_json_find_in(text, n, "text", "a", "b", &s, NULL) == TDE_OK && s.n == 1 &&
        *s.at == 'x' && s.is_text);
  CHECK(tde_json_find_in(text, n, "text", "a", "n", &s, NULL) == TDE_OK && s.n == 1 && !s.is_text);
  CHECK(tde_json_find_in(text, n, "text", "a", "o", &s, NULL) == TDE_MISSING && s.at == NULL);
  CHECK(tde_json_find_in(text, n, "text", "a", "t", &s, NULL) == TDE_MISSING);
  CHECK(tde_json_find_in(text, n, "text", "t", "b", &s, NULL) == TDE_MISSING);
  CHECK(tde_json_find_in(text, n, "text", "z", "b", &s, NULL) == TDE_MISSING);
  CHECK(tde_json_find_in(text, n - 1, "text", "a", "b", &s, NULL) == TDE_CORRUPT);
  static const char twice[] = "{\"a\":{\"b\":\"x\"},\"a\":{\"b\":\"y\"}}";
  CHECK(tde_json_find_in(twice, sizeof twice - 1, "text", "a", "b", &s, NULL) == TDE_CORRUPT);
}

int main(int argc, char **argv) {
  static const unit_test tests[] = {
      {"key_ids", key_ids},
      {"other_ids", other_ids},
      {"get_key", get_key},
      {"wrap_and_unwrap", wrap_and_unwrap},
      {"bound", bound},
      {"rsa_key", rsa_key},
      {"may_wrap", may_wrap},
      {"bad_key_replies", bad_key_replies},
      {"bad_results", bad_results},
      {"error_classes", error_classes},
      {"more_errors", more_errors},
      {"strangers", strangers},
      {"addresses", addresses},
      {"mixed", mixed},
      {"approle", approle},
      {"jwt", jwt},
      {"static_token", static_token},
      {"replaced_token", replaced_token},
      {"refused_token", refused_token},
      {"login_replies", login_replies},
      {"renewal", renewal},
      {"one_login", one_login},
      {"search_finds", search_finds},
      {"configuration", configuration},
      {"json_members", json_members},
  };
  snprintf(root_dir, sizeof root_dir, "/tmp/tde-vault-XXXXXX");
  if (mkdtemp(root_dir) == NULL || tde_crypto_init(NULL) != TDE_OK) return 1;
  dek = tde_secret_alloc(TDE_KEY_BYTES);
  if (dek == NULL) return 1;
  setenv("T_TOKEN", "hvs.SECRET-1", 1);
  setenv("T_SECRET", "SECRET-id", 1);
  tde_http_sender = wire_send;
  int rc = unit_main(argc, argv, tests, COUNT(tests));
  tde_secret_free(dek);
  remove_tree(root_dir);
  return rc;
}
