/*
** matrix.c: every operation on a vault and every kind of identity, against every
** fault of the test key server, over TLS, through http.c.
**
**   matrix SERVER CONFIG [-smoke] [PART-OF-A-NAME...]
**
** A column is what is asked, a row is what goes wrong; expected() says what must
** come out: the class, the HTTP status, a piece of the message or of the next
** step, within the time that the instance allows. Beside that, always: a failed unwrap
** leaves no key, nothing is sent to the host of a redirect, nothing at all to a
** server whose certificate is not valid, and no token, secret or DEK stands in any
** text (leaks.h), which a control shows can be found.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext/base/bytes.h"
#include "ext/base/crypto.h"
#include "ext/base/log.h"
#include "ext/base/secret.h"
#include "keyprovider/challenge.h"
#include "keyprovider/http.h"
#include "keyprovider/token.h"
#include "leaks.h"
#include "server.h"

#define TIMEOUT_MS 1200
#define CUT_OFF_TRIES 5
#define SLACK_MS 1500 /* of a loaded machine, on top of what an operation may take */
#define ALPHA "https://alpha.vault.localtest/keys/tde"
#define PROSE "What the service says about it, which may be anything."
#define GAMMA "https://gamma.vault.localtest/keys/tde"
#define DELTA "https://delta.managedhsm.localtest/keys/tde"

/* ---- the table ---- */

enum place { VAULT, TOKEN, MANAGED }; /* whose reply goes wrong */

typedef struct column {
  const char *name;
  enum place where;
  const char *route; /* the server's name of the request that goes wrong */
  tde_op_kind kind;
  const char *key, *identity;
  int versionless; /* the key id names no version */
  int cold;        /* the vault's very first answer goes wrong */
} column;

static const column columns[] = {
    {"unwrap", VAULT, "unwrapKey", TDE_OP_UNWRAP, ALPHA, "secret", 0, 0},
    {"wrap", VAULT, "wrapKey", TDE_OP_WRAP, ALPHA, "secret", 0, 0},
    {"wrap, the look at the key", VAULT, "getKey", TDE_OP_WRAP, ALPHA, "secret", 0, 0},
    {"get", VAULT, "getKey", TDE_OP_GET, ALPHA, "secret", 0, 0},
    {"latest", VAULT, "getKey", TDE_OP_LATEST, ALPHA, "secret", 1, 0},
    {"versions", VAULT, "listVersions", TDE_OP_VERSIONS, ALPHA, "secret", 1, 0},
    {"unwrap, first contact", VAULT, "unwrapKey", TDE_OP_UNWRAP, ALPHA, "secret", 0, 1},
    {"unwrap in Managed HSM", VAULT, "unwrapKey", TDE_OP_UNWRAP, DELTA, "secret", 0, 0},
    {"wrap in Managed HSM", VAULT, "wrapKey", TDE_OP_WRAP, DELTA, "secret", 0, 0},
    {"token: secret from a file", TOKEN, "token", TDE_OP_UNWRAP, ALPHA, "secret", 0, 0},
    {"token: secret from the environment", TOKEN, "token", TDE_OP_UNWRAP, ALPHA, "secret-env", 0,
     0},
    {"token: certificate", TOKEN, "token", TDE_OP_UNWRAP, ALPHA, "certificate", 0, 0},
    {"token: workload", TOKEN, "token", TDE_OP_UNWRAP, ALPHA, "workload", 0, 0},
    {"token: environment", TOKEN, "token", TDE_OP_UNWRAP, ALPHA, "environment", 0, 0},
    {"token: across tenants", TOKEN, "token", TDE_OP_UNWRAP, GAMMA, "cross", 0, 0},
    {"assertion: across tenants", MANAGED, "imds", TDE_OP_UNWRAP, GAMMA, "cross", 0, 0},
    {"token: IMDS, system", MANAGED, "imds", TDE_OP_UNWRAP, ALPHA, "system", 0, 0},
    {"token: IMDS, user", MANAGED, "imds", TDE_OP_UNWRAP, ALPHA, "user", 0, 0},
    {"token: App Service", MANAGED, "appService", TDE_OP_UNWRAP, ALPHA, "app-service", 0, 0},
};

/* What a row does with the port; where it applies; a reply that looks right; whether
** the client waits as it is told, or gives up at once. */
enum {
  CERTIFICATE = 1,
  CLOSED = 2,
  NO_LIST = 4,
  VERSIONED = 8,
  BENT = 16,
  PATIENT = 32,
  ONE_TRY = 64
};

typedef struct expect {
  tde_class rc;
  int http;
  const char *says; /* in message or remedy; %s: the permission that is missing */
} expect;

typedef struct row {
  const char *name, *fault, *more; /* the fault, and members of its JSON from a comma on */
  int flags;
  expect at[3]; /* of each place; says NULL: does not apply */
} row;

#define UNREACHABLE(http, says) \
  { TDE_UNREACHABLE, http, says }
#define FINE \
  { TDE_OK, 0, "" }
#define NONE \
  { TDE_OK, 0, NULL }
#define CORRUPT(http, says) \
  { TDE_CORRUPT, http, says }
#define REFUSED(http, says) \
  { TDE_UNAUTHENTICATED, http, says }
#define DENIED(says) \
  { TDE_DENIED, 403, says }
#define DISABLED \
  { TDE_DISABLED, 403, "enable the key version" }
/* clang-format off */
#define SAME(...) {__VA_ARGS__, __VA_ARGS__, __VA_ARGS__}
#define STRANGER(status)                                                                       \
  {#status " of a proxy", "stranger", ",\"status\":" #status, 0, SAME(UNREACHABLE(status, "proxy"))}
#define INNER(code, ...) \
  {"403 " code, "403", ",\"inner\":\"" code "\"", 0, {__VA_ARGS__, NONE, NONE}}

static const row rows[] = {
    {"none", NULL, "", 0, SAME(FINE)},
    {"refuse", "refuse", "", 0, SAME(UNREACHABLE(0, "cannot reach"))},
    {"refuse, once", "refuse", ",\"times\":1", 0, SAME(FINE)},
    {"port closed", NULL, "", CLOSED, SAME(UNREACHABLE(0, "cannot reach"))},
    {"hang", "hang", "", 0, SAME(UNREACHABLE(0, "did not answer in time"))},
    {"slow", "slow", ",\"ms\":300", 0, SAME(FINE)},
    {"drip", "drip", "", 0, SAME(UNREACHABLE(0, "did not answer in time"))},
    {"truncated", "truncated", "", 0, SAME(UNREACHABLE(0, "cannot reach"))},
    {"truncated, once", "truncated", ",\"times\":1", 0, SAME(FINE)},
    {"401", "401", "", 0, {REFUSED(401, "does not accept the token of the identity"),
                           REFUSED(401, "no token for the identity"), REFUSED(401, "assign the managed identity")}},
    {"401, once", "401", ",\"times\":1", 0, {FINE, NONE, NONE}},
    {"403", "403", "", 0, {DENIED("grant %s to the identity"), REFUSED(403, "credential"),
                           REFUSED(403, "assign the managed identity")}},
    INNER("AccessDenied", DENIED("grant %s to the identity")),
    INNER("ForbiddenByRbac", DENIED("grant %s to the identity")),
    INNER("ForbiddenByPolicy", DENIED("grant %s to the identity")),
    INNER("ForbiddenByFirewall", DENIED("firewall or private link")),
    INNER("ForbiddenByConnection", DENIED("firewall or private link")),
    INNER("KeyOperationForbidden", DENIED("add %s to the key's permitted operations")),
    INNER("KeyDisabled", DISABLED),
    INNER("KeyExpired", DISABLED),
    INNER("KeyNotYetValid", DISABLED),
    {"400", "status", ",\"status\":400", 0,
     {NONE, REFUSED(400, "credential"), REFUSED(400, "check \"client_id\"")}},
    {"404", "404", "", 0, {{TDE_MISSING, 404, "recover or restore the key"}, REFUSED(404, "credential"),
                           UNREACHABLE(404, "has no token now")}},
    {"409", "409", "", 0, {{TDE_MISSING, 409, "recover the deleted key"}, REFUSED(409, "credential"),
                           REFUSED(409, "assign")}},
    {"409 being recovered", "409", ",\"inner\":\"ObjectIsBeingRecovered\"", 0,
     {UNREACHABLE(409, "not ready yet"), NONE, NONE}},
    {"410", "status", ",\"status\":410", 0, {{TDE_MISSING, 410, "recover"}, REFUSED(410, "credential"),
                                              UNREACHABLE(410, "has no token now")}},
    {"429, once", "429", ",\"retry_after\":1,\"times\":1", PATIENT, SAME(FINE)},
    {"429, wait an hour", "429", ",\"retry_after\":3600", ONE_TRY, SAME({TDE_THROTTLED, 429, "is busy"})},
    {"500", "500", "", 0, {UNREACHABLE(500, "cannot serve"), UNREACHABLE(500, "has no token now"),
                           UNREACHABLE(500, "has no token now")}},
    {"500, once", "500", ",\"times\":1", 0, SAME(FINE)},
    {"503", "503", "", 0, {UNREACHABLE(503, "cannot serve"), UNREACHABLE(503, "has no token now"),
                           UNREACHABLE(503, "has no token now")}},
    {"503, wait an hour", "503", ",\"retry_after\":3600", ONE_TRY,
     {UNREACHABLE(503, "cannot serve"), UNREACHABLE(503, "has no token now"),
      UNREACHABLE(503, "has no token now")}},
    {"oversized", "oversized", ",\"bytes\":3000000", 0, SAME(CORRUPT(0, "larger than"))},
    {"not-json", "not-json", "", 0, {CORRUPT(0, "check what answers at the vault's address"),
                                     CORRUPT(200, "not valid JSON"), CORRUPT(200, "not valid JSON")}},
    {"empty", "empty", "", 0, {CORRUPT(0, "check what answers at the vault's address"),
                               CORRUPT(200, "not valid JSON"), CORRUPT(200, "not valid JSON")}},
    {"another key's reply", "wrong-kid", ",\"part\":\"name\"", 0,
     {CORRUPT(0, "is about another key"), NONE, NONE}},
    {"another version's reply", "wrong-kid", "", VERSIONED, {CORRUPT(0, "is about another version"), NONE, NONE}},
    {"flip", "flip", "", BENT | NO_LIST, {FINE, REFUSED(401, "does not accept the token"),
                                          REFUSED(401, "does not accept the token")}},
    {"flip, once", "flip", ",\"times\":1", 0, {NONE, FINE, FINE}},
    {"redirect", "redirect", "", 0, {CORRUPT(307, "not followed"), CORRUPT(307, "status that none should have"),
                                     CORRUPT(307, "status that none should have")}},
    STRANGER(400),
    STRANGER(403),
    {"404 of a proxy", "stranger", ",\"status\":404", 0,
     {UNREACHABLE(404, "proxy"), UNREACHABLE(404, "proxy"), UNREACHABLE(404, "has no token now")}},
    {"certificate expired", "expired", "", CERTIFICATE,
     {UNREACHABLE(0, "certificate"), UNREACHABLE(0, "certificate"), NONE}},
    {"certificate of another host", "wrong-host", "", CERTIFICATE,
     {UNREACHABLE(0, "certificate"), UNREACHABLE(0, "certificate"), NONE}},
    {"certificate of an unknown CA", "unknown-ca", "", CERTIFICATE,
     {UNREACHABLE(0, "certificate"), UNREACHABLE(0, "certificate"), NONE}},
};
/* clang-format on */

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- one case ---- */

static server keyvault;
static const tde_instance *instance;
static uint8_t *dek;
static tde_op wraps[3]; /* the DEK below, wrapped by each of the keys without a fault */
static uint8_t *truth_dek;
static const char *failing; /* the first thing that is wrong with this case */

#define MUST(x) (failing = failing == NULL && !(x) ? #x : failing)

static tde_op *wrap_of(const char *key) {
  return &wraps[strcmp(key, ALPHA) == 0 ? 0 : strcmp(key, GAMMA) == 0 ? 1 : 2];
}

static const char *identity_for(const char *key) {
  return strcmp(key, GAMMA) == 0 ? "cross" : "secret";
}

static tde_class ask(tde_op_kind kind, const char *key, const char *identity, int versionless,
                     tde_op *op, tde_status *st) {
  char id[TDE_KEY_ID_MAX];
  const tde_op *w = wrap_of(key);
  memset(op, 0, sizeof *op);
  op->kind = kind;
  op->instance = instance;
  op->identity = identity;
  op->dek = dek;
  memcpy(dek, truth_dek, TDE_KEY_BYTES);
  snprintf(id, sizeof id, "%s", key);
  if (!versionless && w->info.version[0] != 0) tde_key_full_id(&w->info, id);
  if (kind == TDE_OP_UNWRAP) {
    memset(dek, 0x5a, TDE_KEY_BYTES);
    memcpy(op->wrapped, w->wrapped, sizeof op->wrapped);
    op->nwrapped = w->nwrapped;
    memcpy(op->algorithm, w->info.algorithm, sizeof op->algorithm);
  }
  return tde_provider_run(op, id, st);
}

static void set_fault(const column *c, const row *r) {
  char text[512];
  if (r->flags & CERTIFICATE) {
    snprintf(text, sizeof text, "{\"https\":true,\"cert\":\"%s\"}", r->fault);
    server_do(&keyvault, "POST", "listen", text);
  } else if (r->flags & CLOSED) {
    snprintf(text, sizeof text, "{\"%s\":false}", c->where == MANAGED ? "http" : "https");
    server_do(&keyvault, "POST", "listen", text);
  } else if (r->fault != NULL) {
    snprintf(text, sizeof text, "{\"route\":\"%s\",\"fault\":\"%s\",\"message\":\"" PROSE "\"%s%s}",
             c->route, r->fault, c->cold ? ",\"any\":true" : "", r->more);
    server_do(&keyvault, "POST", "fault", text);
  }
}

static void lift_fault(const row *r) {
  server_do(&keyvault, "DELETE", "fault", NULL);
  if (r->flags & CERTIFICATE) {
    server_do(&keyvault, "POST", "listen", "{\"https\":true,\"cert\":\"good\"}");
  } else if (r->flags & CLOSED) {
    server_do(&keyvault, "POST", "listen", "{\"https\":true,\"http\":true}");
  }
}

/* The state in which the request that is to go wrong is the one of the column. */
static void prepare(const column *c) {
  tde_op op;
  tde_status st;
  MUST(ask(TDE_OP_UNWRAP, c->key, c->identity, 0, &op, &st) == TDE_OK);
  if (c->where != VAULT || c->cold) tde_token_drop_cache();
  if (c->cold) tde_challenge_drop_cache();
  server_do(&keyvault, "DELETE", "log", NULL);
}

static const char *permission(const column *c) {
  if (strcmp(c->route, "getKey") == 0) return "get";
  if (strcmp(c->route, "listVersions") == 0) return "list";
  return c->kind == TDE_OP_WRAP ? "wrapKey" : "unwrapKey";
}

static expect expected(const column *c, const row *r) {
  expect e = r->at[c->where];
  /* Without a token nothing but a challenge may come back, whatever it holds. */
  if (c->cold && c->where == VAULT && (r->flags & (VERSIONED | BENT))) e.says = NULL;
  if (c->cold && strcmp(r->name, "another key's reply") == 0) e.says = NULL;
  if (c->cold && r->fault != NULL && strcmp(r->fault, "empty") == 0) {
    e = (expect)CORRUPT(0, "had no token");
  }
  if (c->cold && r->fault != NULL && strcmp(r->fault, "not-json") == 0) {
    e = (expect)CORRUPT(0, "had no token");
  }
  /* A bent assertion is refused by the authority, not by the vault. */
  if (c->where == MANAGED && strcmp(c->key, GAMMA) == 0 && (r->flags & BENT)) {
    e = (expect)REFUSED(401, "credential");
  }
  if ((r->flags & VERSIONED) && c->versionless) e.says = NULL;
  if ((r->flags & NO_LIST) && c->kind == TDE_OP_VERSIONS) e.says = NULL;
  return e;
}

/* Counts the requests that the server logged on this listener. */
static int count_asked(const char *port) {
  tde_json *log = server_admin(&keyvault, "GET", "log", NULL);
  const tde_json *entries = tde_json_get(log, "entries");
  int asked = 0;
  MUST(log != NULL);
  for (size_t i = 0; i < tde_json_count(entries); i++) {
    const tde_json *entry = tde_json_at(entries, i);
    const char *host = tde_json_get_text(entry, "host");
    const char *listener = tde_json_get_text(entry, "listener");
    MUST(host != NULL && strstr(host, "elsewhere") == NULL);
    asked += listener != NULL && strcmp(listener, port) == 0;
  }
  tde_json_free(log);
  return asked;
}

/* Every request went to hosts that it should go to, none to a port that is closed or to
** a server whose certificate is not valid. On a busy machine the client may have given
** up before the server came to read its request: that is waited for. */
static void check_hosts(const column *c, const row *r) {
  const char *port = c->where == MANAGED ? "http" : "https";
  int want = !(r->flags & (CERTIFICATE | CLOSED)), asked = count_asked(port);

  for (int i = 0; want && asked == 0 && i < 100; i++) {
    (void)usleep(100000);
    asked = count_asked(port);
  }
  MUST((asked > 0) == want);
}

/* A bent reply that nothing can tell from a right one is at least not what is right. */
static void check_bent(const column *c, const tde_op *op) {
  const tde_op *w = wrap_of(c->key);
  tde_op back;
  tde_status st;
  if (c->kind == TDE_OP_UNWRAP) {
    MUST(!tde_equal(dek, truth_dek, TDE_KEY_BYTES));
  } else if (strcmp(c->route, "getKey") == 0) {
    MUST(memcmp(op->info.thumbprint, w->info.thumbprint, TDE_THUMB_BYTES) != 0);
  } else {
    char id[TDE_KEY_ID_MAX];
    memset(&back, 0, sizeof back);
    back.kind = TDE_OP_UNWRAP;
    back.instance = instance;
    back.identity = c->identity;
    back.dek = dek;
    memcpy(back.wrapped, op->wrapped, sizeof back.wrapped);
    back.nwrapped = op->nwrapped;
    memcpy(back.algorithm, op->info.algorithm, sizeof back.algorithm);
    tde_key_full_id(&op->info, id);
    MUST(tde_provider_run(&back, id, &st) == TDE_WRONG_KEY && tde_all_zero(dek, TDE_KEY_BYTES));
  }
}

static void check_success(const column *c, const row *r, const tde_op *op) {
  if (r->flags & BENT) {
    server_do(&keyvault, "DELETE", "fault", NULL);
    check_bent(c, op);
    return;
  }
  if (c->kind == TDE_OP_UNWRAP) MUST(tde_equal(dek, truth_dek, TDE_KEY_BYTES));
  if (c->kind == TDE_OP_VERSIONS) MUST(op->nversions == 1 && op->versions[0].enabled);
  if (c->kind == TDE_OP_GET || c->kind == TDE_OP_LATEST) {
    const tde_key_info *info = &wrap_of(c->key)->info;
    MUST(memcmp(op->info.thumbprint, info->thumbprint, TDE_THUMB_BYTES) == 0);
    MUST(strcmp(op->info.version, info->version) == 0);
  }
}

static void check_failure(const column *c, const row *r, const expect *e, const tde_op *op,
                          const tde_status *st) {
  char says[200];
  snprintf(says, sizeof says, e->says, permission(c));
  MUST(strstr(st->message, says) != NULL || strstr(st->remedy, says) != NULL);
  MUST(st->http_status == e->http);
  MUST(st->remedy[0] != 0 && strncmp(st->key_id, c->key, strlen(c->key)) == 0);
  MUST(e->http < 400 || c->where == MANAGED || r->fault == NULL || strcmp(r->fault, "stranger") == 0 ||
       st->request_id[0] != 0);
  MUST(op->versions == NULL && (c->kind != TDE_OP_WRAP || op->nwrapped == 0));
  if (c->kind == TDE_OP_UNWRAP) MUST(tde_all_zero(dek, TDE_KEY_BYTES));
  leaks_text(st->message);
  leaks_text(st->remedy);
  leaks_text(st->service_code);
  leaks_text(st->request_id);
  leaks_text(st->key_id);
}

/* On a busy machine the deadline may cut off the last of several attempts, which is then
** what is told: nothing is learned from that of another fault. */
static int cut_off(const expect *e, int64_t took, const tde_status *st) {
  static const char late[] = "did not answer in time";
  return took >= TIMEOUT_MS && strstr(st->message, late) != NULL && strcmp(e->says, late) != 0;
}

/* 1: as expected, 0: not, -1: does not apply. */
static int run_case(const column *c, const row *r) {
  expect e = expected(c, r);
  tde_op op;
  tde_status st;
  if (e.says == NULL) return -1;
  failing = NULL;
  tde_class rc;
  int64_t took;
  for (int tries = 0;; lift_fault(r)) {
    prepare(c);
    set_fault(c, r);
    int64_t began = tde_boot_ms();
    rc = ask(c->kind, c->key, c->identity, c->versionless, &op, &st);
    took = tde_boot_ms() - began;
    if (++tries == CUT_OFF_TRIES || rc == TDE_OK || !cut_off(&e, took, &st)) break;
  }
  MUST(rc == e.rc);
  MUST(took < 2 * TIMEOUT_MS + SLACK_MS);
  if (r->fault != NULL && strcmp(r->fault, "slow") == 0) MUST(took >= 290);
  if (r->flags & PATIENT) MUST(took >= 990);
  if (r->flags & ONE_TRY) MUST(server_count(&keyvault, c->route, e.http) == 1);
  if (rc == e.rc && rc == TDE_OK) check_success(c, r, &op);
  if (rc == e.rc && rc != TDE_OK) check_failure(c, r, &e, &op, &st);
  if (rc == TDE_OK) free(op.versions);
  lift_fault(r);
  check_hosts(c, r);
  if (failing != NULL) {
    printf("failed: %s: %s: %s\n  %s after %lld ms, HTTP %d %s: %s; %s\n", c->name, r->name,
           failing, tde_class_name(rc), (long long)took, st.http_status, st.service_code,
           st.message, st.remedy);
    fflush(stdout);
  }
  return failing == NULL;
}

/* ---- the whole ---- */

static void log_line(tde_level level, const char *line) {
  (void)level;
  leaks_text(line);
}

static int make_truth(void) {
  static const char *const keys[] = {ALPHA, GAMMA, DELTA};
  tde_status st;
  for (size_t i = 0; i < COUNT(keys); i++) {
    tde_op op;
    tde_class rc = ask(TDE_OP_WRAP, keys[i], identity_for(keys[i]), 1, &op, &st);
    if (rc != TDE_OK) {
      printf("no wrap by %s: %s\n", keys[i], st.message);
      return -1;
    }
    wraps[i] = op;
  }
  return 0;
}

/* With the identity's own secrets in the environment, as the SDKs name them. */
static void sdk_environment(void) {
  setenv("AZURE_TENANT_ID", CONTOSO, 1);
  setenv("AZURE_CLIENT_ID", "a0000000-0000-4000-8000-000000000001", 1);
  setenv("AZURE_CLIENT_SECRET", getenv("TDE_TEST_SECRET"), 1);
}

static int check_leaks(void) {
  static const char *const names[] = {"token", "client secret or assertion", "DEK",
                                      "prose of the service"};
  int bad = 0;
  for (int k = 0; k < LEAK_KINDS; k++) {
    enum leak_kind kind = (enum leak_kind)k;
    if (leaks_seen(kind) == 0) bad = 1, printf("failed: no %s was seen\n", names[k]);
    if (leaks_found(kind) > 0)
      bad = 1, printf("failed: a %s stands in a message or in the log\n", names[k]);
  }
  /* The control: a piece of each kind in a text is found. */
  for (int k = 0; !bad && k < LEAK_KINDS; k++) {
    char text[64];
    leaks_forget_texts();
    snprintf(text, sizeof text, "status: %.20s", leaks_sample((enum leak_kind)k) + 3);
    leaks_text(text);
    if (leaks_found((enum leak_kind)k) == 0)
      bad = 1, printf("failed: the search finds no %s\n", names[k]);
  }
  return bad;
}

/* In the smoke part: a column of each place, and each other one with few rows. */
static int in_smoke(size_t c, size_t r) {
  static const char *const whole[] = {"unwrap", "token: secret from a file", "token: IMDS, system"};
  for (size_t i = 0; i < COUNT(whole); i++) {
    if (strcmp(columns[c].name, whole[i]) == 0) return 1;
  }
  return (c * 7 + r) % 11 == 0;
}

static int wanted(const char *name, int argc, char **argv) {
  int any = 0;
  for (int i = 3; i < argc; i++) {
    if (argv[i][0] == '-') continue;
    any = 1;
    if (strstr(name, argv[i]) != NULL) return 1;
  }
  return !any;
}

int main(int argc, char **argv) {
  int passed = 0, failed = 0, smoke = argc > 3 && strcmp(argv[3], "-smoke") == 0;
  char name[200];
  if (argc < 3) return 2;
  if (tde_crypto_init(NULL) != TDE_OK || server_start(&keyvault, argv[1], argv[2]) != 0) return 2;
  server_environment(&keyvault);
  sdk_environment();
  tde_http_install();
  leaks_watch();
  leaks_secret(LEAK_PROSE, PROSE);
  tde_log_set_sink(log_line);
  instance = server_instance(&keyvault, "matrix", TIMEOUT_MS, "");
  dek = tde_secret_alloc(TDE_KEY_BYTES);
  truth_dek = tde_secret_alloc(TDE_KEY_BYTES);
  int ok = instance != NULL && dek != NULL && truth_dek != NULL &&
           tde_random(truth_dek, TDE_KEY_BYTES, NULL) == TDE_OK && make_truth() == 0;
  for (size_t c = 0; ok && c < COUNT(columns); c++) {
    for (size_t r = 0; r < COUNT(rows); r++) {
      snprintf(name, sizeof name, "%s: %s", columns[c].name, rows[r].name);
      if (!wanted(name, argc, argv) || (smoke && !in_smoke(c, r))) continue;
      int result = run_case(&columns[c], &rows[r]);
      passed += result > 0;
      failed += result == 0;
    }
  }
  if (ok && wanted("leaks", argc, argv)) {
    int bad = check_leaks();
    passed += !bad;
    failed += bad;
  }
  failed += !ok;
  tde_http_drop_pool();
  failed += server_stop(&keyvault) != 0;
  tde_secret_free(dek);
  tde_secret_free(truth_dek);
  printf("%d passed, %d failed, 0 skipped\n", passed, failed);
  return failed > 0;
}
