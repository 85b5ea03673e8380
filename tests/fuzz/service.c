/*
** service.c: fuzz target for what a key service and a token service reply.
**
** Input: options (1), then replies, each ended by 0x1e: its first line is a status
** and, after a space, the challenge header; the rest is the body. One operation of
** the Azure provider runs against them, from cold caches. What must hold:
**
**  - it ends, within the requests that one operation may send;
**  - the client secret goes to the login authority alone, an access token and the DEK
**    to the key's own host alone, whatever a challenge or a link in a reply says;
**  - a failure has a message, and leaves no DEK of an unwrap behind; what succeeded is
**    whole;
**  - no report holds the secret, the assertion or the DEK.
*/
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>

#include "../../ext/base/bytes.h"
#include "../../ext/base/crypto.h"
#include "../../ext/base/secret.h"
#include "../../keyprovider/challenge.h"
#include "../../keyprovider/instance.h"
#include "../../keyprovider/token.h"
#include "fuzz.h"

#define SECRET "S3cr3tOfTheClient"
#define ASSERTION "A55ertionOfTheWorkload"
/* The DEK that is wrapped, and the one that replies bring. */
#define WRAPPED_DEK64 "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8"
#define DEK64 "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
#define HOST "https://v.vault.azure.net/"
#define KEY HOST "keys/k"
#define VERSION "0123456789abcdef0123456789abcdef"
#define LOGIN "https://login.microsoftonline.com/"
#define IMDS "http://169.254.169.254/metadata/identity/oauth2/token?"
#define END 0x1e

static const tde_instance *instance;
static uint8_t *dek;
static fuzz_reader replies;
static int requests;
/* libFuzzer finds what is compared with: a reply that holds a secret proves nothing. */
static int told;

/* ---- the instance ---- */

static void put_file(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  FUZZ_ASSERT(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static void setup_service(void) {
  char dir[400], path[500], text[1200];
  tde_status st;
  const tde_instance *made;

  tde_status_clear(&st);
  FUZZ_ASSERT(tde_crypto_init(&st) == TDE_OK);
  (void)snprintf(dir, sizeof(dir), "%s/service", fuzz_scratch());
  FUZZ_ASSERT(tde_instance_open(dir, 1, &made, &st) == TDE_OK);
  (void)snprintf(path, sizeof(path), "%s/assertion", dir);
  put_file(path, ASSERTION);
  FUZZ_ASSERT(setenv("TDE_FUZZ_SECRET", SECRET, 1) == 0);
  (void)snprintf(text, sizeof(text),
                 "{\"version\":1,\"default_protector\":\"" KEY
                 "\",\"identities\":{"
                 "\"app\":{\"kind\":\"client_secret\",\"client_id\":\"c\",\"secret_env\":"
                 "\"TDE_FUZZ_SECRET\"},"
                 "\"machine\":{\"kind\":\"managed_identity\"},"
                 "\"work\":{\"kind\":\"workload_identity\",\"client_id\":\"c\",\"tenant\":"
                 "\"11111111-2222-3333-4444-555555555555\",\"token_file\":\"%s\"},"
                 "\"fed\":{\"kind\":\"federated\",\"client_id\":\"f\",\"via\":\"machine\"}}}",
                 path);
  (void)snprintf(path, sizeof(path), "%s/instance.json", dir);
  FUZZ_ASSERT(remove(path) == 0);
  put_file(path, text);
  FUZZ_ASSERT(chmod(path, 0600) == 0 && chmod(dir, 0700) == 0);
  FUZZ_ASSERT(tde_instance_open(dir, 0, &instance, &st) == TDE_OK);
  dek = tde_secret_alloc(TDE_KEY_BYTES);
  FUZZ_ASSERT(dek != NULL);
}

/* ---- the other side ---- */

typedef struct answer {
  char *challenge, *body;
} answer;

static int begins(const char *text, const char *with) {
  return strncmp(text, with, strlen(with)) == 0;
}

/* What goes where. */
static void check_request(const tde_request *req) {
  int vault = begins(req->url, HOST), login = begins(req->url, LOGIN);

  FUZZ_ASSERT(vault || login || begins(req->url, IMDS));
  FUZZ_ASSERT(!strpbrk(req->url, " \r\n\t\"\\"));
  for (char **h = req->headers; h && *h; h++) {
    FUZZ_ASSERT(!strpbrk(*h, "\r\n"));
    FUZZ_ASSERT(vault || !begins(*h, "Authorization:"));
  }
  if (!req->body || told) return;
  FUZZ_ASSERT(login || (!strstr(req->body, SECRET) && !strstr(req->body, ASSERTION)));
  FUZZ_ASSERT(vault || !strstr(req->body, WRAPPED_DEK64));
}

static const char *header_of(const tde_reply *reply, const char *name) {
  const answer *a = reply->impl;
  return strcasecmp(name, "WWW-Authenticate") == 0 ? a->challenge : NULL;
}

static void release(tde_reply *reply) {
  answer *a = reply->impl;
  free(a->challenge);
  free(a->body);
  free(a);
}

/* A copy in a block of its own size: reading past it is seen. */
static char *copy_of(const uint8_t *p, size_t n) {
  char *c = malloc(n + 1);
  FUZZ_ASSERT(c != NULL);
  memcpy(c, p, n);
  c[n] = 0;
  return c;
}

static tde_class answer_from_input(const tde_op *op, const tde_request *req, tde_reply *reply,
                                   tde_status *st) {
  const uint8_t *end, *line;
  size_t n, head;
  answer *a;

  (void)op;
  FUZZ_ASSERT(++requests <= TDE_OP_REQUESTS_MAX);
  check_request(req);
  if (!replies.n) return tde_fail(st, TDE_UNREACHABLE, "try again", "no answer");
  end = memchr(replies.p, END, replies.n);
  n = end ? (size_t)(end - replies.p) : replies.n;
  line = memchr(replies.p, '\n', n);
  head = line ? (size_t)(line - replies.p) : n;
  a = calloc(1, sizeof(*a));
  FUZZ_ASSERT(a != NULL);
  if (head > 4) a->challenge = copy_of(replies.p + 4, head - 4);
  a->body = line ? copy_of(line + 1, n - head - 1) : copy_of(replies.p, 0);
  memset(reply, 0, sizeof(*reply));
  for (size_t i = 0; i < 3 && i < head; i++) {
    int digit = replies.p[i] - '0';
    reply->status = reply->status * 10 + (digit >= 0 && digit <= 9 ? digit : 0);
  }
  if (reply->status < 200 || reply->status > 599) reply->status = 200;
  reply->body = a->body;
  reply->nbody = line ? n - head - 1 : 0;
  reply->header = header_of;
  reply->release = release;
  reply->impl = a;
  replies.p += end ? n + 1 : n;
  replies.n -= end ? n + 1 : n;
  return TDE_OK;
}

/* ---- one operation ---- */

static int contains(const uint8_t *data, size_t size, const char *text) {
  return memmem(data, size, text, strlen(text)) != NULL;
}

static void check_info(const tde_key_info *k) {
  FUZZ_ASSERT(strnlen(k->base_id, sizeof(k->base_id)) < sizeof(k->base_id));
  FUZZ_ASSERT(strnlen(k->version, sizeof(k->version)) < sizeof(k->version) && k->version[0]);
  FUZZ_ASSERT(strnlen(k->type, sizeof(k->type)) < sizeof(k->type));
  FUZZ_ASSERT(strnlen(k->algorithm, sizeof(k->algorithm)) < sizeof(k->algorithm));
}

static void check_outcome(const tde_op *op, tde_class c, int asked_version) {
  if (c) {
    if (op->kind == TDE_OP_UNWRAP) FUZZ_ASSERT(tde_all_zero(op->dek, TDE_KEY_BYTES));
    return;
  }
  if (op->kind != TDE_OP_VERSIONS) {
    check_info(&op->info);
    FUZZ_ASSERT(strcmp(op->info.base_id, KEY) == 0);
    FUZZ_ASSERT(!asked_version || strcmp(op->info.version, VERSION) == 0);
  }
  if (op->kind == TDE_OP_WRAP) FUZZ_ASSERT(op->nwrapped > 0 && op->nwrapped <= TDE_WRAPPED_MAX);
  if (op->kind != TDE_OP_VERSIONS) return;
  FUZZ_ASSERT(op->nversions >= 1 && op->nversions <= TDE_VERSIONS_MAX);
  for (size_t i = 0; i < op->nversions; i++) {
    check_info(&op->versions[i]);
    FUZZ_ASSERT(i == 0 || op->versions[i - 1].created >= op->versions[i].created);
  }
}

static void check_secrets(const tde_status *st) {
  static const char *const secrets[] = {SECRET, ASSERTION, DEK64, WRAPPED_DEK64};

  for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++) {
    FUZZ_ASSERT(!strstr(st->message, secrets[i]) && !strstr(st->remedy, secrets[i]));
    FUZZ_ASSERT(!strstr(st->service_code, secrets[i]) && !strstr(st->request_id, secrets[i]));
  }
}

static void run_service(const uint8_t *data, size_t size) {
  static const char *const identities[] = {"app", "machine", "work", "fed"};
  static const tde_op_kind kinds[] = {TDE_OP_GET, TDE_OP_WRAP, TDE_OP_UNWRAP, TDE_OP_LATEST,
                                      TDE_OP_VERSIONS};
  fuzz_reader r = {data, size};
  uint8_t o = fuzz_u8(&r);
  int versioned = o >> 7;
  tde_op op;
  tde_status st;
  tde_class c;

  memset(&op, 0, sizeof(op));
  op.kind = kinds[(o & 7) % 5];
  op.identity = identities[o >> 3 & 3];
  op.federated_client_id = o >> 5 & 1 && op.identity[0] == 'm' ? "fed" : NULL;
  op.instance = instance;
  op.dek = dek;
  for (int i = 0; i < TDE_KEY_BYTES; i++) dek[i] = (uint8_t)(0x40 + i); /* WRAPPED_DEK64 */
  if (op.kind == TDE_OP_UNWRAP) {
    memset(op.wrapped, 7, 256);
    op.nwrapped = 256;
  }
  told = contains(data, size, SECRET) || contains(data, size, ASSERTION) ||
         contains(data, size, DEK64) || contains(data, size, WRAPPED_DEK64);
  replies = r;
  requests = 0;
  tde_http_sender = answer_from_input;
  tde_token_drop_cache();
  tde_challenge_drop_cache();
  tde_status_clear(&st);
  c = tde_provider_run(&op, versioned ? KEY "/" VERSION : KEY, &st);
  if (getenv("TDE_FUZZ_TRACE")) {
    (void)fprintf(stderr, "%d requests: %s %s\n", requests, tde_class_name(c), st.message);
  }
  FUZZ_ASSERT(c == TDE_OK || (st.code == c && st.message[0] && st.remedy[0]));
  check_outcome(&op, c, versioned);
  if (!told) check_secrets(&st);
  fuzz_check_status(&st);
  free(op.versions);
}

static const char *const service_words[] = {
    "401 Bearer authorization=\"https://login.microsoftonline.com/"
    "11111111-2222-3333-4444-555555555555\", resource=\"https://vault.azure.net\"\n",
    "authorization=\"",
    "authorization_uri=\"",
    "resource=\"",
    "scope=\"",
    "https://login.microsoftonline.com/common",
    "https://login.microsoftonline.com.evil.example/",
    "200 \n",
    "403 \n",
    "429 \n",
    "\x1e",
    "{\"token_type\":\"Bearer\",\"expires_in\":3599,\"access_token\":\"T\"}",
    "\"expires_on\":\"1\"",
    "{\"key\":{\"kid\":\"" KEY "/" VERSION
    "\",\"kty\":\"RSA\",\"key_ops\":[\"wrapKey\",\"unwrapKey\"],",
    "\"n\":\"",
    "\"e\":\"AQAB\"",
    "\"attributes\":{\"enabled\":true,\"created\":1700000000,\"recoveryLevel\":\"Recoverable\"}",
    "\"nbf\":",
    "\"exp\":",
    "\"kty\":\"oct-HSM\"",
    "{\"value\":[{\"kid\":\"" KEY "/" VERSION "\",\"attributes\":{\"enabled\":true}}],",
    "\"nextLink\":\"" KEY "/versions?api-version=7.4&$skiptoken=1\"",
    "\"nextLink\":null",
    "{\"kid\":\"" KEY "/" VERSION "\",\"value\":\"",
    DEK64,
    "{\"error\":{\"code\":\"Forbidden\",\"innererror\":{\"code\":\"KeyDisabled\"}}}",
    "@",
    "\\u0000",
    NULL};
const fuzz_target fuzz_service = {"service", setup_service, run_service, 4096, service_words};
