/*
** registry.c: the table of key providers and the driver of an operation.
**
** What must hold: no lock of the product is held while an operation runs; an
** operation ends after a bounded number of requests and a bounded time whatever
** the service does; a failed unwrap leaves no key behind; a failure always names its
** class, the key and the next step; a provider's defect is reported as
** TDE_INTERNAL and never passes for a success.
*/
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "../ext/base/crypto.h"
#include "../ext/base/secret.h"
#include "instance.h"
#include "provider.h"

_Atomic(tde_http_send_fn) tde_http_sender;

/* Order is the order of asking; the forms of key ids do not overlap. */
static const tde_provider *const providers[] = {
    &tde_provider_local,
    &tde_provider_azure,
    &tde_provider_vault,
};
#define NPROVIDERS (sizeof providers / sizeof providers[0])

#define FORMS \
  "local:NAME, https://VAULT.vault.azure.net/keys/NAME, or vault:https://HOST:PORT/transit/keys/NAME"
#define NAME_A_KEY "name a key, e.g. " FORMS

/* A key id goes into messages, documents and requests: printable ASCII only. */
static tde_class key_id_check(const char *key_id, tde_status *st) {
  size_t n = key_id != NULL ? strnlen(key_id, TDE_KEY_ID_MAX) : 0;
  if (n == 0) return tde_fail(st, TDE_MISCONFIGURED, NAME_A_KEY, "the key id is empty");
  if (n == TDE_KEY_ID_MAX) {
    return tde_fail(st, TDE_MISCONFIGURED, NAME_A_KEY, "the key id is longer than %d bytes",
                    TDE_KEY_ID_MAX - 1);
  }
  for (size_t i = 0; i < n; i++) {
    if (key_id[i] <= ' ' || key_id[i] > '~') {
      return tde_fail(st, TDE_MISCONFIGURED, NAME_A_KEY,
                      "the key id holds a character other than printable ASCII at byte %zu", i + 1);
    }
  }
  return TDE_OK;
}

const tde_provider *tde_provider_find(const char *key_id, tde_status *st) {
  if (key_id_check(key_id, st) != TDE_OK) return NULL;
  for (size_t i = 0; i < NPROVIDERS; i++) {
    if (providers[i]->matches(key_id)) return providers[i];
  }
  tde_fail(st, TDE_UNSUPPORTED,
           "check the key id's form: " FORMS,
           "no key provider of this build takes the key id %.200s", key_id);
  return NULL;
}

tde_class tde_key_id_parse(const char *key_id, int *remote, tde_status *st) {
  char base[TDE_KEY_ID_MAX], version[TDE_KEY_VERSION_MAX];
  tde_status own;
  if (st == NULL) st = &own;
  const tde_provider *p = tde_provider_find(key_id, st);
  if (p == NULL) return st->code;
  *remote = p->reply != NULL;
  return p->parse_id(key_id, base, version, st);
}

/* Splits an id; one that no provider takes is its own spelling. */
static void split_id(const char *key_id, char base[TDE_KEY_ID_MAX], char version[TDE_KEY_VERSION_MAX]) {
  const tde_provider *p = tde_provider_find(key_id, NULL);
  if (p != NULL && p->parse_id(key_id, base, version, NULL) == TDE_OK) return;
  snprintf(base, TDE_KEY_ID_MAX, "%s", key_id);
  version[0] = 0;
}

int tde_key_ids_match(const char *a, const char *b) {
  char base[2][TDE_KEY_ID_MAX], version[2][TDE_KEY_VERSION_MAX];
  split_id(a, base[0], version[0]);
  split_id(b, base[1], version[1]);
  return strcmp(base[0], base[1]) == 0 && (version[0][0] == 0 || version[1][0] == 0 ||
                                           strcasecmp(version[0], version[1]) == 0);
}

int tde_key_same_version(const tde_key_info *a, const tde_key_info *b) {
  return strcmp(a->version, b->version) == 0 && tde_key_ids_match(a->base_id, b->base_id);
}

void tde_key_full_id(const tde_key_info *info, char out[TDE_KEY_ID_MAX]) {
  size_t nb = strnlen(info->base_id, sizeof info->base_id - 1);
  size_t nv = strnlen(info->version, sizeof info->version - 1);
  memcpy(out, info->base_id, nb);
  /* parse_id took both out of one id, so they fit; half a version would name
  ** another key, so none is better. */
  if (nv > 0 && nb + 1 + nv < TDE_KEY_ID_MAX) {
    out[nb] = '/';
    memcpy(out + nb + 1, info->version, nv);
    nb += 1 + nv;
  }
  out[nb] = 0;
}

void tde_request_clear(tde_request *req) {
  for (char **h = req->headers; h != NULL && *h != NULL; h++) tde_secret_free(*h);
  free(req->headers);
  free(req->url);
  tde_secret_free(req->body);
  memset(req, 0, sizeof *req);
}

static tde_class defect(const tde_provider *p, tde_status *st, const char *what) {
  return tde_fail(st, TDE_INTERNAL, "report this as a defect", "the key provider %s %s",
                  p != NULL && p->name != NULL ? p->name : "(unnamed)", what);
}

tde_class tde_provider_check(const tde_provider *p, tde_status *st) {
  if (p == NULL || p->name == NULL || p->name[0] == 0) return defect(p, st, "has no name");
  if (p->matches == NULL) return defect(p, st, "has no matches()");
  if (p->parse_id == NULL) return defect(p, st, "has no parse_id()");
  if (p->start == NULL) return defect(p, st, "has no start()");
  return TDE_OK;
}

/* ---- the end of the process ---- */

/* OpenSSL's own exit handler leaves nothing that an RSA operation could use, and crashes one
** that the host's handlers, which run later, still ask for. */
static atomic_int ending;
static pthread_once_t end_once = PTHREAD_ONCE_INIT;

static void at_exit(void) {
  atomic_store(&ending, 1);
}

static void watch_end(void) {
  (void)atexit(at_exit);
}

tde_class tde_providers_check(tde_status *st) {
  pthread_once(&end_once, watch_end);
  for (size_t i = 0; i < NPROVIDERS; i++) {
    tde_class rc = tde_provider_check(providers[i], st);
    if (rc != TDE_OK) return rc;
    for (size_t k = 0; k < i; k++) {
      if (strcmp(providers[i]->name, providers[k]->name) == 0) {
        return defect(providers[i], st, "is in the table twice");
      }
    }
  }
  return TDE_OK;
}

/* The operation's input, before anything is asked of a service. */
static tde_class input_check(const tde_op *op, tde_status *st) {
  int ok = op->kind == TDE_OP_GET || op->kind == TDE_OP_LATEST || op->kind == TDE_OP_VERSIONS ||
           (op->kind == TDE_OP_WRAP && op->dek != NULL) ||
           (op->kind == TDE_OP_UNWRAP && op->dek != NULL && op->nwrapped > 0 &&
            op->nwrapped <= TDE_WRAPPED_MAX);
  return ok ? TDE_OK : tde_fail(st, TDE_MISUSE, NULL, "a key operation lacks its input");
}

tde_class tde_opaque_thumbprint(const char *provider, const char *id, const char *version,
                                uint8_t out[TDE_THUMB_BYTES], tde_status *st) {
  char text[TDE_KEY_ID_MAX + 256];
  int n = snprintf(text, sizeof text, "%s\n%s\n%s\n", provider, id, version);
  if (n < 0 || (size_t)n >= sizeof text) {
    return tde_fail(st, TDE_INTERNAL, NULL, "the thumbprint's buffer is too small");
  }
  if (tde_sha256(text, (size_t)n, out) == TDE_OK) return TDE_OK;
  return tde_fail(st, TDE_CRYPTO, "check this process's OpenSSL configuration",
                  "the crypto library failed to hash a key id");
}

/* ---- lists of versions ---- */

tde_class tde_op_add_version(tde_op *op, const tde_key_info *info, tde_status *st) {
  size_t n = op->nversions;
  if (n == TDE_VERSIONS_MAX) {
    return tde_fail(st, TDE_UNSUPPORTED, "name the version in the key id",
                    "the key %.300s has more than %d versions", op->base_id, TDE_VERSIONS_MAX);
  }
  /* Room grows at the powers of two. */
  if ((n & (n - 1)) == 0) {
    tde_key_info *grown = realloc(op->versions, (n > 0 ? 2 * n : 1) * sizeof *grown);
    if (grown == NULL) return tde_nomem(st);
    op->versions = grown;
  }
  op->versions[op->nversions++] = *info;
  return TDE_OK;
}

static void drop_versions(tde_op *op) {
  free(op->versions);
  op->versions = NULL;
  op->nversions = 0;
}

/* Numbers by their value: a service's ids are all of one length. */
static int by_version(const void *a, const void *b) {
  const char *x = ((const tde_key_info *)a)->version, *y = ((const tde_key_info *)b)->version;
  size_t nx = strlen(x), ny = strlen(y);
  if (nx != ny) return nx < ny ? -1 : 1;
  return strcmp(x, y);
}

/* Newest first; the version decides between equals, so that every process
** comes to the same order. */
static int newest_first(const void *a, const void *b) {
  const tde_key_info *x = a, *y = b;
  if (x->created != y->created) return x->created > y->created ? -1 : 1;
  return by_version(y, x);
}

/* Sorts what a provider listed. A version twice means that pages overlap or
** come round again. */
static tde_class settle_versions(tde_op *op, tde_status *st) {
  if (op->nversions == 0) {
    return tde_fail(st, TDE_MISSING, NULL, "the key %.300s has no versions", op->base_id);
  }
  qsort(op->versions, op->nversions, sizeof *op->versions, by_version);
  for (size_t i = 1; i < op->nversions; i++) {
    if (by_version(&op->versions[i - 1], &op->versions[i]) == 0) {
      return tde_fail(st, TDE_CORRUPT, "try again; if it stays so, check the key service",
                      "the list of versions of the key %.300s names one twice", op->base_id);
    }
  }
  qsort(op->versions, op->nversions, sizeof *op->versions, newest_first);
  return TDE_OK;
}

/* What a provider says is done must be there. */
static tde_class output_check(const tde_provider *p, const tde_op *op, tde_status *st) {
  if (op->kind == TDE_OP_WRAP && (op->nwrapped == 0 || op->nwrapped > TDE_WRAPPED_MAX)) {
    return defect(p, st, "said that it wrapped, and left no wrapped key");
  }
  for (size_t i = 0; i < op->nversions; i++) {
    if (op->versions[i].base_id[0] == 0 || op->versions[i].version[0] == 0) {
      return defect(p, st, "listed a key version without its id");
    }
  }
  if (op->kind == TDE_OP_VERSIONS) return TDE_OK;
  if (op->kind != TDE_OP_UNWRAP && (op->info.base_id[0] == 0 || op->info.version[0] == 0)) {
    return defect(p, st, "did not say which key version it used");
  }
  return TDE_OK;
}

/* Sends req and lets the provider read the reply; req is consumed, next gets
** what the provider asks for then. */
static tde_step exchange(const tde_provider *p, tde_op *op, tde_request *req, tde_request *next,
                         tde_status *st) {
  tde_reply reply;
  tde_step step = TDE_STEP_FAILED;
  tde_http_send_fn send = tde_http_sender;
  memset(&reply, 0, sizeof reply);
  if (p->reply == NULL || req->method == NULL || req->url == NULL) {
    defect(p, st, "asks to send what cannot be sent");
  } else if (send == NULL) {
    tde_fail(st, TDE_UNSUPPORTED, "use a build with network support, or a key of another kind",
             "this build has no network transport");
  } else if (send(op, req, &reply, st) == TDE_OK) {
    step = p->reply(op, &reply, next, st);
  } else if (p->unanswered != NULL) {
    step = p->unanswered(op, next, st);
  }
  if (reply.release != NULL) reply.release(&reply);
  tde_request_clear(req);
  return step;
}

int64_t tde_boot_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Each exchange has its own deadline; together they have this one. */
int64_t tde_op_deadline(const struct tde_instance *inst) {
  int timeout = inst != NULL ? tde_instance_cloud(inst)->total_ms : TDE_REQUEST_MS;
  return tde_boot_ms() + 2 * (int64_t)timeout;
}

static int64_t deadline_of(const tde_op *op) {
  int64_t own = tde_op_deadline(op->instance);
  return op->until != 0 && op->until < own ? op->until : own;
}

/* start, then send and reply until the provider is done. */
static tde_class drive(const tde_provider *p, tde_op *op, tde_status *st) {
  tde_request req, next;
  int sent = 0;
  memset(&req, 0, sizeof req);
  tde_step step = p->start(op, &req, st);
  while (step == TDE_STEP_SEND && sent++ < TDE_OP_REQUESTS_MAX) {
    memset(&next, 0, sizeof next);
    /* What was recovered from must not colour a later failure. */
    tde_status_clear(st);
    step = exchange(p, op, &req, &next, st);
    req = next;
  }
  tde_request_clear(&req);
  if (step == TDE_STEP_SEND) {
    return tde_fail(st, TDE_CORRUPT, "check the key service",
                    "the key service kept asking for more after %d requests", TDE_OP_REQUESTS_MAX);
  }
  if (step == TDE_STEP_DONE) return output_check(p, op, st);
  return st->code != TDE_OK ? st->code : defect(p, st, "failed without saying why");
}

/* ---- how it went last ---- */

#define OUTCOMES 256

static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  uint64_t clock;
  struct {
    char key_id[TDE_KEY_ID_MAX];
    uint64_t used;
    tde_key_outcome o;
  } *at; /* OUTCOMES of them, made with the first */
} outcomes = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void raw_lock(void) {
  pthread_mutex_lock(&outcomes.mutex);
}

static void outcomes_unlock(void) {
  pthread_mutex_unlock(&outcomes.mutex);
}

/* A child forked while another thread holds the mutex would never get it. */
static void outcomes_once(void) {
  pthread_atfork(raw_lock, outcomes_unlock, outcomes_unlock);
}

static void outcomes_lock(void) {
  pthread_once(&outcomes.once, outcomes_once);
  raw_lock();
}

static void note_outcome(const tde_op *op, tde_class rc, const tde_status *st) {
  char full[TDE_KEY_ID_MAX];
  tde_key_info id;
  int at = 0;
  if (op->base_id[0] == 0) return;
  memcpy(id.base_id, op->base_id, sizeof id.base_id);
  memcpy(id.version, op->version, sizeof id.version);
  if (op->info.version[0] != 0) memcpy(id.version, op->info.version, sizeof id.version);
  tde_key_full_id(&id, full);
  outcomes_lock();
  if (outcomes.at == NULL) outcomes.at = calloc(OUTCOMES, sizeof *outcomes.at);
  for (int i = 0; outcomes.at != NULL && i < OUTCOMES; i++) {
    if (strcmp(outcomes.at[i].key_id, full) == 0) {
      at = i;
      break;
    }
    if (outcomes.at[i].used < outcomes.at[at].used) at = i;
  }
  if (outcomes.at != NULL) {
    tde_key_outcome *o = &outcomes.at[at].o;
    memcpy(outcomes.at[at].key_id, full, sizeof full);
    outcomes.at[at].used = ++outcomes.clock;
    o->code = rc;
    o->at = (int64_t)time(NULL);
    o->http_status = st->http_status;
    snprintf(o->message, sizeof o->message, "%.255s", rc != TDE_OK ? st->message : "");
    tde_clean_line(o->message);
  }
  outcomes_unlock();
}

/* Is a kept one of this key, or, where no version is named, of any of its versions? */
static int is_outcome_of(const char *kept, const char *full, int versioned) {
  size_t n = strlen(full);
  return strncmp(kept, full, n) == 0 && (kept[n] == 0 || (!versioned && kept[n] == '/'));
}

int tde_provider_outcome(const char *key_id, tde_key_outcome *out) {
  tde_key_info id;
  char full[TDE_KEY_ID_MAX];
  uint64_t newest = 0;
  split_id(key_id, id.base_id, id.version);
  tde_key_full_id(&id, full);
  outcomes_lock();
  for (int i = 0; outcomes.at != NULL && i < OUTCOMES; i++) {
    if (outcomes.at[i].used <= newest ||
        !is_outcome_of(outcomes.at[i].key_id, full, id.version[0] != 0)) {
      continue;
    }
    *out = outcomes.at[i].o;
    newest = outcomes.at[i].used;
  }
  outcomes_unlock();
  return newest > 0;
}

/* ---- an operation ---- */

static const char *default_remedy(tde_class code) {
  switch (code) {
    case TDE_UNREACHABLE: return "check the network and the key service, then try again";
    case TDE_THROTTLED: return "wait, then try again";
    case TDE_UNAUTHENTICATED: return "check the identity and its secret";
    case TDE_DENIED: return "grant the identity get, wrap and unwrap on the key";
    case TDE_DISABLED: return "enable the key version";
    case TDE_MISSING: return "restore the key, or correct its id";
    case TDE_WRONG_KEY: return "use the key that wrapped this database's DEK";
    case TDE_CORRUPT: return "restore the database from a backup";
    case TDE_NOMEM: return "free memory, then try again";
    case TDE_IO: return "check the disk and the file system's permissions";
    default: return "correct the key id or the instance's configuration";
  }
}

tde_class tde_provider_run_with(const tde_provider *p, tde_op *op, const char *key_id,
                                tde_status *st) {
  tde_status own;
  if (st == NULL) st = &own;
  tde_status_clear(st);
  if (atomic_load(&ending)) {
    return tde_fail(st, TDE_UNREACHABLE, "open and close databases before exit handlers run",
                    "the process is ending: no key can be had any more");
  }
  memset(&op->info, 0, sizeof op->info);
  op->state = NULL;
  op->versions = NULL;
  op->nversions = 0;
  op->deadline = deadline_of(op);
  tde_class rc = key_id_check(key_id, st);
  if (rc == TDE_OK) rc = p->parse_id(key_id, op->base_id, op->version, st);
  if (rc == TDE_OK) rc = input_check(op, st);
  if (rc == TDE_OK) rc = drive(p, op, st);
  if (rc == TDE_OK && op->kind == TDE_OP_VERSIONS) rc = settle_versions(op, st);
  if (p->finish != NULL) p->finish(op);
  op->state = NULL;
  /* A list is not about one version, and who gave up waiting learned nothing. */
  if (op->kind != TDE_OP_VERSIONS && rc != TDE_BUSY) note_outcome(op, rc, st);
  if (rc == TDE_OK) {
    /* A try that the provider recovered from is no result. */
    tde_status_clear(st);
    return TDE_OK;
  }
  if (op->kind == TDE_OP_UNWRAP && op->dek != NULL) tde_wipe(op->dek, TDE_KEY_BYTES);
  if (op->kind == TDE_OP_WRAP) op->nwrapped = 0;
  drop_versions(op);
  if (st->key_id[0] == 0 && key_id != NULL) {
    size_t n = strnlen(key_id, sizeof st->key_id - 1);
    memcpy(st->key_id, key_id, n);
    st->key_id[n] = 0;
  }
  if (st->remedy[0] == 0) {
    const char *remedy = default_remedy(rc);
    memcpy(st->remedy, remedy, strlen(remedy) + 1);
  }
  return rc;
}

tde_class tde_provider_run(tde_op *op, const char *key_id, tde_status *st) {
  tde_status own;
  if (st == NULL) st = &own;
  tde_status_clear(st);
  op->versions = NULL;
  op->nversions = 0;
  const tde_provider *p = tde_provider_find(key_id, st);
  if (p != NULL) return tde_provider_run_with(p, op, key_id, st);
  if (op->kind == TDE_OP_UNWRAP && op->dek != NULL) tde_wipe(op->dek, TDE_KEY_BYTES);
  return st->code;
}

tde_class tde_provider_get(const struct tde_instance *inst, const char *key_id,
                           const char *identity, const char *federated_client_id,
                           tde_key_info *info, tde_status *st) {
  tde_op op;
  memset(&op, 0, sizeof op);
  op.kind = TDE_OP_GET;
  op.instance = inst;
  op.identity = identity;
  op.federated_client_id = federated_client_id;
  tde_class rc = tde_provider_run(&op, key_id, st);
  *info = op.info;
  return rc;
}
